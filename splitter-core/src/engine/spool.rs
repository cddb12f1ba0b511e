//! The spool: what the driver keeps in a file, between the ring and the dirty map.
//!
//! The ladder of overload, each step only when the one before is used up:
//!
//! 1. **ring**: frames wait in memory ([`super::WINDOW_MAX_BYTES`]), captured writes in the ring.
//! 2. **spool**: the ring is filled beyond a part ([`super::SPOOL_ENTER_PART`]) while the window is full, or beyond
//!    twice that. Every frame that is not acknowledged, and every further one, is handed to the driver to be appended to
//!    the spool. The ring is released as far as frames are *wholly written*, so that each write is at any moment in the
//!    ring, in the spool, or acknowledged: a splitter killed at any instruction loses nothing.
//! 3. **dirty-only**: the spool is full, or failed, and the ring overflows. The kernel notes which blocks change; capture is
//!    restarted when spool and ring have been sent, and these blocks are read again.
//!
//! The way back: frames are read from the spool in their order, sent, and given up when acknowledged. When none of them
//! is left that memory does not hold, half of that is free, and the ring is nearly empty ([`super::SPOOL_LEAVE_PART`]), frames
//! stay in memory again. Where every disk has a gap open nothing is spooled: no point would be won by it.
//!
//! Frames are, by number: `acked < in memory <= only in the spool <= tail (in memory, being written) <= last`.
//!
//! The driver is told what to do by [`SpoolOrder`]s, in order, and says what came of it by [`SpoolEvent`]s. Before the first
//! welcome it says by [`SpoolContent`] what an earlier process left.

mod orders;

use std::collections::VecDeque;

use tidemark_proto::v1::frame::Body;

use super::limits::{SPOOL_NEARLY_BYTES, SPOOL_READ_MAX_BYTES, SPOOL_RETRY_US, SPOOL_WRITING_MAX_BYTES};
use super::window::{End, Kept, Window, frame_bytes};
use crate::capture::Mode;

pub(super) use orders::Change;
pub use orders::{SpoolContent, SpoolEvent, SpoolFact, SpoolOrder, SpoolReport, SpoolSettings, SpooledFrame};

/// The spool as the engine sees it; see the module.
#[derive(Debug, Default)]
pub(super) struct Spool {
    settings: SpoolSettings,
    /// Why it failed, and when it is tried again.
    failed: Option<(String, u64)>,
    /// Every frame is written, since then.
    active: bool,
    entered_us: u64,
    used_bytes: u64,
    room_bytes: u64,
    /// Handed to the driver and not reported as written, with their bytes.
    writing: VecDeque<(End, u64)>,
    writing_bytes: u64,
    /// Number of the last frame handed to the driver.
    handed: u64,
    written: End,
    given_up: u64,
    /// Nothing is given up before this frame is acknowledged: it tells of what the spool lost.
    hold_seq: Option<u64>,
    /// Frames that only the spool holds.
    filed: u64,
    filed_bytes: u64,
    reading: bool,
    /// Frames behind them, in memory until they are written.
    tail: VecDeque<Kept>,
    tail_bytes: u64,
    orders: VecDeque<SpoolOrder>,
    /// The stream began anew: events until the spool is cleared answer orders of before.
    pub(super) stale: bool,
    /// Why no frame could be made when the ring was last read.
    blocked: Option<String>,
    /// The same when capture was first seen to have gone to dirty-only.
    overflow: Option<String>,
    /// For the negative controls of the simulation: what is read is believed.
    #[cfg(test)]
    pub(super) credulous: bool,
    /// The same: what is written counts as acknowledged.
    #[cfg(test)]
    pub(super) acknowledges: bool,
}

/// A step up or down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    Entered,
    Left,
}

impl Spool {
    /// A spool of the same settings, without content.
    pub(super) fn emptied(&mut self) -> Self {
        let mut orders = std::mem::take(&mut self.orders);
        orders.retain(|order| !matches!(order, SpoolOrder::Write(_) | SpoolOrder::Read { .. }));
        Self {
            settings: self.settings.clone(),
            failed: self.failed.take(),
            used_bytes: self.used_bytes,
            room_bytes: self.room_bytes,
            blocked: self.blocked.take(),
            overflow: self.overflow.take(),
            stale: self.stale,
            orders,
            #[cfg(test)]
            credulous: self.credulous,
            #[cfg(test)]
            acknowledges: self.acknowledges,
            ..Self::default()
        }
    }

