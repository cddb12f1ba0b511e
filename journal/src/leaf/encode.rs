//! A memory index as the bytes of a leaf.

use super::{ENTRIES_PER_PAGE, MAGIC, TIMES_PER_PAGE, part_hash};
use crate::index::{INDEX_ENTRY_BYTES, IndexEntry, MemoryIndex};
use crate::wire::{Put, length};

/// The whole file and its head's hash, which the manifest keeps.
pub(crate) fn encode(index: &MemoryIndex, ordinal: u64, key: &[u8; 32]) -> (Vec<u8>, [u8; 32]) {
    let narrow: Vec<&IndexEntry> = index.narrow().collect();
    let mut directory = Vec::new();
    let mut parts =
        Vec::with_capacity((narrow.len() + index.wide().len()) * INDEX_ENTRY_BYTES + 8 * index.times().len());
    for page in narrow.chunks(ENTRIES_PER_PAGE) {
        let start = parts.len();
        for entry in page {
            entry.encode(&mut parts);
        }
        if let Some(first) = page.first() {
            directory.u32(first.disk.0);
            directory.u64(first.chunk());
            directory.u64(first.lsn.0);
            directory.u32(first.arrival);
        }
        directory.put(&part_hash(key, parts.get(start..).unwrap_or_default()));
    }
    let start = parts.len();
    for entry in index.wide() {
        entry.encode(&mut parts);
    }
    directory.put(&part_hash(key, parts.get(start..).unwrap_or_default()));
    for page in index.times().chunks(TIMES_PER_PAGE) {
        let start = parts.len();
        for time in page {
            parts.u64(*time);
        }
        directory.u64(page.first().copied().unwrap_or_default());
        directory.put(&part_hash(key, parts.get(start..).unwrap_or_default()));
    }
    let mut out = Vec::with_capacity(super::HEADER_BYTES + directory.len() + parts.len());
    out.put(&MAGIC);
    out.u16(1);
    out.u16(0);
    out.u32(length(directory.len()));
    out.u64(ordinal);
    out.u64(index.summary().first_lsn);
    out.u32(length(narrow.len()));
    out.u32(length(index.wide().len()));
    out.u32(length(index.times().len()));
    out.u32(0);
    let mut hasher = blake3::Hasher::new_keyed(key);
    hasher.update(&out);
    hasher.update(&directory);
    let hash = *hasher.finalize().as_bytes();
    out.put(&hash);
    out.put(&directory);
    out.put(&parts);
    (out, hash)
}
