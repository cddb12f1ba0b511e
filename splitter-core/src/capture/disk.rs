//! Reading a protected disk.

use thiserror::Error;

use super::Slot;

/// Reads protected disks. All reads bypass the page cache (`O_DIRECT`): a buffered read may return blocks of an
/// uncommitted file-system transaction, a state that never was on the disk.
pub trait DiskReader: Send {
    /// Reads `buffer.len()` bytes (a multiple of 512) from `start_sector`. Blocks until done.
    ///
    /// # Errors
    /// When the disk reports an error or is gone; the engine keeps the range pending and tries again later.
    fn read(&mut self, slot: Slot, start_sector: u64, buffer: &mut [u8]) -> Result<(), ReadError>;
}

/// A protected disk could not be read.
#[derive(Debug, Error)]
#[error("cannot read slot {} at sector {start_sector}: {source}", .slot.0)]
pub struct ReadError {
    /// The disk.
    pub slot: Slot,
    /// First sector of the read.
    pub start_sector: u64,
    /// Why it failed.
    #[source]
    pub source: std::io::Error,
}
