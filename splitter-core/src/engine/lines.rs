//! Misses, lines and generations: one mechanism for everything that was not captured.

use tidemark_proto::ids::DiskId;
use tidemark_proto::limits::TEXT_MAX_BYTES;
use tidemark_proto::v1::{GapCause, LineEnd, LineStart, Resize, Welcome, frame::Body};

use super::core::{Engine, EngineError, Kernel, Notice};
use super::disk::{Disk, DiskConfig};
use super::limits::RESTART_RING_PART;
use crate::capture::{BLOCK_BYTES, BlockRange, DirtyMaps, Mode, Ring, Slot};

/// A range whose content in the stream is not to be trusted from `gap_from` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Miss {
    pub(super) slot: Slot,
    pub(super) range: BlockRange,
    pub(super) cause: GapCause,
    pub(super) gap_from: u64,
}

impl Engine {
    /// Marks a range and opens a gap, or has the open one go on under a later line.
    pub(super) fn missed(&mut self, dirty: &mut dyn DirtyMaps, miss: &Miss) -> Result<(), EngineError> {
        let Some(disk) = self.disks.get_mut(&miss.slot) else { return Ok(()) };
        dirty.mark(miss.slot, miss.range)?;
        self.copy.again(miss.slot, miss.range);
        self.verify.marked(miss.slot, miss.range);
        disk.end_at = None;
        if disk.gap_from.is_some_and(|open| open <= miss.gap_from) {
            // The gap is open already; the later line is taken when reading goes on.
            disk.stale_line = true;
            return Ok(());
        }
        let bytes = miss.range.blocks().saturating_mul(BLOCK_BYTES);
        let at = miss.range.start.saturating_mul(BLOCK_BYTES);
        self.start_line(
            dirty,
            &[miss.slot],
            miss.cause,
            miss.gap_from,
            format!("{bytes} bytes at offset {at}"),
        );
        Ok(())
    }

    pub(super) fn mark_whole(&mut self, dirty: &mut dyn DirtyMaps, slot: Slot) -> Result<(), EngineError> {
        let range = BlockRange { start: 0, end: dirty.blocks(slot) };
        dirty.mark(slot, range)?;
        self.copy.again(slot, range);
        self.verify.marked(slot, range);
        Ok(())
    }

    /// Emits a line start for these disks. Base blocks read from now on lie above everything before it.
    pub(super) fn start_line(
        &mut self,
        dirty: &dyn DirtyMaps,
        slots: &[Slot],
        cause: GapCause,
        gap_from: u64,
        mut detail: String,
    ) {
        detail.truncate(detail.floor_char_boundary(TEXT_MAX_BYTES));
        self.close_batch();
        if !slots.iter().any(|slot| self.disks.contains_key(slot)) {
            return;
        }
        let mut disk_ids = Vec::with_capacity(slots.len());
        let lsn = self.next_lsn();
        let gap_from = gap_from.clamp(1, lsn);
        let mut dirty_bytes: u64 = 0;
        for slot in slots {
            let Some(disk) = self.disks.get_mut(slot) else { continue };
            disk_ids.push(disk.id.0);
            let pending = dirty.pending_blocks(*slot);
            dirty_bytes = dirty_bytes.saturating_add(pending.saturating_mul(BLOCK_BYTES));
            if disk.gap_from.is_none() {
                disk.copied_bytes = 0;
                disk.sent_bytes = 0;
                disk.whole = false;
                disk.asking.doubt();
                disk.read_errors = 0;
                disk.initial = cause == GapCause::InitialCopy;
            }
            if pending > 0 && pending == dirty.blocks(*slot) {
                disk.whole = true;
                disk.asking.hope();
            }
            disk.gap_from = Some(disk.gap_from.map_or(gap_from, |open| open.min(gap_from)));
            disk.line = lsn;
            disk.line_at_us = self.now_us;
            disk.stale_line = false;
            disk.end_at = None;
        }
        let boottime_us = self.now_us;
        let body = LineStart {
            lsn,
            disk_ids,
            gap_from_lsn: gap_from,
            cause: cause.into(),
            detail: detail.clone(),
            boottime_us,
            dirty_bytes,
        };
        self.push_frame(Body::LineStart(body));
        self.notices.push_back(Notice::LineStarted { lsn, gap_from, cause, detail, dirty_bytes });
    }

    /// Blocks marked by something that has no place in the ring are read under a line beyond everything now in it.
    pub(super) fn defer_line(&mut self, ring: &dyn Ring, slots: &[Slot]) {
        let producer = ring.producer();
        for slot in slots {
            if let Some(disk) = self.disks.get_mut(slot) {
                disk.stale_line = true;
                disk.line_after = disk.line_after.max(producer);
                disk.end_at = None;
            }
        }
    }

