//! Which range is read next, and what becomes of what was read.

use tidemark_proto::limits::SECTOR_BYTES;
use tidemark_proto::v1::{GapCause, frame::Body};

use super::copy::{Finished, Method, ReadContent, ReadRequest, base_blocks};
use super::core::{Engine, EngineError, Kernel, Notice};
use super::limits::{
    COPY_RING_FILL_MAX, COPY_UNSENT_MAX_BYTES, LINE_INTERVAL_US, READ_MAX_BYTES, READ_RETRY_US,
    READ_SEARCH_MAX,
};
use super::verify::Verify;
use crate::capture::{BLOCK_BYTES, BlockRange, Slot};

impl Engine {
    /// The next range to read, if the captured writes leave room for it.
    ///
    /// # Errors
    /// When a dirty map is not accessible.
    pub fn next_read(
        &mut self,
        kernel: &mut Kernel<'_>,
        now_us: u64,
    ) -> Result<Option<ReadRequest>, EngineError> {
        let used = kernel.ring.producer().saturating_sub(kernel.ring.consumer());
        let full_at = kernel.ring.size() / 256 * COPY_RING_FILL_MAX;
        if !self.attached
            || !self.connected
            || !self.kernel_is_current(kernel)
            || !self.window.has_room()
            || self.window.unsent_bytes() > COPY_UNSENT_MAX_BYTES
            || used > full_at.max(READ_MAX_BYTES.min(kernel.ring.size() / 2))
        {
            return Ok(None);
        }
        self.now_us = now_us;
        self.look(kernel.ring);
        let slots: Vec<Slot> = self
            .disks
            .range(self.next_disk..)
            .chain(self.disks.range(..self.next_disk))
            .map(|(slot, _)| *slot)
            .collect();
        for slot in slots {
            if let Some(request) = self.next_read_of(kernel, slot, now_us) {
                self.next_disk = Slot(slot.0.wrapping_add(1));
                return Ok(Some(request));
            }
        }
        // A verify reads what copies leave.
        Ok(self.next_verify_read(kernel))
    }

    fn next_read_of(&mut self, kernel: &mut Kernel<'_>, slot: Slot, now_us: u64) -> Option<ReadRequest> {
        let disk = self.disks.get(&slot)?;
        if disk.gap_from.is_none() || now_us < disk.retry_at_us || kernel.dirty.pending_blocks(slot) == 0 {
            return None;
        }
        if disk.stale_line {
            if kernel.ring.position() < disk.line_after {
                return None;
            }
            if disk.line != 0 && now_us < disk.line_at_us.saturating_add(LINE_INTERVAL_US) {
                return None;
            }
            // The gap is open already: this line only lifts what is read from now on.
            let from = self.lsn.saturating_add(1);
            self.start_line(kernel.dirty, &[slot], GapCause::UnseenWrite, from, "resync goes on".to_owned());
        }
        if let Some(method) = self.copy.has_reread(slot) {
            if !self.copy.has_room(method) {
                return None;
            }
            if let Some(range) = self.take_reread(kernel, slot) {
                return self.begin_read(slot, range, method);
            }
        }
        // Room for the larger need: whether to ask is decided once, and then done.
        if !self.copy.has_room(Method::Ask) {
            return None;
        }
        let range = self.find_range(kernel, slot)?;
        let (asks, templates) = (self.hash_key.is_some(), self.templates);
        let disk = self.disks.get_mut(&slot)?;
        disk.cursor = range.end;
        let asks = asks && (disk.comparable || templates) && disk.asking.next();
        let method = match (asks, disk.comparable) {
            (false, _) => Method::Send,
            // Most of it lies there already: nothing is kept for the little that does not.
            (true, true) => Method::Ask,
            (true, false) => Method::AskKept,
        };
        self.begin_read(slot, range, method)
    }

    fn begin_read(&mut self, slot: Slot, range: BlockRange, method: Method) -> Option<ReadRequest> {
        let disk = self.disks.get_mut(&slot)?;
        disk.end_at = None;
        let (place, size_bytes) = (Finished { slot, range, line: disk.line }, disk.size_bytes);
        let hashing = method.hashing(self.hash_key, self.piece_bytes);
        Some(self.copy.begin(place, method, size_bytes, hashing))
    }

    fn find_range(&mut self, kernel: &Kernel<'_>, slot: Slot) -> Option<BlockRange> {
        let disk = self.disks.get_mut(&slot)?;
        let mut wrapped = false;
        for _ in 0..READ_SEARCH_MAX {
            let Some(range) = kernel.dirty.next_pending(slot, disk.cursor, READ_MAX_BYTES / BLOCK_BYTES)
            else {
                if wrapped {
                    return None;
                }
                wrapped = true;
                disk.cursor = 0;
                continue;
            };
            if let Some(other) = self.copy.conflict(slot, range) {
                if other.start > range.start {
                    // The part before the outstanding range is free.
                    let head = BlockRange { start: range.start, end: other.start };
                    if self.copy.conflict(slot, head).is_none()
                        && !self.inflight.blocks_reading(slot, head, disk.line)
                    {
                        return Some(head);
                    }
                }
                disk.cursor = other.end;
            } else if self.inflight.blocks_reading(slot, range, disk.line) {
                disk.cursor = range.end;
            } else {
                return Some(range);
            }
        }
        None
    }

    /// A read came back; `None` when it failed.
    pub fn read_done(&mut self, kernel: &Kernel<'_>, token: u64, content: Option<ReadContent>, now_us: u64) {
        self.now_us = now_us;
        self.look(kernel.ring);
        if Verify::owns(token) {
            return self.verify_read_done(kernel, token, content);
        }
        let slot = self.copy.slot_of(token);
        let finished = self.copy.finish(token, content.is_some());
        let Some(disk) = slot.and_then(|slot| self.disks.get_mut(&slot)) else { return };
        match (finished, content) {
            (Some(finished), Some(content)) => {
                disk.end_at = None;
                match content {
                    ReadContent { pieces, blocks: Some(blocks) } if pieces.is_empty() => {
                        let run = (finished.range.start_sector(), blocks.len() as u64 / SECTOR_BYTES);
                        let (seq, bytes) = self.send_blocks(&finished, &[run], blocks);
                        self.copy.sent_in(token, seq, bytes);
                    }
                    content => self.ask(token, &finished, content),
                }
            }
            (_, None) => {
                disk.retry_at_us = now_us.saturating_add(READ_RETRY_US);
                disk.read_errors = disk.read_errors.saturating_add(1);
                if let Some(slot) = slot {
                    self.notices.push_back(Notice::ReadFailed { slot });
                }
            }
            (None, Some(_)) => {}
        }
    }

    /// Puts blocks into a frame, under the line under which they were read. Returns its number and its bytes.
    pub(super) fn send_blocks(
        &mut self,
        place: &Finished,
        runs: &[(u64, u64)],
        blocks: Vec<u8>,
    ) -> (u64, u64) {
        let id = self.disks.get(&place.slot).map_or(0, |disk| disk.id.0);
        let body = base_blocks(place.line, id, runs, blocks);
        let bytes = body.payload.len() as u64;
        if let Some(disk) = self.disks.get_mut(&place.slot) {
            disk.sent_bytes = disk.sent_bytes.saturating_add(bytes);
        }
        (self.push_frame(Body::Base(body)), bytes)
    }
}
