//! The spool and its thread, and what gates are told while frames wait there.

use tidemark_proto::v1::{Frame, WriteKind, frame::Body};

use super::super::checker::check;
use super::super::kernel::{BLOCKS, Pinned, Write};
use super::super::spool::FakeSpool;
use super::{Broken, Splitter, World};
use crate::engine::SpoolEvent;

impl World {
    /// With a spool that fails in so many of a thousand orders, and an appliance that takes little at a time.
    pub(in super::super) fn spooling(mut self, seed: u64, faults: u64) -> Self {
        self.spool = Some(FakeSpool::new(seed, self.broken, faults));
        self.calm = true;
        self.looks_again = true;
        self.ring_bytes = [8 << 10, 16 << 10, 32 << 10][self.random.index(3)];
        self.pinned = Pinned::new(1, self.ring_bytes, self.blocks);
        self.splitter = Splitter::new(&self.pinned, self.broken);
        // A spool takes as many heartbeats as there are.
        self.appliance.heartbeat_ms = 100;
        self.open_spool();
        self
    }

    /// A new process finds the spool.
    pub(super) fn open_spool(&mut self) {
        let Some(spool) = &mut self.spool else { return };
        let engine = &mut self.splitter.engine;
        engine.set_spool(spool.settings());
        engine.restore_spool(spool.open());
        engine.window.spool.acknowledges = self.broken == Broken::SpoolAcknowledges;
        engine.window.spool.credulous = matches!(self.broken, Broken::SpoolLoses | Broken::SpoolSwaps);
    }

    /// The spool's thread.
    pub(super) fn work_spool(&mut self) {
        let Some(spool) = &mut self.spool else { return };
        let engine = &mut self.splitter.engine;
        while let Some(order) = engine.next_spool_order() {
            spool.order(order);
        }
        spool.work();
        while let Some(event) = spool.next_event() {
            engine.spool_event(event, self.now_us);
        }
    }

    /// What the gates are told is durable: at the appliance, not in the guest.
    pub(super) fn check_synced(&mut self) -> Result<(), String> {
        let told = self.splitter.engine.synced();
        let Some(synced) = told.filter(|_| told != self.synced) else { return Ok(()) };
        self.synced = told;
        self.totals.synced += 1;
        match self.appliance.durable_frame(synced.seq) {
            Some(Frame { body: Some(Body::Heartbeat(beat)), ring_position, .. })
                if beat.clean && *ring_position == synced.ring_position =>
            {
                Ok(())
            }
            other => Err(format!("the gates are told {synced:?}, and durable is {other:?}")),
        }
    }

    pub(super) fn count_spool(&mut self) {
        let Some(spool) = &self.spool else { return };
        let entered = self.totals.spool[3];
        self.totals.spool = [
            spool.written,
            spool.read,
            spool.taken_over,
            entered,
            spool.full,
            spool.write_failures,
            spool.read_failures,
            spool.torn,
        ];
    }

    /// Blocks wait to be read again; the disk loses them, and its map their bits. The frame that says so is lost with the
    /// spool, and the disk has its old size again before the next session: nothing but the map can tell.
    pub(in super::super) fn lose_an_end_unheard(mut self) -> Result<(), String> {
        self.quiesce()?;
        let (id, start) = (self.next_id, (BLOCKS - 1) * 8);
        self.next_id += 1;
        self.pinned.borrow_mut().drop_one();
        self.issue(Write { id, request: 1, slot: 0, kind: WriteKind::Data, start, sectors: 8 });
        self.complete(0);
        for _ in 0..1000 {
            self.now_us += 1000;
            self.step_engine()?;
            self.deliver()?;
            let position = self.appliance.commit();
            self.splitter.engine.acknowledged(&position).map_err(|error| error.to_string())?;
            if self.pinned.borrow().pending[0][BLOCKS - 1] {
                break;
            }
        }
        assert!(self.pinned.borrow().pending[0][BLOCKS - 1], "capture did not begin anew");
        self.blocks = BLOCKS - 2;
        self.notice_sizes()?;
        let lost = SpoolEvent::ReadFailed { detail: "simulated".to_owned() };
        self.splitter.engine.spool_event(lost, self.now_us);
        self.step_engine()?;
        assert!(!self.splitter.connected, "the loss was not noticed");
        self.blocks = BLOCKS;
        self.connect()?;
        self.quiesce()?;
        check(&self.appliance.frames, &self.moments, &self.disks, self.first_blocks * 8).map(drop)
    }
}