    /// Takes over a new generation of the kernel: nothing known of requests in flight holds any longer.
    pub(super) fn begin_generation(
        &mut self,
        dirty: &mut dyn DirtyMaps,
        kernel_generation: u32,
        cause: GapCause,
    ) -> Result<(), EngineError> {
        // A capture that was loaded begins in dirty-only mode without a miss.
        let cause = if cause == GapCause::Unspecified { GapCause::CaptureRestarted } else { cause };
        self.close_batch();
        self.verify.interrupted();
        self.kernel_generation = Some(kernel_generation);
        if self.disks.is_empty() {
            // Nobody lost anything, and a generation begins with a line.
            self.inflight.clear();
            return Ok(());
        }
        self.generation = self.generation.saturating_add(1);
        self.inflight.clear();
        let slots: Vec<Slot> = self.disks.keys().copied().collect();
        for slot in &slots {
            self.take(dirty, *slot)?;
        }
        let from = self.lsn.saturating_add(1);
        let mut detail = "capture begins anew".to_owned();
        if let Some(why) = self.window.spool.take_overflow().filter(|_| cause == GapCause::RingFull) {
            detail = format!("{detail}; {why}");
        }
        self.start_line(dirty, &slots, cause, from, detail);
        Ok(())
    }

    /// Moves the kernel's dirty bits to pending. Whether there were any.
    pub(super) fn take(&mut self, dirty: &mut dyn DirtyMaps, slot: Slot) -> Result<bool, EngineError> {
        let mut any = false;
        let (copy, verify) = (&mut self.copy, &mut self.verify);
        dirty.take(slot, &mut |range| {
            any = true;
            copy.again(slot, range);
            verify.marked(slot, range);
        })?;
        Ok(any)
    }

    /// Bits that the kernel set outside of dirty-only mode, or late: a miss that nothing else dates.
    pub(super) fn take_strays(&mut self, kernel: &mut Kernel<'_>) -> Result<bool, EngineError> {
        if kernel.control.status().mode != Mode::Full {
            // They belong to the generation that begins when the ring is drained.
            return Ok(false);
        }
        let mut found = false;
        let slots: Vec<Slot> = self.disks.keys().copied().collect();
        for slot in slots {
            if !self.take(kernel.dirty, slot)? {
                continue;
            }
            found = true;
            let gap_from = self.clean_lsn.saturating_add(1);
            let range = BlockRange { start: 0, end: 0 };
            let cause = GapCause::UnseenWrite;
            self.missed(kernel.dirty, &Miss { slot, range, cause, gap_from })?;
            self.defer_line(kernel.ring, &[slot]);
        }
        Ok(found)
    }

    /// In dirty-only mode with a drained ring: restarts capture.
    pub(super) fn follow_kernel(&mut self, kernel: &mut Kernel<'_>) -> Result<(), EngineError> {
        let status = kernel.control.status();
        let behind = self.kernel_generation.is_some_and(|known| known < status.generation);
        if status.mode == Mode::Full && behind && kernel.ring.position() >= status.generation_start {
            // A predecessor restarted capture and nothing was written since.
            self.begin_generation(kernel.dirty, status.generation, status.cause)?;
            let slots: Vec<Slot> = self.disks.keys().copied().collect();
            self.defer_line(kernel.ring, &slots);
            return Ok(());
        }
        let drained = kernel.ring.position() == kernel.ring.producer();
        if status.mode != Mode::DirtyOnly || !drained || !self.connected || !self.window.has_room() {
            return Ok(());
        }
        // Read is not yet acknowledged. A restart into a ring that is still full drops the next write at once, and the
        // one after: a new generation every few milliseconds.
        let waiting = kernel.ring.position().saturating_sub(self.window.acked().ring_position);
        if waiting > kernel.ring.size() / RESTART_RING_PART {
            return Ok(());
        }
        kernel.ring.abandon_open();
        self.look(kernel.ring);
        match kernel.control.restart() {
            Ok(generation) => {
                self.begin_generation(kernel.dirty, generation, status.cause)?;
                if kernel.ring.producer() > kernel.ring.position() {
                    // A completion may have been marked after the restart, behind a write captured since.
                    let slots: Vec<Slot> = self.disks.keys().copied().collect();
                    self.defer_line(kernel.ring, &slots);
                }
                Ok(())
            }
            Err(error) => {
                self.notices.push_back(Notice::RestartFailed { detail: error.to_string() });
                Ok(())
            }
        }
    }

