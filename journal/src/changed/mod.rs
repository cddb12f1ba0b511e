//! Which bytes of a disk differ between two points, for the price of what was written between them.
//!
//! Only ranges that the index lists with an LSN between the points can differ: base blocks of a gap that lies between
//! carry the LSN of its line, so what a resync read is among them, and a gap is no obstacle. These candidates are then
//! compared by content, because a range rewritten with what it held is no change. Reading them goes through the two
//! views, so every byte compared was verified.
//!
//! A range of zeroes longer than a chunk may be as large as the disk while hardly anything below it was data; of it only
//! what reads as data at the earlier point is a candidate.

mod cursor;
mod wide;

use std::collections::VecDeque;
use std::sync::Arc;

use tidemark_proto::ids::{DiskId, Lsn};
use tidemark_proto::limits::SECTOR_BYTES;

use cursor::Cursor;
use wide::WideRanges;

use crate::error::ViewError;
use crate::index::CHUNK_SECTORS;
use crate::view::View;
use crate::wire::size;

pub(crate) use wide::WideBuilder;

/// Bytes of a sector in memory.
#[expect(clippy::cast_possible_truncation, reason = "512 fits any usize")]
const SECTOR: usize = SECTOR_BYTES as usize;

/// Bytes of a chunk in memory.
#[expect(clippy::cast_possible_truncation, reason = "128 sectors fit any usize")]
const CHUNK_BYTES: usize = CHUNK_SECTORS as usize * SECTOR;

/// A range of bytes that differs: `[offset, offset + bytes)`, whole sectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Changed {
    /// First byte on the disk.
    pub offset: u64,
    /// Bytes, more than 0.
    pub bytes: u64,
}

/// The ranges of one disk that differ between two points, by offset, disjoint and not touching. Memory: some 12 KiB for
/// each segment that was written between the points, and 16 MiB for long ranges of zeroes at most.
#[derive(Debug)]
pub struct Changes {
    disk: DiskId,
    from: View,
    to: View,
    /// Bytes of the disk at the earlier point; what lies beyond counts as zeroes.
    from_bytes: u64,
    to_bytes: u64,
    cursors: Vec<Cursor>,
    wide: Vec<(Side, WideRanges)>,
    /// The range that the next difference may still extend.
    pending: Option<Changed>,
    /// Found and not given out yet.
    ready: VecDeque<Changed>,
    old: Vec<u8>,
    new: Vec<u8>,
    done: bool,
}

/// Which of the two views.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    From,
    To,
}

/// Sectors of one chunk that may differ; bit 0 is the chunk's first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub chunk: u64,
    pub sectors: u128,
}

/// The bits of the sectors `[start, end)` that lie in a chunk.
pub(crate) fn sector_bits(chunk: u64, start: u64, end: u64) -> u128 {
    let first = chunk.saturating_mul(CHUNK_SECTORS);
    let from = start.saturating_sub(first).min(CHUNK_SECTORS);
    let to = end.saturating_sub(first).min(CHUNK_SECTORS);
    let below = |count: u64| u32::try_from(count).ok().and_then(|count| 1_u128.checked_shl(count));
    // A shift by all 128 bits has no result: every bit is below it.
    let below = |count| below(count).map_or(u128::MAX, |bit| bit - 1);
    below(to) & !below(from)
}

impl Changes {
    /// `from` and `to` are views of the same journal, `from` the earlier one; `cursors` walk over what was written between
    /// them, `wide` has the long ranges of zeroes.
    pub(crate) fn new(disk: DiskId, views: (View, View), cursors: Vec<Cursor>, wide: WideBuilder) -> Self {
        let mut changes = Self::of(disk, views);
        let end = changes.from_bytes.min(changes.to_bytes) / SECTOR_BYTES;
        changes.cursors = cursors;
        changes.wide.push((Side::From, wide.build(end)));
        changes
    }

    /// What differs between a disk of one view and the disk of the same id of any other: for the price of reading what is
    /// data in either. A disk that a view does not have counts as zeroes.
    #[must_use]
    pub fn of_contents(disk: DiskId, from: View, to: View) -> Self {
        let mut changes = Self::of(disk, (from, to));
        let (from_bytes, to_bytes) = (changes.from_bytes, changes.to_bytes);
        for (side, bytes) in [(Side::From, from_bytes.min(to_bytes)), (Side::To, to_bytes)] {
            let mut whole = WideBuilder::default();
            whole.add(0, bytes / SECTOR_BYTES);
            changes.wide.push((side, whole.build(u64::MAX)));
        }
        changes
    }

    fn of(disk: DiskId, (from, to): (View, View)) -> Self {
        let bytes =
            |view: &View| view.disks().iter().find(|found| found.id == disk).map(|found| found.size_bytes);
        let (from_bytes, to_bytes) = (bytes(&from).unwrap_or(0), bytes(&to).unwrap_or(0));
        let (old, new) = (vec![0; CHUNK_BYTES], vec![0; CHUNK_BYTES]);
        let (cursors, wide, ready) = (Vec::new(), Vec::new(), VecDeque::new());
        let pending = None;
        Self { disk, from, to, from_bytes, to_bytes, cursors, wide, pending, ready, old, new, done: false }
    }

    /// Bytes of the disk at both points; 0 when it was not protected then.
    #[must_use]
    pub fn sizes(&self) -> (u64, u64) {
        (self.from_bytes, self.to_bytes)
    }

