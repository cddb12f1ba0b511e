//! A whole Debian with systemd on a disk of its own, its kernel started from that disk's `/boot`: for packages, units,
//! the initramfs and reboots. One image has both kernel lines.
//!
//! ```no_run
//! use tidemark_tests::guest::System;
//! let mut system = System::builder().disk("data", 64 << 20).boot()?;
//! assert!(system.sh("systemctl is-system-running --wait")?.contains("running"));
//! system.reboot()?;
//! # anyhow::Ok(())
//! ```

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::control::{Control, Outcome};
use super::kernel::Kernel;
use crate::process::{Daemon, output_of};

/// The distribution, and its packages beside the essential ones. The kernel that its package manager knows of is the stock
/// one of that release (6.1); that of 6.12 is beside it, and its initramfs stays as it is made here.
const SUITE: &str = "bookworm";
const PACKAGES: &str =
    "systemd,systemd-sysv,udev,kmod,initramfs-tools,e2fsprogs,lvm2,dbus,linux-image-cloud-amd64";
/// Bytes of the root disk, a file system without a partition table: the system takes two thirds.
const ROOT_BYTES: u64 = 768 << 20;
/// A boot takes 10 s on an idle machine, and minutes where a dozen compilers run beside it.
const BOOT_TIMEOUT: Duration = Duration::from_secs(600);
/// Where the kernel lies that is not the distribution's own: rebuilding each initramfs in `/boot` takes minutes in emulation.
const APART: &str = "boot/apart";
/// What the recipe below makes; another number makes everybody build anew.
const RECIPE: u32 = 3;

/// Commands come over the second serial line, as in [`super::Initramfs`].
const CONTROL: &str = r#"#!/bin/sh
stty -F /dev/ttyS1 raw -echo
exec </dev/ttyS1 >/dev/ttyS1 2>/dev/console
echo "@ready"
while read -r id script; do
    echo "$script" | base64 -d >/run/control-script
    ( . /run/control-script ) </dev/null >/run/control-output 2>&1
    status=$?
    echo "@begin $id"
    base64 /run/control-output
    echo "@end $id $status"
done
"#;

/// Files of the image.
const FILES: [(&str, &str); 9] = [
    ("etc/hostname", "system\n"),
    ("etc/machine-id", "5a4f0a0e6f4b4d7d9d2f0c1b2a394857\n"),
    ("etc/fstab", "/dev/vda / ext4 errors=remount-ro 0 0\n"),
    (
        "etc/systemd/network/80-eth.network",
        "[Match]\nName=e*\n[Network]\nAddress=10.0.2.15/24\nGateway=10.0.2.2\n",
    ),
    // Small and quick to make in emulation; a stock configuration differs in the number of drivers only.
    ("etc/initramfs-tools/conf.d/guest", "MODULES=list\nCOMPRESS=gzip\nCOMPRESSLEVEL=1\n"),
    ("etc/initramfs-tools/modules", "virtio_pci\nvirtio_blk\next4\n"),
    ("usr/local/sbin/guest-control", CONTROL),
    (
        "etc/systemd/system/guest-control.service",
        "[Unit]\nAfter=multi-user.target\n[Service]\nExecStart=/usr/local/sbin/guest-control\n\
         [Install]\nWantedBy=default.target\n",
    ),
    ("etc/systemd/journald.conf.d/guest.conf", "[Journal]\nStorage=persistent\n"),
];

/// Run inside the image at the end of its making.
const FINISH: &str = "systemctl enable -q guest-control.service systemd-networkd.service && \
     systemctl mask -q serial-getty@ttyS0.service getty@tty1.service apt-daily.timer apt-daily-upgrade.timer \
     dpkg-db-backup.timer e2scrub_all.timer systemd-timesyncd.service && update-initramfs -u";

/// Why such a system cannot run on this machine; `None` when it can.
#[must_use]
pub fn system_unavailable() -> Option<String> {
    if let Some(reason) = super::unavailable() {
        return Some(reason);
    }
    for (program, package) in
        [("debootstrap", "debootstrap"), ("mkfs.ext4", "e2fsprogs"), ("debugfs", "e2fsprogs")]
    {
        if super::host_program(program).is_err() {
            return Some(format!("{program} is missing (package {package})"));
        }
    }
    None
}

