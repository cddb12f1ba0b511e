//! What the engine does for a verify: reads, questions, answers, and lines where something differs.

use tidemark_proto::limits::{SECTOR_BYTES, VERIFY_QUESTIONS_MAX};
use tidemark_proto::pieces;
use tidemark_proto::v1::{
    GapCause, HashAnswer, VerifyAnswer, VerifyDisk, VerifyQuestion, VerifyReport, VerifyRequest, VerifyState,
};

use super::comparing::{Comparing, Stage, Touched, Verify, bytes_within, join};
use super::job::{DiskRun, Job, Retry};
use crate::capture::{BLOCK_BYTES, BlockRange, Mode, Slot};
use crate::engine::copy::{Method, ReadContent, ReadRequest};
use crate::engine::core::{Engine, EngineError, Kernel, Notice};
use crate::engine::limits::{READ_RETRY_US, VERIFY_REPORT_US, VERIFY_RETRIES_MAX};

impl Engine {
    /// The appliance asks for a verify. The same job goes on where it was; another one takes its place. Or it wants one no
    /// longer: then that ends, and a report says so.
    pub fn verify(&mut self, request: &VerifyRequest, now_us: u64) {
        self.now_us = now_us;
        self.verify.report_due_us = 0;
        if request.cancel {
            self.cancel_verify(&request.job_id);
            return;
        }
        if let Some(job) = self.verify.job.as_mut().filter(|job| job.id == request.job_id) {
            job.connected = true;
            return;
        }
        let asked = |id: u32| request.disk_ids.is_empty() || request.disk_ids.contains(&id);
        let disks: Vec<DiskRun> = self
            .disks
            .iter()
            .filter(|(_, disk)| asked(disk.id.0))
            .map(|(slot, disk)| DiskRun::new(*slot, disk.id.0, self.lsn))
            .collect();
        let missing = disks.is_empty() || self.hash_key.is_none();
        self.verify.comparing.clear();
        self.verify.questions.clear();
        self.verify.job = Some(Job {
            id: request.job_id.clone(),
            connected: true,
            state: if missing { VerifyState::Failed } else { VerifyState::Running },
            reason: if missing { "the disk is not protected".to_owned() } else { String::new() },
            disks,
            next_disk: 0,
        });
    }

    fn cancel_verify(&mut self, job_id: &str) {
        // What has ended by itself meanwhile is only said again. Lines for what differed end as any do.
        let running = |job: &&mut Job| job.id == job_id && job.state == VerifyState::Running;
        let Some(job) = self.verify.job.as_mut().filter(running) else { return };
        job.connected = true;
        job.state = VerifyState::Failed;
        "cancelled".clone_into(&mut job.reason);
        self.verify.comparing.clear();
        self.verify.questions.clear();
    }

    /// The next question to send. It comes behind every frame that its LSN needs.
    pub fn next_verify_question(&mut self) -> Option<VerifyQuestion> {
        let (seq, _) = self.verify.questions.front()?;
        if !self.connected || *seq > self.window.sent_seq() {
            return None;
        }
        let (_, question) = self.verify.questions.pop_front()?;
        Some(VerifyQuestion { question: Some(question) })
    }

    /// What the appliance should know of the job now.
    pub fn next_verify_report(&mut self, now_us: u64) -> Option<VerifyReport> {
        let due = now_us >= self.verify.report_due_us;
        let job = self.verify.job.as_ref().filter(|job| due && job.connected && self.connected)?;
        let size = |run: &DiskRun| self.disks.get(&run.slot).map_or(0, |disk| disk.size_bytes);
        let disks: Vec<VerifyDisk> = job.disks.iter().map(|run| run.report(size(run))).collect();
        let report = VerifyReport {
            job_id: job.id.clone(),
            state: job.state.into(),
            reason: job.reason.clone(),
            disks,
        };
        // What has ended is said once, and again when it is asked for again.
        let running = job.state == VerifyState::Running;
        self.verify.report_due_us = if running { now_us.saturating_add(VERIFY_REPORT_US) } else { u64::MAX };
        Some(report)
    }

