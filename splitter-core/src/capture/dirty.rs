//! Dirty maps: which blocks of a disk differ, or may differ, from what was captured.

use thiserror::Error;

use super::Slot;

/// Bytes that one bit stands for: 32 MiB of map per TiB of disk, and the block size of common file systems.
pub const BLOCK_BYTES: u64 = 4096;
/// The same in sectors.
pub const BLOCK_SECTORS: u64 = 8;

/// Blocks of [`BLOCK_BYTES`], half-open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlockRange {
    /// First block.
    pub start: u64,
    /// Block after the last one.
    pub end: u64,
}

impl BlockRange {
    /// The blocks that contain these sectors; empty for no sectors.
    #[must_use]
    pub fn of_sectors(start_sector: u64, sectors: u64) -> Self {
        let start = start_sector / BLOCK_SECTORS;
        if sectors == 0 {
            return Self { start, end: start };
        }
        Self { start, end: start_sector.saturating_add(sectors).div_ceil(BLOCK_SECTORS) }
    }

    /// Number of blocks.
    #[must_use]
    pub fn blocks(self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    /// Whether the two share a block.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        self.start < other.end && other.start < self.end
    }

    /// First sector.
    #[must_use]
    pub fn start_sector(self) -> u64 {
        self.start.saturating_mul(BLOCK_SECTORS)
    }
}

/// The two maps of every disk. `dirty` is written by the kernel side. `pending` belongs to user space: blocks that
/// must be read and are not acknowledged yet. Both live as long as the capture, so a killed splitter forgets nothing
/// and repeats only what was not acknowledged.
pub trait DirtyMaps {
    /// Moves the set bits of `dirty` to `pending` (first set there, then cleared here) and reports them as ranges.
    /// Must be cheap when the kernel marked nothing since the last call: it is called at every heartbeat.
    ///
    /// # Errors
    /// When the map cannot be accessed.
    fn take(&mut self, slot: Slot, moved: &mut dyn FnMut(BlockRange)) -> Result<(), MapError>;

    /// Sets a range of `pending`, cut at the end of the disk.
    ///
    /// # Errors
    /// When the map cannot be accessed.
    fn mark(&mut self, slot: Slot, range: BlockRange) -> Result<(), MapError>;

    /// Clears a range of `pending`.
    ///
    /// # Errors
    /// When the map cannot be accessed.
    fn clear(&mut self, slot: Slot, range: BlockRange) -> Result<(), MapError>;

    /// The first run of pending blocks that begins at or after `from`, cut to `limit` blocks.
    fn next_pending(&self, slot: Slot, from: u64, limit: u64) -> Option<BlockRange>;

    /// Number of pending blocks. Cheap (counted, not scanned).
    fn pending_blocks(&self, slot: Slot) -> u64;

    /// Blocks of the disk, the last one possibly partial. 0 for a slot that holds no disk.
    fn blocks(&self, slot: Slot) -> u64;
}

/// A dirty map cannot be used. The engine treats the whole disk as dirty.
#[derive(Debug, Error)]
pub enum MapError {
    /// No disk in this slot.
    #[error("slot {} holds no disk", .0.0)]
    NoDisk(Slot),
    /// The kernel refused access.
    #[error("cannot access the dirty map of slot {}: {source}", .slot.0)]
    Io {
        /// The disk.
        slot: Slot,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sectors_round_outwards_to_blocks() {
        assert_eq!(BlockRange::of_sectors(0, 1), BlockRange { start: 0, end: 1 });
        assert_eq!(BlockRange::of_sectors(7, 2), BlockRange { start: 0, end: 2 });
        assert_eq!(BlockRange::of_sectors(8, 8), BlockRange { start: 1, end: 2 });
        assert_eq!(BlockRange::of_sectors(9, 0).blocks(), 0);
        assert!(BlockRange { start: 1, end: 2 }.overlaps(BlockRange { start: 0, end: 2 }));
        assert!(!BlockRange { start: 1, end: 2 }.overlaps(BlockRange { start: 2, end: 3 }));
    }
}
