//! The guest: it writes, and its driver completes, fails and requeues.

use tidemark_proto::v1::WriteKind;

use super::super::checker::Moment;
use super::super::kernel::{DISKS, Record, Write};
use super::{Broken, Flying, World};
use crate::capture::Mode;

impl World {
    pub(super) fn guest(&mut self, busy: u64) {
        for _ in 0..4 {
            if self.random.chance(busy) && self.flying.len() < 6 {
                self.new_write();
            }
            if self.random.chance(350) && !self.flying.is_empty() {
                let index = self.random.index(self.flying.len());
                self.complete(index);
            }
            if self.slow.is_some() && self.random.chance(300) {
                self.finish_slow();
            }
        }
    }

    /// A chance of a miss.
    fn mishap(&mut self, per_mille: u64) -> bool {
        self.random.chance(per_mille) && (!self.calm || self.random.chance(100))
    }

    fn make_write(&mut self) -> Write {
        let id = self.next_id;
        self.next_id += 1;
        // Few addresses: they are used again at once.
        let request = (1..).find(|request| self.request_free(*request)).unwrap_or(0);
        let kind = match self.random.below(20) {
            0 => WriteKind::Zeroes,
            1 => WriteKind::Discard,
            2 => WriteKind::Flush,
            _ => WriteKind::Data,
        };
        let sectors = if kind == WriteKind::Flush { 0 } else { 1 + self.random.index(10) };
        // Overlaps happen, but not all the time.
        let mut start = self.random.index(self.blocks * 8 - 10);
        let slot = self.random.index(DISKS);
        for _ in 0..8 {
            let clash = self.flying.iter().any(|other| {
                other.write.slot == slot
                    && other.write.start < start + sectors
                    && start < other.write.start + other.write.sectors
            });
            if !clash || self.mishap(60) {
                self.totals.overlaps += u64::from(clash);
                break;
            }
            start = self.random.index(self.blocks * 8 - 10);
        }
        Write { id, request, slot, kind, start, sectors }
    }

    fn request_free(&self, request: u64) -> bool {
        self.flying.iter().all(|other| other.write.request != request)
            && self.slow.as_ref().is_none_or(|(write, _, _)| write.request != request)
    }

    fn new_write(&mut self) {
        let write = self.make_write();
        let requeued: Vec<usize> =
            (0..self.flying.len()).filter(|index| self.flying[*index].requeued).collect();
        if let Some(index) = requeued.first() {
            // The driver takes the request back: same address and place, issued once more.
            let old = self.flying.swap_remove(*index);
            return self.issue(Write { id: write.id, ..old.write });
        }
        if self.mishap(4) {
            self.totals.silent_misses += 1;
            self.pinned.borrow_mut().missed[0] += u64::from(self.broken != Broken::SilentMiss);
            self.flying.push(Flying { write, silent: true, unseen: true, requeued: false });
            return;
        }
        let status = self.pinned.borrow().status;
        if self.slow.is_none() && status.mode == Mode::Full && self.random.chance(60) {
            let two_parts = !self.looks_again && self.random.chance(600);
            if two_parts && !self.pinned.borrow_mut().append(status.generation, Record::Begin) {
                return self.issue(write);
            }
            self.slow = Some((write, status.generation, two_parts));
            return;
        }
        self.issue(write);
    }

    pub(super) fn issue(&mut self, write: Write) {
        let status = self.pinned.borrow().status;
        if status.mode == Mode::Full {
            self.append_issue(write, status.generation, false);
        } else {
            self.pinned.borrow_mut().mark_dirty(&write);
            self.flying.push(Flying { write, silent: false, unseen: true, requeued: false });
        }
    }

    fn append_issue(&mut self, write: Write, generation: u32, two_parts: bool) {
        let record = Record::Issue { write: write.clone(), two_parts };
        let captured = self.pinned.borrow_mut().append(generation, record);
        if !captured {
            self.pinned.borrow_mut().mark_dirty(&write);
        }
        self.flying.push(Flying { write: write.clone(), silent: false, unseen: !captured, requeued: false });
        if captured {
            let moment = Moment {
                index: self.next_index,
                disks: self.disks.clone(),
                believed: self.believed.clone(),
                in_flight: self.flying.iter().map(|other| other.write.clone()).collect(),
            };
            self.next_index += 1;
            self.moments.insert(write.id, moment);
        }
    }

    pub(super) fn finish_slow(&mut self) {
        let Some((mut write, generation, two_parts)) = self.slow.take() else { return };
        // Ids are the time stamps: they follow the ring.
        write.id = self.next_id;
        self.next_id += 1;
        if generation != self.pinned.borrow().status.generation {
            self.totals.late_units += 1;
            if self.looks_again {
                return self.discard_late(write);
            }
        }
        self.append_issue(write, generation, two_parts);
    }

    /// The tap's second look: the generation ended, the record is discarded, and the write is missed.
    fn discard_late(&mut self, write: Write) {
        let mut pinned = self.pinned.borrow_mut();
        pinned.mark_dirty(&write);
        pinned.status.drops += 1;
        drop(pinned);
        self.flying.push(Flying { write, silent: false, unseen: true, requeued: false });
    }

    pub(super) fn complete(&mut self, index: usize) {
        let Flying { write, silent, unseen, requeued } = self.flying[index].clone();
        if requeued {
            return;
        }
        let full = self.pinned.borrow().status.mode == Mode::Full;
        if !silent && !unseen && full && self.random.chance(15) {
            let generation = self.pinned.borrow().status.generation;
            self.pinned.borrow_mut().append(generation, Record::Requeue(write.request));
            self.flying[index].requeued = true;
            self.totals.requeues += 1;
            return;
        }
        self.flying.swap_remove(index);
        let failed = !silent && self.mishap(15);
        let short =
            !silent && !failed && write.sectors > 0 && write.kind == WriteKind::Data && self.mishap(10);
        self.totals.failed_writes += u64::from(failed || short);
        if !failed || self.random.chance(500) {
            let sectors = write.sectors - usize::from(short);
            for sector in write.start..write.start + sectors {
                self.disks[write.slot][sector] = write.value();
                self.believed[write.slot][sector] = write.value();
            }
        }
        if silent {
            // The witness counts completions: a write missed at both ends shows at each.
            self.pinned.borrow_mut().missed[0] += u64::from(self.broken != Broken::SilentMiss);
            return;
        }
        let mut pinned = self.pinned.borrow_mut();
        let status = pinned.status;
        if unseen && write.sectors > 0 || status.mode == Mode::DirtyOnly {
            pinned.mark_dirty(&write);
        }
        if status.mode == Mode::Full
            && !pinned.append(status.generation, Record::Complete { write: write.clone(), failed, short })
        {
            pinned.mark_dirty(&write);
        }
    }
}