    /// The next range to read for a verify. The caller has found that captured writes leave room for it.
    pub(in crate::engine) fn next_verify_read(&mut self, kernel: &Kernel<'_>) -> Option<ReadRequest> {
        let key = self.hash_key?;
        if self.verify.comparing.len() >= VERIFY_QUESTIONS_MAX {
            return None;
        }
        let count = self.verify.job.as_ref().filter(|job| job.is_running())?.disks.len();
        // Every entry up to the LSN must be in a frame.
        self.close_batch();
        for _ in 0..count {
            let Some((slot, retry)) = self.take_range(kernel) else { continue };
            let mut comparing = Comparing {
                token: self.verify.token(),
                slot,
                retry,
                lsn: self.lsn,
                seq: self.window.last_seq(),
                generation: kernel.control.status().generation,
                touched: Touched::default(),
                void: false,
                stage: Stage::Reading,
            };
            let (start, sectors) =
                (retry.range.start_sector(), retry.range.blocks() * (BLOCK_BYTES / SECTOR_BYTES));
            if self.verify.ordered {
                for request in self.inflight.touching(slot, start, sectors) {
                    comparing.touch(request.range());
                }
            }
            if comparing.wholly_touched() {
                self.verify_later(slot, retry);
                continue;
            }
            let size_bytes = self.disks.get(&slot)?.size_bytes;
            let bytes = bytes_within(retry.range, size_bytes);
            let method = if retry.fine { Method::AskFine } else { Method::Ask };
            let hashing = method.hashing(Some(key), self.piece_bytes).map(|mut hashing| {
                hashing.keep = false;
                hashing
            });
            let request = ReadRequest {
                token: comparing.token,
                slot,
                start_sector: start,
                length_bytes: usize::try_from(bytes).unwrap_or(0),
                line_lsn: comparing.lsn,
                hashing,
            };
            self.verify.comparing.push(comparing);
            return Some(request);
        }
        None
    }

    /// A range of the job's next disk, if that may be read now.
    fn take_range(&mut self, kernel: &Kernel<'_>) -> Option<(Slot, Retry)> {
        let (now_us, beats, read_blocks) = (self.now_us, self.verify.beats, self.verify.read_blocks);
        let job = self.verify.job.as_mut()?;
        job.next_disk = (job.next_disk + 1) % job.disks.len().max(1);
        let run = job.disks.get_mut(job.next_disk).filter(|run| !run.gone)?;
        let disk = self.disks.get(&run.slot)?;
        // While a gap is open it is known where the disk differs; what was not read yet is compared afterwards.
        if disk.gap_from.is_some() || kernel.dirty.pending_blocks(run.slot) > 0 || now_us < disk.retry_at_us {
            return None;
        }
        run.noted = false;
        let blocks = kernel.dirty.blocks(run.slot);
        let due = |retry: &Retry| retry.not_before_us <= now_us && retry.after_beat <= beats;
        while let Some(index) = run.retries.iter().position(due) {
            let mut retry = run.retries.remove(index)?;
            retry.range.end = retry.range.end.min(blocks);
            if retry.range.blocks() > 0 {
                return Some((run.slot, retry));
            }
        }
        if run.cursor >= blocks || run.retries.len() >= VERIFY_RETRIES_MAX {
            return None;
        }
        let end = run.cursor.saturating_add(read_blocks).min(blocks);
        let range = BlockRange { start: run.cursor, end };
        run.cursor = end;
        Some((run.slot, Retry::new(range)))
    }

    /// Has a range read again after a while, or passes over it after too many attempts.
    fn verify_later(&mut self, slot: Slot, retry: Retry) {
        let (now_us, most) = (self.now_us, self.verify.tries_max);
        let size_bytes = self.disks.get(&slot).map_or(0, |disk| disk.size_bytes);
        let Some(run) = self.verify.job.as_mut().and_then(|job| job.run_of(slot)) else { return };
        if retry.tries >= most {
            run.skipped_bytes = run.skipped_bytes.saturating_add(bytes_within(retry.range, size_bytes));
        } else {
            run.retries.push_back(retry.later(now_us));
        }
    }

