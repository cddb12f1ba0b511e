//! How the engine uses the spool: turns of the ladder, and going on where an earlier process left it.
//!
//! A process without memory learns only from the welcome which frames are durable, so it reads the ring, and adds to the
//! spool, only when the appliance is there again: until then the ring alone bridges the time.

use tidemark_proto::ids::ChainHash;
use tidemark_proto::v1::{Backlog, GapCause, StreamPosition, Welcome};

use super::core::{Engine, EngineError, Kernel, Notice};
use super::disk::DiskConfig;
use super::limits::SPOOL_BATCH_US;
use super::resume::Refusal;
use super::spool::{
    Change, SpoolContent, SpoolEvent, SpoolFact, SpoolOrder, SpoolReport, SpoolSettings, Turn,
};
use crate::capture::{Mode, Slot};

/// The steps of overload, see `spool`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ladder {
    /// Captured writes wait in the ring and in memory.
    #[default]
    Ring,
    /// They wait in the spool, too.
    Spool,
    /// Only changed blocks are noted.
    DirtyOnly,
    /// Blocks that were noted are read again.
    Resync,
}

impl Ladder {
    /// The word that `status` shows.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Ring => "ring",
            Self::Spool => "spool",
            Self::DirtyOnly => "dirty-only",
            Self::Resync => "resync",
        }
    }
}

impl Engine {
    /// Says how the spool may be used from now on.
    pub fn set_spool(&mut self, settings: SpoolSettings) {
        self.window.spool.set(settings);
    }

    /// Says what an earlier process of this capture left in the spool; before the first welcome.
    pub fn restore_spool(&mut self, content: SpoolContent) {
        self.spooled = content;
    }

    /// What to do with the spool next.
    pub fn next_spool_order(&mut self) -> Option<SpoolOrder> {
        self.window.spool.next_order()
    }

    /// Something came of an order.
    pub fn spool_event(&mut self, event: SpoolEvent, now_us: u64) {
        if let SpoolEvent::WriteFailed { detail } = &event
            && self.attached
        {
            self.notices.push_back(Notice::SpoolFailed { detail: detail.clone() });
        }
        if let Err(detail) = self.window.spool_event(event, now_us)
            && self.attached
        {
            self.forget(detail);
        }
    }

    /// How full the spool is.
    #[must_use]
    pub fn spool_report(&self) -> SpoolReport {
        self.window.spool.report()
    }

    /// The step of the ladder that is taken.
    pub(super) fn ladder(&self, mode: Mode) -> Ladder {
        if mode == Mode::DirtyOnly && !self.disks.is_empty() {
            Ladder::DirtyOnly
        } else if self.window.spool.is_in_use() {
            Ladder::Spool
        } else if self.disks.values().any(|disk| disk.gap_from.is_some()) {
            Ladder::Resync
        } else {
            Ladder::Ring
        }
    }

    /// Stamped on frames while the spool is in use.
    pub(super) fn backlog(&self) -> Option<Backlog> {
        let spool = &self.window.spool;
        spool.is_in_use().then(|| Backlog {
            ring_bytes_used: self.ring_used,
            spool_bytes: spool.waiting_bytes(),
            spool_limit_bytes: spool.limit_bytes(),
        })
    }

    /// Goes up or down the ladder.
    pub(super) fn turn(&mut self, kernel: &Kernel<'_>, now_us: u64) {
        self.window.spool.look(kernel.control.status().mode);
        self.ring_used = kernel.ring.producer().saturating_sub(kernel.ring.consumer());
        // Where no disk has a recoverable point, spooling wins none and delays the resync.
        let worth = self.disks.values().any(|disk| disk.gap_from.is_none());
        match self.window.turn(self.ring_used, kernel.ring.size(), worth, now_us) {
            Some(Turn::Entered) => self.notices.push_back(Notice::Spooling { begins: true }),
            Some(Turn::Left) => self.notices.push_back(Notice::Spooling { begins: false }),
            None => {}
        }
        self.window.refill();
    }

    /// Whether the batch is to become a frame now, though it is not full.
    pub(super) fn batch_is_due(&mut self, now_us: u64) -> bool {
        if self.batch.is_empty() {
            self.batch_since_us = now_us;
        }
        !self.window.spool.is_active() || now_us >= self.batch_since_us.saturating_add(SPOOL_BATCH_US)
    }

