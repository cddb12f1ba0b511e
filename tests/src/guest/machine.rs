//! One virtual machine.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::prelude::BASE64_STANDARD as BASE64;

use super::initramfs::Initramfs;
use super::kernel::Kernel;
use crate::process::{Daemon, output_of, tail};

/// A boot takes 3 to 15 s in software emulation on a busy machine.
const BOOT_TIMEOUT: Duration = Duration::from_secs(180);
/// For commands without a timeout of their own.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(120);
/// Modules every guest gets: disks, network, loop devices.
const MODULES: [&str; 4] = ["virtio_pci", "virtio_blk", "virtio_net", "loop"];

/// Why guests cannot run on this machine; `None` when they can.
#[must_use]
pub fn unavailable() -> Option<String> {
    for (program, package) in [
        ("qemu-system-x86_64", "qemu-system-x86 and qemu-system-common"),
        ("cpio", "cpio"),
        ("depmod", "kmod"),
        ("modprobe", "kmod"),
        ("xz", "xz-utils"),
        ("dpkg-deb", "dpkg"),
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

/// What to boot.
#[derive(Debug)]
pub struct Builder {
    kernel: Kernel,
    disks: Vec<(String, u64)>,
    modules: Vec<String>,
    programs: Vec<PathBuf>,
    files: Vec<(PathBuf, String)>,
    command_line: String,
    memory_mib: u32,
    uuid: String,
    network: bool,
}

impl Builder {
    /// Adds a virtio disk of zeroes; in the guest it is `/dev/vda` and so on, in the order of adding, and `name` is its
    /// serial number.
    #[must_use]
    pub fn disk(mut self, name: &str, size_bytes: u64) -> Self {
        self.disks.push((name.to_owned(), size_bytes));
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

    /// Puts a file of the host into the guest.
    #[must_use]
    pub fn file(mut self, host: impl Into<PathBuf>, path: &str) -> Self {
        self.files.push((host.into(), path.to_owned()));
        self
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
        self.network = true;
        self
    }

    /// Boots and waits until the guest takes commands.
    ///
    /// # Errors
    /// When something is missing, or the guest does not come up; the message carries the end of its console.
    pub fn boot(self) -> Result<Guest> {
        if let Some(reason) = unavailable() {
            bail!("{reason}");
        }
        let kernel = self.kernel.files()?;
        let folder = tempfile::Builder::new().prefix("tidemark-guest-").tempdir()?;
        let root = folder.path().join("root");
        fs::create_dir(&root)?;
        let mut initramfs = Initramfs::new(&root)?;
        let network_modules = MODULES.iter().filter(|name| self.network || **name != "virtio_net");
        for module in network_modules.copied().chain(self.modules.iter().map(String::as_str)) {
            initramfs.module(&kernel, module)?;
        }
        for program in &self.programs {
            initramfs.program(program)?;
        }
        for (host, path) in &self.files {
            initramfs.file(host, path)?;
        }
        initramfs.pack(&folder.path().join("initramfs"))?;
        fs::remove_dir_all(&root)?;
        let mut disks = BTreeMap::new();
        for (name, size_bytes) in &self.disks {
            let path = folder.path().join(format!("{name}.raw"));
            fs::File::create(&path)?.set_len(*size_bytes)?;
            disks.insert(name.clone(), path);
        }
        let control = folder.path().join("control");
        let mut qemu = self.qemu(&kernel.image, folder.path(), &control);
        let console = folder.path().join("console");
        let daemon = Daemon::spawn("qemu", &mut qemu, &folder.path().join("qemu.log"))?;
        let mut guest = Guest { daemon, disks, console, control: None, next: 1, folder };
        guest.connect(&control, BOOT_TIMEOUT)?;
        Ok(guest)
    }

    fn qemu(&self, image: &Path, folder: &Path, control: &Path) -> Command {
        let mut qemu = Command::new("qemu-system-x86_64");
        let append =
            format!("console=ttyS0 loglevel=6 panic=-1 random.trust_cpu=on nokaslr=0{}", self.command_line);
        qemu.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-accel", "tcg"])
            .args(["-machine", "pc", "-cpu", "max", "-smp", "2", "-uuid", &self.uuid])
            .args(["-m", &self.memory_mib.to_string()])
            .arg("-kernel")
            .arg(image)
            .arg("-initrd")
            .arg(folder.join("initramfs"))
            .args(["-append", &append])
            .args(["-serial", &format!("file:{}", folder.join("console").display())])
            .args(["-serial", &format!("unix:{},server=on,wait=off", control.display())]);
        for (name, _) in &self.disks {
            let file = folder.join(format!("{name}.raw"));
            qemu.args([
                "-drive",
                &format!(
                    "file={},format=raw,if=none,id={name},cache=writeback,discard=unmap",
                    file.display()
                ),
            ])
            .args(["-device", &format!("virtio-blk-pci,drive={name},serial={name}")]);
        }
        if self.network {
            qemu.args(["-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile="]);
        }
        qemu
    }
}

/// A command's result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Exit status.
    pub status: i32,
    /// Standard output and error, in the order written.
    pub output: String,
}

/// A running guest; dropping it cuts its power.
#[derive(Debug)]
pub struct Guest {
    pub(super) daemon: Daemon,
    pub(super) disks: BTreeMap<String, PathBuf>,
    pub(super) console: PathBuf,
    pub(super) control: Option<(BufReader<UnixStream>, UnixStream)>,
    pub(super) next: u64,
    pub(super) folder: tempfile::TempDir,
}

impl Guest {
    /// Starts describing a guest.
    #[must_use]
    pub fn builder(kernel: Kernel) -> Builder {
        Builder {
            kernel,
            disks: Vec::new(),
            modules: Vec::new(),
            programs: Vec::new(),
            files: Vec::new(),
            command_line: String::new(),
            memory_mib: 768,
            uuid: "7d1dea2c-0000-4000-8000-00000000a001".to_owned(),
            network: false,
        }
    }

    /// Runs a shell script in the guest.
    ///
    /// # Errors
    /// When the guest dies or the script takes longer than `timeout`; a failing script is an [`Outcome`].
    pub fn run(&mut self, script: &str, timeout: Duration) -> Result<Outcome> {
        let id = self.next;
        self.next += 1;
        let encoded = BASE64.encode(script.as_bytes());
        let (_, writer) = self.control.as_mut().context("the guest is connected")?;
        writer.write_all(format!("{id} {encoded}\n").as_bytes()).context("send a command to the guest")?;
        let deadline = Instant::now() + timeout;
        let begin = format!("@begin {id}");
        let end = format!("@end {id} ");
        let mut body = String::new();
        let mut begun = false;
        loop {
            let line = self.read_line(deadline).with_context(|| format!("in the guest: {script}"))?;
            if line == begin {
                begun = true;
            } else if let Some(status) = line.strip_prefix(&end) {
                let output = String::from_utf8_lossy(&BASE64.decode(&body)?).into_owned();
                return Ok(Outcome { status: status.trim().parse()?, output });
            } else if begun {
                body.push_str(&line);
            }
        }
    }

    /// Runs a script that must succeed and returns what it said.
    ///
    /// # Errors
    /// As [`Guest::run`], and when it fails.
    pub fn sh(&mut self, script: &str) -> Result<String> {
        let outcome = self.run(script, COMMAND_TIMEOUT)?;
        ensure!(outcome.status == 0, "in the guest: {script}: status {}: {}", outcome.status, outcome.output);
        Ok(outcome.output)
    }

    /// The host's file behind a disk.
    ///
    /// # Errors
    /// When there is no disk of that name.
    pub fn disk(&self, name: &str) -> Result<&Path> {
        Ok(self.disks.get(name).with_context(|| format!("no disk {name}"))?)
    }

    /// The kernel's messages so far.
    #[must_use]
    pub fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.console).unwrap_or_default()).into_owned()
    }

    /// The folder of the guest's files, removed with it.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Cuts the power. The disks' files stay until the returned folder is dropped.
    ///
    /// # Errors
    /// When the guest had ended before.
    pub fn power_cut(self) -> Result<tempfile::TempDir> {
        self.daemon.kill()?;
        Ok(self.folder)
    }

    /// Shuts down in order.
    ///
    /// # Errors
    /// When the guest does not end.
    pub fn power_off(mut self) -> Result<tempfile::TempDir> {
        let (_, writer) = self.control.as_mut().context("the guest is connected")?;
        writer.write_all(format!("0 {}\n", BASE64.encode("sync; poweroff -f")).as_bytes())?;
        self.daemon.wait(Duration::from_secs(60))?;
        Ok(self.folder)
    }

    pub(super) fn connect(&mut self, control: &Path, timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout;
        let stream = loop {
            if let Some(status) = self.daemon.ended()? {
                bail!("qemu ended ({status}): {}", tail(self.daemon.log(), 5));
            }
            match UnixStream::connect(control) {
                Ok(stream) => break stream,
                Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(50)),
                Err(error) => return Err(error).context("connect to the guest's serial line"),
            }
        };
        self.control = Some((BufReader::new(stream.try_clone()?), stream));
        while self.read_line(deadline)? != "@ready" {}
        Ok(())
    }

    fn read_line(&mut self, deadline: Instant) -> Result<String> {
        let mut line = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let (reader, stream) = self.control.as_mut().context("the guest is connected")?;
            if left.is_zero() {
                bail!(
                    "the guest did not answer in time; its console ends with:\n{}",
                    tail(&self.console, 25)
                );
            }
            stream.set_read_timeout(Some(left.min(Duration::from_secs(1))))?;
            match reader.read_until(b'\n', &mut line) {
                Ok(0) => bail!("the guest is gone; its console ends with:\n{}", tail(&self.console, 25)),
                Ok(_) if line.ends_with(b"\n") => {
                    return Ok(String::from_utf8_lossy(&line).trim_end().to_owned());
                }
                Ok(_) => {}
                Err(error)
                    if matches!(
                        error.kind(),
                        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
                    ) => {}
                Err(error) => return Err(error).context("read from the guest"),
            }
        }
    }
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
