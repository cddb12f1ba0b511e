//! Where the chunks of one template lie, by their hashes.
//!
//! ## File `DIR/templates/<UUID of the object>`, version 1; integers are little-endian
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | magic `TMTMPLIX` |
//! | 8 | 2 | version = 1 |
//! | 10 | 2 | zeroes |
//! | 12 | 4 | entries |
//! | 16 | 16 | id of the object |
//! | 32 | 32 | BLAKE3 of the key that the hashes are under |
//! | 64 | 32 | identity of the object's image |
//! | 96 | | entries {first half of the chunk's hash 16, chunk number u32}, ascending, no half twice |
//! | end - 32 | 32 | BLAKE3 of all before |
//!
//! A file that is missing, damaged or of another key or image is made anew by reading the template.
//!
//! ## History
//! Version 1: first light.

use thiserror::Error;
use tidemark_journal::image::{ImageError, ImageReader};
use tidemark_proto::limits::PIECE_BYTES;
use tidemark_proto::pieces::{HashKey, is_zero};

use crate::objects::Object;

const MAGIC: [u8; 8] = *b"TMTMPLIX";
const VERSION: u16 = 1;
const HEADER_BYTES: usize = 96;
const HALF_BYTES: usize = 16;
const ENTRY_BYTES: usize = HALF_BYTES + 4;
const HASH_BYTES: usize = 32;

/// Bytes of a template that are looked at in one step.
const STEP_BYTES: u64 = 1 << 20;

/// Half of a hash: enough to find by, as what is found is hashed before it is believed.
type Half = [u8; HALF_BYTES];

fn half(hash: &[u8; HASH_BYTES]) -> Half {
    let mut half = [0; HALF_BYTES];
    half.iter_mut().zip(hash).for_each(|(to, from)| *to = *from);
    half
}

/// The index of one template.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TemplateIndex {
    /// Sorted, no half twice.
    places: Vec<(Half, u32)>,
    complete: bool,
}

/// A file is no index of this template under this key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("it {0}")]
pub struct IndexError(&'static str);

impl TemplateIndex {
    /// Reads a template and hashes its chunks, without those that are all zeroes, at most `most` of them. A chunk that
    /// cannot be read is left out. `None` when `stop` says so first.
    ///
    /// # Errors
    /// When the way to the chunks cannot be read.
    pub fn build(
        reader: &ImageReader,
        key: &HashKey,
        most: usize,
        stop: &dyn Fn() -> bool,
    ) -> Result<Option<Self>, ImageError> {
        let size = reader.image().size_bytes();
        let mut places = Vec::new();
        let mut chunk = vec![0; usize::try_from(PIECE_BYTES).unwrap_or(usize::MAX)];
        let (mut at, mut complete) = (0, true);
        while at < size && complete {
            if stop() {
                return Ok(None);
            }
            let step = STEP_BYTES.min(size - at);
            if reader.extents(at, step)?.iter().any(|extent| !extent.zero) {
                for offset in (at..at + step).step_by(chunk.len()) {
                    let (Ok(number), true) = (u32::try_from(offset / PIECE_BYTES), places.len() < most)
                    else {
                        complete = false;
                        break;
                    };
                    let inside = usize::try_from(size - offset).unwrap_or(usize::MAX).min(chunk.len());
                    let (content, beyond) = chunk.split_at_mut(inside);
                    beyond.fill(0);
                    if let Err(error) = reader.read_at(offset, content) {
                        tracing::warn!(%error, offset, "a part of a template cannot be read: it is not known to splitters");
                    } else if !is_zero(&chunk) {
                        places.push((half(&key.hash(&chunk)), number));
                    }
                }
            }
            at += step;
        }
        places.sort_unstable();
        places.dedup_by_key(|(half, _)| *half);
        Ok(Some(Self { places, complete }))
    }

    /// Chunks in it.
    #[must_use]
    pub fn chunks(&self) -> usize {
        self.places.len()
    }

    /// Whether nothing was left out for want of room.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// The number of a chunk that may have this hash.
    #[must_use]
    pub fn find(&self, hash: &[u8; HASH_BYTES]) -> Option<u32> {
        let half = half(hash);
        let found = self.places.binary_search_by(|(known, _)| known.cmp(&half)).ok()?;
        self.places.get(found).map(|(_, number)| *number)
    }

    /// The content of its file.
    #[must_use]
    pub fn encode(&self, object: &Object, key: &HashKey) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_BYTES + self.places.len() * ENTRY_BYTES + HASH_BYTES);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&[0; 2]);
        out.extend_from_slice(&u32::try_from(self.places.len()).unwrap_or(u32::MAX).to_le_bytes());
        out.extend_from_slice(object.id.as_bytes());
        out.extend_from_slice(blake3::hash(&key.0).as_bytes());
        out.extend_from_slice(&object.image.id().0);
        for (half, number) in &self.places {
            out.extend_from_slice(half);
            out.extend_from_slice(&number.to_le_bytes());
        }
        let hash = blake3::hash(&out);
        out.extend_from_slice(hash.as_bytes());
        out
    }

    /// Decodes the file of a template. Takes anything, panics at nothing.
    ///
    /// # Errors
    /// When it is damaged, of another version, or of another key, object or content.
    pub fn decode(bytes: &[u8], object: &Object, key: &HashKey) -> Result<Self, IndexError> {
        let (body, hash) = bytes.split_last_chunk::<HASH_BYTES>().ok_or(IndexError("is cut off"))?;
        if !body.starts_with(&MAGIC) {
            return Err(IndexError("does not begin as an index"));
        }
        if blake3::hash(body).as_bytes() != hash {
            return Err(IndexError("is damaged"));
        }
        let (header, entries) = body.split_at_checked(HEADER_BYTES).ok_or(IndexError("is cut off"))?;
        if header.get(8..10) != Some(&VERSION.to_le_bytes()[..]) {
            return Err(IndexError("is of another version"));
        }
        let of = [&object.id.as_bytes()[..], blake3::hash(&key.0).as_bytes(), &object.image.id().0].concat();
        if header.get(16..) != Some(&of[..]) {
            return Err(IndexError("is of another key or content"));
        }
        let (entries, rest) = entries.as_chunks::<ENTRY_BYTES>();
        let count = u32::try_from(entries.len()).unwrap_or(u32::MAX).to_le_bytes();
        let places: Vec<_> = entries.iter().map(place).collect();
        let ascends = places.is_sorted_by(|a, b| a.0 < b.0);
        if !rest.is_empty()
            || header.get(10..12) != Some(&[0; 2][..])
            || header.get(12..16) != Some(&count[..])
            || !ascends
        {
            return Err(IndexError("breaks the format"));
        }
        Ok(Self { places, complete: true })
    }
}