    pub(super) fn set(&mut self, settings: SpoolSettings) {
        self.settings = settings;
        if self.settings.limit_bytes == 0 {
            self.active = false;
        }
    }

    pub(super) fn order(&mut self, order: SpoolOrder) {
        self.orders.push_back(order);
    }

    pub(super) fn next_order(&mut self) -> Option<SpoolOrder> {
        self.orders.pop_front()
    }

    /// Frames that memory does not hold for sending: new ones belong behind them.
    fn holds_back(&self) -> bool {
        self.filed > 0 || !self.tail.is_empty()
    }

    /// The frames in memory behind those that only the spool holds.
    pub(super) fn behind_mut(&mut self) -> impl Iterator<Item = &mut Kept> {
        self.tail.iter_mut()
    }

    fn may_write(&self) -> bool {
        self.settings.limit_bytes > 0 && self.failed.is_none()
    }

    fn has_space(&self) -> bool {
        self.writing_bytes < self.room_bytes
    }

    /// Fails: what was written stays readable, the rest stays in memory.
    fn fail(&mut self, detail: String, now_us: u64) {
        self.active = false;
        self.failed = Some((detail, now_us.saturating_add(SPOOL_RETRY_US)));
        self.writing.clear();
        self.writing_bytes = 0;
        self.handed = self.written.seq;
    }

    fn hand(&mut self, kept: &Kept) {
        let mut frame = kept.frame.clone();
        if let Some(Body::Base(base)) = &mut frame.body {
            // They stand for the payload in this session only.
            base.hashes.clear();
        }
        self.handed = kept.end.seq;
        self.writing.push_back((kept.end, kept.bytes));
        self.writing_bytes = self.writing_bytes.saturating_add(kept.bytes);
        let spooled = SpooledFrame { frame, lsn: kept.end.lsn, floor: kept.end.floor, before: kept.before };
        self.orders.push_back(SpoolOrder::Write(Box::new(spooled)));
    }

    pub(super) fn report(&self) -> SpoolReport {
        SpoolReport {
            in_use: self.is_in_use(),
            used_bytes: self.used_bytes,
            limit_bytes: self.settings.limit_bytes,
            waiting_bytes: self.waiting_bytes(),
            refused: self.failed.as_ref().map(|(detail, _)| detail.clone()).or(self.settings.refused.clone()),
        }
    }

    pub(super) fn waiting_bytes(&self) -> u64 {
        self.filed_bytes.saturating_add(self.tail_bytes)
    }

    /// Frames go there, or wait there.
    pub(super) fn is_in_use(&self) -> bool {
        self.active || self.holds_back()
    }

    pub(super) fn limit_bytes(&self) -> u64 {
        self.settings.limit_bytes
    }

    pub(super) fn is_active(&self) -> bool {
        self.active
    }

    /// Why no frame may be made: the spool is full, or slower than the writes.
    fn why_blocked(&self) -> Option<String> {
        let (used_mib, limit_mib) = (self.used_bytes >> 20, self.settings.limit_bytes >> 20);
        if !self.has_space() && self.used_bytes.saturating_add(SPOOL_NEARLY_BYTES) < self.settings.limit_bytes
        {
            Some(format!("the disk of the spool had no room beyond {used_mib} MiB"))
        } else if !self.has_space() {
            Some(format!("the spool of {limit_mib} MiB was full"))
        } else if self.writing_bytes >= SPOOL_WRITING_MAX_BYTES {
            Some("the disk of the spool was slower than the writes".to_owned())
        } else {
            None
        }
    }

    /// Notes why the ring overflowed, as soon as it is seen.
    pub(super) fn look(&mut self, mode: Mode) {
        if mode != Mode::DirtyOnly || self.overflow.is_some() {
            return;
        }
        let failed =
            || self.failed.as_ref().map(|(detail, _)| format!("the spool cannot be written ({detail})"));
        let refused = || self.settings.refused.as_ref().map(|reason| format!("there is no spool ({reason})"));
        self.overflow = self.blocked.clone().or_else(failed).or_else(refused);
    }

