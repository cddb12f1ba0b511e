//! What opens an encrypted payload, besides the key of its segment.

use super::header::SALT_BYTES;
use crate::store::TAG_BYTES;
use crate::wire::{Put, Reader};

/// The salt that the payload's key is made with, and the tag of each of its blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seal {
    /// Comes once and never again.
    pub salt: [u8; SALT_BYTES],
    /// One for each block of 4 KiB, the last of which may be shorter.
    pub tags: Vec<[u8; TAG_BYTES]>,
}

impl Seal {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        for tag in &self.tags {
            out.put(tag);
        }
        out.put(&self.salt);
    }

    /// `None`: no seal.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (tags, salt) = bytes.split_at_checked(bytes.len().checked_sub(SALT_BYTES)?)?;
        let (tags, rest) = tags.as_chunks();
        let mut reader = Reader::new(salt);
        rest.is_empty().then_some(Self { salt: reader.array()?, tags: tags.to_vec() })
    }
}