    /// The next chunk with candidates.
    fn candidate(&mut self) -> Result<Option<Candidate>, ViewError> {
        let mut chunk: Option<u64> = None;
        for (side, wide) in &mut self.wide {
            let view = if *side == Side::From { &self.from } else { &self.to };
            if let Some(next) = wide.peek(view, self.disk)? {
                chunk = Some(chunk.map_or(next, |chunk| chunk.min(next)));
            }
        }
        for cursor in &mut self.cursors {
            if let Some(next) = cursor.peek()? {
                chunk = Some(chunk.map_or(next, |chunk| chunk.min(next)));
            }
        }
        let Some(chunk) = chunk else { return Ok(None) };
        let mut sectors = 0;
        for (_, wide) in &mut self.wide {
            sectors |= wide.take(chunk);
        }
        for cursor in &mut self.cursors {
            sectors |= cursor.take(chunk);
        }
        // An exhausted cursor needs no memory any more.
        self.cursors.retain(|cursor| !cursor.is_done());
        Ok(Some(Candidate { chunk, sectors }))
    }

    /// Compares the candidates of one chunk, and queues the ranges that are complete.
    fn compare(&mut self, candidate: Candidate) -> Result<(), ViewError> {
        let first = candidate.chunk.saturating_mul(CHUNK_SECTORS);
        let within = sector_bits(candidate.chunk, 0, self.to_bytes.div_ceil(SECTOR_BYTES));
        let mut left = candidate.sectors & within;
        while left != 0 {
            let skip = left.trailing_zeros();
            let run = (left >> skip).trailing_ones();
            left &= !sector_bits(0, skip.into(), u64::from(skip) + u64::from(run));
            self.compare_run(first + u64::from(skip), run.into())?;
        }
        Ok(())
    }

    fn compare_run(&mut self, start: u64, sectors: u64) -> Result<(), ViewError> {
        let offset = start * SECTOR_BYTES;
        let bytes = sectors * SECTOR_BYTES;
        let (mut old, mut new) = (std::mem::take(&mut self.old), std::mem::take(&mut self.new));
        let filled = self.fill(offset, bytes, &mut old, &mut new);
        if filled.is_ok() {
            let pairs = old.chunks(SECTOR).zip(new.chunks(SECTOR)).take(size(sectors));
            for (sector, (old, new)) in (start..).zip(pairs) {
                if old != new {
                    self.differs(sector * SECTOR_BYTES);
                }
            }
        }
        (self.old, self.new) = (old, new);
        filled
    }

    /// Reads both sides; what lies beyond a disk's end reads as zeroes.
    fn fill(&self, offset: u64, bytes: u64, old: &mut [u8], new: &mut [u8]) -> Result<(), ViewError> {
        for (view, end, out) in [(&self.from, self.from_bytes, old), (&self.to, self.to_bytes, new)] {
            let inside = size(end.saturating_sub(offset).min(bytes));
            let (content, beyond) = out.split_at_mut_checked(inside).unwrap_or_default();
            beyond.fill(0);
            if inside > 0 {
                view.read_at(self.disk, offset, content)?;
            }
        }
        Ok(())
    }

    fn differs(&mut self, offset: u64) {
        match &mut self.pending {
            Some(range) if range.offset + range.bytes == offset => range.bytes += SECTOR_BYTES,
            pending => {
                self.ready.extend(pending.take());
                *pending = Some(Changed { offset, bytes: SECTOR_BYTES });
            }
        }
    }

    fn advance(&mut self) -> Result<Option<Changed>, ViewError> {
        while self.ready.is_empty() {
            match self.candidate()? {
                Some(candidate) => self.compare(candidate)?,
                None => return Ok(self.pending.take()),
            }
        }
        Ok(self.ready.pop_front())
    }
}

impl Iterator for Changes {
    type Item = Result<Changed, ViewError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let next = self.advance().transpose();
        self.done = !matches!(next, Some(Ok(_)));
        next
    }
}

/// What the parts of a comparison are made from: one cursor per segment that holds versions between the points.
pub(crate) struct Between {
    pub disk: DiskId,
    /// Exclusive.
    pub from: Lsn,
    /// Inclusive.
    pub to: Lsn,
}

impl Between {
    pub(crate) fn holds(&self, lsn: Lsn) -> bool {
        self.from < lsn && lsn <= self.to
    }
}

/// Cursors over the runs that may hold versions between the points, and their long ranges of zeroes.
pub(crate) fn gather(
    source: &Arc<crate::view::Source>,
    runs: &[crate::journal::Run],
    between: &Between,
) -> Result<(Vec<Cursor>, WideBuilder), ViewError> {
    let mut wide = WideBuilder::default();
    let mut cursors = Vec::new();
    for run in runs {
        let summary = run.summary();
        if summary.max_entry_lsn <= between.from.0 || summary.min_entry_lsn > between.to.0 {
            continue;
        }
        source.wide(run, &mut |entry| {
            if entry.disk == between.disk && between.holds(entry.lsn) {
                wide.add(entry.start, entry.end());
            }
        })?;
        cursors.push(Cursor::new(Arc::clone(source), run.clone(), between));
    }
    Ok((cursors, wide))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sectors_become_bits_of_their_chunk() {
        assert_eq!(sector_bits(0, 0, 128), u128::MAX);
        assert_eq!(sector_bits(0, 0, 1), 1);
        assert_eq!(sector_bits(1, 128, 130), 0b11);
        assert_eq!(sector_bits(1, 0, 129), 1);
        assert_eq!(sector_bits(1, 255, 1000), 1 << 127);
        assert_eq!(sector_bits(1, 0, 128), 0);
        assert_eq!(sector_bits(2, 500, 400), 0);
    }
}