fn place(entry: &[u8; ENTRY_BYTES]) -> (Half, u32) {
    let (half, number) = (entry.first_chunk().copied(), entry.last_chunk().copied());
    (half.unwrap_or_default(), u32::from_le_bytes(number.unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tidemark_journal::image::Image;
    use tidemark_journal::store::KeyDomain;
    use tidemark_proto::ids::{DiskId, Lsn};
    use uuid::Uuid;

    use super::*;
    use crate::objects::ObjectKind;

    const KEY: HashKey = HashKey([7; 32]);

    fn object() -> Object {
        Object {
            id: Uuid::from_u128(7),
            name: "golden".to_owned(),
            kind: ObjectKind::Template,
            size_bytes: 1024,
            hash: [3; 32],
            tags: BTreeMap::new(),
            created_us: 5,
            published: true,
            hold: false,
            locked_until_us: 0,
            new_bytes: 512,
            image: Image::empty(KeyDomain([1; 16]), DiskId(1), Lsn(0), 1024),
        }
    }

    fn index() -> TemplateIndex {
        let places = vec![([1; 16], 5), ([2; 16], 0), ([9; 16], 0x0102_0304)];
        TemplateIndex { places, complete: true }
    }

    #[test]
    fn indexes_come_back_as_they_were_and_every_flipped_bit_is_found() {
        let bytes = index().encode(&object(), &KEY);
        assert_eq!(TemplateIndex::decode(&bytes, &object(), &KEY), Ok(index()));
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert!(TemplateIndex::decode(&damaged, &object(), &KEY).is_err(), "byte {at}");
            assert!(TemplateIndex::decode(&bytes[..at], &object(), &KEY).is_err(), "cut at {at}");
        }
        // Of another key, object or content.
        assert!(TemplateIndex::decode(&bytes, &object(), &HashKey([8; 32])).is_err());
        assert!(TemplateIndex::decode(&bytes, &Object { id: Uuid::from_u128(8), ..object() }, &KEY).is_err());
        let image = Image::empty(KeyDomain([1; 16]), DiskId(1), Lsn(0), 2048);
        assert!(TemplateIndex::decode(&bytes, &Object { image, ..object() }, &KEY).is_err());
        // A whole file whose entries do not ascend.
        let places = vec![([2; 16], 5), ([2; 16], 6)];
        let wrong = TemplateIndex { places, complete: true }.encode(&object(), &KEY);
        assert_eq!(TemplateIndex::decode(&wrong, &object(), &KEY), Err(IndexError("breaks the format")));
    }

    #[test]
    fn the_golden_index_stays_readable() {
        let bytes = index().encode(&object(), &KEY);
        assert_eq!(&bytes[..16], b"TMTMPLIX\x01\0\0\0\x03\0\0\0");
        assert_eq!(&bytes[96 + 40..96 + 60], [&[9; 16][..], &[4, 3, 2, 1]].concat());
        assert_eq!(bytes.len(), 96 + 60 + 32);
        let mut found = [0; 32];
        found[..16].fill(9);
        found[16..].fill(44);
        assert_eq!(index().find(&found), Some(0x0102_0304));
        assert_eq!(index().find(&[3; 32]), None);
    }
}
