//! The bytes of a leaf, in the parts in which views read them. Takes anything, panics at nothing.

use std::cmp::Reverse;
use std::ops::Range;

use thiserror::Error;

use super::{
    DIRECTORY_PAGE_BYTES, DIRECTORY_TIME_BYTES, ENTRIES_PER_PAGE, HASHED_BYTES, HEADER_BYTES, MAGIC,
    PART_HASH_BYTES, TIMES_PER_PAGE, part_hash,
};
use crate::index::{INDEX_ENTRY_BYTES, IndexEntry, Key};
use crate::wire::{Reader, same_hash, size};

/// Bytes are not (that part of) a leaf.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("{problem}")]
pub struct LeafError {
    /// Where in the file.
    pub offset: u64,
    /// Bytes concerned.
    pub bytes: u64,
    /// What is wrong.
    pub problem: &'static str,
}

/// The head of a leaf: what its parts are and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directory {
    /// The segment it indexes.
    pub ordinal: u64,
    /// LSN of the first time; 0 when there is none.
    pub first_lsn: u64,
    /// Bytes of the whole file.
    pub file_bytes: u64,
    pub(crate) pages: Vec<Page<Key>>,
    pub(crate) wide: Page<()>,
    pub(crate) times: Vec<Page<u64>>,
}

/// One part: where it is, its hash, and what it begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Page<K> {
    pub offset: u64,
    pub bytes: usize,
    pub hash: [u8; PART_HASH_BYTES],
    pub first: K,
}

impl<K> Page<K> {
    fn range(&self) -> Range<usize> {
        size(self.offset)..size(self.offset).saturating_add(self.bytes)
    }

    fn check(&self, bytes: &[u8], key: &[u8; 32]) -> Result<(), LeafError> {
        if same_hash(&self.hash, &part_hash(key, bytes)) {
            return Ok(());
        }
        Err(LeafError {
            offset: self.offset,
            bytes: self.bytes as u64,
            problem: "a page's hash does not match",
        })
    }

    fn broken(&self) -> LeafError {
        LeafError { offset: self.offset, bytes: self.bytes as u64, problem: "a page breaks the format" }
    }
}

fn head_error(problem: &'static str) -> LeafError {
    LeafError { offset: 0, bytes: HEADER_BYTES as u64, problem }
}

/// Decodes the header and directory that `bytes` begins with.
pub(crate) fn decode_directory(bytes: &[u8], key: &[u8; 32]) -> Result<(Directory, [u8; 32]), LeafError> {
    let short = head_error("the head is cut off");
    let hashed = bytes.get(..HASHED_BYTES).ok_or(short)?;
    let length = directory_bytes(hashed).ok_or(head_error("no leaf begins here"))?;
    let stored = bytes.get(HASHED_BYTES..HEADER_BYTES).ok_or(short)?;
    let directory = bytes.get(HEADER_BYTES..HEADER_BYTES.saturating_add(length)).ok_or(short)?;
    let mut hasher = blake3::Hasher::new_keyed(key);
    hasher.update(hashed);
    hasher.update(directory);
    let hash = *hasher.finalize().as_bytes();
    if !stored.try_into().is_ok_and(|stored| same_hash(stored, &hash)) {
        let bytes = (HEADER_BYTES + length) as u64;
        return Err(LeafError { offset: 0, bytes, problem: "the head's hash does not match" });
    }
    let directory = parse(hashed, directory).ok_or(head_error("the head breaks the format"))?;
    Ok((directory, hash))
}

/// Bytes of the directory, from the unverified first 48 bytes.
pub(crate) fn directory_bytes(head: &[u8]) -> Option<usize> {
    let mut reader = Reader::new(head);
    if reader.array()? != MAGIC || reader.u16()? != 1 || reader.u16()? != 0 {
        return None;
    }
    let bytes = size(reader.u32()?.into());
    reader.take(16)?;
    let (entries, _, times) = (size(reader.u32()?.into()), reader.u32()?, size(reader.u32()?.into()));
    let expected = entries
        .div_ceil(ENTRIES_PER_PAGE)
        .checked_mul(DIRECTORY_PAGE_BYTES)?
        .checked_add(PART_HASH_BYTES)?
        .checked_add(times.div_ceil(TIMES_PER_PAGE).checked_mul(DIRECTORY_TIME_BYTES)?)?;
    (bytes == expected).then_some(bytes)
}

