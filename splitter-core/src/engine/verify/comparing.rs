//! Ranges that are being compared.

use std::collections::VecDeque;

use tidemark_proto::limits::SECTOR_BYTES;
use tidemark_proto::pieces::{Piece, ZEROES};
use tidemark_proto::v1::HashQuestion;

use super::job::{Job, Retry};
use crate::capture::{BLOCK_BYTES, BLOCK_SECTORS, BlockRange, Slot};
use crate::engine::limits::{READ_MAX_BYTES, VERIFY_TRIES_MAX, VERIFY_WHOLE_BYTES};

/// Tokens of a verify's reads and questions have this bit, those of copies have not.
const TOKEN_BIT: u64 = 1 << 63;

/// Words of 64 blocks in the longest range.
const TOUCHED_WORDS: usize = (READ_MAX_BYTES / BLOCK_BYTES / 64) as usize;

/// Blocks of a range, counted from its first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Touched([u64; TOUCHED_WORDS]);

impl Touched {
    fn place(block: u64) -> Option<(usize, u64)> {
        Some((usize::try_from(block / 64).ok().filter(|word| *word < TOUCHED_WORDS)?, 1 << (block % 64)))
    }

    fn set(&mut self, block: u64) {
        if let Some((word, bit)) = Self::place(block)
            && let Some(word) = self.0.get_mut(word)
        {
            *word |= bit;
        }
    }

    fn has(&self, block: u64) -> bool {
        Self::place(block).is_some_and(|(word, bit)| self.0.get(word).is_some_and(|word| word & bit != 0))
    }
}

#[derive(Debug)]
pub(super) enum Stage {
    /// The driver reads it.
    Reading,
    /// It was read; what touched it meanwhile is known once the ring is read up to `until`.
    Waiting { until: u64, pieces: Vec<Piece> },
    /// The appliance compares it.
    Asked { pieces: Vec<Piece> },
}

impl Stage {
    /// The parts of a range that have no answer yet.
    fn ranges(&self, range: BlockRange) -> Vec<BlockRange> {
        let Self::Asked { pieces } = self else { return vec![range] };
        let mut ranges = Vec::new();
        for piece in pieces {
            join(&mut ranges, BlockRange::of_sectors(piece.start_sector, piece.sectors.into()));
        }
        ranges
    }
}

/// A range on its way from the disk to its comparison.
#[derive(Debug)]
pub(super) struct Comparing {
    pub(super) token: u64,
    pub(super) slot: Slot,
    pub(super) retry: Retry,
    /// What it is compared with: the journal as of this LSN, the last one when its read began.
    pub(super) lsn: u64,
    /// The last frame then; it and those before it have every entry up to the LSN.
    pub(super) seq: u64,
    /// The kernel's generation then.
    pub(super) generation: u32,
    /// Blocks that may have been written since the read began.
    pub(super) touched: Touched,
    /// Capture was interrupted: nothing is known of any block.
    pub(super) void: bool,
    pub(super) stage: Stage,
}

impl Comparing {
    pub(super) fn touch(&mut self, range: BlockRange) {
        let own = self.retry.range;
        for block in range.start.max(own.start)..range.end.min(own.end) {
            self.touched.set(block - own.start);
        }
    }

    /// Whether a moment without writes was found for no block of it.
    pub(super) fn wholly_touched(&self) -> bool {
        let own = self.retry.range;
        (own.start..own.end).all(|block| self.touched.has(block - own.start))
    }

    fn touches(&self, block: u64) -> bool {
        self.touched.has(block.saturating_sub(self.retry.range.start))
    }

    /// The pieces that may be asked about, and the ranges that have to be read again.
    pub(super) fn untouched(&self, pieces: Vec<Piece>) -> (Vec<Piece>, Vec<BlockRange>) {
        let mut asked = Vec::with_capacity(pieces.len());
        let mut again = Vec::new();
        for piece in pieces {
            let range = BlockRange::of_sectors(piece.start_sector, piece.sectors.into());
            if piece.hash == ZEROES {
                // Zeroes can be cut anywhere.
                self.cut_zeroes(&piece, range, &mut asked, &mut again);
            } else if (range.start..range.end).any(|block| self.touches(block)) {
                join(&mut again, range);
            } else {
                asked.push(piece);
            }
        }
        (asked, again)
    }

