//! The block device that gets the disk.
//!
//! Its first megabyte is written last, after everything else is durable. Until then the first sector says that the
//! restore is incomplete, and no partition table or file system can be found in it.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Zeroes are written by the device itself (`BLKZEROOUT`) where it can; otherwise so many at once.
const ZEROES_BYTES: usize = 64 << 10;

mod ioctls {
    nix::ioctl_read!(device_bytes, 0x12, 114, u64);
    nix::ioctl_write_ptr_bad!(zero_out, nix::request_code_none!(0x12, 127), [u64; 2]);
    nix::ioctl_none!(flush_buffers, 0x12, 97);
    nix::ioctl_none!(reread_partitions, 0x12, 95);
}

/// The disk cannot be used, or failed. The text says what to do.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct TargetError(String);

impl TargetError {
    fn io(doing: &str, path: &Path, error: &io::Error) -> Self {
        Self(format!("cannot {doing} {}: {error}", path.display()))
    }
}

/// What a restore writes to.
pub(super) trait Target {
    /// Path, for people.
    fn path(&self) -> &Path;

    /// Reads what the target has.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// Writes data; durable after [`Target::sync`].
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()>;

    /// Writes zeroes; durable after [`Target::sync`].
    fn write_zeroes(&self, offset: u64, bytes: u64) -> io::Result<()>;

    /// Makes everything durable.
    fn sync(&self) -> io::Result<()>;
}

/// A block device that nobody else uses.
#[derive(Debug)]
pub(super) struct DeviceTarget {
    path: PathBuf,
    file: File,
    size_bytes: u64,
}

impl DeviceTarget {
    /// Takes the device for itself, untouched. One that is mounted, swapped to or part of another device is refused.
    pub(super) fn open(path: &Path) -> Result<Self, TargetError> {
        let shown = path.display();
        let is_device = std::fs::metadata(path)
            .map_err(|error| TargetError::io("use", path, &error))?
            .file_type()
            .is_block_device();
        if !is_device {
            return Err(TargetError(format!(
                "{shown} is no block device: name a disk, or restore to a file with `tidemark recover`"
            )));
        }
        let file = File::options().read(true).write(true).custom_flags(libc::O_EXCL).open(path);
        let file = file.map_err(|error| match error.raw_os_error() {
            Some(libc::EBUSY) => TargetError(format!(
                "{shown} is in use: boot from something else, unmount it, end whatever else uses it (see lsblk {shown})"
            )),
            Some(libc::EROFS | libc::EPERM) => TargetError(format!("{shown} is read-only: name another disk")),
            Some(libc::EACCES) => TargetError(format!("no permission to write {shown}: run as root")),
            _ => TargetError::io("open", path, &error),
        })?;
        let mut size_bytes = 0;
        // SAFETY: the file is an open block device and the pointer is valid for the u64 that BLKGETSIZE64 stores.
        unsafe { ioctls::device_bytes(file.as_raw_fd(), &raw mut size_bytes) }
            .map_err(|error| TargetError::io("look at", path, &error.into()))?;
        Ok(Self { path: path.to_owned(), file, size_bytes })
    }

    /// Whether a disk of this size fits; returns the bytes beyond it.
    pub(super) fn check_room(&self, disk_bytes: u64) -> Result<u64, TargetError> {
        self.size_bytes.checked_sub(disk_bytes).ok_or_else(|| {
            TargetError(format!(
                "{} has {} bytes, the disk had {disk_bytes} at that point: name a disk that is as large",
                self.path.display(),
                self.size_bytes
            ))
        })
    }

    /// What is read from now on comes from the disk.
    pub(super) fn forget_caches(&mut self) -> Result<(), TargetError> {
        // SAFETY: the file is an open block device; BLKFLSBUF takes no argument.
        unsafe { ioctls::flush_buffers(self.file.as_raw_fd()) }
            .map_err(|error| TargetError::io("read again from", &self.path, &error.into()))?;
        Ok(())
    }

    /// Has the kernel look for partitions.
    pub(super) fn announce(&self) {
        // SAFETY: the file is an open block device; BLKRRPART takes no argument. Devices without partitions refuse it,
        // and nothing depends on the answer.
        let _ = unsafe { ioctls::reread_partitions(self.file.as_raw_fd()) };
    }
}

impl Target for DeviceTarget {
    fn path(&self) -> &Path {
        &self.path
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write_all_at(data, offset)
    }

    fn write_zeroes(&self, offset: u64, bytes: u64) -> io::Result<()> {
        let range = [offset, bytes];
        // SAFETY: the file is an open block device and BLKZEROOUT reads the two u64 of the range.
        match unsafe { ioctls::zero_out(self.file.as_raw_fd(), &raw const range) } {
            Ok(_) => Ok(()),
            // It does not do so itself, or the range does not lie on its blocks.
            Err(nix::errno::Errno::EOPNOTSUPP | nix::errno::Errno::EINVAL) => {
                let (mut at, end) = (offset, offset.saturating_add(bytes));
                while at < end {
                    let now = usize::try_from(end - at).unwrap_or(usize::MAX).min(ZEROES_BYTES);
                    self.file.write_all_at(&vec![0; now], at)?;
                    at += now as u64;
                }
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_all()
    }
}

/// What went wrong with a target.
pub(super) fn failed(doing: &str, target: &impl Target, error: &io::Error) -> TargetError {
    TargetError::io(doing, target.path(), error)
}
