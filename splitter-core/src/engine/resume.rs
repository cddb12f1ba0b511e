//! Hello and welcome: where a stream goes on.

use thiserror::Error;
use tidemark_proto::ids::ChainHash;
use tidemark_proto::pieces::HashKey;
use tidemark_proto::v1::{GapCause, StreamPosition, Welcome};
use tidemark_proto::version::{HASHES_FIRST, TEMPLATES};

use super::core::{Engine, EngineError, Kernel};
use super::disk::{Disk, DiskConfig};
use super::spool::{SpoolContent, SpoolOrder};
use super::window::End;
use crate::capture::{Mode, Slot};

/// How the stream went on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resumed {
    /// With all memory: what was not durable is sent again.
    Connection,
    /// A new process on the same capture: the ring is read on from the durable position.
    Process,
    /// A new capture: every disk is copied again.
    Capture,
}

/// The stream must not go on.
#[derive(Debug, Error)]
pub enum Refusal {
    /// The appliance's history is not the one this splitter has sent.
    #[error(
        "the appliance's history forked from this VM's ({detail}): a snapshot was reverted, a copy is running, or the \
         appliance lost acknowledged data; enrol again with a token of `tidemark token create --vm NAME --replace`"
    )]
    Fork {
        /// What does not fit.
        detail: String,
    },
    /// The appliance's message makes no sense.
    #[error("the appliance sent a damaged position ({0})")]
    Damaged(&'static str),
    /// The kernel side failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

fn chain_of(position: &StreamPosition) -> Result<ChainHash, Refusal> {
    if position.seq == 0 && position.chain.is_empty() {
        return Ok(ChainHash::default());
    }
    let chain =
        position.chain.as_ref().try_into().map_err(|_| Refusal::Damaged("chain of a wrong length"))?;
    Ok(ChainHash(chain))
}

/// The size that the journal has for a disk; no entry may lie beyond it before a resize.
fn journaled_bytes(welcome: &Welcome, config: &DiskConfig) -> u64 {
    // 0: its protection had ended.
    let told = welcome.disks.iter().find(|disk| disk.disk_id == config.id.0);
    told.map_or(config.size_bytes, |disk| disk.size_bytes)
}

impl Engine {
    /// The appliance welcomed the stream. `disks` are those of the hello with the ids of the welcome.
    ///
    /// # Errors
    /// When the histories do not fit, or the kernel side failed. The stream must then be closed.
    pub fn welcomed(
        &mut self,
        kernel: &mut Kernel<'_>,
        welcome: &Welcome,
        disks: &[DiskConfig],
        now_us: u64,
    ) -> Result<Resumed, Refusal> {
        self.now_us = now_us;
        let durable = welcome.durable.clone().unwrap_or_default();
        let chain = chain_of(&durable)?;
        self.heartbeat_us = u64::from(welcome.heartbeat_ms.max(1)).saturating_mul(1000);
        self.heartbeat_due_us = now_us;
        self.hash_key = HashKey::from_bytes(&welcome.hash_key).filter(|_| welcome.protocol >= HASHES_FIRST);
        self.templates = welcome.templates && welcome.protocol >= TEMPLATES;
        self.look(kernel.ring);
        let same_capture = durable.seq > 0 && durable.capture_id.as_ref() == kernel.ring.capture_id().0;
        let resumed = if self.attached {
            self.window.ack(durable.seq, &chain.0).map_err(|_| Refusal::Fork {
                detail: format!(
                    "it holds frame {}, acknowledged here was {}",
                    durable.seq,
                    self.window.acked().seq
                ),
            })?;
            self.window.grant(welcome.window_bytes);
            self.window.rewind();
            self.connected = true;
            self.introduce(kernel, welcome, disks)?;
            return Ok(Resumed::Connection);
        } else if same_capture {
            Resumed::Process
        } else {
            Resumed::Capture
        };
        self.capture_id = kernel.ring.capture_id();
        let end = End {
            seq: durable.seq,
            lsn: durable.lsn,
            ring_position: durable.ring_position,
            chain,
            floor: kernel.ring.consumer(),
        };
        self.reset_stream(end, welcome.window_bytes);
        let (welcome, durable) = if resumed == Resumed::Process {
            &self.resume_spool(welcome, &durable, chain, end.floor)?
        } else {
            // Another capture's spool is void, and so is what was lost with it.
            self.spooled = SpoolContent::default();
            self.window.spool.order(SpoolOrder::Clear);
            &(welcome.clone(), durable)
        };
        self.clean_lsn =
            if welcome.clean_lsn == 0 { durable.lsn } else { welcome.clean_lsn.min(durable.lsn) };
        self.kernel_generation = None;
        self.disks = disks
            .iter()
            .map(|disk| (disk.slot, Disk::new(disk.id, journaled_bytes(welcome, disk))))
            .collect();
        if resumed == Resumed::Process {
            self.resume_capture(kernel, welcome, durable, disks)?;
        } else {
            self.begin_capture(kernel, welcome, disks)?;
        }
        self.attached = true;
        self.connected = true;
        self.introduce(kernel, welcome, disks)?;
        Ok(resumed)
    }

    /// The connection is gone. Capture goes on within the window.
    pub fn disconnected(&mut self) {
        self.connected = false;
        self.hash_key = None;
        self.templates = false;
        self.questions.clear();
        self.copy.forget_questions();
        self.verify.disconnected();
        self.barriers.retain(|barrier| !matches!(barrier.kind, super::barrier::BarrierKind::Heartbeat));
    }

    /// The appliance acknowledged a position.
    ///
    /// # Errors
    /// [`Refusal::Fork`] when the position was never sent.
    pub fn acknowledged(&mut self, durable: &StreamPosition) -> Result<(), Refusal> {
        if durable.seq < self.window.acked().seq {
            // Overtaken by a welcome of the same session.
            return Ok(());
        }
        self.window.ack(durable.seq, &durable.chain).map_err(|_| Refusal::Fork {
            detail: format!("it acknowledged frame {}, which was not sent so", durable.seq),
        })
    }

    /// Adds the disks not known yet, and says where one has another size than the journal knows.
    fn introduce(
        &mut self,
        kernel: &mut Kernel<'_>,
        welcome: &Welcome,
        disks: &[DiskConfig],
    ) -> Result<(), EngineError> {
        for config in disks {
            if !self.disks.contains_key(&config.slot) {
                // The journal may not have heard yet what is on its way.
                let said = self.said_bytes.get(&config.id.0).copied();
                let size_bytes = said.unwrap_or_else(|| journaled_bytes(welcome, config));
                self.add_disk(kernel, &DiskConfig { size_bytes, ..*config })?;
            }
            self.resize_disk(kernel, config.slot, config.size_bytes)?;
            if let Some(disk) = self.disks.get_mut(&config.slot) {
                disk.comparable = welcome.comparable_disks.contains(&config.id.0);
                if disk.gap_from.is_some() && welcome.verify_disks.contains(&config.id.0) {
                    // Another process began it; its blocks that were settled are not pending any more.
                    disk.whole = true;
                    disk.asking.hope();
                }
            }
        }
        Ok(())
    }

    fn begin_capture(
        &mut self,
        kernel: &mut Kernel<'_>,
        welcome: &Welcome,
        disks: &[DiskConfig],
    ) -> Result<(), EngineError> {
        self.generation = welcome.generation.saturating_add(1);
        let start = kernel.ring.consumer();
        kernel.ring.seek(start)?;
        let restarted = self.restart_drained(kernel);
        self.look(kernel.ring);
        // What was captured after the last clean heartbeat was vouched for by no counter, and those counters are gone.
        let from = self.clean_lsn.saturating_add(1);
        for cause in [GapCause::InitialCopy, GapCause::CaptureRestarted] {
            let initial = cause == GapCause::InitialCopy;
            let slots: Vec<Slot> = disks
                .iter()
                .filter(|disk| (disk.cause == GapCause::InitialCopy) == initial)
                .map(|disk| disk.slot)
                .collect();
            let mut strays = Vec::new();
            for slot in &slots {
                if self.take(kernel.dirty, *slot)? {
                    strays.push(*slot);
                }
                self.mark_whole(kernel.dirty, *slot)?;
            }
            if !slots.is_empty() {
                self.start_line(kernel.dirty, &slots, cause, from, String::new());
            }
            // Bits of the time before the restart belong to this line, unless something was captured since.
            if !restarted || kernel.ring.producer() > kernel.ring.position() {
                self.defer_line(kernel.ring, &strays);
            }
        }
        Ok(())
    }

    /// A capture that was loaded begins in dirty-only mode: it is restarted before its first line, not by a second
    /// one after it. Whether it was.
    fn restart_drained(&mut self, kernel: &mut Kernel<'_>) -> bool {
        let drained = kernel.ring.position() == kernel.ring.producer();
        if kernel.control.status().mode != Mode::DirtyOnly || !drained {
            return false;
        }
        kernel.ring.abandon_open();
        match kernel.control.restart() {
            Ok(generation) => {
                self.kernel_generation = Some(generation);
                true
            }
            // The next step tries again, and then begins a line of its own.
            Err(_) => false,
        }
    }

    fn resume_capture(
        &mut self,
        kernel: &mut Kernel<'_>,
        welcome: &Welcome,
        durable: &StreamPosition,
        disks: &[DiskConfig],
    ) -> Result<(), Refusal> {
        self.generation = welcome.generation.max(1);
        let (consumer, producer) = (kernel.ring.consumer(), kernel.ring.producer());
        let position = durable.ring_position;
        if self.spooled.in_use && position < consumer {
            kernel.ring.seek(consumer).map_err(EngineError::from)?;
            return self.resume_without_spool(kernel, welcome, disks).map_err(Refusal::from);
        }
        self.spooled = SpoolContent::default();
        if position < consumer || position > producer {
            return Err(Refusal::Fork {
                detail: format!("it holds ring position {position}, the ring {consumer} to {producer}"),
            });
        }
        kernel.ring.seek(consumer).map_err(EngineError::from)?;
        while kernel.ring.position() < position {
            self.look(kernel.ring);
            self.at.position = self.at.position.max(position);
            let status = kernel.control.status();
            match kernel.ring.next() {
                Ok(Some(unit)) if unit.end <= position => self.rebuild(&unit),
                Ok(Some(unit)) => self.apply(&unit, kernel.dirty, &status)?,
                Ok(None) => break,
                Err(error) => {
                    let detail = error.to_string();
                    self.damaged(kernel, detail)?;
                    break;
                }
            }
        }
        self.look(kernel.ring);
        self.resume_lines(kernel, welcome, position, disks).map_err(Refusal::from)
    }

    /// Gaps that are open in the journal, pending blocks that no gap covers, restarts of capture not yet told.
    fn resume_lines(
        &mut self,
        kernel: &mut Kernel<'_>,
        welcome: &Welcome,
        position: u64,
        disks: &[DiskConfig],
    ) -> Result<(), EngineError> {
        let status = kernel.control.status();
        let restarted = status.generation_start > position;
        if restarted {
            self.close_batch();
            self.generation = self.generation.saturating_add(1);
            self.inflight.clear();
            self.kernel_generation = None;
        } else {
            // Completions of an older generation may have fallen into its dirty-only time, without a record.
            self.inflight.forget_before(status.generation_start);
            if status.mode == Mode::Full {
                self.kernel_generation = Some(status.generation);
            }
        }
        let mut to_start = Vec::new();
        for config in disks {
            let slot = config.slot;
            if config.fresh {
                self.mark_whole(kernel.dirty, slot)?;
            }
            let stray = status.mode == Mode::Full && self.take(kernel.dirty, slot)?;
            let pending = kernel.dirty.pending_blocks(slot) > 0;
            let Some(disk) = self.disks.get_mut(&slot) else { continue };
            if welcome.open_gap_disks.contains(&disk.id.0) {
                disk.gap_from =
                    Some(disk.gap_from.unwrap_or(welcome.durable.as_ref().map_or(1, |at| at.lsn)));
            }
            // A new generation begins with a line, whatever is open already.
            if restarted || (pending || stray) && disk.gap_from.is_none() {
                let first = config.fresh && config.cause == GapCause::InitialCopy;
                to_start.push((slot, first || disk.gap_from.is_some(), config.fresh, config.cause));
            }
        }
        let from = self.clean_lsn.saturating_add(1);
        for (slot, dated, fresh, cause) in to_start {
            let cause = if fresh { cause } else { GapCause::SplitterRestarted };
            let from = if dated { self.lsn.saturating_add(1) } else { from };
            self.start_line(
                kernel.dirty,
                &[slot],
                cause,
                from,
                "found when the splitter was started".to_owned(),
            );
        }
        // What became pending may have done so anywhere in the part of the ring that is read again now.
        let open: Vec<Slot> = disks
            .iter()
            .filter(|config| self.disks.get(&config.slot).is_some_and(|disk| disk.gap_from.is_some()))
            .map(|config| config.slot)
            .collect();
        self.defer_line(kernel.ring, &open);
        Ok(())
    }
}
