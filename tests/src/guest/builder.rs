//! What to boot.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::disk::Disk;
use super::initramfs::Initramfs;
use super::kernel::{Kernel, KernelFiles};
use super::machine::Machine;
use super::running::Guest;
use crate::process::output_of;

/// Modules every guest gets: disks, loop devices.
const MODULES: [&str; 3] = ["virtio_pci", "virtio_blk", "loop"];

/// The programs of LVM are one program under many names.
const LVM_NAMES: [&str; 14] = [
    "pvcreate", "pvs", "pvresize", "pvscan", "vgcreate", "vgchange", "vgs", "vgextend", "lvcreate",
    "lvchange", "lvs", "lvextend", "lvresize", "lvremove",
];

/// No udev runs in the guest: LVM makes and finds its devices by itself.
const LVM_CONFIGURATION: &str = r#"
devices { obtain_device_list_from_udev = 0 external_device_info_source = "none" use_devicesfile = 0 }
activation { udev_sync = 0 udev_rules = 0 verify_udev_operations = 1 monitoring = 0 }
global { use_lvmpolld = 0 }
backup { backup = 0 archive = 0 }
"#;

/// Why guests cannot run on this machine; `None` when they can.
#[must_use]
pub fn unavailable() -> Option<String> {
    for (program, package) in [
        ("qemu-system-x86_64", "qemu-system-x86 and qemu-system-common"),
        ("qemu-img", "qemu-utils"),
        ("cpio", "cpio"),
        ("depmod", "kmod"),
        ("modprobe", "kmod"),
        ("xz", "xz-utils"),
        ("dpkg-deb", "dpkg"),
        ("lvm", "lvm2"),
        ("dmsetup", "dmsetup"),
        ("mkfs.xfs", "xfsprogs"),
        ("mkfs.ext4", "e2fsprogs"),
    ] {
        let found = ["/usr/bin", "/usr/sbin", "/bin", "/sbin"]
            .iter()
            .any(|folder| Path::new(folder).join(program).exists());
        if !found {
            return Some(format!("{program} is missing (package {package})"));
        }
    }
    if !Path::new("/bin/busybox").exists() {
        return Some("/bin/busybox is missing (package busybox-static)".to_owned());
    }
    None
}

/// Programs that guests need beyond busybox are looked up in the usual folders.
///
/// # Errors
/// When the program is not installed.
pub fn host_program(name: &str) -> Result<PathBuf> {
    let path = output_of(
        Command::new("/bin/sh").args(["-c", &format!("PATH=$PATH:/sbin:/usr/sbin command -v {name}")]),
    )
    .with_context(|| format!("find {name}"))?;
    Ok(PathBuf::from(path.trim()))
}

/// What to boot. Nothing is made before [`Builder::build`] or [`Builder::boot`].
#[derive(Debug, Clone)]
pub struct Builder {
    pub(super) kernel: Kernel,
    pub(super) disks: Vec<Disk>,
    pub(super) command_line: String,
    pub(super) memory_mib: u32,
    pub(super) uuid: String,
    pub(super) network: bool,
    pub(super) scsi: bool,
    modules: Vec<String>,
    programs: Vec<PathBuf>,
    named_programs: Vec<String>,
    files: Vec<(PathBuf, String)>,
    texts: Vec<(String, String)>,
    links: Vec<(String, String)>,
    boot_scripts: usize,
    shutdown_scripts: usize,
}

impl Builder {
    pub(super) fn new(kernel: Kernel) -> Self {
        Self {
            kernel,
            disks: Vec::new(),
            command_line: String::new(),
            memory_mib: 768,
            uuid: "7d1dea2c-0000-4000-8000-00000000a001".to_owned(),
            network: false,
            scsi: false,
            modules: MODULES.map(str::to_owned).to_vec(),
            programs: Vec::new(),
            named_programs: Vec::new(),
            files: Vec::new(),
            texts: Vec::new(),
            links: Vec::new(),
            boot_scripts: 0,
            shutdown_scripts: 0,
        }
    }

    /// Adds a virtio-blk disk of zeroes; in the guest it is `/dev/vda` and so on, in the order of adding, and `name` is
    /// its serial number.
    #[must_use]
    pub fn disk(self, name: &str, size_bytes: u64) -> Self {
        self.attach(Disk::new(name, size_bytes))
    }

    /// Adds a disk.
    #[must_use]
    pub fn attach(mut self, disk: Disk) -> Self {
        if disk.bus == super::Bus::VirtioScsi {
            self = self.scsi();
        }
        self.disks.push(disk);
        self
    }

    /// Adds a virtio-scsi controller, so that such disks can be hot-added.
    #[must_use]
    pub fn scsi(mut self) -> Self {
        if !self.scsi {
            self.scsi = true;
            self = self.module("virtio_scsi").module("sd_mod");
        }
        self
    }

    /// Loads a module at boot.
    #[must_use]
    pub fn module(mut self, name: &str) -> Self {
        self.modules.push(name.to_owned());
        self
    }

