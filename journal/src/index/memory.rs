//! The index of one segment while it has no leaf.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use tidemark_proto::ids::Lsn;
use tidemark_proto::limits::SECTOR_BYTES;

use super::{CHUNK_SECTORS, IndexEntry, Key, Place};
use crate::frame::{DecodedFrame, Entry, EntryKind, FrameHeader, FrameKind, Table};
use crate::node::Extent;
use crate::view::Window;

/// What the manifest keeps about a segment's index, so that views can skip it unread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Summary {
    /// First LSN taken in the segment; 0 when none was.
    pub first_lsn: u64,
    /// Last LSN taken in the segment; 0 when none was.
    pub last_lsn: u64,
    /// Time of `first_lsn`, µs.
    pub first_time_us: u64,
    /// Time of `last_lsn`, µs.
    pub last_time_us: u64,
    /// Lowest LSN of an index entry; base blocks carry that of their line. `u64::MAX` without entries.
    pub min_entry_lsn: u64,
    /// Highest LSN of an index entry; 0 without entries.
    pub max_entry_lsn: u64,
    /// Bytes of payload.
    pub payload_bytes: u64,
}

/// Entries by chunk, wide ranges, and the time of each LSN.
#[derive(Debug, Clone, Default)]
pub(crate) struct MemoryIndex {
    narrow: BTreeMap<Key, IndexEntry>,
    wide: Vec<IndexEntry>,
    times: Vec<u64>,
    summary: Summary,
    arrivals: u32,
    /// Time of the last LSN of the segments before: times never go back.
    floor_us: u64,
}

impl MemoryIndex {
    pub(crate) fn new(floor_us: u64) -> Self {
        let summary = Summary { min_entry_lsn: u64::MAX, ..Summary::default() };
        Self { floor_us, summary, ..Self::default() }
    }

    /// Takes a frame whose head is at byte `offset` of the segment.
    pub(crate) fn add_decoded(&mut self, frame: &DecodedFrame, offset: u64) {
        match &frame.table {
            Table::Entries(entries) => self.add_entries(&frame.header, entries, offset),
            Table::Heartbeat { .. } | Table::Footer { .. } => {}
            _ => self.add_time(frame.header.first_lsn, frame.header.appliance_time_us),
        }
    }

    /// Takes an event that has an LSN.
    pub(crate) fn add_time(&mut self, lsn: Lsn, time_us: u64) {
        let time_us = time_us.max(self.floor_us);
        self.floor_us = time_us;
        if self.times.is_empty() {
            self.summary.first_lsn = lsn.0;
            self.summary.first_time_us = time_us;
        }
        self.summary.last_lsn = lsn.0;
        self.summary.last_time_us = time_us;
        self.times.push(time_us);
    }

    /// Takes the entries of writes or base blocks.
    pub(crate) fn add_entries(&mut self, header: &FrameHeader, entries: &[Entry], offset: u64) {
        let payload_start =
            u32::try_from(offset.saturating_add(header.head_bytes() as u64)).unwrap_or(u32::MAX);
        let payload_sectors =
            u16::try_from(u64::from(header.payload_bytes) / SECTOR_BYTES).unwrap_or(u16::MAX);
        let mut offset_sectors = 0_u64;
        let mut lsn = header.first_lsn;
        for entry in entries {
            self.add_entry(entry, lsn, |skipped| Place::Payload {
                payload_start,
                payload_sectors,
                offset_sectors: u16::try_from(offset_sectors + skipped).unwrap_or(u16::MAX),
            });
            offset_sectors += entry.payload_bytes() / SECTOR_BYTES;
            if header.kind == FrameKind::Writes {
                self.add_time(lsn, header.appliance_time_us.saturating_add(entry.time_delta_us.into()));
                lsn = lsn.next();
            }
        }
        self.summary.payload_bytes += u64::from(header.payload_bytes);
    }

    fn add_entry(&mut self, entry: &Entry, lsn: Lsn, place: impl Fn(u64) -> Place) {
        let zero = Place::Zero { discard: entry.kind == EntryKind::Discard };
        if entry.kind == EntryKind::Flush || entry.sectors == 0 {
            return;
        }
        let arrival = self.arrivals;
        self.arrivals = self.arrivals.saturating_add(1);
        self.summary.min_entry_lsn = self.summary.min_entry_lsn.min(lsn.0);
        self.summary.max_entry_lsn = self.summary.max_entry_lsn.max(lsn.0);
        let whole = IndexEntry {
            disk: entry.disk,
            start: entry.start_sector,
            sectors: entry.sectors,
            lsn,
            arrival,
            place: zero,
        };
        if entry.kind != EntryKind::Data && whole.is_wide() {
            self.wide.push(whole);
            return;
        }
        let end = whole.end();
        let mut start = whole.start;
        while start < end {
            let until = (start / CHUNK_SECTORS + 1).saturating_mul(CHUNK_SECTORS).min(end);
            let place = if entry.kind == EntryKind::Data { place(start - entry.start_sector) } else { zero };
            let sectors = u32::try_from(until - start).unwrap_or(u32::MAX);
            let part = IndexEntry { start, sectors, place, ..whole };
            self.narrow.insert(part.key(), part);
            start = until;
        }
    }

    /// Offers a window the versions of its sectors up to an LSN; of each chunk the newest first, until no older can win.
    pub(crate) fn lookup(&self, lsn: Lsn, window: &mut Window, segment: u64) {
        let disk = window.disk().0;
        for chunk in window.chunks() {
            let from: Key = (disk, chunk, Reverse(lsn.0), Reverse(u32::MAX));
            let to: Key = (disk, chunk, Reverse(0), Reverse(0));
            for entry in self.narrow.range(from..=to).map(|(_, entry)| entry) {
                if window.settled(chunk, entry.lsn.0.saturating_add(1)) {
                    break;
                }
                window.offer(&Extent::of(entry, segment));
            }
        }
        for entry in touching(&self.wide, window, lsn) {
            window.offer(&Extent::of(entry, segment));
        }
    }

    pub(crate) fn summary(&self) -> Summary {
        self.summary
    }

    pub(crate) fn narrow(&self) -> impl ExactSizeIterator<Item = &IndexEntry> {
        self.narrow.values()
    }

    /// Entries from a key on, in index order.
    pub(crate) fn narrow_from(&self, key: Key) -> impl Iterator<Item = &IndexEntry> {
        self.narrow.range(key..).map(|(_, entry)| entry)
    }

    pub(crate) fn wide(&self) -> &[IndexEntry] {
        &self.wide
    }

    /// Times of the LSNs from the summary's first on, µs, not decreasing.
    pub(crate) fn times(&self) -> &[u64] {
        &self.times
    }

    /// Time of the last LSN up to here, µs.
    pub(crate) fn floor_us(&self) -> u64 {
        self.floor_us
    }
}

/// The wide ranges that touch a window, up to an LSN.
pub(crate) fn touching<'a>(
    wide: &'a [IndexEntry],
    window: &Window,
    lsn: Lsn,
) -> impl Iterator<Item = &'a IndexEntry> + use<'a> {
    let (disk, start, end) = (window.disk(), window.from(), window.to());
    wide.iter().filter(move |entry| {
        entry.disk == disk && entry.lsn <= lsn && entry.start < end && entry.end() > start
    })
}
