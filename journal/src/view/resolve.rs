//! Which version of each sector of a chunk a view shows.
//!
//! Runs are asked newest first. The winner of a sector is the entry with the highest (LSN, segment, arrival) up to the
//! view's LSN. Base blocks arrive late with the low LSN of their line, so a hit in a newer run does not end the
//! search by itself: it ends once every sector has a winner whose LSN no older run can exceed.

use std::ops::ControlFlow;

use tidemark_proto::ids::{DiskId, Lsn};
use tidemark_proto::limits::SECTOR_BYTES;

use super::source::Source;
use crate::error::ReadError;
use crate::index::{CHUNK_SECTORS, IndexEntry, Place};
use crate::journal::Run;
use crate::wire::size;

/// A run of sectors from one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece {
    pub start: u64,
    pub sectors: u64,
    /// `None`: zeroes.
    pub bytes: Option<Bytes>,
}

/// Where the bytes of a piece lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bytes {
    pub segment: u64,
    /// Byte of the segment at which the frame's payload begins.
    pub payload_start: u64,
    pub payload_sectors: u64,
    /// Byte of the payload.
    pub offset: u64,
}

/// A run with what is needed to skip it.
#[derive(Debug, Clone)]
pub(crate) struct Ranked {
    pub run: Run,
    pub min_lsn: u64,
    /// The highest LSN of an entry in any older run.
    pub older_max_lsn: u64,
}

/// Runs oldest first, with their bounds, for a view at `lsn`.
pub(crate) fn rank(runs: &[Run], lsn: Lsn) -> Vec<Ranked> {
    let mut older_max_lsn = 0;
    let mut ranked = Vec::with_capacity(runs.len());
    for run in runs {
        let summary = run.summary();
        if summary.min_entry_lsn <= lsn.0 || matches!(run, Run::Open(_)) {
            ranked.push(Ranked { run: run.clone(), min_lsn: summary.min_entry_lsn, older_max_lsn });
            // An open segment may still grow; what it may hold up to the view's LSN is bounded by that LSN alone.
            let most = if matches!(run, Run::Open(_)) { lsn.0 } else { summary.max_entry_lsn.min(lsn.0) };
            older_max_lsn = older_max_lsn.max(most);
        }
    }
    ranked
}

#[derive(Debug, Clone, Copy)]
struct Winner {
    order: (u64, u64, u32),
    entry: IndexEntry,
}

const _: () = assert!(CHUNK_SECTORS == 128, "one winner per sector of a chunk");

/// The sectors of one chunk while they find their winners.
struct Chunk {
    start: u64,
    winners: [Option<Winner>; 128],
    from: usize,
    to: usize,
    uncovered: usize,
    /// The lowest LSN of a winner, once all sectors have one.
    floor: Option<u64>,
}

impl Chunk {
    fn new(chunk: u64, from: u64, to: u64) -> Self {
        let start = chunk * CHUNK_SECTORS;
        let (from, to) = (size(from - start), size(to - start));
        let winners = [None; 128];
        Self { start, winners, from, to, uncovered: to - from, floor: None }
    }

    fn offer(&mut self, entry: &IndexEntry, segment: u64) {
        let order = (entry.lsn.0, segment, entry.arrival);
        let from = size(entry.start.saturating_sub(self.start)).max(self.from);
        let to = size(entry.end().saturating_sub(self.start)).min(self.to);
        let mut changed = false;
        for winner in self.winners.iter_mut().take(to).skip(from) {
            match winner {
                Some(winner) if winner.order >= order => continue,
                None => self.uncovered -= 1,
                Some(_) => {}
            }
            *winner = Some(Winner { order, entry: *entry });
            changed = true;
        }
        if changed && self.uncovered == 0 {
            let wanted = self.winners.iter().take(self.to).skip(self.from);
            self.floor = wanted.flatten().map(|winner| winner.order.0).min();
        }
    }

