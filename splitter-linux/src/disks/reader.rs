//! Reading protected disks past the page cache.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use tidemark_splitter_core::capture::{DiskReader, ReadError, Slot};

/// Alignment that every device accepts for direct I/O, of memory and of places.
const ALIGNMENT: usize = 4096;
/// Bytes read at once: the largest range the engine asks for. Larger reads are cut.
const BUFFER_BYTES: usize = 1 << 20;
const SECTOR_BYTES: u64 = 512;

/// Memory for direct I/O.
#[derive(Debug)]
pub(crate) struct AlignedBuffer {
    memory: Vec<u8>,
    start: usize,
    length: usize,
}

impl AlignedBuffer {
    pub(crate) fn new(length: usize) -> Self {
        let memory = vec![0; length + ALIGNMENT];
        let start = memory.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        Self { memory, start, length }
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        self.memory.get(self.start..self.start + self.length).unwrap_or_default()
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        self.memory.get_mut(self.start..self.start + self.length).unwrap_or_default()
    }
}

/// A reader that is told which disks there are.
pub trait DiskSet: DiskReader + std::fmt::Debug {
    /// Opens a disk for a slot, in place of the one that the slot had.
    ///
    /// # Errors
    /// When the device file cannot be opened for direct reading.
    fn open(&mut self, slot: Slot, path: &Path, logical_block_bytes: u32) -> io::Result<()>;

    /// Closes the disk of a slot.
    fn close(&mut self, slot: Slot);
}

/// Reads disks with `O_DIRECT`. The device's own alignment is kept by reading around what was asked for.
#[derive(Debug)]
pub struct DirectReader {
    disks: HashMap<Slot, (File, u64)>,
    buffer: AlignedBuffer,
}

impl Default for DirectReader {
    fn default() -> Self {
        Self { disks: HashMap::new(), buffer: AlignedBuffer::new(BUFFER_BYTES) }
    }
}

impl DirectReader {
    fn read_piece(
        file: &File,
        unit: u64,
        bounce: &mut AlignedBuffer,
        offset: u64,
        target: &mut [u8],
    ) -> io::Result<()> {
        let first = offset / unit * unit;
        let end = (offset + target.len() as u64).next_multiple_of(unit);
        let to_usize = |value: u64| usize::try_from(value).map_err(io::Error::other);
        let span = to_usize(end - first)?;
        let whole = bounce.as_mut_slice().get_mut(..span).ok_or(io::ErrorKind::InvalidInput)?;
        file.read_exact_at(whole, first)?;
        let skip = to_usize(offset - first)?;
        let wanted = whole.get(skip..skip + target.len()).ok_or(io::ErrorKind::InvalidInput)?;
        target.copy_from_slice(wanted);
        Ok(())
    }
}

impl DiskSet for DirectReader {
    fn open(&mut self, slot: Slot, path: &Path, logical_block_bytes: u32) -> io::Result<()> {
        let file = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path)?;
        self.disks.insert(slot, (file, u64::from(logical_block_bytes.max(512))));
        Ok(())
    }

    fn close(&mut self, slot: Slot) {
        self.disks.remove(&slot);
    }
}

impl DiskReader for DirectReader {
    fn read(&mut self, slot: Slot, start_sector: u64, buffer: &mut [u8]) -> Result<(), ReadError> {
        let failed = |source| ReadError { slot, start_sector, source };
        let (file, unit) =
            self.disks.get(&slot).ok_or_else(|| failed(io::Error::from(io::ErrorKind::NotFound)))?;
        let mut offset = start_sector
            .checked_mul(SECTOR_BYTES)
            .filter(|offset| offset.checked_add(buffer.len() as u64).is_some())
            .ok_or_else(|| failed(io::Error::from(io::ErrorKind::InvalidInput)))?;
        if buffer.as_ptr().align_offset(ALIGNMENT) == 0
            && offset.is_multiple_of(*unit)
            && (buffer.len() as u64).is_multiple_of(*unit)
        {
            return file.read_exact_at(buffer, offset).map_err(failed);
        }
        // Room for what lies around an unaligned piece.
        for piece in buffer.chunks_mut(BUFFER_BYTES - 2 * ALIGNMENT) {
            Self::read_piece(file, *unit, &mut self.buffer, offset, piece).map_err(failed)?;
            offset += piece.len() as u64;
        }
        Ok(())
    }
}