    fn cut_zeroes(
        &self,
        piece: &Piece,
        range: BlockRange,
        asked: &mut Vec<Piece>,
        again: &mut Vec<BlockRange>,
    ) {
        let mut joins = false;
        for block in range.start..range.end {
            if self.touches(block) {
                join(again, BlockRange { start: block, end: block + 1 });
                joins = false;
                continue;
            }
            let start_sector = (block * BLOCK_SECTORS).max(piece.start_sector);
            let end_sector = ((block + 1) * BLOCK_SECTORS).min(piece.end_sector());
            let sectors = u32::try_from(end_sector.saturating_sub(start_sector)).unwrap_or(0);
            match asked.last_mut() {
                // In the last round a difference is to be named by its block.
                Some(last) if joins && !self.retry.fine => last.sectors += sectors,
                _ => asked.push(Piece { start_sector, sectors, hash: ZEROES }),
            }
            joins = true;
        }
    }
}

/// Appends a range, joined with the last one where they touch.
pub(super) fn join(ranges: &mut Vec<BlockRange>, range: BlockRange) {
    match ranges.last_mut() {
        Some(last) if last.end == range.start => last.end = range.end,
        _ => ranges.push(range),
    }
}

/// Bytes of the blocks that lie on a disk of this size.
pub(super) fn bytes_within(range: BlockRange, size_bytes: u64) -> u64 {
    let at = |block: u64| block.saturating_mul(BLOCK_BYTES).min(size_bytes / SECTOR_BYTES * SECTOR_BYTES);
    at(range.end).saturating_sub(at(range.start))
}

/// The verify of an engine.
#[derive(Debug)]
pub(in crate::engine) struct Verify {
    pub(super) job: Option<Job>,
    pub(super) comparing: Vec<Comparing>,
    /// Questions to send, each behind the frame with this number.
    pub(super) questions: VecDeque<(u64, HashQuestion)>,
    next_token: u64,
    /// Clean heartbeats so far.
    pub(super) beats: u64,
    pub(super) report_due_us: u64,
    /// Attempts before a block that is always being written is passed over.
    pub(in crate::engine) tries_max: u32,
    /// Differing bytes of a disk beyond which the whole disk is in doubt.
    pub(in crate::engine) whole_bytes: u64,
    /// Blocks of one read.
    pub(in crate::engine) read_blocks: u64,
    /// Writes that come in between are minded. Only the simulation's negative control does not.
    pub(in crate::engine) ordered: bool,
}

impl Default for Verify {
    fn default() -> Self {
        Self {
            job: None,
            comparing: Vec::new(),
            questions: VecDeque::new(),
            next_token: 0,
            beats: 0,
            report_due_us: 0,
            tries_max: VERIFY_TRIES_MAX,
            whole_bytes: VERIFY_WHOLE_BYTES,
            read_blocks: READ_MAX_BYTES / BLOCK_BYTES,
            ordered: true,
        }
    }
}

impl Verify {
    /// Whether a read or question is a verify's.
    pub(in crate::engine) fn owns(token: u64) -> bool {
        token & TOKEN_BIT != 0
    }

    pub(super) fn token(&mut self) -> u64 {
        self.next_token = self.next_token.wrapping_add(1) & !TOKEN_BIT;
        self.next_token | TOKEN_BIT
    }

    /// A request for these blocks is in the ring.
    pub(in crate::engine) fn written(&mut self, slot: Slot, range: BlockRange) {
        for comparing in self.comparing.iter_mut().filter(|comparing| comparing.slot == slot) {
            if self.ordered && !matches!(comparing.stage, Stage::Asked { .. }) {
                comparing.touch(range);
            }
        }
    }

    /// The blocks are pending: they differ for a reason that is known, and are read again.
    pub(in crate::engine) fn marked(&mut self, slot: Slot, range: BlockRange) {
        self.written(slot, range);
        for comparing in self.comparing.iter_mut().filter(|comparing| comparing.slot == slot) {
            if comparing.retry.range.overlaps(range) {
                comparing.retry.suspect = false;
            }
        }
        if let Some(job) = &mut self.job {
            job.marked(slot, range);
        }
    }

    /// Capture was interrupted: what was read before is compared with nothing.
    pub(in crate::engine) fn interrupted(&mut self) {
        for comparing in &mut self.comparing {
            comparing.void |= self.ordered && !matches!(comparing.stage, Stage::Asked { .. });
        }
    }

    /// A heartbeat was clean: every miss before it is known.
    pub(in crate::engine) fn beat(&mut self) {
        self.beats = self.beats.saturating_add(1);
    }