    /// Puts a program of the host, with its libraries, into `/bin`.
    #[must_use]
    pub fn program(mut self, host: impl Into<PathBuf>) -> Self {
        self.programs.push(host.into());
        self
    }

    /// The same for programs that are installed on the host.
    #[must_use]
    pub fn programs(mut self, names: &[&str]) -> Self {
        self.named_programs.extend(names.iter().map(|name| (*name).to_owned()));
        self
    }

    /// Puts a file of the host into the guest.
    #[must_use]
    pub fn file(mut self, host: impl Into<PathBuf>, path: &str) -> Self {
        self.files.push((host.into(), path.to_owned()));
        self
    }

    /// Writes a file of the guest.
    #[must_use]
    pub fn text(mut self, path: &str, content: &str) -> Self {
        self.texts.push((path.to_owned(), content.to_owned()));
        self
    }

    /// Runs a shell script at every boot, after those given before, and before the guest takes commands. The boot fails
    /// when it does; its output goes to the console.
    #[must_use]
    pub fn at_boot(mut self, script: &str) -> Self {
        self.boot_scripts += 1;
        let path = format!("/etc/boot.d/{:02}", self.boot_scripts);
        self.text(&path, script)
    }

    /// Runs a shell script when the guest is switched off in order, after those given before; then every file system of
    /// a disk is unmounted.
    #[must_use]
    pub fn at_shutdown(mut self, script: &str) -> Self {
        self.shutdown_scripts += 1;
        let path = format!("/etc/shutdown.d/{:02}", self.shutdown_scripts);
        self.text(&path, script)
    }

    /// ext4 and XFS: modules, and the programs that make and check them. `mkfs.xfs` also makes small ones.
    #[must_use]
    pub fn file_systems(self) -> Self {
        let small_xfs = "#!/bin/sh\nTEST_DIR=/ TEST_DEV=/ QA_CHECK_FS=1 exec mkfs.xfs \"$@\"\n";
        // Nothing loads it on demand here.
        self.module("crc32c_generic")
            .module("ext4")
            .module("xfs")
            .text("/bin/mkfs.small-xfs", small_xfs)
            .programs(&["mkfs.ext4", "e2fsck", "tune2fs", "resize2fs", "mkfs.xfs", "xfs_repair", "xfs_io"])
    }

    /// LVM and device-mapper: modules and programs, set up for a machine without udev.
    #[must_use]
    pub fn lvm(mut self) -> Self {
        for name in LVM_NAMES {
            self.links.push(("lvm".to_owned(), format!("/bin/{name}")));
        }
        self.module("dm-mod").text("/etc/lvm/lvm.conf", LVM_CONFIGURATION).programs(&["lvm", "dmsetup"])
    }

    /// Adds words to the kernel's command line.
    #[must_use]
    pub fn command_line(mut self, words: &str) -> Self {
        self.command_line = format!("{} {words}", self.command_line);
        self
    }

    /// Main memory; 768 MiB unless told.
    #[must_use]
    pub fn memory_mib(mut self, memory_mib: u32) -> Self {
        self.memory_mib = memory_mib;
        self
    }

    /// The machine's DMI UUID.
    #[must_use]
    pub fn uuid(mut self, uuid: &str) -> Self {
        uuid.clone_into(&mut self.uuid);
        self
    }

    /// Adds a network card; the host's loopback is 10.0.2.2 there.
    #[must_use]
    pub fn network(mut self) -> Self {
        if !self.network {
            self.network = true;
            self = self.module("virtio_net");
        }
        self
    }

    /// A machine that is off.
    ///
    /// # Errors
    /// When something is missing.
    pub fn build(self) -> Result<Machine> {
        if let Some(reason) = unavailable() {
            bail!("{reason}");
        }
        Machine::new(self)
    }

    /// Boots and waits until the guest takes commands.
    ///
    /// # Errors
    /// When something is missing, or the guest does not come up; the message carries the end of its console.
    pub fn boot(self) -> Result<Guest> {
        self.build()?.boot()
    }

    /// Packs the guest's root for its kernel.
    pub(super) fn pack(&self, kernel: &KernelFiles, folder: &Path, archive: &Path) -> Result<()> {
        let root = folder.join("root");
        std::fs::create_dir(&root)?;
        let mut initramfs = Initramfs::new(&root)?;
        for module in &self.modules {
            initramfs.module(kernel, module)?;
        }
        for program in &self.programs {
            initramfs.program(program)?;
        }
        for name in &self.named_programs {
            // Busybox has poor relatives of some.
            let host = host_program(name)?;
            ensure!(host.is_absolute(), "{name} is not a program");
            initramfs.program(&host)?;
            let found = host.file_name().unwrap_or_default().to_string_lossy();
            if found != name.as_str() {
                initramfs.link(&found, &format!("/bin/{name}"))?;
            }
        }
        for (host, path) in &self.files {
            initramfs.file(host, path)?;
        }
        for (target, path) in &self.links {
            initramfs.link(target, path)?;
        }
        for (path, content) in &self.texts {
            initramfs.text(path, content)?;
        }
        initramfs.pack(archive)?;
        std::fs::remove_dir_all(&root)?;
        Ok(())
    }
}