    /// Why capture went to dirty-only, as far as the spool is concerned; it is restarted now.
    pub(super) fn take_overflow(&mut self) -> Option<String> {
        self.overflow.take()
    }
}

impl Window {
    /// Whether another frame may be made.
    pub(super) fn has_room(&mut self) -> bool {
        self.spool.blocked = None;
        if !self.spool.active {
            return self.bytes().saturating_add(self.spool.tail_bytes) < self.granted();
        }
        let in_memory = !self.spool.holds_back() && self.bytes() < self.granted();
        let blocked = self.spool.why_blocked();
        if !self.spool.has_space() || blocked.is_some() && !in_memory {
            self.spool.blocked = blocked;
            return false;
        }
        true
    }

    /// Takes a frame that was made behind the others.
    pub(super) fn take_in(&mut self, kept: Kept) {
        if self.spool.active {
            self.spool.hand(&kept);
        }
        if self.spool.holds_back() || (self.spool.active && self.bytes() >= self.granted()) {
            self.spool.tail_bytes = self.spool.tail_bytes.saturating_add(kept.bytes);
            self.spool.tail.push_back(kept);
        } else {
            self.append(kept);
        }
    }

    /// Begins or ends spooling. `used` and `size` are the ring's; `worth` says whether points would be won.
    pub(super) fn turn(&mut self, used: u64, size: u64, worth: bool, now_us: u64) -> Option<Turn> {
        use super::limits::{SPOOL_ENTER_PART, SPOOL_LEAVE_PART, SPOOL_STAY_US};
        if self.spool.failed.as_ref().is_some_and(|(_, until_us)| now_us >= *until_us)
            && !self.spool.holds_back()
            && self.acked().seq >= self.spool.written.seq
        {
            self.spool.failed = None;
            self.spool.order(SpoolOrder::Clear);
            self.spool.order(SpoolOrder::GiveUp { seq: self.acked().seq });
        }
        if self.spool.active {
            if self.spool.holds_back()
                || used >= size / SPOOL_LEAVE_PART
                || self.bytes() > self.granted() / 2
                || now_us < self.spool.entered_us.saturating_add(SPOOL_STAY_US)
            {
                return None;
            }
            self.spool.active = false;
            return Some(Turn::Left);
        }
        let part = size / SPOOL_ENTER_PART;
        let pressed = used > part && self.bytes() >= self.granted() || used > part.saturating_mul(2);
        if !pressed
            || !worth
            || !self.spool.may_write()
            || self.spool.hold_seq.is_some()
            || self.spool.stale
            || self.spool.holds_back()
            || self.spool.room_bytes <= self.bytes()
        {
            return None;
        }
        self.spool.active = true;
        self.spool.entered_us = now_us;
        let after = self.spool.handed.max(self.acked().seq);
        let unwritten: Vec<Kept> = self.kept().filter(|kept| kept.end.seq > after).cloned().collect();
        unwritten.iter().for_each(|kept| self.spool.hand(kept));
        Some(Turn::Entered)
    }

    /// Frames up to the acknowledged one are not needed, and memory has room for others.
    pub(super) fn give_up(&mut self) {
        let acked = self.acked().seq;
        let seq = acked.min(self.spool.handed);
        let due = match self.spool.hold_seq {
            Some(hold) if acked < hold => false,
            Some(_) => self.spool.hold_seq.take().is_some(),
            None => seq > self.spool.given_up,
        };
        if due {
            self.spool.given_up = seq;
            if let Some(SpoolOrder::GiveUp { seq: last }) = self.spool.orders.back_mut() {
                *last = seq;
            } else {
                self.spool.order(SpoolOrder::GiveUp { seq });
            }
        }
        self.refill();
    }

    /// Moves frames into memory: from the tail, or by asking the driver.
    pub(super) fn refill(&mut self) {
        while self.spool.filed == 0 && self.bytes() < self.granted() {
            let Some(kept) = self.spool.tail.pop_front() else { return };
            self.spool.tail_bytes = self.spool.tail_bytes.saturating_sub(kept.bytes);
            self.append(kept);
        }
        if self.spool.filed > 0 && !self.spool.reading && self.bytes() < self.granted() {
            let max_bytes = self.granted().saturating_sub(self.bytes()).min(SPOOL_READ_MAX_BYTES);
            self.spool.reading = true;
            let after_seq = self.memory_seq();
            self.spool.order(SpoolOrder::Read { after_seq, max_bytes });
        }
    }

