//! Merged nodes: of all versions in 8, 64, 512 … consecutive segments, the last one of each sector. Entries only; the
//! payload stays where it is. A view reads one node instead of its many leaves. A node can always be made again from
//! what it was merged from, byte for byte the same, so damage in one loses nothing.
//!
//! Which version is the last does not depend on the view: a view uses a node only if the LSN after its last segment
//! lies below that of the view, and then every version in it counts. The last is that with the highest (LSN, segment,
//! arrival); base blocks carry the low LSN of their line, so it need not be the one that arrived last.
//!
//! ## Layout, version 1; integers are little-endian
//! Pages, directory, trailer. Node (level, first) covers the segments with ordinals `first .. first + 8^level`, where
//! `first - 1` is a multiple of `8^level`; ordinals may be missing among them.
//!
//! A page holds up to 1024 extents of one disk, by start, disjoint: count u16, then seven columns, each with its lowest
//! value u64, bits per value u8, and the differences to the lowest value packed from the lowest bit on, padded to whole
//! bytes. Columns: sectors between the end of the extent before (in the page; of sector 0 for the first) and this start;
//! sectors; LSN; segment ordinal; payload start, payload sectors and offset sectors as in [`crate::index::IndexEntry`].
//!
//! Directory, 36 bytes per page: disk u32, first sector u64, bytes u32, extents u32, first 16 bytes of the page's hash
//! (BLAKE3 keyed with the journal's key).
//!
//! | offset in the trailer | bytes | field |
//! |---|---|---|
//! | 0 | 8 | magic `TMNODE01` |
//! | 8 | 2 | version = 1 |
//! | 10 | 2 | level, from 1 |
//! | 12 | 4 | pages |
//! | 16 | 8 | first ordinal |
//! | 24 | 8 | extents |
//! | 32 | 8 | bytes of all pages |
//! | 40 | 8 | reserved = 0 |
//! | 48 | 32 | BLAKE3 keyed with the journal's key, over bytes 0..48 and the directory |
//!
//! ## History
//! Version 1: since version 2 of the journal.

mod decode;
mod encode;
mod extent;
mod merge;
mod pack;
mod stream;

pub use decode::{NodeDirectory, NodeError, decode};
pub(crate) use decode::{decode_page, decode_trailer, parse_directory};
pub(crate) use encode::{Sink, Written};
pub(crate) use extent::Extent;
pub(crate) use merge::{MergeError, merge};
pub(crate) use stream::Child;

/// Segments or nodes that a node is merged from.
pub(crate) const FAN_OUT: u64 = 8;

/// Levels at most: 8^7 segments of 64 MiB are 128 TiB. Journals beyond it have more than 7 nodes of the last level.
pub(crate) const LEVELS_MAX: u16 = 7;

/// Extents of a page at most: a page takes some 10 KiB, the directory 0.4 % of the pages.
pub(crate) const PAGE_EXTENTS: usize = 1024;

pub(crate) const MAGIC: [u8; 8] = *b"TMNODE01";
pub(crate) const TRAILER_BYTES: usize = 80;
pub(crate) const HASHED_TRAILER_BYTES: usize = 48;
pub(crate) const DIRECTORY_ROW_BYTES: usize = 36;

/// Which segments a node covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Span {
    /// From 1; a leaf would be 0.
    pub level: u16,
    /// Ordinal of its first segment.
    pub first: u64,
}

impl Span {
    /// The node of a level that covers a segment.
    pub(crate) fn over(level: u16, ordinal: u64) -> Self {
        let width = FAN_OUT.saturating_pow(level.into());
        Self { level, first: ordinal.saturating_sub(1) / width * width + 1 }
    }

    /// Ordinal of the segment after its last.
    pub(crate) fn end(&self) -> u64 {
        self.first.saturating_add(FAN_OUT.saturating_pow(self.level.into()))
    }

    pub(crate) fn contains(&self, ordinal: u64) -> bool {
        (self.first..self.end()).contains(&ordinal)
    }

    /// Whether a node may cover these segments.
    pub(crate) fn is_aligned(&self) -> bool {
        (1..=LEVELS_MAX).contains(&self.level)
            && self.first > 0
            && Self::over(self.level, self.first) == *self
    }

    /// The name of its file.
    pub(crate) fn name(&self) -> String {
        format!("node-{}-{:016x}", self.level, self.first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_tile_the_ordinals_from_one_on() {
        for (level, ordinal, first, end) in
            [(1, 1, 1, 9), (1, 8, 1, 9), (1, 9, 9, 17), (2, 64, 1, 65), (2, 65, 65, 129)]
        {
            let span = Span::over(level, ordinal);
            assert_eq!((span.first, span.end()), (first, end));
            assert!(span.is_aligned() && span.contains(ordinal) && !span.contains(end));
        }
        assert!(!Span { level: 1, first: 2 }.is_aligned() && !Span { level: 0, first: 1 }.is_aligned());
    }
}