    /// Frames in the spool are lost. The next welcome says from where on; the stream then goes on as after a restart.
    fn forget(&mut self, detail: String) {
        self.disconnected();
        self.attached = false;
        self.copy.forget();
        self.verify.interrupted();
        let in_use = true;
        self.spooled = SpoolContent { facts: Vec::new(), in_use, damage: Some(detail.clone()) };
        self.window.spool = self.window.spool.emptied();
        self.window.spool.stale = true;
        self.notices.push_back(Notice::SpoolLost { detail });
    }

    /// The stream goes on after the frames that an earlier process left in the spool, if those go on from the durable
    /// position. Returns welcome and position as they will be when all of them are acknowledged.
    ///
    /// # Errors
    /// When the appliance holds another history than the spool.
    pub(super) fn resume_spool(
        &mut self,
        welcome: &Welcome,
        durable: &StreamPosition,
        chain: ChainHash,
        consumer: u64,
    ) -> Result<(Welcome, StreamPosition), Refusal> {
        let facts = std::mem::take(&mut self.spooled.facts);
        let (mut welcome, mut durable) = (welcome.clone(), durable.clone());
        let held = facts.first().is_some_and(|fact| fact.end.seq <= durable.seq.saturating_add(1));
        let newer = facts.iter().position(|fact| fact.end.seq > durable.seq);
        let rest = newer.and_then(|index| facts.get(index..)).filter(|_| held).unwrap_or_default();
        let follows = rest.first().is_some_and(|fact| fact.before == chain);
        if !follows {
            if !rest.is_empty() && durable.ring_position < consumer {
                return Err(Refusal::Fork {
                    detail: format!("frame {} is another one in the spool", durable.seq),
                });
            }
            // All of it is durable, or void: the ring decides.
            self.window.spool.order(SpoolOrder::Clear);
            if durable.ring_position >= consumer {
                self.window.spool.order(SpoolOrder::GiveUp { seq: durable.seq });
            }
            return Ok((welcome, durable));
        }
        self.window.take_over(rest);
        rest.iter().for_each(|fact| fact.pass(&mut welcome));
        if let Some(SpoolFact { end, .. }) = rest.last() {
            durable.seq = end.seq;
            durable.lsn = end.lsn;
            durable.ring_position = end.ring_position;
            self.lsn = end.lsn;
            if end.ring_position >= consumer {
                // From here on nothing leans on what could not be read.
                self.spooled = SpoolContent::default();
            }
        }
        welcome.durable = Some(durable.clone());
        Ok((welcome, durable))
    }

    /// The ring was released beyond `position` on the strength of a spool that does not hold these frames any more.
    pub(super) fn resume_without_spool(
        &mut self,
        kernel: &mut Kernel<'_>,
        welcome: &Welcome,
        disks: &[DiskConfig],
    ) -> Result<(), EngineError> {
        let damage = self.spooled.damage.take().unwrap_or_else(|| "it is empty".to_owned());
        self.spooled = SpoolContent::default();
        self.window.hold();
        for config in disks {
            if let Some(disk) = self.disks.get_mut(&config.slot)
                && welcome.open_gap_disks.contains(&disk.id.0)
            {
                disk.gap_from = Some(self.lsn.max(1));
            }
        }
        let from = self.clean_lsn.saturating_add(1);
        let detail = format!("frames in the spool cannot be read back: {damage}");
        self.lose_ring(kernel, GapCause::SplitterRestarted, from, detail)?;
        let slots: Vec<Slot> = self.disks.keys().copied().collect();
        self.defer_line(kernel.ring, &slots);
        Ok(())
    }
}

impl SpoolFact {
    /// What a welcome says once this frame is in the journal.
    fn pass(&self, welcome: &mut Welcome) {
        welcome.generation = welcome.generation.max(self.generation);
        match &self.change {
            Change::Nothing => {}
            Change::Clean(lsn) => welcome.clean_lsn = *lsn,
            Change::Opened(disks) => {
                welcome.open_gap_disks.extend(disks);
            }
            Change::Closed(disks) => {
                welcome.open_gap_disks.retain(|disk| !disks.contains(disk));
                welcome.verify_disks.retain(|disk| !disks.contains(disk));
                welcome.comparable_disks.extend(disks);
            }
            Change::Resized(disk_id, size_bytes) => {
                for disk in welcome.disks.iter_mut().filter(|disk| disk.disk_id == *disk_id) {
                    disk.size_bytes = *size_bytes;
                }
            }
        }
    }
}
