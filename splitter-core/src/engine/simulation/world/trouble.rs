//! What goes wrong around the engine: connections, processes, the machine.

use super::super::kernel::{BLOCKS, DISKS, Pinned};
use crate::capture::Slot;

use super::{Broken, Splitter, ToAppliance, ToSplitter, World};

impl World {
    pub(super) fn trouble(&mut self) {
        match self.random.below(10) {
            0..4 => {
                self.totals.disconnects += 1;
                self.disconnect();
            }
            4..7 => {
                self.totals.splitter_restarts += 1;
                self.kill_splitter();
            }
            7 | 8 => {
                self.totals.appliance_crashes += 1;
                self.disconnect();
                self.appliance.crash();
            }
            _ => {
                self.totals.reboots += 1;
                self.reboot();
            }
        }
    }

    /// A disk is taken from the machine and comes back, changed elsewhere, under a capture of its own.
    pub(super) fn exchange(&mut self) {
        let slot = self.exchanges.index(DISKS);
        let waiting = self.slow.as_ref().map(|(write, _, _)| write);
        let busy =
            self.flying.iter().map(|flying| &flying.write).chain(waiting).any(|write| write.slot == slot);
        // A capture of its own has a place of its own in the ring; here the place is the same, so nothing may wait there.
        let drained = self.splitter.engine.at.position == self.pinned.borrow().producer;
        if busy || !drained || !self.splitter.engine.attached || self.verify.is_some() {
            return;
        }
        self.totals.exchanges += 1;
        self.with_engine(|engine, kernel| engine.lose_disk(kernel, Slot(slot as u16), "gone".to_owned()));
        for _ in 0..self.exchanges.below(5) {
            let sector = self.exchanges.index(self.blocks * 8);
            self.disks[slot][sector] = self.exchanges.below(1000) + 1;
        }
        self.believed[slot] = self.disks[slot].clone();
        let mut pinned = self.pinned.borrow_mut();
        let blocks = pinned.blocks;
        pinned.dirty[slot].fill(false);
        pinned.pending[slot][..blocks].fill(true);
        drop(pinned);
        self.returned[slot] = true;
        self.disconnect();
    }

    pub(super) fn disconnect(&mut self) {
        let questions =
            self.to_appliance.iter().filter(|message| matches!(message, ToAppliance::Question(_)));
        let answers = self.to_splitter.iter().filter(|message| matches!(message, ToSplitter::Answer(_)));
        self.totals.questions_lost += (questions.count() + answers.count()) as u64;
        self.to_appliance.clear();
        self.to_splitter.clear();
        self.splitter.connected = false;
        self.splitter.engine.disconnected();
    }

    fn kill_splitter(&mut self) {
        self.disconnect();
        if self.broken == Broken::ForgottenBits {
            self.pinned.borrow_mut().pending = vec![vec![false; BLOCKS]; DISKS];
        }
        self.splitter = Splitter::new(&self.pinned, self.broken);
        self.reserved = None;
        self.open_spool();
    }

    fn reboot(&mut self) {
        // A lost write may have reached the disk, wholly or not at all, without any record of it.
        for flying in std::mem::take(&mut self.flying) {
            let write = flying.write;
            if self.random.chance(500) {
                for sector in write.start..write.start + write.sectors {
                    self.disks[write.slot][sector] = write.value();
                    self.believed[write.slot][sector] = write.value();
                }
            }
        }
        self.slow = None;
        self.totals.drops += self.pinned.borrow().status.drops;
        for _ in 0..self.random.below(5) {
            let (slot, sector) = (self.random.index(DISKS), self.random.index(self.blocks * 8));
            self.disks[slot][sector] = self.random.below(1000) + 1;
            self.believed[slot][sector] = self.disks[slot][sector];
        }
        self.captures += 1;
        if let Some(spool) = &mut self.spool {
            spool.destroy();
        }
        self.pinned = Pinned::new(self.captures, self.ring_bytes, self.blocks);
        self.kill_splitter();
    }
}
