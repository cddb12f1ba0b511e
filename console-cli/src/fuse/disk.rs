//! One disk of a mount: the view below, the overlay (if any) above.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::cache::{Cache, Fetch, Keep};
use super::overlay::{BLOCK_BYTES, Overlay};
use crate::view::Piece;

/// At most one failed read per disk is logged in this time; the rest are counted.
const LOG_INTERVAL: Duration = Duration::from_secs(1);

/// A disk as a file. All methods may run at once.
pub(crate) struct MountedDisk<F> {
    /// The file's name.
    pub(crate) name: String,
    pub(crate) size_bytes: u64,
    index: usize,
    view: Arc<Cache<F>>,
    overlay: Option<Overlay>,
    /// One writer at a time: a partial block is read, merged and written.
    writing: Mutex<()>,
    /// When a failed read was logged last, and how many were not since.
    failures: Mutex<(Option<Instant>, u64)>,
}

impl<F> std::fmt::Debug for MountedDisk<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MountedDisk").field("name", &self.name).finish_non_exhaustive()
    }
}

impl<F: Fetch> MountedDisk<F> {
    /// Disk number `index` of `view`.
    pub(crate) fn new(view: Arc<Cache<F>>, index: usize, name: String, overlay: Option<Overlay>) -> Self {
        let size_bytes = view.source().size(index);
        Self { name, size_bytes, index, view, overlay, writing: Mutex::new(()), failures: Mutex::default() }
    }

    pub(crate) fn writable(&self) -> bool {
        self.overlay.is_some() || self.keeper().is_some()
    }

    fn keeper(&self) -> Option<&dyn Keep> {
        self.view.source().keeper()
    }

    /// Reads up to `length` bytes; less at the disk's end, nothing beyond it.
    pub(crate) fn read(&self, offset: u64, length: u64) -> io::Result<Vec<u8>> {
        let end = offset.saturating_add(length).min(self.size_bytes);
        let mut buffer = vec![0; usize::try_from(end.saturating_sub(offset)).unwrap_or(0)];
        self.read_exact(offset, &mut buffer)?;
        Ok(buffer)
    }

    fn read_exact(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let end = offset + buffer.len() as u64;
        let Some(overlay) = &self.overlay else { return self.read_view(offset, buffer) };
        let mut at = offset;
        let mut rest = buffer;
        while at < end {
            let run = overlay.run(at, end);
            let (now, later) = rest.split_at_mut(usize::try_from(run.length).unwrap_or(0));
            if run.changed {
                overlay.read(at, now)?;
            } else {
                self.read_view(at, now)?;
            }
            at += run.length;
            rest = later;
        }
        Ok(())
    }

    fn read_view(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let read = match self.keeper() {
            None => self.view.read(self.index, offset, buffer),
            Some(_) => self.read_uncached(offset, buffer),
        };
        read.map_err(|error| self.failed("read", offset, &error))
    }

    fn read_uncached(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let mut rest = buffer;
        for piece in self.view.source().fetch(self.index, offset, rest.len() as u64)? {
            let length = usize::try_from(piece.length()).unwrap_or(usize::MAX).min(rest.len());
            let (now, later) = rest.split_at_mut(length);
            match piece {
                Piece::Data(data) => now.copy_from_slice(data.get(..length).unwrap_or_default()),
                Piece::Zeroes(_) => now.fill(0),
            }
            rest = later;
        }
        if rest.is_empty() { Ok(()) } else { bail!("the read ended early") }
    }

    /// An I/O error for the caller, the cause for the log.
    fn failed(&self, what: &str, offset: u64, error: &anyhow::Error) -> io::Error {
        self.log_failure(what, offset, error);
        io::Error::from_raw_os_error(libc::EIO)
    }

    /// Makes durable what was written, where changes stay. Those to an overlay are thrown away with the mount.
    pub(crate) fn flush(&self) -> io::Result<()> {
        let flushed = self.keeper().map_or(Ok(()), Keep::flush);
        flushed.map_err(|error| self.failed("flush", 0, &error))
    }

    fn log_failure(&self, what: &str, offset: u64, error: &anyhow::Error) {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let (logged, unlogged) = &mut *failures;
        if logged.is_some_and(|logged| logged.elapsed() < LOG_INTERVAL) {
            *unlogged += 1;
            return;
        }
        tracing::error!(disk = %self.name, offset, unlogged = *unlogged, "{what} failed: {error:#}");
        (*logged, *unlogged) = (Some(Instant::now()), 0);
    }

