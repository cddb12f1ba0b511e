//! The content of disks as of an LSN.

mod base;
mod cache;
mod files;
mod nodes;
mod payload;
mod resolve;
mod source;
mod walk;
mod window;

use std::sync::Arc;

use tidemark_proto::ids::{DiskId, Lsn};
use tidemark_proto::limits::SECTOR_BYTES;

pub use base::BaseImages;
pub(crate) use files::FileKey;
use payload::Payload;
use resolve::{Content, Piece, Ranked, rank, resolve};
pub(crate) use source::Source;
pub(crate) use walk::PlaceInRun;
pub(crate) use window::Window;

use crate::error::{ReadError, ViewError};
use crate::journal::{Change, Runs};
use crate::manifest::Base;
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

impl Extent {
    /// Of `bytes` from `offset` on, those beyond the first `inside`, where a disk or an image has ended: they read as zeroes.
    pub(crate) fn zeroes_beyond(offset: u64, inside: u64, bytes: u64) -> Option<Self> {
        let beyond = bytes.checked_sub(inside).filter(|beyond| *beyond > 0)?;
        Some(Self { offset: offset.saturating_add(inside), bytes: beyond, kind: ExtentKind::Zero })
    }
}

/// What an extent holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExtentKind {
    /// Bytes that were written, or that the image below may have.
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
    /// What lies below the runs.
    base: Option<Arc<Base>>,
    /// Of the runs.
    generation: u64,
}

impl View {
    pub(crate) fn new(source: Arc<Source>, all: &Runs, lsn: Lsn, disks: Vec<ViewDisk>) -> Self {
        let base = all.base.clone();
        let floor = base.as_ref().map_or(Lsn::ZERO, |base| base.lsn);
        let runs = rank(&all.view(lsn), floor, lsn);
        let generation = all.generation;
        Self { inner: Arc::new(Inner { source, runs, lsn, disks, base, generation }) }
    }

    /// Of the runs that it was made from.
    pub(crate) fn generation(&self) -> u64 {
        self.inner.generation
    }

    /// Whether a range of bytes lies on the disk.
    pub(crate) fn check_range(&self, disk: DiskId, offset: u64, bytes: u64) -> Result<(), ViewError> {
        self.sectors(disk, offset, bytes).map(|_| ())
    }

    /// A view of nothing but images.
    pub(crate) fn of_images(
        source: Arc<Source>,
        base: Arc<Base>,
        disks: Vec<ViewDisk>,
        generation: u64,
    ) -> Self {
        let lsn = base.lsn;
        Self { inner: Arc::new(Inner { source, runs: Vec::new(), lsn, disks, base: Some(base), generation }) }
    }

    fn resolve(&self, disk: DiskId, from: u64, to: u64) -> Result<Vec<Piece>, ReadError> {
        let floor = self.inner.base.as_ref().map_or(Lsn::ZERO, |base| base.lsn);
        resolve(&self.inner.source, &self.inner.runs, (floor, self.inner.lsn), disk, from, to)
    }

    /// What runs say of a byte range that begins and ends with a sector; what only the base has is left out.
    pub(crate) fn changes(&self, disk: DiskId, offset: u64, bytes: u64) -> Result<Vec<Change>, ViewError> {
        let (from, to) = self.sectors(disk, offset, bytes)?;
        let mut changes: Vec<Change> = Vec::new();
        for piece in self.resolve(disk, from, to)? {
            let kind = match piece.content {
                Content::Unwritten => continue,
                Content::Zero => ExtentKind::Zero,
                Content::Payload(_) => ExtentKind::Data,
            };
            match changes.last_mut() {
                Some(last) if last.kind == kind && last.start + last.sectors == piece.start => {
                    last.sectors += piece.sectors;
                }
                _ => changes.push(Change { start: piece.start, sectors: piece.sectors, kind }),
            }
        }
        Ok(changes)
    }

    /// What lies below all runs.
    fn read_base(&self, disk: DiskId, offset: u64, out: &mut [u8]) -> Result<(), ReadError> {
        let Some(image) = self.inner.base.as_ref().and_then(|base| base.image(disk)) else {
            out.fill(0);
            return Ok(());
        };
        // Images are read by whole sectors.
        let (sector, skip) = (offset / SECTOR_BYTES, size(offset % SECTOR_BYTES));
        if skip == 0 && (out.len() as u64).is_multiple_of(SECTOR_BYTES) {
            return self.inner.source.read_image(disk, image, sector, out);
        }
        let bytes = (skip + out.len()).next_multiple_of(size(SECTOR_BYTES));
        let mut around = vec![0; bytes];
        self.inner.source.read_image(disk, image, sector, &mut around)?;
        for (out, byte) in out.iter_mut().zip(around.iter().skip(skip)) {
            *out = *byte;
        }
        Ok(())
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
        let pieces = self.resolve(disk, from, to)?;
        let end = offset.saturating_add(buffer.len() as u64);
        let mut rest = buffer;
        let mut payload = Payload::new(&self.inner.source);
        for piece in pieces {
            let piece_from = (piece.start * SECTOR_BYTES).max(offset);
            let piece_to = ((piece.start + piece.sectors) * SECTOR_BYTES).min(end);
            let (out, next) = rest.split_at_mut_checked(size(piece_to - piece_from)).unwrap_or_default();
            match piece.content {
                Content::Unwritten => self.read_base(disk, piece_from, out)?,
                Content::Zero => out.fill(0),
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
        let mut add = |start: u64, stop: u64, kind| {
            let (start, stop) = (start.max(offset), stop.min(end));
            match extents.last_mut() {
                _ if stop <= start => {}
                Some(last) if last.kind == kind => last.bytes += stop - start,
                _ => extents.push(Extent { offset: start, bytes: stop - start, kind }),
            }
        };
        let image = self.inner.base.as_ref().and_then(|base| base.image(disk));
        for piece in self.resolve(disk, from, to)? {
            let (start, stop) = (piece.start * SECTOR_BYTES, (piece.start + piece.sectors) * SECTOR_BYTES);
            match (piece.content, image) {
                (Content::Payload(_), _) => add(start, stop, ExtentKind::Data),
                (Content::Unwritten, Some(image)) => {
                    let below = self.inner.source.image_extents(disk, image, piece.start, piece.sectors)?;
                    for extent in below {
                        add(extent.offset, extent.offset.saturating_add(extent.bytes), extent.kind);
                    }
                }
                (Content::Unwritten | Content::Zero, _) => add(start, stop, ExtentKind::Zero),
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
