//! Packs: files or objects of many chunks of one key domain, written once. Every hash is over the bytes as stored, so
//! that all of a pack can be checked without any key.
//!
//! ## Layout, version 1; integers are little-endian
//! Header, 104 bytes: magic `TMPACK01`, version u16 = 1, header bytes u16 = 104, reserved u32 = 0, key domain 16, data
//! key ordinal u32, reserved u32 = 0, salt 32, hash 32 (BLAKE3 keyed with the salt, over bytes 0..72). The pack's name
//! is the salt's first half.
//!
//! Chunk record: magic `TMCH`, stored bytes u32, content bytes u32, flags u16 (bit 0: zstd), reserved u16 = 0, chunk id
//! 32, hash 32 (keyed with the salt, over the 48 bytes before it and the stored bytes), stored bytes: the content,
//! compressed if flagged, by AES-256-GCM with its tag. The nonce is the chunk's number in the pack, from 0; chunk id and
//! flags are authenticated through the key (see `crypt`), the first 48 bytes of the record as additional data.
//!
//! Directory: for each chunk in order {chunk id 32, offset of its record u32, stored bytes u32, content bytes u32,
//! flags u16, reserved u16 = 0}.
//!
//! Trailer, 64 bytes, at the end: magic `TMPFOOT1`, chunks u32, directory bytes u32, pack bytes u64, reserved u64 = 0,
//! hash 32 (keyed with the salt, over the header's hash, the directory and the trailer's first 32 bytes).
//!
//! ## History
//! Version 1: first light.

mod builder;
mod decode;

pub(crate) use builder::{Encoded, PackBuilder};
pub(crate) use decode::decode_trailer;
pub use decode::{PackError, PackHeader, decode, decode_directory, decode_header, decode_record};

pub(crate) use layout::*;

mod layout {
    //! Sizes that encoder and decoder share.
    use crate::store::crypt::{Secret, derive};
    use crate::store::{ChunkId, PackId};
    use crate::wire::{Put, length};

    pub(crate) const MAGIC: [u8; 8] = *b"TMPACK01";
    pub(crate) const RECORD_MAGIC: [u8; 4] = *b"TMCH";
    pub(crate) const TRAILER_MAGIC: [u8; 8] = *b"TMPFOOT1";
    pub(crate) const HASHED_HEADER_BYTES: usize = 72;
    pub(crate) const HEADER_BYTES: usize = 104;
    pub(crate) const HASHED_RECORD_BYTES: usize = 48;
    pub(crate) const RECORD_BYTES: usize = 80;
    pub(crate) const DIRECTORY_ENTRY_BYTES: usize = 48;
    pub(crate) const HASHED_TRAILER_BYTES: usize = 32;
    pub(crate) const TRAILER_BYTES: usize = 64;
    pub(crate) const FLAG_ZSTD: u16 = 1;

    /// A chunk in a pack, as the directory says.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Stored {
        /// Which.
        pub id: ChunkId,
        /// Its number in the pack, from 0.
        pub number: u32,
        /// Where its record begins.
        pub offset: u32,
        /// Bytes as stored, without the record's head.
        pub stored: u32,
        /// Bytes of content.
        pub content: u32,
        pub(crate) flags: u16,
    }

    impl Stored {
        /// The head of its record, without the hash.
        pub(crate) fn head(&self) -> Vec<u8> {
            let mut out = Vec::with_capacity(RECORD_BYTES);
            out.put(&RECORD_MAGIC);
            out.u32(self.stored);
            out.u32(self.content);
            out.u16(self.flags);
            out.u16(0);
            out.put(&self.id.0);
            out
        }

        pub(crate) fn encode_entry(&self, out: &mut Vec<u8>) {
            out.put(&self.id.0);
            out.u32(self.offset);
            out.u32(self.stored);
            out.u32(self.content);
            out.u16(self.flags);
            out.u16(0);
        }

        pub(crate) fn key(&self, data_key: &Secret, salt: &[u8; 32]) -> Secret {
            derive(&data_key.0, "tidemark chunk", &[salt, &self.id.0, &self.flags.to_le_bytes()])
        }

        /// Bytes of the whole record.
        pub(crate) fn record_bytes(&self) -> usize {
            RECORD_BYTES + usize::try_from(self.stored).unwrap_or(usize::MAX - RECORD_BYTES)
        }
    }

    pub(crate) fn record_hash(salt: &[u8; 32], head: &[u8], stored: &[u8]) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_keyed(salt);
        *hasher.update(head).update(stored).finalize().as_bytes()
    }

    pub(crate) fn trailer_hash(
        salt: &[u8; 32],
        header_hash: &[u8; 32],
        directory: &[u8],
        head: &[u8],
    ) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_keyed(salt);
        *hasher.update(header_hash).update(directory).update(head).finalize().as_bytes()
    }

    pub(crate) fn pack_id(salt: &[u8; 32]) -> PackId {
        PackId(salt.first_chunk().copied().unwrap_or_default())
    }

    pub(crate) fn trailer_head(chunks: usize, directory_bytes: usize, pack_bytes: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(TRAILER_BYTES);
        out.put(&TRAILER_MAGIC);
        out.u32(length(chunks));
        out.u32(length(directory_bytes));
        out.u64(pack_bytes as u64);
        out.u64(0);
        out
    }
}
