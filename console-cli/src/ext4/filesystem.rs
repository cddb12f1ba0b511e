//! Opening a file system, and reading its blocks as a replay of its journal would leave them.

use std::fmt;
use std::sync::Arc;

use anyhow::Result;

use super::bytes::index;
use super::error::damaged;
use super::journal::Overlay;
use super::superblock::{BYTES, OFFSET, Superblock};

/// The partition that a file system lies in. Blocking.
pub(crate) trait Source: Send + Sync {
    /// Fills `buffer` from byte `offset`. The range lies inside.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()>;
    /// Bytes of the partition.
    fn size_bytes(&self) -> u64;
}

/// Whether the journal is taken into account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Replay {
    /// As the kernel does when it mounts.
    Committed,
    /// Blocks as they lie on the disk: what a reader sees that does not know of journals. For negative controls.
    Ignored,
}

/// An open file system. Reading is by shared reference; nothing is written, ever.
#[derive(Clone)]
pub(crate) struct FileSystem {
    source: Arc<dyn Source>,
    superblock: Superblock,
    overlay: Arc<Overlay>,
}

impl fmt::Debug for FileSystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileSystem").field("superblock", &self.superblock).finish_non_exhaustive()
    }
}

impl FileSystem {
    /// Opens what lies in `source`: reads the superblock and the journal's descriptors.
    ///
    /// # Errors
    /// When it is no ext4, is damaged, uses features that are not read here, or cannot be read.
    pub(crate) fn open(source: Arc<dyn Source>, replay: Replay) -> Result<Self> {
        let superblock = read_superblock(&*source)?;
        let mut opened = Self { source, superblock, overlay: Arc::default() };
        if replay == Replay::Ignored
            || !opened.superblock.has_journal()
            || !opened.superblock.needs_recovery()
        {
            return Ok(opened);
        }
        let overlay = Overlay::load(&opened)?;
        opened.overlay = Arc::new(overlay);
        // The journal may hold a newer superblock.
        let home = opened.superblock.home();
        if opened.overlay.get(home).is_some() {
            let mut block = vec![0; index(opened.superblock.block_bytes)];
            opened.read_block(home, &mut block)?;
            let skip = index(OFFSET % opened.superblock.block_bytes);
            let newer = Superblock::parse(block.get(skip..).unwrap_or_default(), opened.source.size_bytes())?;
            if !newer.same_layout(&opened.superblock) {
                return Err(damaged("the journal holds the superblock of another file system"));
            }
            opened.superblock = newer;
        }
        Ok(opened)
    }

    pub(crate) fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// Blocks of the partition, whether the file system takes them or not.
    pub(super) fn device_blocks(&self) -> u64 {
        self.source.size_bytes() / self.superblock.block_bytes
    }

    pub(crate) fn overlay(&self) -> &Overlay {
        &self.overlay
    }

    /// Fills `block`, which is one block long.
    ///
    /// # Errors
    /// When it lies outside or cannot be read; when the journal's copy is damaged.
    pub(crate) fn read_block(&self, number: u64, block: &mut [u8]) -> Result<()> {
        match self.overlay.get(number) {
            None => self.read_raw(number, 0, block),
            Some(logged) => {
                self.read_raw(logged.place, 0, block)?;
                self.overlay.restore(&logged, block)
            }
        }
    }

    /// Fills `buffer` from a place inside one block.
    ///
    /// # Errors
    /// As [`FileSystem::read_block`].
    pub(super) fn read_in_block(&self, number: u64, offset: usize, buffer: &mut [u8]) -> Result<()> {
        if self.overlay.get(number).is_none() {
            return self.read_raw(number, offset, buffer);
        }
        let mut block = vec![0; index(self.superblock.block_bytes)];
        self.read_block(number, &mut block)?;
        let part = offset.checked_add(buffer.len()).and_then(|end| block.get(offset..end));
        buffer.copy_from_slice(part.ok_or_else(|| damaged("a structure crosses the end of its block"))?);
        Ok(())
    }

    /// Fills `buffer`, whole blocks long, from `first` on.
    ///
    /// # Errors
    /// As [`FileSystem::read_block`].
    pub(crate) fn read_blocks(&self, first: u64, buffer: &mut [u8]) -> Result<()> {
        self.read_raw(first, 0, buffer)?;
        let size = index(self.superblock.block_bytes);
        let end = first.saturating_add((buffer.len() / size) as u64);
        for number in self.overlay.numbers(first, end) {
            let at = index(number - first).saturating_mul(size);
            if let Some(block) = buffer.get_mut(at..at.saturating_add(size)) {
                self.read_block(number, block)?;
            }
        }
        Ok(())
    }

    /// As it lies on the disk.
    pub(super) fn read_raw(&self, number: u64, offset: usize, buffer: &mut [u8]) -> Result<()> {
        let start = number.checked_mul(self.superblock.block_bytes);
        let start = start.and_then(|start| start.checked_add(offset as u64));
        let end = start.and_then(|start| start.checked_add(buffer.len() as u64));
        match (start, end) {
            (Some(start), Some(end)) if end <= self.superblock.blocks * self.superblock.block_bytes => {
                self.source.read_at(start, buffer)
            }
            _ => Err(damaged(format!("something points to block {number}, which is outside"))),
        }
    }
}

fn read_superblock(source: &dyn Source) -> Result<Superblock> {
    let size = source.size_bytes();
    if size < OFFSET + BYTES as u64 {
        return Err(damaged("it is too small"));
    }
    let mut bytes = vec![0; BYTES];
    source.read_at(OFFSET, &mut bytes)?;
    Superblock::parse(&bytes, size)
}
