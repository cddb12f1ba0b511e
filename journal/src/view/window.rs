//! Some sectors of a disk while they find their last versions.

use std::ops::Range;

use tidemark_proto::ids::{DiskId, Lsn};

use crate::index::CHUNK_SECTORS;
use crate::node::Extent;
use crate::wire::size;

/// Sectors that are resolved at once at most: 1 MiB, the usual size of a large read.
pub(super) const WINDOW_SECTORS: u64 = 2048;

/// Sectors `[from, to)` of a disk.
#[derive(Debug)]
pub(crate) struct Window {
    disk: DiskId,
    from: u64,
    to: u64,
    /// Versions up to this LSN are none: the images hold them, and what was above them may have been dropped.
    floor: Lsn,
    /// Per sector, 1 + the place of its version in `versions`; 0: none yet.
    winners: Vec<u32>,
    versions: Vec<Extent>,
    chunks: Vec<Chunk>,
}

/// What is known of the sectors of one chunk.
#[derive(Debug, Clone, Copy)]
struct Chunk {
    /// Sectors without a version.
    uncovered: usize,
    /// The lowest LSN of a winner, if none has changed since.
    floor: Option<u64>,
}

impl Window {
    pub(super) fn new(disk: DiskId, floor: Lsn, from: u64, to: u64) -> Self {
        let mut window =
            Self { disk, from, to, floor, winners: Vec::new(), versions: Vec::new(), chunks: Vec::new() };
        window.move_to(from, to);
        window
    }

    /// Begins anew with other sectors.
    pub(super) fn move_to(&mut self, from: u64, to: u64) {
        (self.from, self.to) = (from, to);
        self.winners.clear();
        self.winners.resize(size(to - from), 0);
        self.versions.clear();
        self.chunks.clear();
        for chunk in self.chunks() {
            let sectors = self.sectors(chunk);
            self.chunks.push(Chunk { uncovered: sectors.len(), floor: None });
        }
    }

    pub(crate) fn disk(&self) -> DiskId {
        self.disk
    }

    pub(crate) fn from(&self) -> u64 {
        self.from
    }

    pub(crate) fn to(&self) -> u64 {
        self.to
    }

    /// The chunks that the window touches.
    pub(crate) fn chunks(&self) -> Range<u64> {
        self.from / CHUNK_SECTORS..self.to.div_ceil(CHUNK_SECTORS)
    }

    /// Those of a chunk's sectors that are in the window, by place in `winners`.
    fn sectors(&self, chunk: u64) -> Range<usize> {
        let start = chunk.saturating_mul(CHUNK_SECTORS);
        let end = start.saturating_add(CHUNK_SECTORS).min(self.to);
        size(start.max(self.from) - self.from)..size(end.saturating_sub(self.from))
    }

    /// Takes a version of any sectors; where it is the last so far, it wins.
    pub(crate) fn offer(&mut self, version: &Extent) {
        let (from, to) = (version.start.max(self.from), version.end.min(self.to));
        if version.disk != self.disk || from >= to || version.lsn <= self.floor {
            return;
        }
        let order = version.order();
        let id = u32::try_from(self.versions.len() + 1).unwrap_or(u32::MAX);
        let first_chunk = self.from / CHUNK_SECTORS;
        let mut wins = false;
        for (sector, winner) in (from..to).zip(self.winners.iter_mut().skip(size(from - self.from))) {
            let known = self.versions.get((*winner as usize).wrapping_sub(1));
            if known.is_some_and(|known| known.order() >= order) {
                continue;
            }
            if let Some(chunk) = self.chunks.get_mut(size(sector / CHUNK_SECTORS - first_chunk)) {
                chunk.uncovered -= usize::from(*winner == 0);
                chunk.floor = None;
            }
            *winner = id;
            wins = true;
        }
        if wins {
            self.versions.push(*version);
        }
    }

    /// Whether nothing in a chunk with an LSN of at most `lsn` can win any more, but for a tie at a later arrival.
    pub(crate) fn settled(&mut self, chunk: u64, lsn: u64) -> bool {
        let sectors = self.sectors(chunk);
        let at = size(chunk - self.from / CHUNK_SECTORS);
        let Some(chunk) = self.chunks.get_mut(at).filter(|chunk| chunk.uncovered == 0) else { return false };
        let floor = *chunk.floor.get_or_insert_with(|| {
            let winners = self.winners.get(sectors).unwrap_or_default().iter();
            let lsns = winners.filter_map(|winner| self.versions.get((*winner as usize).wrapping_sub(1)));
            lsns.map(|version| version.lsn.0).min().unwrap_or(0)
        });
        floor >= lsn
    }

    /// The same for all chunks.
    pub(super) fn all_settled(&mut self, lsn: u64) -> bool {
        self.chunks().all(|chunk| self.settled(chunk, lsn))
    }

    /// Runs of sectors with one version, in order and without holes; `None`: never written.
    pub(super) fn runs(&self) -> impl Iterator<Item = (u64, u64, Option<&Extent>)> {
        let mut at = self.from;
        self.winners.chunk_by(|a, b| a == b).map(move |run| {
            let (start, sectors) = (at, run.len() as u64);
            at += sectors;
            let winner = run.first().copied().unwrap_or(0);
            (start, sectors, self.versions.get((winner as usize).wrapping_sub(1)))
        })
    }
}
