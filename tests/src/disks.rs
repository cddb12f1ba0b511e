//! Block devices to protect.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::leftovers::{Resource, Undo, backing_of};
use crate::process::output_of;

/// The blkio controller of cgroup v1, which alone can throttle one device's writes here.
const BLKIO: &str = "/sys/fs/cgroup/blkio";

/// A loop device over a file or another block device; detached when dropped.
#[derive(Debug)]
pub struct LoopDisk {
    device: PathBuf,
    backing: PathBuf,
    _record: Resource,
}

impl LoopDisk {
    /// A disk of zeroes over a new sparse file.
    ///
    /// # Errors
    /// When the file or the loop device cannot be made.
    pub fn create(backing: &Path, size_bytes: u64) -> Result<Self> {
        File::create_new(backing)
            .and_then(|file| file.set_len(size_bytes))
            .with_context(|| format!("create {}", backing.display()))?;
        Self::attach(backing, &[])
    }

    /// A loop device over what exists; `options` are those of `losetup`.
    ///
    /// # Errors
    /// When the loop device cannot be made.
    pub fn attach(backing: &Path, options: &[&str]) -> Result<Self> {
        let backing = backing.canonicalize()?;
        let found = output_of(Command::new("losetup").args(["-f", "--show"]).args(options).arg(&backing))?;
        let device = PathBuf::from(found.trim());
        let record = Resource::register(Undo::Loop { device: device.clone(), backing: backing.clone() })?;
        ensure!(backing_of(&device).as_deref() == Some(backing.as_path()), "{} went away", device.display());
        let disk = Self { device, backing, _record: record };
        disk.complete_on("0").context("say where completions are handled")?;
        Ok(disk)
    }

    /// Where completions are handled: 0 by the worker that has done the write, 1 (the kernel's own value) near the processor
    /// that submitted, mostly by an interrupt of whatever runs there. A kernel that shows what interrupts its first process
    /// to no program gives gaps every second with the latter, which say nothing of what is tested.
    fn complete_on(&self, affinity: &str) -> Result<()> {
        let name = self.device.file_name().context("a device has a name")?;
        Ok(fs::write(Path::new("/sys/block").join(name).join("queue/rq_affinity"), affinity)?)
    }

    /// `/dev/loopN`.
    #[must_use]
    pub fn device(&self) -> &Path {
        &self.device
    }

    /// What is below it.
    #[must_use]
    pub fn backing(&self) -> &Path {
        &self.backing
    }

    /// Major and minor number, as in sysfs.
    ///
    /// # Errors
    /// When the device is gone.
    pub fn number(&self) -> Result<String> {
        let name = self.device.file_name().context("a device has a name")?;
        let number = fs::read_to_string(Path::new("/sys/block").join(name).join("dev"))?;
        Ok(number.trim().to_owned())
    }
}

/// A disk whose writes are slow and whose reads are not: a write is issued, and for a while reads return the old
/// sector. A loop device with direct I/O hands each request on under the control group of the process that made it;
/// the writes of threads that [`SlowDisk::enter`] put into its group are throttled one device further down, below the
/// tap. Seen: 58,734 of 59,798 reads were older than the last write issued.
#[derive(Debug)]
pub struct SlowDisk {
    upper: LoopDisk,
    cgroup: Throttle,
    // Dropped last: the upper device stands on it.
    lower: LoopDisk,
}

impl SlowDisk {
    /// A disk of zeroes whose writes from inside the group complete at `writes_per_second`.
    ///
    /// # Errors
    /// When there is no cgroup v1 blkio controller.
    pub fn create(backing: &Path, size_bytes: u64, writes_per_second: u64) -> Result<Self> {
        let lower = LoopDisk::create(backing, size_bytes)?;
        let upper = LoopDisk::attach(lower.device(), &["--direct-io=on"])?;
        let cgroup = Throttle::create(&lower, writes_per_second)?;
        Ok(Self { upper, cgroup, lower })
    }

