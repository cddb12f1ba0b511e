//! Payload, verified piece by piece.

use std::sync::Arc;

use tidemark_proto::limits::{CHECKSUM_PIECE_BYTES, SECTOR_BYTES};

use super::cache::{Cached, Part};
use super::files::FileKey;
use super::source::Source;
use crate::error::ReadError;
use crate::recovery::Damage;
use crate::segment::segment_name;
use crate::storage::StorageFile;
use crate::wire::size;

const PIECE: u64 = CHECKSUM_PIECE_BYTES as u64;

/// Where bytes lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bytes {
    pub segment: u64,
    /// Byte of the segment at which the frame's payload begins.
    pub payload_start: u64,
    pub payload_sectors: u64,
    /// Byte of the payload.
    pub offset: u64,
}

/// Reads of one request, which often go to one frame after another.
pub(crate) struct Payload<'a> {
    source: &'a Source,
    frame: Option<Frame>,
}

struct Frame {
    segment: u64,
    payload_start: u64,
    file: Arc<dyn StorageFile>,
    checksums: Arc<Vec<u32>>,
}

impl<'a> Payload<'a> {
    pub(crate) fn new(source: &'a Source) -> Self {
        Self { source, frame: None }
    }

    fn frame(&mut self, place: &Bytes) -> Result<&Frame, ReadError> {
        let same =
            |frame: &Frame| (frame.segment, frame.payload_start) == (place.segment, place.payload_start);
        let found = match self.frame.take().filter(same) {
            Some(frame) => frame,
            None => {
                let key = FileKey::Segment(place.segment);
                let file = self.source.file(key)?;
                let checksums = self.source.checksums(place, file.as_ref())?;
                Frame { segment: place.segment, payload_start: place.payload_start, file, checksums }
            }
        };
        Ok(self.frame.insert(found))
    }

    /// Fills `out` with payload from `place` on, every checksum piece it touches verified.
    pub(crate) fn read(&mut self, place: &Bytes, out: &mut [u8]) -> Result<(), ReadError> {
        let total = place.payload_sectors * SECTOR_BYTES;
        let end = (place.offset + out.len() as u64).min(total);
        let first = place.offset / PIECE;
        let from = first * PIECE;
        let to = end.next_multiple_of(PIECE).min(total);
        let frame = self.frame(place)?;
        let checksums = frame.checksums.get(size(first)..).unwrap_or_default();
        // A read of whole pieces lands where it is wanted; others go through a buffer.
        let whole = from == place.offset && (to - from) == out.len() as u64;
        let mut around = Vec::new();
        let pieces: &mut [u8] = if whole {
            &mut *out
        } else {
            around.resize(size(to - from), 0);
            &mut around
        };
        frame.file.read_at(place.payload_start + from, pieces)?;
        if let Some(at) = crate::frame::payload_damage(pieces, checksums) {
            return Err(ReadError::Damaged(Damage {
                file: segment_name(place.segment),
                offset: place.payload_start + from + at as u64,
                bytes: PIECE.min(to - from - at as u64),
                problem: "a checksum of the payload does not match".to_owned(),
            }));
        }
        if !whole {
            let skip = size(place.offset - from);
            let found = around.get(skip..skip.saturating_add(out.len())).ok_or_else(|| outside(place))?;
            out.copy_from_slice(found);
        }
        Ok(())
    }
}

impl Source {
    /// The checksums of a frame's payload, which lie before it.
    fn checksums(&self, place: &Bytes, file: &dyn StorageFile) -> Result<Arc<Vec<u32>>, ReadError> {
        let key = FileKey::Segment(place.segment);
        let pick = |cached| if let Cached::Checksums(found) = cached { Some(found) } else { None };
        let found = self.cached(key, Part::Checksums(place.payload_start), pick, || {
            let bytes = (place.payload_sectors * SECTOR_BYTES).div_ceil(PIECE) * 4;
            let start = place.payload_start.checked_sub(bytes).ok_or_else(|| outside(place))?;
            let mut checksums = vec![0; size(bytes)];
            file.read_at(start, &mut checksums)?;
            let checksums = checksums.as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes));
            Ok(Cached::Checksums(Arc::new(checksums.collect())))
        })?;
        found.ok_or_else(|| outside(place))
    }
}

fn outside(place: &Bytes) -> ReadError {
    ReadError::Damaged(Damage {
        file: segment_name(place.segment),
        offset: place.payload_start,
        bytes: 0,
        problem: "an index entry points outside its frame".to_owned(),
    })
}
