//! Payload, verified piece by piece.

use std::sync::Arc;

use tidemark_proto::limits::{CHECKSUM_PIECE_BYTES, SECTOR_BYTES};

use super::cache::{Cached, Part};
use super::files::FileKey;
use super::source::Source;
use crate::encryption::FrameCipher;
use crate::error::ReadError;
use crate::frame::{PAYLOAD_HASH_BYTES, SALT_BYTES, Seal};
use crate::recovery::Damage;
use crate::segment::{SEGMENT_HEADER_BYTES, SegmentHeader, segment_name};
use crate::storage::StorageFile;
use crate::store::TAG_BYTES;
use crate::wire::size;

const PIECE: u64 = CHECKSUM_PIECE_BYTES as u64;

/// Bytes of encrypted payload that are read at once: whole pieces, few enough for a processor's cache.
const WINDOW_BYTES: usize = 16 * CHECKSUM_PIECE_BYTES;

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
    cover: Arc<Cover>,
    /// Opens what is encrypted.
    cipher: Option<FrameCipher>,
}

/// What verifies the payload of a frame, and opens it.
#[derive(Debug)]
pub(super) struct Cover {
    pub crc32c: Vec<u32>,
    /// With the ordinal of the data key.
    pub seal: Option<(u32, Seal)>,
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
            None => self.source.frame(place)?,
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
        // A read of whole pieces lands where it is wanted; others go through a buffer.
        let whole = from == place.offset && (to - from) == out.len() as u64;
        if whole {
            return frame.pieces(first, from, out);
        }
        let mut around = vec![0; size(to - from)];
        frame.pieces(first, from, &mut around)?;
        let skip = size(place.offset - from);
        let found = around.get(skip..skip.saturating_add(out.len())).ok_or_else(|| outside(place))?;
        out.copy_from_slice(found);
        Ok(())
    }
}

impl Frame {
    fn damage(&self, offset: u64, bytes: u64, problem: &str) -> ReadError {
        ReadError::Damaged(Damage {
            file: segment_name(self.segment),
            offset: self.payload_start + offset,
            bytes,
            problem: problem.to_owned(),
        })
    }

    /// Fills `out` with whole pieces from number `first` on, which begins at byte `from` of the payload.
    fn pieces(&self, first: u64, from: u64, out: &mut [u8]) -> Result<(), ReadError> {
        let Some((cipher, (_, seal))) = self.cipher.as_ref().zip(self.cover.seal.as_ref()) else {
            return self.stored(first, from, out);
        };
        // Window by window: what is stored stays in the processor's cache between its checksum and its opening.
        let mut stored = vec![0; out.len().min(WINDOW_BYTES)];
        for (window, out) in (0_u64..).zip(out.chunks_mut(WINDOW_BYTES)) {
            let stored = stored.get_mut(..out.len()).unwrap_or_default();
            let skipped = window * WINDOW_BYTES as u64;
            let first = first + skipped / PIECE;
            self.stored(first, from + skipped, stored)?;
            let pieces = stored.chunks(CHECKSUM_PIECE_BYTES).zip(out.chunks_mut(CHECKSUM_PIECE_BYTES));
            for (number, (stored, out)) in (first..).zip(pieces) {
                let tag = seal.tags.get(size(number)).zip(u32::try_from(number).ok());
                if tag.and_then(|(tag, number)| cipher.open(number, tag, stored, out)).is_none() {
                    let problem = "it does not open with its data key";
                    return Err(self.damage(number * PIECE, stored.len() as u64, problem));
                }
            }
        }
        Ok(())
    }

    /// The same as stored, verified.
    fn stored(&self, first: u64, from: u64, out: &mut [u8]) -> Result<(), ReadError> {
        self.file.read_at(self.payload_start + from, out)?;
        let checksums = self.cover.crc32c.get(size(first)..).unwrap_or_default();
        match crate::frame::payload_damage(out, checksums) {
            Some(at) => {
                let bytes = PIECE.min((out.len() - at) as u64);
                Err(self.damage(from + at as u64, bytes, "a checksum of the payload does not match"))
            }
            None => Ok(()),
        }
    }
}

impl Source {
    fn frame(&self, place: &Bytes) -> Result<Frame, ReadError> {
        let file = self.file(FileKey::Segment(place.segment))?;
        let cover = self.cover(place, file.as_ref())?;
        let cipher = match &cover.seal {
            None => None,
            Some((data_key, seal)) => {
                let no_key = || ReadError::NoKey { file: segment_name(place.segment) };
                let keys = self.keys().ok_or_else(no_key)?;
                let key = keys.get(*data_key).ok_or_else(no_key)?;
                Some(FrameCipher::new(key, seal, place.segment).ok_or_else(no_key)?)
            }
        };
        Ok(Frame { segment: place.segment, payload_start: place.payload_start, file, cover, cipher })
    }

    /// Which data key a segment has.
    fn data_key(&self, place: &Bytes, file: &dyn StorageFile) -> Result<u32, ReadError> {
        let pick = |cached| if let Cached::DataKey(found) = cached { Some(found) } else { None };
        let found = self.cached(FileKey::Segment(place.segment), Part::DataKey, pick, || {
            let mut header = vec![0; SEGMENT_HEADER_BYTES];
            file.read_at(0, &mut header)?;
            let header = SegmentHeader::decode(&header).filter(|(header, _)| header.key == self.key);
            let (header, _) = header.ok_or_else(|| {
                ReadError::Damaged(Damage {
                    file: segment_name(place.segment),
                    offset: 0,
                    bytes: SEGMENT_HEADER_BYTES as u64,
                    problem: "the header is not as written".to_owned(),
                })
            })?;
            Ok(Cached::DataKey(header.data_key))
        })?;
        found.ok_or_else(|| outside(place))
    }

    /// What covers a frame's payload, which lies before it.
    fn cover(&self, place: &Bytes, file: &dyn StorageFile) -> Result<Arc<Cover>, ReadError> {
        let key = FileKey::Segment(place.segment);
        let pick = |cached| if let Cached::Checksums(found) = cached { Some(found) } else { None };
        let found = self.cached(key, Part::Checksums(place.payload_start), pick, || {
            let data_key = self.data_key(place, file)?;
            let encrypted = data_key > 0;
            let pieces = size((place.payload_sectors * SECTOR_BYTES).div_ceil(PIECE));
            let seal_bytes = if encrypted { TAG_BYTES * pieces + SALT_BYTES } else { 0 };
            let hash_bytes = if encrypted { PAYLOAD_HASH_BYTES } else { 0 };
            let bytes = seal_bytes + hash_bytes + 4 * pieces;
            let start = place.payload_start.checked_sub(bytes as u64).ok_or_else(|| outside(place))?;
            let mut cover = vec![0; bytes];
            file.read_at(start, &mut cover)?;
            let (seal, rest) = cover.split_at_checked(seal_bytes).ok_or_else(|| outside(place))?;
            let checksums = rest.get(hash_bytes..).unwrap_or_default();
            let crc32c = checksums.as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect();
            let seal = if encrypted {
                Some((data_key, Seal::decode(seal).ok_or_else(|| outside(place))?))
            } else {
                None
            };
            Ok(Cached::Checksums(Arc::new(Cover { crc32c, seal })))
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