    /// The disk to protect.
    #[must_use]
    pub fn device(&self) -> &Path {
        self.upper.device()
    }

    /// The disk below, where a write arrives late.
    #[must_use]
    pub fn lower(&self) -> &Path {
        self.lower.device()
    }

    /// Puts the calling thread into the throttled group until the guard is dropped. Threads it starts meanwhile are
    /// in the group too and stay there.
    ///
    /// # Errors
    /// When the group does not take it.
    pub fn enter(&self) -> Result<Entered> {
        let thread = nix::unistd::gettid().to_string();
        fs::write(self.cgroup.path.join("tasks"), &thread).context("enter the throttled group")?;
        Ok(Entered { thread })
    }

    /// Why such a disk cannot be made on this machine; `None` when it can.
    #[must_use]
    pub fn unavailable() -> Option<String> {
        let file = Path::new(BLKIO).join("blkio.throttle.write_iops_device");
        (!file.exists()).then(|| format!("{} is missing: cgroup v1 blkio is not mounted", file.display()))
    }
}

/// While it lives its thread is in the throttled group.
#[derive(Debug)]
pub struct Entered {
    thread: String,
}

impl Drop for Entered {
    fn drop(&mut self) {
        let _ = fs::write(Path::new(BLKIO).join("tasks"), &self.thread);
    }
}

#[derive(Debug)]
struct Throttle {
    path: PathBuf,
    _record: Resource,
}

impl Throttle {
    fn create(disk: &LoopDisk, writes_per_second: u64) -> Result<Self> {
        let name = disk.device().file_name().context("a device has a name")?.to_string_lossy();
        let path = Path::new(BLKIO).join(format!("tidemark-{}-{name}", std::process::id()));
        let record = Resource::register(Undo::Cgroup(path.clone()))?;
        fs::create_dir(&path).with_context(|| format!("create {}", path.display()))?;
        let limit = format!("{} {writes_per_second}", disk.number()?);
        fs::write(path.join("blkio.throttle.write_iops_device"), limit).context("set the write limit")?;
        Ok(Self { path, _record: record })
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        // The device is used again by others, with what is set here.
        let _ = self.complete_on("1");
    }
}

/// A mounted file system, unmounted when dropped.
#[derive(Debug)]
pub struct Mounted {
    path: PathBuf,
    _record: Resource,
}

impl Mounted {
    /// Mounts `device` at the new folder `path` with `mount -o OPTIONS`.
    ///
    /// # Errors
    /// As `mount(8)`.
    pub fn mount(device: &Path, path: &Path, options: &str) -> Result<Self> {
        fs::create_dir_all(path)?;
        let record = Resource::register(Undo::Mount(path.to_owned()))?;
        output_of(Command::new("mount").args(["-o", options]).arg(device).arg(path))?;
        Ok(Self { path: path.to_owned(), _record: record })
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// The whole content of a disk, read around the page cache.
///
/// # Errors
/// When it cannot be read.
pub fn read_direct(device: &Path) -> Result<Vec<u8>> {
    use std::io::{Read, Seek, SeekFrom};
    use std::os::unix::fs::OpenOptionsExt;
    const CHUNK_BYTES: usize = 1 << 20;
    let mut file = File::options().read(true).custom_flags(libc::O_DIRECT).open(device)?;
    let size = usize::try_from(file.seek(SeekFrom::End(0))?)?;
    file.rewind()?;
    let mut buffer = crate::stamp::AlignedBuffer::new(CHUNK_BYTES);
    let mut content = Vec::with_capacity(size);
    while content.len() < size {
        let wanted = CHUNK_BYTES.min(size - content.len());
        let read = file.read(&mut buffer.slice_mut()[..wanted])?;
        ensure!(read > 0, "{} ended early", device.display());
        content.extend_from_slice(&buffer.slice_mut()[..read]);
    }
    Ok(content)
}