    /// Whether nothing with an LSN of at most `lsn` can win any more, but for a tie at a later arrival.
    fn settled(&self, lsn: u64) -> bool {
        self.floor.is_some_and(|floor| floor >= lsn)
    }

    fn pieces(&self, out: &mut Vec<Piece>) {
        let sectors = self.start + self.from as u64..;
        for (sector, winner) in sectors.zip(self.winners.iter().take(self.to).skip(self.from)) {
            push(
                out,
                Piece {
                    start: sector,
                    sectors: 1,
                    bytes: winner.as_ref().and_then(|winner| bytes(winner, sector)),
                },
            );
        }
    }
}

fn bytes(winner: &Winner, sector: u64) -> Option<Bytes> {
    match winner.entry.place {
        Place::Zero { .. } => None,
        Place::Payload { payload_start, payload_sectors, offset_sectors } => Some(Bytes {
            segment: winner.order.1,
            payload_start: payload_start.into(),
            payload_sectors: payload_sectors.into(),
            offset: (u64::from(offset_sectors) + (sector - winner.entry.start)) * SECTOR_BYTES,
        }),
    }
}

/// Appends a piece, merged with the last one where both are one run of bytes.
fn push(out: &mut Vec<Piece>, piece: Piece) {
    if let Some(last) = out.last_mut() {
        let merges = match (last.bytes, piece.bytes) {
            (None, None) => true,
            (Some(a), Some(b)) => {
                a.segment == b.segment
                    && a.payload_start == b.payload_start
                    && a.offset + last.sectors * SECTOR_BYTES == b.offset
            }
            _ => false,
        };
        if merges && last.start + last.sectors == piece.start {
            last.sectors += piece.sectors;
            return;
        }
    }
    out.push(piece);
}

/// Resolves sectors `[from, to)` of a disk, in order and without holes.
pub(crate) fn resolve(
    source: &Source,
    runs: &[Ranked],
    lsn: Lsn,
    disk: DiskId,
    from: u64,
    to: u64,
) -> Result<Vec<Piece>, ReadError> {
    let mut pieces = Vec::new();
    let mut at = from;
    while at < to {
        let number = at / CHUNK_SECTORS;
        let until = ((number + 1) * CHUNK_SECTORS).min(to);
        let mut chunk = Chunk::new(number, at, until);
        for ranked in runs.iter().rev() {
            let segment = ranked.run.ordinal();
            if ranked.min_lsn <= lsn.0 || matches!(ranked.run, Run::Open(_)) {
                source.lookup(&ranked.run, disk, number, lsn, &mut |entry| {
                    if chunk.settled(entry.lsn.0.saturating_add(1)) {
                        return ControlFlow::Break(());
                    }
                    chunk.offer(entry, segment);
                    ControlFlow::Continue(())
                })?;
            }
            if chunk.settled(ranked.older_max_lsn) {
                break;
            }
        }
        chunk.pieces(&mut pieces);
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
        let pieces = resolve(&source, runs, Lsn(9), DiskId(1), 0, 8).unwrap();
        let segment = |piece: &Piece| piece.bytes.map_or(0, |bytes| bytes.segment);
        pieces.iter().map(|piece| (piece.start, piece.sectors, segment(piece))).collect()
    }

    #[test]
    fn a_base_block_that_arrives_late_stays_below_the_writes_above_its_line() {
        // Line 2; LSN 5 was written above it; then its base blocks arrive in a newer segment.
        let runs = [segment(1, FrameKind::Writes, 5, 2, 3), segment(2, FrameKind::Base, 2, 0, 8)];
        let mut ranked = rank(&runs, Lsn(9));
        let right = [(0, 2, 2), (2, 3, 1), (5, 3, 2)];
        assert_eq!(segments(&ranked), right);
        // Negative control: a search that ends at the first hit in the newest segment.
        for ranked in &mut ranked {
            ranked.older_max_lsn = 0;
        }
        assert_ne!(segments(&ranked), right);
    }
}
