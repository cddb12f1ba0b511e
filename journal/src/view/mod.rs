//! The content of disks as of an LSN.

mod cache;
mod files;
mod nodes;
mod payload;
mod resolve;
mod source;
mod window;

use std::sync::Arc;

use tidemark_proto::ids::{DiskId, Lsn};
use tidemark_proto::limits::SECTOR_BYTES;

pub(crate) use files::FileKey;
use payload::Payload;
pub(crate) use resolve::rank;
use resolve::{Content, Ranked, resolve};
pub(crate) use source::Source;
pub(crate) use window::Window;

use crate::error::ViewError;
use crate::wire::size;

/// A disk as of a view's LSN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ViewDisk {
    /// Which disk.
    pub id: DiskId,
    /// Its size then.
    pub size_bytes: u64,
}

/// A run of bytes of a view: `[offset, offset + bytes)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// First byte on the disk.
    pub offset: u64,
    /// Bytes.
    pub bytes: u64,
    /// Data, or known to read as zeroes.
    pub kind: ExtentKind,
}

/// What an extent holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExtentKind {
    /// Bytes that were written.
    Data,
    /// Never written, zeroed or discarded.
    Zero,
}

/// Disks as of one LSN: read-only, cheap to clone, usable from any thread; it keeps what it reads alive.
#[derive(Debug, Clone)]
pub struct View {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    source: Arc<Source>,
    runs: Vec<Ranked>,
    lsn: Lsn,
    disks: Vec<ViewDisk>,
}

impl View {
    pub(crate) fn new(source: Arc<Source>, runs: Vec<Ranked>, lsn: Lsn, disks: Vec<ViewDisk>) -> Self {
        Self { inner: Arc::new(Inner { source, runs, lsn, disks }) }
    }

    /// The LSN.
    #[must_use]
    pub fn lsn(&self) -> Lsn {
        self.inner.lsn
    }

    /// The disks that are exact at the LSN, by id.
    #[must_use]
    pub fn disks(&self) -> &[ViewDisk] {
        &self.inner.disks
    }

    /// Fills the buffer with the disk's bytes from `offset` (any offset). Every byte is verified.
    ///
    /// # Errors
    /// [`ViewError::Range`] beyond the disk's end; [`ViewError::Read`] when a checksum does not match or the storage fails.
    pub fn read_at(&self, disk: DiskId, offset: u64, buffer: &mut [u8]) -> Result<(), ViewError> {
        let (from, to) = self.sectors(disk, offset, buffer.len() as u64)?;
        let pieces = resolve(&self.inner.source, &self.inner.runs, self.inner.lsn, disk, from, to)?;
        let end = offset.saturating_add(buffer.len() as u64);
        let mut rest = buffer;
        let mut payload = Payload::new(&self.inner.source);
        for piece in pieces {
            let piece_from = (piece.start * SECTOR_BYTES).max(offset);
            let piece_to = ((piece.start + piece.sectors) * SECTOR_BYTES).min(end);
            let (out, next) = rest.split_at_mut_checked(size(piece_to - piece_from)).unwrap_or_default();
            match piece.content {
                Content::Unwritten | Content::Zero => out.fill(0),
                Content::Payload(mut place) => {
                    place.offset += piece_from - piece.start * SECTOR_BYTES;
                    payload.read(&place, out)?;
                }
            }
            rest = next;
        }
        Ok(())
    }

    /// Runs of data and zeroes that cover `[offset, offset + bytes)` in order, without holes, alternating in kind.
    ///
    /// # Errors
    /// As [`View::read_at`].
    pub fn extents(&self, disk: DiskId, offset: u64, bytes: u64) -> Result<Vec<Extent>, ViewError> {
        let (from, to) = self.sectors(disk, offset, bytes)?;
        let end = offset.saturating_add(bytes);
        let mut extents: Vec<Extent> = Vec::new();
        for piece in resolve(&self.inner.source, &self.inner.runs, self.inner.lsn, disk, from, to)? {
            let start = (piece.start * SECTOR_BYTES).max(offset);
            let bytes = ((piece.start + piece.sectors) * SECTOR_BYTES).min(end) - start;
            let kind = match piece.content {
                Content::Payload(_) => ExtentKind::Data,
                Content::Unwritten | Content::Zero => ExtentKind::Zero,
            };
            match extents.last_mut() {
                Some(last) if last.kind == kind => last.bytes += bytes,
                _ => extents.push(Extent { offset: start, bytes, kind }),
            }
        }
        Ok(extents)
    }

    /// The sectors that a byte range touches, if it lies on the disk.
    fn sectors(&self, disk: DiskId, offset: u64, bytes: u64) -> Result<(u64, u64), ViewError> {
        let lsn = self.inner.lsn;
        let found = self.inner.disks.iter().find(|found| found.id == disk);
        let size = found.ok_or(ViewError::NoDisk { disk, lsn })?.size_bytes;
        let end = offset.checked_add(bytes).filter(|end| *end <= size);
        let end = end.ok_or(ViewError::Range { offset, end: offset.saturating_add(bytes), size })?;
        Ok((offset / SECTOR_BYTES, end.div_ceil(SECTOR_BYTES)))
    }
}