    /// A read of a verify came back; `None` when it failed.
    pub(in crate::engine) fn verify_read_done(
        &mut self,
        kernel: &Kernel<'_>,
        token: u64,
        content: Option<ReadContent>,
    ) {
        let reading =
            |comparing: &Comparing| comparing.token == token && matches!(comparing.stage, Stage::Reading);
        let Some(index) = self.verify.comparing.iter().position(reading) else { return };
        let Some(content) = content else {
            let Comparing { slot, retry, .. } = self.verify.comparing.swap_remove(index);
            if let Some(disk) = self.disks.get_mut(&slot) {
                disk.retry_at_us = self.now_us.saturating_add(READ_RETRY_US);
            }
            self.notices.push_back(Notice::ReadFailed { slot });
            return self.verify_later(slot, retry);
        };
        let status = kernel.control.status();
        let ordered = self.verify.ordered;
        let Some(comparing) = self.verify.comparing.get_mut(index) else { return };
        // A write that was dropped before the read ended had raised the generation by then.
        comparing.void |= ordered && (status.mode != Mode::Full || status.generation != comparing.generation);
        let until = if ordered { kernel.ring.producer() } else { 0 };
        comparing.stage = Stage::Waiting { until, pieces: content.pieces };
    }

    /// Asks about what the ring was read far enough for, and finds the end of the job.
    pub(in crate::engine) fn step_verify(&mut self, kernel: &Kernel<'_>) {
        let position = kernel.ring.position();
        let mut index = 0;
        while let Some(comparing) = self.verify.comparing.get_mut(index) {
            let pieces = match &mut comparing.stage {
                Stage::Waiting { until, pieces } if *until <= position => std::mem::take(pieces),
                _ => {
                    index += 1;
                    continue;
                }
            };
            if comparing.void {
                let Comparing { slot, retry, .. } = self.verify.comparing.swap_remove(index);
                self.verify_later(slot, retry);
                continue;
            }
            let (asked, again) = comparing.untouched(pieces);
            let (slot, retry, token, lsn, seq) =
                (comparing.slot, comparing.retry, comparing.token, comparing.lsn, comparing.seq);
            let disk_id = self.disks.get(&slot).map(|disk| disk.id.0).filter(|_| !asked.is_empty());
            match disk_id {
                None => drop(self.verify.comparing.swap_remove(index)),
                Some(disk_id) => {
                    let question = pieces::ask(token, disk_id, lsn, &asked);
                    self.verify.questions.push_back((seq, question));
                    comparing.stage = Stage::Asked { pieces: asked };
                    index += 1;
                }
            }
            for range in again {
                self.verify_later(slot, Retry { range, fine: true, ..retry });
            }
        }
        self.end_verify(kernel);
    }

    fn end_verify(&mut self, kernel: &Kernel<'_>) {
        let Verify { job, comparing, .. } = &mut self.verify;
        let Some(job) = job.as_mut().filter(|job| job.is_running()) else { return };
        let ended = |run: &DiskRun| {
            let repaired = self.disks.get(&run.slot).is_some_and(|disk| disk.gap_from.is_none());
            let read = run.cursor >= kernel.dirty.blocks(run.slot) && run.retries.is_empty();
            run.gone || (read && repaired && comparing.iter().all(|comparing| comparing.slot != run.slot))
        };
        if !job.disks.iter().all(ended) {
            return;
        }
        let gone: Vec<String> =
            job.disks.iter().filter(|run| run.gone).map(|run| format!("disk-{}", run.disk_id)).collect();
        job.state = VerifyState::Done;
        if !gone.is_empty() {
            job.state = VerifyState::Failed;
            job.reason = format!("{} is not protected any more", gone.join(", "));
        }
        self.verify.report_due_us = 0;
    }