fn parse(head: &[u8], directory: &[u8]) -> Option<Directory> {
    let mut reader = Reader::new(head);
    reader.take(12)?;
    let directory_bytes = reader.u32()?;
    let (ordinal, first_lsn) = (reader.u64()?, reader.u64()?);
    let (entries, wide, times) =
        (size(reader.u32()?.into()), size(reader.u32()?.into()), size(reader.u32()?.into()));
    let mut reader = Reader::new(directory);
    let mut offset = (HEADER_BYTES as u64).checked_add(directory_bytes.into())?;
    let mut pages = Vec::new();
    let mut left = entries;
    while left > 0 {
        let (disk, chunk, lsn, arrival) = (reader.u32()?, reader.u64()?, reader.u64()?, reader.u32()?);
        let bytes = left.min(ENTRIES_PER_PAGE) * INDEX_ENTRY_BYTES;
        let first = (disk, chunk, Reverse(lsn), Reverse(arrival));
        pages.push(Page { offset, bytes, hash: reader.array()?, first });
        offset = offset.checked_add(bytes as u64)?;
        left -= left.min(ENTRIES_PER_PAGE);
    }
    let wide = Page { offset, bytes: wide.checked_mul(INDEX_ENTRY_BYTES)?, hash: reader.array()?, first: () };
    offset = offset.checked_add(wide.bytes as u64)?;
    let mut time_pages = Vec::new();
    let mut left = times;
    while left > 0 {
        let bytes = left.min(TIMES_PER_PAGE) * 8;
        let first = reader.u64()?;
        time_pages.push(Page { offset, bytes, hash: reader.array()?, first });
        offset = offset.checked_add(bytes as u64)?;
        left -= left.min(TIMES_PER_PAGE);
    }
    reader.end()?;
    Some(Directory { ordinal, first_lsn, file_bytes: offset, pages, wide, times: time_pages })
}

/// Decodes a page of entries, or the wide entries.
pub(crate) fn decode_entries<K>(
    page: &Page<K>,
    bytes: &[u8],
    key: &[u8; 32],
) -> Result<Vec<IndexEntry>, LeafError> {
    page.check(bytes, key)?;
    let entries: Option<Vec<_>> = bytes.chunks(INDEX_ENTRY_BYTES).map(IndexEntry::decode).collect();
    entries.ok_or(page.broken())
}

/// Decodes a page of times.
pub(crate) fn decode_times(page: &Page<u64>, bytes: &[u8], key: &[u8; 32]) -> Result<Vec<u64>, LeafError> {
    page.check(bytes, key)?;
    Ok(bytes.as_chunks::<8>().0.iter().map(|bytes| u64::from_le_bytes(*bytes)).collect())
}

/// Decodes a whole leaf: all entries (wide ones last) and times; `key` is that of its journal.
///
/// # Errors
/// The first part that is not as written.
pub fn decode(bytes: &[u8], key: &[u8; 32]) -> Result<(Directory, Vec<IndexEntry>, Vec<u64>), LeafError> {
    let (directory, _) = decode_directory(bytes, key)?;
    let cut = LeafError {
        offset: bytes.len() as u64,
        bytes: 0,
        problem: "the file's length is not that of its parts",
    };
    if directory.file_bytes != bytes.len() as u64 {
        return Err(cut);
    }
    let mut entries = Vec::new();
    for page in &directory.pages {
        let found = decode_entries(page, bytes.get(page.range()).ok_or(cut)?, key)?;
        if found.first().map(IndexEntry::key) != Some(page.first) || found.iter().any(IndexEntry::is_wide) {
            return Err(page.broken());
        }
        entries.extend(found);
    }
    if !entries.is_sorted_by_key(IndexEntry::key) {
        return Err(head_error("the entries are not sorted"));
    }
    let wide = &directory.wide;
    entries.extend(decode_entries(wide, bytes.get(wide.range()).ok_or(cut)?, key)?);
    let mut times = Vec::new();
    for page in &directory.times {
        times.extend(decode_times(page, bytes.get(page.range()).ok_or(cut)?, key)?);
    }
    Ok((directory, entries, times))
}
