//! A job: which disks are verified and how far they are.

use std::collections::VecDeque;

use tidemark_proto::limits::VERIFY_RANGES_MAX;
use tidemark_proto::v1::{ByteRange, VerifyDisk, VerifyState};

use super::comparing::bytes_within;
use crate::capture::{BLOCK_BYTES, BlockRange, Slot};
use crate::engine::limits::{VERIFY_PAUSE_MAX_US, VERIFY_PAUSE_US};

/// A range that is to be read, perhaps again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Retry {
    pub(super) range: BlockRange,
    /// It is asked about in blocks.
    pub(super) fine: bool,
    /// It differed already, in blocks: it is read after a clean heartbeat, and then it counts.
    pub(super) suspect: bool,
    /// Attempts in vain.
    pub(super) tries: u32,
    pub(super) not_before_us: u64,
    /// Clean heartbeats there must have been.
    pub(super) after_beat: u64,
}

impl Retry {
    pub(super) fn new(range: BlockRange) -> Self {
        Self { range, fine: false, suspect: false, tries: 0, not_before_us: 0, after_beat: 0 }
    }

    /// The same after an attempt in vain, later each time.
    pub(super) fn later(self, now_us: u64) -> Self {
        let pause = VERIFY_PAUSE_US.saturating_mul(1 << self.tries.min(10)).min(VERIFY_PAUSE_MAX_US);
        let not_before_us = now_us.saturating_add(pause);
        Self { tries: self.tries.saturating_add(1), not_before_us, ..self }
    }
}

/// One disk of a job.
#[derive(Debug)]
pub(super) struct DiskRun {
    pub(super) slot: Slot,
    pub(super) disk_id: u32,
    /// First block that was not read yet.
    pub(super) cursor: u64,
    pub(super) retries: VecDeque<Retry>,
    pub(super) equal_bytes: u64,
    pub(super) differing_bytes: u64,
    pub(super) skipped_bytes: u64,
    pub(super) begin_lsn: u64,
    pub(super) places: Vec<ByteRange>,
    /// The open gap has a line of this verify.
    pub(super) noted: bool,
    /// So much differed that the whole disk was called in doubt; that is done once.
    pub(super) whole: bool,
    /// It is protected no longer.
    pub(super) gone: bool,
}

impl DiskRun {
    pub(super) fn new(slot: Slot, disk_id: u32, begin_lsn: u64) -> Self {
        Self {
            slot,
            disk_id,
            cursor: 0,
            retries: VecDeque::new(),
            equal_bytes: 0,
            differing_bytes: 0,
            skipped_bytes: 0,
            begin_lsn,
            places: Vec::new(),
            noted: false,
            whole: false,
            gone: false,
        }
    }

    /// Notes blocks that differ on a disk of this size.
    pub(super) fn differs(&mut self, range: BlockRange, size_bytes: u64) {
        let (offset, bytes) = (range.start.saturating_mul(BLOCK_BYTES), bytes_within(range, size_bytes));
        self.differing_bytes = self.differing_bytes.saturating_add(bytes);
        let room = self.places.len() < VERIFY_RANGES_MAX;
        match self.places.last_mut() {
            Some(last) if last.offset.saturating_add(last.bytes) == offset => last.bytes += bytes,
            _ if room => self.places.push(ByteRange { offset, bytes }),
            _ => {}
        }
    }

    pub(super) fn report(&self, size_bytes: u64) -> VerifyDisk {
        VerifyDisk {
            disk_id: self.disk_id,
            total_bytes: size_bytes,
            equal_bytes: self.equal_bytes,
            differing_bytes: self.differing_bytes,
            skipped_bytes: self.skipped_bytes,
            begin_lsn: self.begin_lsn,
            differing: self.places.clone(),
        }
    }
}

/// A verify that the appliance asked for.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) id: String,
    /// It was asked for in the present session.
    pub(super) connected: bool,
    pub(super) state: VerifyState,
    pub(super) reason: String,
    pub(super) disks: Vec<DiskRun>,
    pub(super) next_disk: usize,
}

impl Job {
    pub(super) fn run_of(&mut self, slot: Slot) -> Option<&mut DiskRun> {
        self.disks.iter_mut().find(|run| run.slot == slot && !run.gone)
    }

    pub(super) fn is_running(&self) -> bool {
        self.connected && self.state == VerifyState::Running
    }

    /// Has a range read again.
    pub(super) fn again(&mut self, slot: Slot, retry: Retry) {
        if let Some(run) = self.run_of(slot) {
            run.retries.push_back(retry);
        }
    }

    /// Blocks that are pending are suspect no longer: what differed has its cause.
    pub(super) fn marked(&mut self, slot: Slot, range: BlockRange) {
        let Some(run) = self.run_of(slot) else { return };
        for retry in run.retries.iter_mut().filter(|retry| retry.range.overlaps(range)) {
            retry.suspect = false;
        }
    }
}