    /// The ring cannot be read on.
    pub(super) fn damaged(&mut self, kernel: &mut Kernel<'_>, detail: String) -> Result<(), EngineError> {
        let from = self.lsn.saturating_add(1);
        self.lose_ring(kernel, GapCause::ProbeFault, from, detail)
    }

    /// Everything in the ring is lost, and nobody marked what it held.
    pub(super) fn lose_ring(
        &mut self,
        kernel: &mut Kernel<'_>,
        cause: GapCause,
        gap_from: u64,
        detail: String,
    ) -> Result<(), EngineError> {
        kernel.control.force_miss(cause)?;
        let slots: Vec<Slot> = self.disks.keys().copied().collect();
        for slot in slots {
            self.mark_whole(kernel.dirty, slot)?;
        }
        self.verify.interrupted();
        kernel.ring.abandon_open();
        let end = kernel.ring.producer();
        kernel.ring.seek(end)?;
        self.look(kernel.ring);
        let slots: Vec<Slot> = self.disks.keys().copied().collect();
        self.start_line(kernel.dirty, &slots, cause, gap_from, detail);
        for disk in self.disks.values_mut() {
            disk.stale_line = true;
        }
        Ok(())
    }

    /// Ends the gaps whose blocks are all copied and acknowledged, once the ring is read beyond the last read.
    pub(super) fn end_lines(&mut self, kernel: &mut Kernel<'_>) -> Result<(), EngineError> {
        if self.disks.values().all(|disk| disk.gap_from.is_none()) || !self.kernel_is_current(kernel) {
            return Ok(());
        }
        let mut due = Vec::new();
        for (slot, disk) in &mut self.disks {
            let copied = kernel.dirty.pending_blocks(*slot) == 0 && self.copy.idle(*slot);
            if disk.gap_from.is_none() || !copied {
                disk.end_at = None;
                continue;
            }
            match disk.end_at {
                None => disk.end_at = Some(kernel.ring.producer()),
                Some(position) if position <= kernel.ring.position() => due.push(*slot),
                Some(_) => {}
            }
        }
        if due.is_empty()
            || !self.window.has_room()
            || self.take_strays(kernel)?
            || !self.kernel_is_current(kernel)
        {
            return Ok(());
        }
        self.close_batch();
        let lsn = self.next_lsn();
        let mut disk_ids = Vec::with_capacity(due.len());
        for slot in due {
            let Some(disk) = self.disks.get_mut(&slot) else { continue };
            disk.gap_from = None;
            disk.initial = false;
            disk.comparable = true;
            disk.end_at = None;
            disk.stale_line = false;
            disk_ids.push(disk.id.0);
            self.notices.push_back(Notice::LineEnded { lsn, slot });
        }
        self.push_frame(Body::LineEnd(LineEnd { lsn, disk_ids, boottime_us: self.now_us }));
        Ok(())
    }

    /// Takes a disk into the stream. Its units must not have been read before.
    ///
    /// # Errors
    /// When its dirty map is not accessible.
    pub fn add_disk(&mut self, kernel: &mut Kernel<'_>, config: &DiskConfig) -> Result<(), EngineError> {
        self.look(kernel.ring);
        self.disks.insert(config.slot, Disk::new(config.id, config.size_bytes));
        self.absent.remove(&config.id);
        if config.fresh {
            self.mark_whole(kernel.dirty, config.slot)?;
            // Of a disk with a history the counters that could have spoken for its last writes are gone.
            let known = config.cause != GapCause::InitialCopy;
            let from = if known { self.clean_lsn } else { self.lsn }.saturating_add(1);
            self.start_line(kernel.dirty, &[config.slot], config.cause, from, String::new());
        }
        Ok(())
    }

    /// Ends the protection of a disk: from here on no point has it. Units of it that are still in the ring are passed
    /// over.
    pub fn remove_disk(&mut self, kernel: &Kernel<'_>, slot: Slot) {
        self.look(kernel.ring);
        if let Some(disk) = self.forget_disk(slot) {
            self.retire(disk.id, disk.gap_from.is_some());
        }
    }

    /// Ends the protection of a disk that is [missing](Engine::lose_disk).
    pub fn remove_missing_disk(&mut self, kernel: &Kernel<'_>, id: DiskId) {
        self.look(kernel.ring);
        self.absent.remove(&id);
        if self.attached {
            self.retire(id, true);
        }
    }