    /// Writes into the overlay, or to whoever keeps changes. A range beyond the disk's end is refused: a disk does not grow.
    pub(crate) fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        if let Some(keeper) = self.keeper() {
            self.checked_end(offset, data.len() as u64)?;
            return keeper
                .write(self.index, offset, data)
                .map_err(|error| self.failed("write", offset, &error));
        }
        let overlay = self.overlay.as_ref().ok_or_else(|| io::Error::from_raw_os_error(libc::EROFS))?;
        let end = self.checked_end(offset, data.len() as u64)?;
        let _one = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        self.fill_edges(overlay, offset, end)?;
        overlay.write(offset, data)?;
        overlay.set_changed(offset / BLOCK_BYTES, end.div_ceil(BLOCK_BYTES));
        Ok(())
    }

    /// Makes a range read as zeroes: what a discard does to a loop device on this file.
    pub(crate) fn zero(&self, offset: u64, length: u64) -> io::Result<()> {
        if let Some(keeper) = self.keeper() {
            self.checked_end(offset, length)?;
            return keeper
                .zero(self.index, offset, length)
                .map_err(|error| self.failed("discard", offset, &error));
        }
        let overlay = self.overlay.as_ref().ok_or_else(|| io::Error::from_raw_os_error(libc::EROFS))?;
        let end = self.checked_end(offset, length)?;
        let _one = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        self.fill_edges(overlay, offset, end)?;
        overlay.punch(offset, length)?;
        overlay.set_changed(offset / BLOCK_BYTES, end.div_ceil(BLOCK_BYTES));
        Ok(())
    }

    fn checked_end(&self, offset: u64, length: u64) -> io::Result<u64> {
        offset
            .checked_add(length)
            .filter(|end| *end <= self.size_bytes)
            .ok_or_else(|| io::Error::from_raw_os_error(libc::ENOSPC))
    }

    /// Copies the view's content of the first and last block into the overlay where the range covers them in part.
    fn fill_edges(&self, overlay: &Overlay, offset: u64, end: u64) -> io::Result<()> {
        let first = offset / BLOCK_BYTES;
        let last = end.saturating_sub(1) / BLOCK_BYTES;
        for block in [first, last] {
            let block_start = block * BLOCK_BYTES;
            let block_end = (block_start + BLOCK_BYTES).min(overlay.size_bytes());
            let covered = offset <= block_start && end >= block_end;
            if !covered && offset < end && !overlay.is_changed(block) {
                let mut content = vec![0; usize::try_from(block_end - block_start).unwrap_or(0)];
                self.read_view(block_start, &mut content)?;
                overlay.write(block_start, &content)?;
                overlay.set_changed(block, block + 1);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;
    use bytes::Bytes;

    use super::*;

    struct Ram(Bytes);

    impl Fetch for Ram {
        fn fetch(&self, _disk: usize, offset: u64, length: u64) -> Result<Vec<Piece>> {
            let start = usize::try_from(offset)?;
            let end = start + usize::try_from(length)?;
            if end > self.0.len() {
                return Err(anyhow!("beyond the end"));
            }
            Ok(vec![Piece::Data(self.0.slice(start..end))])
        }
        fn spawn(&self, work: Box<dyn FnOnce() + Send>) {
            work();
        }
        fn size(&self, _disk: usize) -> u64 {
            self.0.len() as u64
        }
    }

    fn disk(content: &[u8], writable: bool) -> MountedDisk<Ram> {
        let folder = std::env::temp_dir();
        let overlay = writable.then(|| Overlay::create(&folder, content.len() as u64).unwrap());
        MountedDisk::new(
            Cache::new(Ram(Bytes::copy_from_slice(content))),
            0,
            "disk-1.raw".to_owned(),
            overlay,
        )
    }

    #[test]
    fn random_changes_read_back_like_a_plain_file() {
        let mut model: Vec<u8> = (0..300_000u32).map(|at| (at % 251) as u8).collect();
        let disk = disk(&model, true);
        let mut seed = 88_172_645_463_325_252u64;
        let mut random = |below: usize| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            usize::try_from(seed % below as u64).unwrap()
        };
        for round in 0..2000u64 {
            let offset = random(model.len());
            let length = random(20_000).min(model.len() - offset);
            match random(3) {
                0 => {
                    let data = vec![round.to_le_bytes()[0]; length];
                    disk.write(offset as u64, &data).unwrap();
                    model[offset..offset + length].copy_from_slice(&data);
                }
                1 if length > 0 => {
                    disk.zero(offset as u64, length as u64).unwrap();
                    model[offset..offset + length].fill(0);
                }
                _ => assert!(
                    disk.read(offset as u64, length as u64).unwrap() == model[offset..offset + length]
                ),
            }
        }
        assert!(disk.read(0, u64::MAX).unwrap() == model);
    }

    #[test]
    fn a_disk_neither_grows_nor_changes_unless_asked() {
        let fixed = disk(&[1; 8192], false);
        assert_eq!(fixed.write(0, &[2]).unwrap_err().raw_os_error(), Some(libc::EROFS));
        let writable = disk(&[1; 8192], true);
        assert_eq!(writable.write(8192, &[2]).unwrap_err().raw_os_error(), Some(libc::ENOSPC));
        assert_eq!(writable.write(u64::MAX, &[2]).unwrap_err().raw_os_error(), Some(libc::ENOSPC));
        assert!(writable.read(8192, 1).unwrap().is_empty());
        assert!(writable.read(u64::MAX, u64::MAX).unwrap().is_empty());
    }
}
