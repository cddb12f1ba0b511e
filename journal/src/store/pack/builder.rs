//! A pack while it is filled, in memory.

use std::collections::HashMap;

use super::{
    DIRECTORY_ENTRY_BYTES, MAGIC, Stored, TRAILER_BYTES, pack_id, record_hash, trailer_hash, trailer_head,
};
use crate::store::crypt::{self, Secret, TAG_BYTES};
use crate::store::{ChunkId, KeyDomain, PackId, StoreError};
use crate::wire::{Put, length, size};

/// A chunk that is to be stored.
#[derive(Debug)]
pub(crate) struct Encoded {
    pub id: ChunkId,
    pub content: usize,
    pub flags: u16,
    /// The content, compressed if flagged.
    pub bytes: Vec<u8>,
}

/// Grows chunk by chunk; complete after [`PackBuilder::seal`].
#[derive(Debug)]
pub(crate) struct PackBuilder {
    pub domain: KeyDomain,
    pub key_ordinal: u32,
    pub salt: [u8; 32],
    data_key: Secret,
    header_hash: [u8; 32],
    bytes: Vec<u8>,
    chunks: Vec<Stored>,
    places: HashMap<ChunkId, u32>,
    sealed: bool,
}

impl PackBuilder {
    pub(crate) fn new(domain: KeyDomain, key_ordinal: u32, data_key: Secret, salt: [u8; 32]) -> Self {
        let mut bytes = Vec::new();
        bytes.put(&MAGIC);
        bytes.u16(1);
        bytes.u16(104);
        bytes.u32(0);
        bytes.put(&domain.0);
        bytes.u32(key_ordinal);
        bytes.u32(0);
        bytes.put(&salt);
        let header_hash = *blake3::keyed_hash(&salt, &bytes).as_bytes();
        bytes.put(&header_hash);
        let (chunks, places) = (Vec::new(), HashMap::new());
        Self { domain, key_ordinal, salt, data_key, header_hash, bytes, chunks, places, sealed: false }
    }

    pub(crate) fn id(&self) -> PackId {
        pack_id(&self.salt)
    }

    /// Bytes that the finished pack will have.
    pub(crate) fn bytes_when_sealed(&self) -> usize {
        if self.sealed {
            return self.bytes.len();
        }
        self.bytes.len() + self.chunks.len() * DIRECTORY_ENTRY_BYTES + TRAILER_BYTES
    }

    pub(crate) fn chunks(&self) -> &[Stored] {
        &self.chunks
    }

    pub(crate) fn find(&self, id: &ChunkId) -> Option<&Stored> {
        self.chunks.get(size((*self.places.get(id)?).into()))
    }

    /// The bytes of a chunk as stored.
    pub(crate) fn stored(&self, chunk: &Stored) -> Option<&[u8]> {
        let from = size(chunk.offset.into()).checked_add(super::RECORD_BYTES)?;
        self.bytes.get(from..from.checked_add(size(chunk.stored.into()))?)
    }

    /// Appends a chunk; bytes stored for it, all told.
    pub(crate) fn add(&mut self, encoded: Encoded) -> Result<usize, StoreError> {
        let mut stored = encoded.bytes;
        let chunk = Stored {
            id: encoded.id,
            number: length(self.chunks.len()),
            offset: length(self.bytes.len()),
            stored: length(stored.len() + TAG_BYTES),
            content: length(encoded.content),
            flags: encoded.flags,
        };
        let mut head = chunk.head();
        crypt::seal(&chunk.key(&self.data_key, &self.salt), chunk.number, &head, &mut stored)?;
        let hash = record_hash(&self.salt, &head, &stored);
        head.put(&hash);
        self.bytes.put(&head);
        self.bytes.put(&stored);
        self.places.insert(chunk.id, chunk.number);
        self.chunks.push(chunk);
        Ok(chunk.record_bytes() + DIRECTORY_ENTRY_BYTES)
    }

    /// Adds directory and trailer, once. The whole pack.
    pub(crate) fn seal(&mut self) -> &[u8] {
        if !self.sealed {
            self.sealed = true;
            let start = self.bytes.len();
            for chunk in &self.chunks {
                chunk.encode_entry(&mut self.bytes);
            }
            let end = self.bytes.len();
            let head = trailer_head(self.chunks.len(), end - start, end + TRAILER_BYTES);
            let directory = self.bytes.get(start..).unwrap_or_default();
            let hash = trailer_hash(&self.salt, &self.header_hash, directory, &head);
            self.bytes.put(&head);
            self.bytes.put(&hash);
        }
        &self.bytes
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}
