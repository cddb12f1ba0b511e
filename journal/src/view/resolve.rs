//! Which version of each sector a view shows.
//!
//! Runs are asked newest first. The winner of a sector is the entry with the highest (LSN, segment, arrival) up to the
//! view's LSN. Base blocks arrive late with the low LSN of their line, so a hit in a newer run does not end the
//! search by itself: it ends once every sector has a winner whose LSN no older run can exceed.

use tidemark_proto::ids::{DiskId, Lsn};
use tidemark_proto::limits::SECTOR_BYTES;

use super::payload::Bytes;
use super::source::Source;
use super::window::{WINDOW_SECTORS, Window};
use crate::error::ReadError;
use crate::index::Place;
use crate::journal::Run;
use crate::node::Extent;

/// A run of sectors from one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece {
    pub start: u64,
    pub sectors: u64,
    pub content: Content,
}

/// What a piece holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    /// No run has a version of it.
    Unwritten,
    Zero,
    Payload(Bytes),
}

/// A run with what is needed to skip it.
#[derive(Debug, Clone)]
pub(crate) struct Ranked {
    pub run: Run,
    /// The highest LSN of an entry in any older run.
    pub older_max_lsn: u64,
}

/// Runs oldest first, with their bounds, for a view at `lsn` above images of `floor`.
pub(crate) fn rank(runs: &[Run], floor: Lsn, lsn: Lsn) -> Vec<Ranked> {
    let mut older_max_lsn = 0;
    let mut ranked = Vec::with_capacity(runs.len());
    for run in runs {
        let summary = run.summary();
        let some = summary.min_entry_lsn <= lsn.0 && summary.max_entry_lsn > floor.0;
        if some || matches!(run, Run::Open(_)) {
            ranked.push(Ranked { run: run.clone(), older_max_lsn });
            // An open segment may still grow; what it may hold up to the view's LSN is bounded by that LSN alone.
            let most = if matches!(run, Run::Open(_)) { lsn.0 } else { summary.max_entry_lsn.min(lsn.0) };
            older_max_lsn = older_max_lsn.max(most);
        }
    }
    ranked
}

fn content(version: Option<&Extent>, sector: u64) -> Content {
    match version.map(|version| (version.place, version)) {
        None => Content::Unwritten,
        Some((Place::Zero { .. }, _)) => Content::Zero,
        Some((Place::Payload { payload_start, payload_sectors, offset_sectors }, version)) => {
            Content::Payload(Bytes {
                segment: version.segment,
                payload_start: payload_start.into(),
                payload_sectors: payload_sectors.into(),
                offset: (u64::from(offset_sectors) + (sector - version.start)) * SECTOR_BYTES,
            })
        }
    }
}

/// Appends a piece, merged with the last one where both are one run of bytes.
fn push(out: &mut Vec<Piece>, piece: Piece) {
    if let Some(last) = out.last_mut() {
        let merges = match (last.content, piece.content) {
            (Content::Payload(a), Content::Payload(b)) => {
                a.segment == b.segment
                    && a.payload_start == b.payload_start
                    && a.offset + last.sectors * SECTOR_BYTES == b.offset
            }
            (a, b) => a == b,
        };
        if merges && last.start + last.sectors == piece.start {
            last.sectors += piece.sectors;
            return;
        }
    }
    out.push(piece);
}

/// Resolves sectors `[from, to)` of a disk by the versions above `floor` up to `lsn`, in order and without holes.
pub(crate) fn resolve(
    source: &Source,
    runs: &[Ranked],
    (floor, lsn): (Lsn, Lsn),
    disk: DiskId,
    from: u64,
    to: u64,
) -> Result<Vec<Piece>, ReadError> {
    let mut pieces = Vec::new();
    let mut window = Window::new(disk, floor, from, from);
    let mut at = from;
    while at < to {
        let until = (at / WINDOW_SECTORS + 1).saturating_mul(WINDOW_SECTORS).min(to);
        window.move_to(at, until);
        for ranked in runs.iter().rev() {
            source.lookup(&ranked.run, lsn, &mut window)?;
            if window.all_settled(ranked.older_max_lsn) {
                break;
            }
        }
        for (start, sectors, version) in window.runs() {
            push(&mut pieces, Piece { start, sectors, content: content(version, start) });
        }
        at = until;
    }
    Ok(pieces)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::frame::{Entry, EntryKind, FrameHeader, FrameKind};
    use crate::index::MemoryIndex;
    use crate::journal::MemorySegment;
    use crate::storage::SimStorage;

    fn segment(ordinal: u64, kind: FrameKind, lsn: u64, start: u64, sectors: u32) -> Run {
        let header = FrameHeader {
            kind,
            cover: crate::frame::Cover::Hashed,
            table_bytes: 24,
            payload_bytes: sectors * 512,
            segment: ordinal,
            ordinal: 0,
            position: crate::Position::default(),
            appliance_time_us: 0,
            clock_error_us: 0,
            writer_generation: 1,
            durable_seq: 0,
            durable_lsn: Lsn::ZERO,
            first_lsn: Lsn(lsn),
            previous: [0; 32],
        };
        let disk = DiskId(1);
        let entry =
            Entry { disk, kind: EntryKind::Data, start_sector: start, sectors, flags: 0, time_delta_us: 0 };
        let mut index = MemoryIndex::new(0);
        index.add_entries(&header, &[entry], 160);
        Run::Open(Arc::new(MemorySegment::new(ordinal, index, Vec::new())))
    }

    fn segments(runs: &[Ranked]) -> Vec<(u64, u64, u64)> {
        let source = Source::new(Arc::new(SimStorage::new(1)), [0; 32], 0);
        let pieces = resolve(&source, runs, (Lsn::ZERO, Lsn(9)), DiskId(1), 0, 8).unwrap();
        let segment =
            |piece: &Piece| if let Content::Payload(bytes) = piece.content { bytes.segment } else { 0 };
        pieces.iter().map(|piece| (piece.start, piece.sectors, segment(piece))).collect()
    }

    #[test]
    fn a_base_block_that_arrives_late_stays_below_the_writes_above_its_line() {
        // Line 2; LSN 5 was written above it; then its base blocks arrive in a newer segment.
        let runs = [segment(1, FrameKind::Writes, 5, 2, 3), segment(2, FrameKind::Base, 2, 0, 8)];
        let mut ranked = rank(&runs, Lsn::ZERO, Lsn(9));
        let right = [(0, 2, 2), (2, 3, 1), (5, 3, 2)];
        assert_eq!(segments(&ranked), right);
        // Negative control: a search that ends at the first hit in the newest segment.
        for ranked in &mut ranked {
            ranked.older_max_lsn = 0;
        }
        assert_ne!(segments(&ranked), right);
    }
}