/// A built root disk, never changed: a system gets a copy.
#[derive(Debug, Clone)]
struct Image {
    disk: PathBuf,
    /// The kernels' releases, as in the names in `/boot`.
    releases: Vec<String>,
}

impl Image {
    /// From the cache below the build folder, or made.
    fn cached() -> Result<Self> {
        let this = std::env::current_exe()?;
        let target = this.ancestors().skip(1).find(|folder| folder.join("CACHEDIR.TAG").exists());
        let cache = target.context("a test lies in the build folder")?.join("guest-images");
        fs::create_dir_all(&cache)?;
        // Several test processes may come here at once.
        let lock = fs::File::create(cache.join("lock"))?;
        lock.lock().context("lock the cache of images")?;
        let recipe = format!("{SUITE} {PACKAGES} {ROOT_BYTES} {RECIPE} {FILES:?} {FINISH}");
        let home = cache.join(&blake3::hash(recipe.as_bytes()).to_hex()[..16]);
        if !home.join("releases").exists() {
            // What another recipe made is of no use any more.
            for entry in fs::read_dir(&cache)? {
                let path = entry?.path();
                if path.is_dir() {
                    fs::remove_dir_all(path)?;
                }
            }
            fs::create_dir_all(&home)?;
            build(&home)?;
        }
        let releases = fs::read_to_string(home.join("releases"))?.lines().map(str::to_owned).collect();
        Ok(Self { disk: home.join("root.raw"), releases })
    }
}

fn build(home: &Path) -> Result<()> {
    let root = home.join("root");
    output_of(
        Command::new("debootstrap")
            .args(["--variant=minbase", &format!("--include={PACKAGES}"), SUITE])
            .arg(&root)
            .env("DEBIAN_FRONTEND", "noninteractive"),
    )
    .context("make a Debian with debootstrap")?;
    for (path, content) in FILES {
        let file = root.join(path);
        fs::create_dir_all(file.parent().context("a file lies in a folder")?)?;
        fs::write(&file, content)?;
    }
    fs::set_permissions(root.join("usr/local/sbin/guest-control"), fs::Permissions::from_mode(0o755))?;
    add_kernel(&root, Kernel::V6_12)?;
    output_of(Command::new("chroot").arg(&root).args(["/bin/sh", "-c", FINISH]))?;
    for folder in ["usr/share/doc", "usr/share/locale", "usr/share/man", "var/cache/apt", "var/lib/apt/lists"]
    {
        let folder = root.join(folder);
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
            fs::create_dir_all(&folder)?;
        }
    }
    let releases: Vec<String> = fs::read_dir(root.join("lib/modules"))?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_>>()?;
    let disk = home.join("root.raw");
    fs::File::create(&disk)?.set_len(ROOT_BYTES)?;
    output_of(
        Command::new(super::host_program("mkfs.ext4")?)
            .args(["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", "-d"])
            .arg(&root)
            .arg(&disk),
    )?;
    fs::remove_dir_all(&root)?;
    fs::write(home.join("releases"), releases.join("\n"))?;
    Ok(())
}

/// Puts the files of a kernel line into the root, apart from the distribution's own, and makes its initramfs.
fn add_kernel(root: &Path, kernel: Kernel) -> Result<()> {
    let files = kernel.files()?;
    let release = &files.release;
    output_of(
        Command::new("cp")
            .arg("-a")
            .arg(files.root.join("lib/modules").join(release))
            .arg(root.join("lib/modules")),
    )?;
    let boot = root.join(APART);
    fs::create_dir_all(&boot)?;
    fs::copy(&files.image, boot.join(format!("vmlinuz-{release}")))?;
    let config = format!("config-{release}");
    fs::copy(files.root.join("boot").join(&config), root.join("boot").join(config))?;
    let script = format!("mkinitramfs -o /{APART}/initrd.img-{release} {release}");
    output_of(Command::new("chroot").arg(root).args(["/bin/sh", "-c", &script]))?;
    Ok(())
}

