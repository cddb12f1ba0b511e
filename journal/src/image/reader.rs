//! Reading an image, every byte verified by the store.

use std::sync::Arc;

use tidemark_proto::limits::SECTOR_BYTES;

use super::pending::{Slots, Source};
use super::table::pending;
use super::tree::sector_bytes;
use super::{Image, ImageError};
use crate::store::{CHUNK_BYTES, ChunkId, ChunkStore};
use crate::wire::size;

/// A run of bytes of an image: `[offset, offset + bytes)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageExtent {
    /// First byte on the disk.
    pub offset: u64,
    /// Bytes.
    pub bytes: u64,
    /// Known to read as zeroes; otherwise there may be data.
    pub zero: bool,
}

/// Reads an image. Cheap to make and to clone.
#[derive(Debug, Clone)]
pub struct ImageReader {
    store: Arc<ChunkStore>,
    image: Arc<Image>,
}

impl ImageReader {
    /// A reader of an image whose chunks are in `store`. Somebody must keep them from collections.
    #[must_use]
    pub fn new(store: Arc<ChunkStore>, image: Image) -> Self {
        Self { store, image: Arc::new(image) }
    }

    /// The image.
    #[must_use]
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// Fills the buffer with the disk's bytes from `offset` (any offset).
    ///
    /// # Errors
    /// [`ImageError::Range`] beyond the disk's end; when a chunk is missing or damaged.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), ImageError> {
        self.check(offset, buffer.len() as u64)?;
        let mut content = vec![0; CHUNK_BYTES];
        let (mut at, mut rest) = (offset, buffer);
        while !rest.is_empty() {
            let chunk = at / CHUNK_BYTES as u64;
            let skip = size(at % CHUNK_BYTES as u64);
            let take = rest.len().min(CHUNK_BYTES - skip);
            let (out, next) = rest.split_at_mut_checked(take).unwrap_or_default();
            chunk_content(&self.store, &self.image, chunk, &mut content)?;
            if let Some(found) = content.get(skip..skip + take) {
                out.copy_from_slice(found);
            }
            at += take as u64;
            rest = next;
        }
        Ok(())
    }

    /// Runs that cover `[offset, offset + bytes)` in order, without holes, alternating in kind.
    ///
    /// # Errors
    /// As [`ImageReader::read_at`].
    pub fn extents(&self, offset: u64, bytes: u64) -> Result<Vec<ImageExtent>, ImageError> {
        self.check(offset, bytes)?;
        let end = offset + bytes;
        let mut extents: Vec<ImageExtent> = Vec::new();
        let mut at = offset;
        while at < end {
            let chunk = at / CHUNK_BYTES as u64;
            let hole = self.image.tree.get(&self.store, chunk)?.is_none();
            let slots = pending(&self.store, &self.image.tables, chunk)?;
            let first = chunk * CHUNK_BYTES as u64;
            for (sector, slot) in (0..).zip(slots.sectors()) {
                let until = (first + (sector + 1) * SECTOR_BYTES).min(end);
                if until <= at {
                    continue;
                }
                let zero = slot.map_or(hole, |source| source == Source::Zero);
                match extents.last_mut() {
                    Some(last) if last.zero == zero => last.bytes += until - at,
                    _ => extents.push(ImageExtent { offset: at, bytes: until - at, zero }),
                }
                at = until;
            }
        }
        Ok(extents)
    }

    fn check(&self, offset: u64, bytes: u64) -> Result<(), ImageError> {
        let size = self.image.size_bytes;
        match offset.checked_add(bytes) {
            Some(end) if end <= size => Ok(()),
            end => Err(ImageError::Range { offset, end: end.unwrap_or(u64::MAX), size }),
        }
    }
}

/// The content of one chunk of an image; zeroes beyond the disk.
pub(super) fn chunk_content(
    store: &ChunkStore,
    image: &Image,
    chunk: u64,
    out: &mut [u8],
) -> Result<(), ImageError> {
    let slots = pending(store, &image.tables, chunk)?;
    let base = image.tree.get(store, chunk)?;
    compose(store, base.as_ref(), &slots, out)
}

/// Lays what is pending over the chunk as it was last written.
pub(super) fn compose(
    store: &ChunkStore,
    base: Option<&ChunkId>,
    slots: &Slots,
    out: &mut [u8],
) -> Result<(), ImageError> {
    out.fill(0);
    if let Some(id) = base
        && !slots.is_full()
    {
        let content = store.get(id)?;
        if content.len() != out.len() {
            return Err(ImageError::Broken { chunk: *id, problem: "it is not a whole chunk of a disk" });
        }
        out.copy_from_slice(&content);
    }
    for run in slots.runs() {
        let range =
            sector_bytes(run.start.into())..sector_bytes(u64::from(run.start) + u64::from(run.sectors));
        let Some(place) = out.get_mut(range) else { continue };
        match run.source {
            Source::Zero => place.fill(0),
            Source::Data { id, offset } => {
                let content = store.get(&id)?;
                let from = sector_bytes(offset.into());
                let found = content.get(from..from + place.len());
                let problem = "it is a delta chunk that is too short";
                place.copy_from_slice(found.ok_or(ImageError::Broken { chunk: id, problem })?);
            }
        }
    }
    Ok(())
}