    /// A disk is gone from the machine. What was captured last may not have reached it, and what has its name now may
    /// be another disk: no point of it exists from the last clean heartbeat on, until it is back and compared.
    pub fn lose_disk(&mut self, kernel: &Kernel<'_>, slot: Slot, detail: String) {
        self.look(kernel.ring);
        if let Some(disk) = self.forget_disk(slot) {
            self.absent.insert(disk.id);
            self.say_missing(disk.id, disk.gap_from, detail);
        }
    }

    /// A disk that is to be protected was not in the machine when the session began. `welcome` says what the journal
    /// knows of it.
    pub fn disk_missing(&mut self, kernel: &Kernel<'_>, welcome: &Welcome, id: DiskId, detail: String) {
        self.look(kernel.ring);
        let known = welcome.disks.iter().any(|disk| disk.disk_id == id.0 && disk.size_bytes > 0);
        if self.attached && known {
            self.absent.insert(id);
        }
        if self.attached && known && !welcome.open_gap_disks.contains(&id.0) {
            self.say_missing(id, None, detail);
        }
    }

    fn forget_disk(&mut self, slot: Slot) -> Option<Disk> {
        self.close_batch();
        self.inflight.forget_disk(slot);
        self.copy.forget_disk(slot);
        self.verify.forget_disk(slot);
        self.disks.remove(&slot)
    }

    /// Size 0 is "no part of the machine". A gap that is open ends there: nothing is missing of what is not there.
    fn retire(&mut self, id: DiskId, gap_open: bool) {
        self.close_batch();
        let boottime_us = self.now_us;
        let lsn = self.next_lsn();
        self.said_bytes.insert(id.0, 0);
        self.push_frame(Body::Resize(Resize { lsn, disk_id: id.0, size_bytes: 0, boottime_us }));
        if gap_open {
            let lsn = self.next_lsn();
            self.push_frame(Body::LineEnd(LineEnd { lsn, disk_ids: vec![id.0], boottime_us }));
        }
    }

    /// Opens the gap of a disk that is not there, unless the one that is open says as much.
    fn say_missing(&mut self, id: DiskId, open_from: Option<u64>, mut detail: String) {
        detail.truncate(detail.floor_char_boundary(TEXT_MAX_BYTES));
        self.close_batch();
        let gap_from = self.clean_lsn.saturating_add(1);
        if open_from.is_some_and(|open| open <= gap_from) {
            return;
        }
        let lsn = self.next_lsn();
        let gap_from = gap_from.clamp(1, lsn);
        // As after a reboot: capture of it ended, and when it begins anew all of the disk is compared.
        let cause = GapCause::CaptureRestarted;
        let body = LineStart {
            lsn,
            disk_ids: vec![id.0],
            gap_from_lsn: gap_from,
            cause: cause.into(),
            detail: detail.clone(),
            boottime_us: self.now_us,
            dirty_bytes: 0,
        };
        self.push_frame(Body::LineStart(body));
        self.notices.push_back(Notice::LineStarted { lsn, gap_from, cause, detail, dirty_bytes: 0 });
    }

    /// The disk's size changed, and its dirty maps with it. What was added is copied; points before keep the old
    /// size. The same size is no change.
    ///
    /// # Errors
    /// When its dirty map is not accessible.
    pub fn resize_disk(
        &mut self,
        kernel: &mut Kernel<'_>,
        slot: Slot,
        size_bytes: u64,
    ) -> Result<(), EngineError> {
        self.look(kernel.ring);
        let Some(disk) = self.disks.get_mut(&slot).filter(|disk| disk.size_bytes != size_bytes) else {
            return Ok(());
        };
        let (disk_id, old_bytes) = (disk.id.0, disk.size_bytes);
        disk.size_bytes = size_bytes;
        self.close_batch();
        let lsn = self.next_lsn();
        self.said_bytes.insert(disk_id, size_bytes);
        self.push_frame(Body::Resize(Resize { lsn, disk_id, size_bytes, boottime_us: self.now_us }));
        if size_bytes < old_bytes {
            // A read that reaches into what was cut off is void: its blocks would lie beyond the disk.
            let cut = BlockRange { start: size_bytes / BLOCK_BYTES, end: old_bytes.div_ceil(BLOCK_BYTES) };
            self.copy.again(slot, cut);
            self.verify.marked(slot, cut);
        } else {
            let range = BlockRange { start: old_bytes / BLOCK_BYTES, end: size_bytes.div_ceil(BLOCK_BYTES) };
            kernel.dirty.mark(slot, range)?;
            self.copy.again(slot, range);
            self.verify.marked(slot, range);
            let from = self.lsn.saturating_add(1);
            self.start_line(kernel.dirty, &[slot], GapCause::InitialCopy, from, "the disk grew".to_owned());
        }
        Ok(())
    }
}