    /// The session is gone, and with it its key and all answers. The job goes on when it is asked for again.
    pub(in crate::engine) fn disconnected(&mut self) {
        self.questions.clear();
        let comparing = std::mem::take(&mut self.comparing);
        if let Some(job) = &mut self.job {
            job.connected = false;
            for Comparing { slot, retry, stage, .. } in comparing {
                // What was written meanwhile, of a range that was asked about, waits to be read again already.
                for range in stage.ranges(retry.range) {
                    job.again(slot, Retry { range, ..retry });
                }
            }
        }
    }

    /// The disk is protected no longer.
    pub(in crate::engine) fn forget_disk(&mut self, slot: Slot) {
        self.comparing.retain(|comparing| comparing.slot != slot);
        if let Some(run) = self.job.as_mut().and_then(|job| job.run_of(slot)) {
            run.gone = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use tidemark_proto::v1::VerifyState;

    use super::super::job::DiskRun;
    use super::*;

    fn comparing(range: BlockRange, fine: bool) -> Comparing {
        Comparing {
            token: 1,
            slot: Slot(0),
            retry: Retry { fine, ..Retry::new(range) },
            lsn: 1,
            seq: 1,
            generation: 1,
            touched: Touched::default(),
            void: false,
            stage: Stage::Reading,
        }
    }

    fn piece(start_sector: u64, sectors: u32, hash: u8) -> Piece {
        Piece { start_sector, sectors, hash: [hash; 32] }
    }

    fn shape(pieces: &[Piece]) -> Vec<(u64, u32)> {
        pieces.iter().map(|piece| (piece.start_sector, piece.sectors)).collect()
    }

    #[test]
    fn what_was_touched_is_read_again_and_the_rest_is_asked_about() {
        let range = BlockRange { start: 10, end: 18 };
        let pieces = vec![piece(80, 16, 1), piece(96, 16, 2), piece(112, 29, 0)];
        let mut coarse = comparing(range, false);
        // Beyond both ends of the range nothing is noted, and nothing overflows.
        coarse.touch(BlockRange { start: 0, end: 10 });
        coarse.touch(BlockRange { start: 18, end: 600 });
        assert_eq!(coarse.untouched(pieces.clone()), (pieces.clone(), Vec::new()));
        coarse.touch(BlockRange { start: 12, end: 13 });
        coarse.touch(BlockRange { start: 15, end: 16 });
        let (asked, again) = coarse.untouched(pieces.clone());
        assert_eq!(shape(&asked), [(80, 16), (112, 8), (128, 13)]);
        assert_eq!(again, [BlockRange { start: 12, end: 14 }, BlockRange { start: 15, end: 16 }]);
        // In blocks, so that a difference is named by its block.
        let (asked, _) = comparing(range, true).untouched(pieces);
        assert_eq!(shape(&asked), [(80, 16), (96, 16), (112, 8), (120, 8), (128, 8), (136, 5)]);
        assert!(!coarse.wholly_touched());
        coarse.touch(range);
        assert!(coarse.wholly_touched());
    }

    #[test]
    fn a_session_that_ends_has_read_again_what_was_asked_and_nothing_else() {
        let range = BlockRange { start: 10, end: 18 };
        let asked = Stage::Asked { pieces: vec![piece(80, 8, 1), piece(88, 8, 2), piece(112, 8, 3)] };
        let parts = [BlockRange { start: 10, end: 12 }, BlockRange { start: 14, end: 15 }];
        for (stage, again) in [(asked, &parts[..]), (Stage::Reading, &[range][..])] {
            let mut job = Job {
                id: "a".into(),
                connected: true,
                state: VerifyState::Running,
                reason: String::new(),
                disks: vec![DiskRun::new(Slot(0), 1, 1)],
                next_disk: 0,
            };
            job.again(Slot(0), Retry::new(BlockRange { start: 12, end: 14 }));
            let mut verify = Verify { job: Some(job), ..Verify::default() };
            verify.comparing.push(Comparing { stage, ..comparing(range, false) });
            verify.disconnected();
            let retries = &verify.job.as_ref().unwrap().disks[0].retries;
            let ranges: Vec<_> = retries.iter().skip(1).map(|retry| retry.range).collect();
            assert_eq!(ranges, again);
        }
    }

    #[test]
    fn bytes_end_with_the_disk() {
        let range = BlockRange { start: 1, end: 3 };
        assert_eq!(bytes_within(range, 1 << 20), 8192);
        assert_eq!(bytes_within(range, 8192 + 512), 4096 + 512);
        assert_eq!(bytes_within(range, 4096), 0);
    }
}