/// What to boot.
#[derive(Debug)]
pub struct SystemBuilder {
    disks: Vec<(String, u64)>,
    parcel: Option<PathBuf>,
    memory_mib: u32,
    kernel: Kernel,
}

impl SystemBuilder {
    /// Adds a virtio disk of zeroes; in the guest it is `/dev/vdb` and so on, in the order of adding, and `name` is its
    /// serial number.
    #[must_use]
    pub fn disk(mut self, name: &str, size_bytes: u64) -> Self {
        self.disks.push((name.to_owned(), size_bytes));
        self
    }

    /// The files of a folder, in the guest below `/run/parcel`, read-only.
    #[must_use]
    pub fn parcel(mut self, folder: &Path) -> Self {
        self.parcel = Some(folder.to_owned());
        self
    }

    /// The kernel line, in place of 6.1.
    #[must_use]
    pub fn kernel(mut self, kernel: Kernel) -> Self {
        self.kernel = kernel;
        self
    }

    /// Makes the image where there is none yet, boots a copy of it and waits until it takes commands.
    ///
    /// # Errors
    /// When the image cannot be made or does not come up.
    pub fn boot(self) -> Result<System> {
        if let Some(reason) = system_unavailable() {
            bail!("{reason}");
        }
        let image = Image::cached()?;
        let folder = tempfile::Builder::new().prefix("tidemark-guest-").tempdir()?;
        let mut disks = vec![("root".to_owned(), folder.path().join("root.raw"))];
        output_of(
            Command::new("cp").args(["--sparse=always"]).arg(&image.disk).arg(folder.path().join("root.raw")),
        )?;
        for (name, size_bytes) in &self.disks {
            let path = folder.path().join(format!("{name}.raw"));
            fs::File::create(&path)?.set_len(*size_bytes)?;
            disks.push((name.clone(), path));
        }
        if let Some(parcel) = &self.parcel {
            let path = folder.path().join("parcel.raw");
            fs::File::create(&path)?.set_len(256 << 20)?;
            output_of(
                Command::new(super::host_program("mkfs.ext4")?)
                    .args(["-q", "-F", "-d"])
                    .arg(parcel)
                    .arg(&path),
            )?;
            disks.push(("parcel".to_owned(), path));
        }
        let mut system = System {
            release: image
                .releases
                .iter()
                .find(|release| release.starts_with(self.kernel.release_prefix()))
                .context("the image has no such kernel")?
                .clone(),
            apart: self.kernel != Kernel::V6_1,
            disks,
            memory_mib: self.memory_mib,
            parcel: self.parcel.is_some(),
            running: None,
        };
        system.start(folder)?;
        Ok(system)
    }
}

/// What runs while the system is up. The process goes before its files.
#[derive(Debug)]
struct Running {
    daemon: Daemon,
    control: Control,
    console: PathBuf,
    folder: tempfile::TempDir,
}

impl Running {
    fn console(&self) -> String {
        fs::read_to_string(&self.console).unwrap_or_default()
    }
}

/// A running Debian; dropping it cuts its power.
#[derive(Debug)]
pub struct System {
    /// The kernel's release, as in the names in its folder.
    release: String,
    /// Its files lie in [`APART`].
    apart: bool,
    /// Name and file, in the guest's order.
    disks: Vec<(String, PathBuf)>,
    memory_mib: u32,
    parcel: bool,
    running: Option<Running>,
}

impl System {
    /// Starts describing one.
    #[must_use]
    pub fn builder() -> SystemBuilder {
        SystemBuilder { disks: Vec::new(), parcel: None, memory_mib: 1024, kernel: Kernel::V6_1 }
    }

    fn running(&mut self) -> Result<&mut Running> {
        self.running.as_mut().context("the system is down")
    }

    /// Runs a shell script.
    ///
    /// # Errors
    /// As [`Guest::run`](super::Guest::run).
    pub fn run(&mut self, script: &str, timeout: Duration) -> Result<Outcome> {
        self.running()?.control.run(script, timeout)
    }

    /// Runs a script that must succeed and returns what it said.
    ///
    /// # Errors
    /// As [`Guest::sh`](super::Guest::sh).
    pub fn sh(&mut self, script: &str) -> Result<String> {
        self.running()?.control.sh(script)
    }

