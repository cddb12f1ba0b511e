//! Changes to a writable mount: a sparse file without a name, so that it vanishes with the process however that ends,
//! and a bitmap of the 4 KiB blocks that were changed.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, Result};

/// Unit of change. The bitmap takes 32 MiB for a disk of 1 TiB.
pub(crate) const BLOCK_BYTES: u64 = 4096;

/// The changed blocks of one disk.
#[derive(Debug)]
pub(crate) struct Overlay {
    file: File,
    changed: Vec<AtomicU64>,
    size_bytes: u64,
}

/// A run of blocks that are all changed, or all not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) length: u64,
    pub(crate) changed: bool,
}

impl Overlay {
    /// An empty overlay in `folder`, for a disk of `size_bytes`.
    pub(crate) fn create(folder: &Path, size_bytes: u64) -> Result<Self> {
        // Created 0600 and unlinked at once.
        let file = tempfile::tempfile_in(folder).with_context(|| {
            format!(
                "create the overlay in {}: name a folder that can be written with --overlay-dir",
                folder.display()
            )
        })?;
        file.set_len(size_bytes).with_context(|| format!("make an overlay of {size_bytes} bytes"))?;
        let words = usize::try_from(size_bytes.div_ceil(BLOCK_BYTES).div_ceil(64))
            .context("the disk is too large")?;
        Ok(Self {
            file,
            changed: std::iter::repeat_with(AtomicU64::default).take(words).collect(),
            size_bytes,
        })
    }

    fn bit(&self, block: u64) -> Option<(&AtomicU64, u64)> {
        let word = usize::try_from(block / 64).ok().and_then(|word| self.changed.get(word))?;
        Some((word, 1 << (block % 64)))
    }

    pub(crate) fn is_changed(&self, block: u64) -> bool {
        self.bit(block).is_some_and(|(word, bit)| word.load(Ordering::Acquire) & bit != 0)
    }

    /// Call after the block's content is in the file.
    pub(crate) fn set_changed(&self, first: u64, end: u64) {
        for block in first..end {
            if let Some((word, bit)) = self.bit(block) {
                word.fetch_or(bit, Ordering::Release);
            }
        }
    }

    /// The run of equal blocks that begins at byte `offset`, cut at byte `end`.
    pub(crate) fn run(&self, offset: u64, end: u64) -> Run {
        let changed = self.is_changed(offset / BLOCK_BYTES);
        let mut block = offset / BLOCK_BYTES + 1;
        while block * BLOCK_BYTES < end && self.is_changed(block) == changed {
            block += 1;
        }
        Run { length: (block * BLOCK_BYTES).min(end) - offset, changed }
    }

    pub(crate) fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    pub(crate) fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write_all_at(data, offset)
    }

    /// Makes whole blocks read as zeroes and gives their space back.
    pub(crate) fn punch(&self, offset: u64, length: u64) -> io::Result<()> {
        use nix::fcntl::{FallocateFlags, fallocate};
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let too_far = |_| io::Error::from(io::ErrorKind::InvalidInput);
        let offset = libc::off_t::try_from(offset).map_err(too_far)?;
        let length = libc::off_t::try_from(length).map_err(too_far)?;
        fallocate(self.file.as_fd(), flags, offset, length)?;
        Ok(())
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }
}
