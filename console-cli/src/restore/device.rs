//! A restore onto a block device.
//!
//! The first megabyte is written last, after everything else is durable. Until then it says that the restore is
//! incomplete, and no partition table or file system can be found in it. An interrupted restore starts anew.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result, anyhow, bail};

use super::Target;
use super::direct::DirectFile;
use super::marker::Identity;
use super::writeback;

/// Bytes withheld until the end: holds every partition table and file system signature that lies at a disk's start.
const HEAD_BYTES: usize = 1 << 20;
/// Zeroes are written by the device itself (`BLKZEROOUT`) from this length on; shorter ones are cheaper to write.
const ZEROOUT_BYTES: u64 = 64 << 10;
/// Bytes of zeroes written at once where the device does not do it itself.
const ZEROES_BYTES: usize = 64 << 10;
/// Ranges for `BLKZEROOUT` are aligned to this, the largest logical block size.
const ZEROOUT_ALIGNMENT: u64 = 4096;
/// What the device's first sector says meanwhile.
const NOTE: &[u8] = b"TIDEMARK: an incomplete restore. Run the same `tidemark recover` again.\n";

mod ioctls {
    nix::ioctl_read!(block_size_bytes, 0x12, 114, u64);
    nix::ioctl_write_ptr_bad!(zero_out, nix::request_code_none!(0x12, 127), [u64; 2]);
    nix::ioctl_none!(reread_partitions, 0x12, 95);
}

#[derive(Debug)]
pub(crate) struct DeviceTarget {
    path: PathBuf,
    file: DirectFile,
    size_bytes: u64,
    head: Mutex<Vec<u8>>,
}

impl DeviceTarget {
    /// Takes the device for itself and marks it incomplete. A device that is mounted, part of another device or too
    /// small is refused untouched.
    pub(crate) fn open(path: &Path, identity: &Identity) -> Result<Self> {
        let shown = path.display();
        let file = File::options().read(true).write(true).custom_flags(libc::O_EXCL).open(path).map_err(|error| {
            match error.raw_os_error() {
                Some(libc::EBUSY) => anyhow!(
                    "{shown} is in use: unmount it, end whatever else uses it (see lsblk {shown}), or name another device"
                ),
                Some(libc::EROFS | libc::EPERM) => anyhow!("{shown} is read-only: name another device"),
                Some(libc::EACCES) => anyhow!("no permission to write {shown}: run as root"),
                _ => anyhow!("open {shown}: {error}"),
            }
        })?;
        let mut device_bytes = 0;
        // SAFETY: the file is an open block device and the pointer is valid for the u64 that BLKGETSIZE64 stores.
        unsafe { ioctls::block_size_bytes(file.as_raw_fd(), &raw mut device_bytes) }
            .with_context(|| format!("ask {shown} for its size"))?;
        let size_bytes = identity.size_bytes;
        if device_bytes < size_bytes {
            bail!(
                "{shown} is too small: it has {device_bytes} bytes, the disk {size_bytes}; name a larger device"
            );
        }
        let head_bytes = usize::try_from(size_bytes).map_or(HEAD_BYTES, |size| size.min(HEAD_BYTES));
        let mut note = vec![0; head_bytes];
        for (to, from) in note.iter_mut().zip(NOTE) {
            *to = *from;
        }
        file.write_all_at(&note, 0)
            .and_then(|()| file.sync_all())
            .with_context(|| format!("mark {shown} as incomplete"))?;
        let file = DirectFile::new(file);
        Ok(Self { path: path.to_owned(), file, size_bytes, head: Mutex::new(vec![0; head_bytes]) })
    }

    /// Puts what falls into the head aside and returns the rest of the range.
    fn split_head(&self, offset: u64, length: u64) -> (std::ops::Range<usize>, u64) {
        let head_bytes = (HEAD_BYTES as u64).min(self.size_bytes);
        let start = offset.min(head_bytes);
        let end = offset.saturating_add(length).min(head_bytes);
        // Both are at most HEAD_BYTES.
        (usize::try_from(start).unwrap_or(0)..usize::try_from(end).unwrap_or(0), end.saturating_sub(start))
    }

    fn write_literal_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        static ZEROES: [u8; ZEROES_BYTES] = [0; ZEROES_BYTES];
        let mut at = offset;
        let end = offset.saturating_add(length);
        while at < end {
            let now = usize::try_from(end - at).map_or(ZEROES_BYTES, |left| left.min(ZEROES_BYTES));
            self.file.write_all_at(ZEROES.get(..now).unwrap_or(&ZEROES), at)?;
            at += now as u64;
        }
        Ok(())
    }
}

impl Target for DeviceTarget {
    fn done_bytes(&self) -> u64 {
        0
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let (range, in_head) = self.split_head(offset, data.len() as u64);
        let (for_head, rest) = data.split_at(range.len());
        if let Some(head) = self.head.lock().unwrap_or_else(PoisonError::into_inner).get_mut(range) {
            head.copy_from_slice(for_head);
        }
        self.file.write_all_at(rest, offset + in_head)
    }

    fn write_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        // The head is zeroes unless data was put there.
        let (_, in_head) = self.split_head(offset, length);
        let (start, end) = (offset + in_head, offset + length);
        let aligned_start = start.next_multiple_of(ZEROOUT_ALIGNMENT).min(end);
        let aligned_end = (end - end % ZEROOUT_ALIGNMENT).max(aligned_start);
        if aligned_end - aligned_start < ZEROOUT_BYTES {
            return self.write_literal_zeroes(start, end - start);
        }
        self.write_literal_zeroes(start, aligned_start - start)?;
        let range = [aligned_start, aligned_end - aligned_start];
        // SAFETY: the file is an open block device and BLKZEROOUT reads the two u64 of the range.
        match unsafe { ioctls::zero_out(self.file.file().as_raw_fd(), &raw const range) } {
            Ok(_) => {}
            Err(nix::errno::Errno::EOPNOTSUPP | nix::errno::Errno::EINVAL) => {
                self.write_literal_zeroes(aligned_start, aligned_end - aligned_start)?;
            }
            Err(error) => return Err(error.into()),
        }
        self.write_literal_zeroes(aligned_end, end - aligned_end)
    }

    fn start_writeback(&self, offset: u64, length: u64) -> io::Result<()> {
        writeback::start(self.file.file(), offset, length)
    }

    fn checkpoint(&self, _done_bytes: u64) -> Result<()> {
        self.file.file().sync_data().with_context(|| format!("make {} durable", self.path.display()))
    }

    fn finish(&self) -> Result<()> {
        let shown = self.path.display();
        self.file.file().sync_all().with_context(|| format!("make {shown} durable"))?;
        let head = self.head.lock().unwrap_or_else(PoisonError::into_inner);
        self.file
            .write_all_at(&head, 0)
            .and_then(|()| self.file.file().sync_all())
            .with_context(|| format!("write the first megabyte of {shown}"))?;
        // SAFETY: the file is an open block device; BLKRRPART takes no argument. Devices without partitions refuse it,
        // and nothing depends on the answer.
        let _ = unsafe { ioctls::reread_partitions(self.file.file().as_raw_fd()) };
        Ok(())
    }
}