    /// The appliance compared. Answers to questions of an earlier session must not be passed on.
    ///
    /// # Errors
    /// When a dirty map is not accessible.
    pub fn verify_answered(
        &mut self,
        kernel: &mut Kernel<'_>,
        answer: &VerifyAnswer,
        now_us: u64,
    ) -> Result<(), EngineError> {
        self.now_us = now_us;
        self.look(kernel.ring);
        let asked = |comparing: &Comparing| {
            comparing.token == answer.id && matches!(comparing.stage, Stage::Asked { .. })
        };
        let Some(index) = self.verify.comparing.iter().position(asked) else { return Ok(()) };
        let Comparing { slot, retry, stage, .. } = self.verify.comparing.swap_remove(index);
        let Stage::Asked { pieces } = stage else { return Ok(()) };
        let bits = HashAnswer { id: answer.id, known: answer.same.clone(), ..HashAnswer::default() };
        let (mut equal_bytes, mut unlike) = (0_u64, Vec::new());
        for (index, piece) in pieces.iter().enumerate() {
            let range = BlockRange::of_sectors(piece.start_sector, piece.sectors.into());
            if !answer.problem.is_empty() {
                // Nothing was compared.
                self.verify_later(slot, Retry { range, fine: true, ..retry });
            } else if pieces::is_known(&bits, index) {
                equal_bytes = equal_bytes.saturating_add(piece.bytes());
            } else {
                join(&mut unlike, range);
            }
        }
        let after_beat = self.verify.beats.saturating_add(1);
        let Some(job) = self.verify.job.as_mut() else { return Ok(()) };
        let Some(run) = job.run_of(slot) else { return Ok(()) };
        run.equal_bytes = run.equal_bytes.saturating_add(equal_bytes);
        if retry.suspect {
            return self.differing(kernel, slot, &unlike);
        }
        let (suspect, after_beat) = if retry.fine { (true, after_beat) } else { (false, 0) };
        for range in unlike {
            run.retries.push_back(Retry { range, fine: true, suspect, after_beat, ..retry });
        }
        Ok(())
    }

    /// Blocks differ, and nothing that counts or marks knows why: they are read under a line of their own.
    fn differing(
        &mut self,
        kernel: &mut Kernel<'_>,
        slot: Slot,
        ranges: &[BlockRange],
    ) -> Result<(), EngineError> {
        let size_bytes = self.disks.get(&slot).map_or(0, |disk| disk.size_bytes);
        let run = self.verify.job.as_mut().and_then(|job| job.run_of(slot));
        let (Some(run), Some(first)) = (run, ranges.first()) else { return Ok(()) };
        let (before, noted) = (run.differing_bytes, std::mem::replace(&mut run.noted, true));
        let whole_bytes = self.verify.whole_bytes;
        for range in ranges {
            run.differs(*range, size_bytes);
        }
        let bytes = run.differing_bytes.saturating_sub(before);
        // Once is enough: what differs later has come later.
        if run.differing_bytes > whole_bytes && !std::mem::replace(&mut run.whole, true) {
            self.mark_whole(kernel.dirty, slot)?;
        }
        for range in ranges {
            kernel.dirty.mark(slot, *range)?;
            self.copy.again(slot, *range);
            self.verify.marked(slot, *range);
        }
        let Some(disk) = self.disks.get(&slot) else { return Ok(()) };
        // A point that was offered is not withdrawn, but the appliance tells from when on it is in doubt.
        let gap_from = self.clean_lsn.saturating_add(1);
        if noted && disk.gap_from.is_some_and(|open| open <= gap_from) {
            // The gap says so already; the later line is taken when reading goes on.
            self.defer_line(kernel.ring, &[slot]);
            return Ok(());
        }
        let at = first.start.saturating_mul(BLOCK_BYTES);
        let detail = format!("{bytes} bytes from offset {at} on were not as in the journal");
        self.start_line(kernel.dirty, &[slot], GapCause::VerifyDifference, gap_from, detail);
        if kernel.ring.producer() > kernel.ring.position() {
            // What is in the ring was written before the blocks are read: it must not lie above them.
            self.defer_line(kernel.ring, &[slot]);
        }
        Ok(())
    }
}
