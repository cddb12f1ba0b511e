//! Verifies that are asked for, and sectors that change behind the tap's back.

use std::collections::BTreeSet;

use tidemark_proto::v1::{VerifyQuestion, VerifyReport, VerifyRequest, VerifyState};

use super::super::checker::below;
use super::super::kernel::{BLOCKS, DISKS};
use super::{ToSplitter, World};

/// Blocks by disk and number.
type Blocks = BTreeSet<(usize, usize)>;

#[derive(Debug, Default)]
pub(super) struct Verifies {
    /// How often a sector is corrupted, per mille of the ticks.
    corrupts: u64,
    next_id: u64,
    /// The job that the appliance waits for.
    pub(super) running: Option<VerifyRequest>,
    /// It was told that the job is wanted no longer.
    cancelling: bool,
    /// Blocks that were ever corrupted.
    corrupted: Blocks,
    /// Blocks that the running job, or the last one, called different.
    reported: Blocks,
}

impl World {
    /// Has verifies asked for, and in so many of a thousand ticks a sector corrupted.
    pub(in super::super) fn verifying(mut self, corrupts: u64) -> Self {
        self.verify = Some(Verifies { corrupts, ..Verifies::default() });
        self
    }

    /// Between two ticks.
    pub(super) fn disturb(&mut self) {
        let Some(corrupts) = self.verify.as_ref().map(|verify| verify.corrupts) else { return };
        if self.random.chance(corrupts) {
            self.corrupt();
        }
        if self.random.chance(30) {
            let whole = self.random.chance(700);
            self.ask_verify(whole);
        }
        if self.splitter.connected && self.random.chance(3) {
            self.cancel_verify();
        }
    }

    fn cancel_verify(&mut self) {
        let Some(verify) = &mut self.verify else { return };
        let Some(request) = verify.running.clone() else { return };
        verify.cancelling = true;
        self.to_splitter.push_back(ToSplitter::Verify(VerifyRequest { cancel: true, ..request }));
    }

    fn corrupt(&mut self) {
        let (slot, sector) = (self.random.index(DISKS), self.random.index(self.blocks * 8));
        self.disks[slot][sector] = self.next_id + 9_000_000;
        self.next_id += 1;
        self.totals.corruptions += 1;
        if let Some(verify) = &mut self.verify {
            verify.corrupted.insert((slot, sector / 8));
        }
    }

    /// The appliance asks for a verify, one at a time.
    fn ask_verify(&mut self, whole: bool) {
        let Some(verify) = self.verify.as_mut().filter(|verify| verify.running.is_none()) else { return };
        verify.next_id += 1;
        let disk_ids = if whole { Vec::new() } else { vec![1] };
        verify.running = Some(VerifyRequest { job_id: verify.next_id.to_string(), disk_ids, cancel: false });
        verify.cancelling = false;
        verify.reported.clear();
        if self.splitter.connected {
            self.verify_again();
        }
    }

    /// A new session is told what is still wanted.
    pub(super) fn verify_again(&mut self) {
        if let Some(request) = self.verify.as_ref().and_then(|verify| verify.running.clone()) {
            self.to_splitter.push_back(ToSplitter::Verify(request));
        }
    }

    pub(super) fn verify_asked(&mut self, question: &VerifyQuestion) -> Result<(), String> {
        let question = question.question.as_ref().ok_or("a question without content")?;
        let mut answer = self.appliance.compare(question)?;
        if self.random.chance(20) {
            answer.problem = "try again".into();
        }
        self.to_splitter.push_back(ToSplitter::VerifyAnswer(answer));
        Ok(())
    }

    pub(super) fn verify_reported(&mut self, report: &VerifyReport) -> Result<(), String> {
        let Some(verify) = &mut self.verify else { return Err("a report that nobody asked for".into()) };
        if verify.running.as_ref().is_none_or(|running| running.job_id != report.job_id) {
            // Of a job that has ended.
            return Ok(());
        }
        for disk in &report.disks {
            let slot = disk.disk_id as usize - 1;
            for range in &disk.differing {
                let blocks = range.offset / 4096..(range.offset + range.bytes).div_ceil(4096);
                for block in blocks {
                    if !verify.corrupted.contains(&(slot, block as usize)) {
                        return Err(format!("disk {slot}, block {block} was called different and is not"));
                    }
                    verify.reported.insert((slot, block as usize));
                }
            }
            if disk.equal_bytes + disk.differing_bytes > disk.total_bytes.max(BLOCKS as u64 * 4096) {
                return Err(format!("{disk:?} compared more than there is"));
            }
            if disk.skipped_bytes > 0 {
                return Err(format!("{disk:?} passed over blocks"));
            }
        }
        match report.state() {
            VerifyState::Running => {}
            VerifyState::Done => {
                verify.running = None;
                self.totals.verifies += 1;
                self.totals.found_blocks += verify.reported.len() as u64;
            }
            VerifyState::Failed if verify.cancelling && report.reason == "cancelled" => {
                verify.running = None;
                self.totals.cancelled += 1;
            }
            state => return Err(format!("{state:?}: {}", report.reason)),
        }
        Ok(())
    }

    /// With everything at rest, a verify calls those blocks different that are, all of them and no other.
    pub(super) fn last_verify(&mut self) -> Result<(), String> {
        if self.verify.is_none() {
            return Ok(());
        }
        if self.verify.as_ref().is_some_and(|verify| verify.corrupts > 0) {
            self.corrupt();
        }
        let journal = below(&self.appliance.frames, u64::MAX);
        let differs = |slot: usize, block: usize| {
            let sectors = block * 8..block * 8 + 8;
            journal[slot][sectors.clone()] != self.disks[slot][sectors]
        };
        let all = (0..DISKS).flat_map(|slot| (0..BLOCKS).map(move |block| (slot, block)));
        let wanted: Blocks = all.filter(|(slot, block)| differs(*slot, *block)).collect();
        // Each block is to be named, not repaired unseen with the whole disk.
        self.splitter.engine.verify.whole_bytes = u64::MAX;
        self.ask_verify(true);
        self.quiesce()?;
        let reported = self.verify.as_ref().map(|verify| verify.reported.clone()).unwrap_or_default();
        if reported != wanted {
            return Err(format!("the last verify called {reported:?} different, and {wanted:?} are"));
        }
        let journal = below(&self.appliance.frames, u64::MAX);
        if let Some(slot) = (0..DISKS).find(|slot| journal[*slot] != self.disks[*slot]) {
            return Err(format!("disk {slot} still differs after the last verify"));
        }
        Ok(())
    }
}