    /// Something came of an order. `Err`: frames are lost.
    pub(super) fn spool_event(&mut self, event: SpoolEvent, now_us: u64) -> Result<(), String> {
        if self.spool.stale && !matches!(event, SpoolEvent::Cleared | SpoolEvent::Space { .. }) {
            return Ok(());
        }
        match event {
            SpoolEvent::Cleared => self.spool.stale = false,
            SpoolEvent::Written { seq } => self.spool_written(seq),
            SpoolEvent::WriteFailed { detail } => {
                if self.spool.failed.is_none() {
                    self.spool.fail(detail, now_us);
                }
            }
            SpoolEvent::Read(frames) => {
                if std::mem::take(&mut self.spool.reading) {
                    for frame in frames {
                        self.load(frame)?;
                    }
                }
            }
            SpoolEvent::ReadFailed { detail } => return Err(detail),
            SpoolEvent::Space { used_bytes, room_bytes } => {
                self.spool.used_bytes = used_bytes;
                self.spool.room_bytes = room_bytes;
            }
        }
        self.refill();
        Ok(())
    }

    fn spool_written(&mut self, seq: u64) {
        while let Some((end, bytes)) = self.spool.writing.pop_front_if(|(end, _)| end.seq <= seq) {
            self.spool.writing_bytes = self.spool.writing_bytes.saturating_sub(bytes);
            self.spool.room_bytes = self.spool.room_bytes.saturating_sub(bytes);
            self.spool.written = end;
        }
        self.refill();
        let written = self.spool.written.seq;
        while let Some(kept) = self.spool.tail.pop_front_if(|kept| kept.end.seq <= written) {
            self.spool.tail_bytes = self.spool.tail_bytes.saturating_sub(kept.bytes);
            self.spool.filed += 1;
            self.spool.filed_bytes = self.spool.filed_bytes.saturating_add(kept.bytes);
        }
    }

    fn load(&mut self, spooled: SpooledFrame) -> Result<(), String> {
        #[cfg(test)]
        let believed = self.spool.credulous;
        #[cfg(not(test))]
        let believed = false;
        let expected = self.memory_seq().saturating_add(1);
        let end = spooled.end().filter(|end| believed || (end.seq == expected && spooled.is_whole()));
        let Some(end) = end.filter(|_| self.spool.filed > 0) else {
            return Err(format!("frame {} was read where {expected} belongs", spooled.frame.seq));
        };
        let bytes = frame_bytes(spooled.frame.body.as_ref());
        self.spool.filed -= 1;
        self.spool.filed_bytes =
            if self.spool.filed == 0 { 0 } else { self.spool.filed_bytes.saturating_sub(bytes) };
        self.append(Kept { frame: spooled.frame, end, before: spooled.before, bytes });
        Ok(())
    }

    /// Keeps the spool in use until the next frame is acknowledged.
    pub(super) fn hold(&mut self) {
        self.spool.hold_seq = Some(self.last_seq().saturating_add(1));
    }

    /// Takes over what an earlier process left: the frames after the durable position.
    pub(super) fn take_over(&mut self, facts: &[SpoolFact]) {
        let Some(tail) = facts.last() else { return };
        self.spool.given_up = self.acked().seq;
        self.spool.order(SpoolOrder::GiveUp { seq: self.acked().seq });
        self.spool.filed = facts.len() as u64;
        self.spool.filed_bytes = facts.iter().map(|fact| fact.bytes).fold(0, u64::saturating_add);
        self.spool.written = tail.end;
        self.spool.handed = tail.end.seq;
        self.spool.active = self.spool.may_write();
        self.ends_with(tail.end);
        self.refill();
    }

    /// Number of the frame up to which everything is at the appliance. What is in the spool is not: it is in the guest.
    pub(super) fn durable_seq(&self) -> u64 {
        #[cfg(test)]
        if self.spool.acknowledges {
            return self.acked().seq.max(self.spool.written.seq);
        }
        self.acked().seq
    }

    /// Ring position up to which everything is acknowledged or in the spool.
    pub(super) fn floor(&self) -> u64 {
        self.acked().floor.max(self.spool.written.floor)
    }
}
