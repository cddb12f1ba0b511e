//! Leaf indexes: all versions in one sealed segment, and the time of each of its LSNs. Rebuilt from the segment they
//! are byte for byte the same, so `verify` can compare.
//!
//! ## Layout, version 1; integers are little-endian
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | magic `TMLEAF01` |
//! | 8 | 2 | version = 1 |
//! | 10 | 2 | reserved = 0 |
//! | 12 | 4 | directory bytes |
//! | 16 | 8 | segment ordinal |
//! | 24 | 8 | first LSN (0: none) |
//! | 32 | 4 | entries in pages |
//! | 36 | 4 | wide entries |
//! | 40 | 4 | times |
//! | 44 | 4 | reserved = 0 |
//! | 48 | 32 | BLAKE3 keyed with the journal's key, over bytes 0..48 and the directory |
//! | 80 | | directory, entry pages, wide entries, time pages |
//!
//! Directory: per entry page {disk u32, chunk u64, LSN u64, arrival u32 of its first entry, hash 16}; the hash of the
//! wide entries (16); per time page {first time u64, hash 16}. Hashes of parts are the first 16 bytes of BLAKE3 keyed.
//! Entry pages hold 512 entries (the last may hold less) of [`crate::index::IndexEntry`], 36 bytes each, sorted by
//! disk, chunk, LSN descending, arrival descending. Time pages hold 2048 u64: microseconds, LSN by LSN from the first.
//!
//! ## History
//! Version 1: first light.

mod decode;
mod encode;

pub use decode::{Directory, LeafError, decode};
pub(crate) use decode::{decode_directory, decode_entries, decode_times, directory_bytes};
pub(crate) use encode::encode;

pub(crate) use layout::{
    DIRECTORY_PAGE_BYTES, DIRECTORY_TIME_BYTES, ENTRIES_PER_PAGE, HASHED_BYTES, HEADER_BYTES, MAGIC,
    PART_HASH_BYTES, TIMES_PER_PAGE, part_hash,
};

/// The name of a leaf's file.
#[must_use]
pub fn leaf_name(ordinal: u64) -> String {
    format!("leaf-{ordinal:016x}")
}

mod layout {
    //! Sizes that encoder and decoder share.

    pub(crate) const MAGIC: [u8; 8] = *b"TMLEAF01";
    pub(crate) const HASHED_BYTES: usize = 48;
    pub(crate) const HEADER_BYTES: usize = 80;
    pub(crate) const ENTRIES_PER_PAGE: usize = 512;
    pub(crate) const TIMES_PER_PAGE: usize = 2048;
    pub(crate) const PART_HASH_BYTES: usize = 16;
    pub(crate) const DIRECTORY_PAGE_BYTES: usize = 24 + PART_HASH_BYTES;
    pub(crate) const DIRECTORY_TIME_BYTES: usize = 8 + PART_HASH_BYTES;

    /// The hash of a page or list.
    pub(crate) fn part_hash(key: &[u8; 32], bytes: &[u8]) -> [u8; PART_HASH_BYTES] {
        let hash = blake3::keyed_hash(key, bytes);
        hash.as_bytes().first_chunk().copied().unwrap_or_default()
    }
}
