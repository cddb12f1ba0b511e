//! Long ranges of zeroes between two points.

use std::collections::VecDeque;

use tidemark_proto::ids::DiskId;
use tidemark_proto::limits::SECTOR_BYTES;

use super::{Candidate, sector_bits};
use crate::error::ViewError;
use crate::index::CHUNK_SECTORS;
use crate::view::{ExtentKind, View};

/// Ranges kept at most: 16 MiB of them. Beyond it neighbours become one range with what lies between: candidates are
/// compared by content, so more of them cost time and change nothing.
const RANGES_MAX: usize = 1 << 20;

/// Bytes of the disk looked at ahead.
const AHEAD_BYTES: u64 = 16 << 20;

/// Collects ranges in any order.
#[derive(Debug, Default)]
pub(crate) struct WideBuilder {
    ranges: Vec<(u64, u64)>,
    most: Option<usize>,
}

impl WideBuilder {
    pub(crate) fn add(&mut self, start: u64, end: u64) {
        self.ranges.push((start, end));
        let most = self.most.unwrap_or(RANGES_MAX);
        if self.ranges.len() >= most {
            self.merge();
            while self.ranges.len() > most / 2 {
                let pairs = self.ranges.chunks(2);
                self.ranges = pairs.filter_map(|pair| Some((pair.first()?.0, pair.last()?.1))).collect();
            }
        }
    }

    fn merge(&mut self) {
        self.ranges.sort_unstable();
        let mut merged: Vec<(u64, u64)> = Vec::new();
        for (start, end) in self.ranges.drain(..) {
            match merged.last_mut() {
                Some(last) if start <= last.1 => last.1 = last.1.max(end),
                _ => merged.push((start, end)),
            }
        }
        self.ranges = merged;
    }

    /// `end_sector`: nothing beyond it can differ by a range of zeroes.
    pub(crate) fn build(mut self, end_sector: u64) -> WideRanges {
        self.merge();
        let ranges = self.ranges.into_iter().map(|(start, end)| (start, end.min(end_sector)));
        WideRanges { ranges: ranges.filter(|(start, end)| start < end).collect(), found: VecDeque::new() }
    }
}

/// What of the ranges is data in a view, by chunk.
#[derive(Debug)]
pub(crate) struct WideRanges {
    ranges: VecDeque<(u64, u64)>,
    found: VecDeque<Candidate>,
}

impl WideRanges {
    /// The next chunk with candidates; `view` says what is data.
    pub(crate) fn peek(&mut self, view: &View, disk: DiskId) -> Result<Option<u64>, ViewError> {
        // The last chunk found may go on in the next range.
        while self.found.len() < 2
            && let Some((start, end)) = self.ranges.pop_front()
        {
            let until = end.min(start.saturating_add(AHEAD_BYTES / SECTOR_BYTES));
            if until < end {
                self.ranges.push_front((until, end));
            }
            for extent in view.extents(disk, start * SECTOR_BYTES, (until - start) * SECTOR_BYTES)? {
                if extent.kind == ExtentKind::Data {
                    self.push(
                        extent.offset / SECTOR_BYTES,
                        (extent.offset + extent.bytes).div_ceil(SECTOR_BYTES),
                    );
                }
            }
        }
        Ok(self.found.front().map(|candidate| candidate.chunk))
    }

    fn push(&mut self, start: u64, end: u64) {
        for chunk in start / CHUNK_SECTORS..end.div_ceil(CHUNK_SECTORS) {
            let sectors = sector_bits(chunk, start, end);
            match self.found.back_mut() {
                Some(last) if last.chunk == chunk => last.sectors |= sectors,
                _ => self.found.push_back(Candidate { chunk, sectors }),
            }
        }
    }

    /// The candidates in `chunk`, which is at most the next one; goes on behind it.
    pub(crate) fn take(&mut self, chunk: u64) -> u128 {
        match self.found.front() {
            Some(candidate) if candidate.chunk == chunk => {
                self.found.pop_front().map_or(0, |candidate| candidate.sectors)
            }
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_merge_and_beyond_the_bound_cover_more_but_never_less() {
        let mut wide = WideBuilder { most: Some(8), ..WideBuilder::default() };
        let added: Vec<(u64, u64)> = (0..100).map(|at| (at * 37 % 1000, at * 37 % 1000 + 5)).collect();
        for (start, end) in &added {
            wide.add(*start, *end);
            assert!(wide.ranges.len() <= 8);
        }
        let built = wide.build(900).ranges;
        for (start, end) in added {
            let end = end.min(900);
            assert!(start >= end || built.iter().any(|range| range.0 <= start && end <= range.1), "{start}");
        }
        assert!(built.iter().all(|range| range.1 <= 900));
    }
}