    /// The host's file behind a disk.
    ///
    /// # Errors
    /// When there is no disk of that name.
    pub fn disk(&self, name: &str) -> Result<&Path> {
        let found = self.disks.iter().find(|(known, _)| known == name);
        found.map(|(_, path)| path.as_path()).with_context(|| format!("no disk {name}"))
    }

    /// The console's output since the last start.
    #[must_use]
    pub fn console(&self) -> String {
        self.running.as_ref().map(Running::console).unwrap_or_default()
    }

    /// Reboots in order, with the kernel and the initramfs that `/boot` then has.
    ///
    /// # Errors
    /// When it does not go down, or does not come up.
    pub fn reboot(&mut self) -> Result<()> {
        let folder = self.shut_down("systemd-run --quiet --on-active=1 systemctl reboot")?;
        self.start(folder)
    }

    /// Shuts down in order. The disks' files stay until the returned folder is dropped.
    ///
    /// # Errors
    /// When it does not go down.
    pub fn power_off(mut self) -> Result<tempfile::TempDir> {
        self.shut_down("systemd-run --quiet --on-active=1 systemctl poweroff")
    }

    fn shut_down(&mut self, script: &str) -> Result<tempfile::TempDir> {
        let mut running = self.running.take().context("the system is down")?;
        running.control.sh(script)?;
        running.daemon.wait(Duration::from_secs(120)).with_context(|| running.console())?;
        Ok(running.folder)
    }

    /// Cuts the power and starts again.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn power_cut(&mut self) -> Result<()> {
        let Running { daemon, folder, .. } = self.running.take().context("the system is down")?;
        drop(daemon);
        self.start(folder)
    }

    /// Takes kernel and initramfs out of the root disk, as a boot loader would.
    fn extract(&self, name: &str, folder: &Path) -> Result<PathBuf> {
        let to = folder.join(name);
        let boot = if self.apart { APART } else { "boot" };
        let request = format!("dump /{boot}/{name}-{} {}", self.release, to.display());
        output_of(
            Command::new(super::host_program("debugfs")?).args(["-R", &request]).arg(self.disk("root")?),
        )?;
        ensure!(to.metadata().is_ok_and(|file| file.len() > 0), "/{boot} has no {name}");
        Ok(to)
    }

    fn start(&mut self, folder: tempfile::TempDir) -> Result<()> {
        let kernel = self.extract("vmlinuz", folder.path())?;
        let initramfs = self.extract("initrd.img", folder.path())?;
        let control = folder.path().join("control");
        let console = folder.path().join("console");
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-accel", "tcg"])
            .args(["-machine", "pc", "-cpu", "max", "-smp", "2"])
            .args(["-uuid", "7d1dea2c-0000-4000-8000-00000000a002", "-m", &self.memory_mib.to_string()])
            .arg("-kernel")
            .arg(kernel)
            .arg("-initrd")
            .arg(initramfs)
            .args([
                "-append",
                "root=/dev/vda ro console=ttyS0 loglevel=6 panic=-1 net.ifnames=0 random.trust_cpu=on",
            ])
            .args(["-serial", &format!("file:{}", console.display())])
            .args(["-serial", &format!("unix:{},server=on,wait=off", control.display())])
            .args(["-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile="]);
        for (name, path) in &self.disks {
            qemu.args([
                "-drive",
                &format!(
                    "file={},format=raw,if=none,id={name},cache=writeback,discard=unmap",
                    path.display()
                ),
            ])
            .args(["-device", &format!("virtio-blk-pci,drive={name},serial={name}")]);
        }
        let mut daemon = Daemon::spawn("qemu", &mut qemu, &folder.path().join("qemu.log"))?;
        let control = Control::connect(&mut daemon, &control, &console, BOOT_TIMEOUT)?;
        let mut running = Running { daemon, control, console, folder };
        if self.parcel {
            let last = char::from(b'a' + u8::try_from(self.disks.len().saturating_sub(1)).unwrap_or(0));
            running
                .control
                .sh(&format!("mkdir -p /run/parcel && mount -o ro,noload /dev/vd{last} /run/parcel"))?;
        }
        self.running = Some(running);
        Ok(())
    }
}
