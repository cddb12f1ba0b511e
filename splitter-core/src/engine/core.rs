//! The engine's state and its step.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use thiserror::Error;
use tidemark_proto::ids::{CaptureId, DiskId};
use tidemark_proto::pieces::HashKey;
use tidemark_proto::v1::{
    DiskStatus, Frame, GapCause, HashQuestion, Heartbeat, MissingDisk, StreamPosition, frame::Body,
};

use super::barrier::{Barrier, BarrierKind, MarkerRequest};
use super::batch::Batch;
use super::clock::ClockEstimate;
use super::copy::{Copy, PieceBytes};
use super::disk::{Disk, DiskReport};
use super::inflight::InFlight;
use super::limits::{STEP_UNITS_MAX, STUCK_RING_PART};
use super::offered::{Beat, Offered, Synced};
use super::spool::{SpoolContent, SpoolReport};
use super::spooled::Ladder;
use super::verify::Verify;
use super::window::{End, Window};
use crate::capture::{
    BLOCK_BYTES, Control, ControlError, DirtyMaps, MapError, Mode, Ring, RingError, Slot, Witness,
};

/// The kernel side, lent to the engine for one call.
pub struct Kernel<'a> {
    /// The ring of captured writes.
    pub ring: &'a mut dyn Ring,
    /// Modes, generations, witness.
    pub control: &'a mut dyn Control,
    /// The dirty maps.
    pub dirty: &'a mut dyn DirtyMaps,
}

impl std::fmt::Debug for Kernel<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kernel").finish_non_exhaustive()
    }
}

/// Plain settings of an engine.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Resident bytes of the splitter, as last measured by the driver; travels in heartbeats.
    pub rss_bytes: u64,
    /// Disks that are to be protected and are not there; travels in heartbeats.
    pub missing: Vec<MissingDisk>,
}

/// Something the driver should know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// A marker has its LSN. It is durable once that LSN is acknowledged.
    MarkerPlaced {
        /// As requested.
        request: MarkerRequest,
        /// Its LSN.
        lsn: u64,
    },
    /// A marker cannot be placed.
    MarkerFailed {
        /// As requested.
        request: MarkerRequest,
        /// Why, for people.
        reason: String,
    },
    /// A gap was opened or continued under a new line.
    LineStarted {
        /// Its LSN.
        lsn: u64,
        /// First LSN of the gap.
        gap_from: u64,
        /// Why.
        cause: GapCause,
        /// Details for people.
        detail: String,
        /// Bytes that will have to be read again, as known now.
        dirty_bytes: u64,
    },
    /// Every point of the disk from this LSN on is recoverable again.
    LineEnded {
        /// Its LSN.
        lsn: u64,
        /// The disk.
        slot: Slot,
    },
    /// A range could not be read and is tried again.
    ReadFailed {
        /// The disk.
        slot: Slot,
    },
    /// Frames go to the spool from now on, or no longer.
    Spooling {
        /// Which of the two.
        begins: bool,
    },
    /// The spool cannot be written; it is tried again later.
    SpoolFailed {
        /// Why.
        detail: String,
    },
    /// Frames in the spool cannot be read back. The session is to begin anew; what was placed and is not acknowledged yet
    /// is lost.
    SpoolLost {
        /// Why.
        detail: String,
    },
    /// The kernel side refuses to restart capture; the engine tries again.
    RestartFailed {
        /// Why.
        detail: String,
    },
}

/// The engine cannot go on with this capture.
#[derive(Debug, Error)]
pub enum EngineError {
    /// A dirty map is not accessible: nothing can be promised about its disk.
    #[error(transparent)]
    Map(#[from] MapError),
    /// The ring cannot be positioned.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// The kernel side cannot be controlled.
    #[error(transparent)]
    Control(#[from] ControlError),
}

/// Numbers for `status`.
#[derive(Debug, Clone, Default)]
pub struct StatusReport {
    /// LSN of the last captured write.
    pub captured_lsn: u64,
    /// LSN of the last acknowledged one.
    pub acked_lsn: u64,
    /// Bytes of the ring in use.
    pub ring_bytes_used: u64,
    /// Bytes of the ring.
    pub ring_bytes: u64,
    /// Requests not captured since the capture was loaded.
    pub dropped: u64,
    /// Bytes in the retransmit window.
    pub window_bytes: u64,
    /// The stream's generation.
    pub generation: u64,
    /// Where writes wait.
    pub ladder: Ladder,
    /// The spool.
    pub spool: SpoolReport,
    /// Per disk.
    pub disks: Vec<DiskReport>,
}

/// Where the ring's reader stands.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Reader {
    pub(super) position: u64,
    pub(super) oldest_open: u64,
    stuck_bytes: u64,
}

/// The engine; see the module.
#[derive(Debug, Default)]
pub struct Engine {
    pub(super) settings: Settings,
    pub(super) attached: bool,
    pub(super) connected: bool,
    pub(super) capture_id: CaptureId,
    pub(super) generation: u64,
    /// The kernel's generation of the units being read; unknown until the first unit after a restart.
    pub(super) kernel_generation: Option<u32>,
    /// LSN of the last entry of the stream.
    pub(super) lsn: u64,
    /// LSN of the last clean heartbeat.
    pub(super) clean_lsn: u64,
    pub(super) at: Reader,
    pub(super) window: Window,
    pub(super) batch: Batch,
    /// When the batch was last empty.
    pub(super) batch_since_us: u64,
    /// What an earlier process left in the spool, until the first welcome.
    pub(super) spooled: SpoolContent,
    /// Bytes of the ring in use, as last looked at.
    pub(super) ring_used: u64,
    pub(super) inflight: InFlight,
    pub(super) disks: BTreeMap<Slot, Disk>,
    /// Sizes that frames of this stream say, by disk, acknowledged or not; of others the journal's is the last word.
    pub(super) said_bytes: BTreeMap<u32, u64>,
    /// Protected disks that are not in the machine: the gap of each is open, and no point of the whole machine exists.
    pub(super) absent: BTreeSet<DiskId>,
    pub(super) copy: Copy,
    /// Questions to send, each behind the frame with this number.
    pub(super) questions: VecDeque<(u64, HashQuestion)>,
    /// The session's key for hashes; `None` when the appliance answers no questions.
    pub(super) hash_key: Option<HashKey>,
    /// The appliance offers what templates have.
    pub(super) templates: bool,
    pub(super) piece_bytes: PieceBytes,
    pub(super) verify: Verify,
    pub(super) next_disk: Slot,
    pub(super) barriers: VecDeque<Barrier>,
    pub(super) next_place: u64,
    pub(super) offered: Offered,
    pub(super) heartbeat_us: u64,
    pub(super) heartbeat_due_us: u64,
    /// Somebody waits for the next heartbeat.
    pub(super) heartbeat_wanted: bool,
    /// A witness mismatch is accepted once the frame with this number is acknowledged.
    pub(super) witness_seq: Option<u64>,
    pub(super) clock: ClockEstimate,
    pub(super) notices: VecDeque<Notice>,
    pub(super) now_us: u64,
}

impl Engine {
    /// An engine that has met neither a kernel nor an appliance yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the numbers that travel in heartbeats.
    pub fn set_settings(&mut self, settings: Settings) {
        self.settings = settings;
    }

    /// Sets the clock estimate stamped on frames as they are sent.
    pub fn set_clock(&mut self, clock: ClockEstimate) {
        self.clock = clock;
    }

    /// What the engine believes was acknowledged last; all zero before the first welcome.
    #[must_use]
    pub fn last_acked(&self) -> StreamPosition {
        if self.attached { self.window.position(self.capture_id) } else { StreamPosition::default() }
    }

    /// LSN acknowledged as durable.
    #[must_use]
    pub fn acked_lsn(&self) -> u64 {
        self.window.acked().lsn
    }

    /// The ring position up to which every write is durable at the appliance as a point that it offers: that of the newest
    /// acknowledged heartbeat that was clean, with no gap of any disk open.
    ///
    /// A write is covered when, after it had completed, the kernel's generation was at most `generation` and the ring's
    /// end at most `ring_position`: a miss raises the generation before the write goes to the hardware.
    pub fn synced(&mut self) -> Option<Synced> {
        self.offered.acked(self.window.durable_seq());
        self.offered.synced()
    }

    /// Asks for a heartbeat at the present end of the ring, as somebody waits for what was written.
    pub fn want_heartbeat(&mut self) {
        self.heartbeat_wanted = true;
    }

    /// LSN up to which a clean heartbeat is acknowledged: points up to it, outside gaps, are offered for recovery.
    #[must_use]
    pub fn offered_lsn(&self) -> u64 {
        self.offered.lsn()
    }

    /// The next notice.
    pub fn next_notice(&mut self) -> Option<Notice> {
        self.notices.pop_front()
    }

    /// The next frame to send, stamped with the clock estimate.
    pub fn next_frame(&mut self) -> Option<Frame> {
        if !self.connected {
            return None;
        }
        let mut frame = self.window.next_to_send()?;
        frame.clock_offset_us = self.clock.offset_us;
        frame.clock_error_us = self.clock.error_us;
        frame.backlog = self.backlog();
        Some(frame)
    }

    /// Does what can be done now: reads the ring, closes frames, keeps lines, heartbeats and the ring's release.
    /// Returns whether there is more to do at once.
    ///
    /// # Errors
    /// When the kernel side cannot be used any more. The caller should stop; a later process starts from the last
    /// acknowledged position.
    pub fn step(&mut self, kernel: &mut Kernel<'_>, now_us: u64) -> Result<bool, EngineError> {
        self.now_us = now_us;
        self.look(kernel.ring);
        if !self.attached {
            return Ok(false);
        }
        self.schedule_heartbeat(kernel, now_us);
        let mut more = true;
        for _ in 0..STEP_UNITS_MAX {
            if !self.window.has_room() {
                more = false;
                break;
            }
            // Before the next unit: what was asked for where the reader stands comes before all that follows.
            self.pass_barriers(kernel)?;
            if self.place_waits(kernel) {
                more = false;
                break;
            }
            let read = self.read_unit(kernel)?;
            self.pass_barriers(kernel)?;
            if !read {
                more = false;
                break;
            }
        }
        if self.batch_is_due(now_us) {
            self.close_batch();
        }
        self.turn(kernel, now_us);
        self.follow_kernel(kernel)?;
        self.end_lines(kernel)?;
        self.step_verify(kernel);
        self.release(kernel)?;
        Ok(more)
    }

    /// Settles what the acknowledged frames carried and gives ring memory back: up to where everything is acknowledged or
    /// wholly in the spool.
    fn release(&mut self, kernel: &mut Kernel<'_>) -> Result<(), EngineError> {
        let acked = self.window.acked();
        self.offered.acked(self.window.durable_seq());
        for (slot, range) in self.copy.acked(acked.seq) {
            kernel.dirty.clear(slot, range)?;
            if let Some(disk) = self.disks.get_mut(&slot) {
                disk.copied_bytes = disk.copied_bytes.saturating_add(range.blocks() * BLOCK_BYTES);
            }
        }
        if self.witness_seq.is_some_and(|seq| seq <= acked.seq) {
            self.witness_seq = None;
            kernel.control.accept_witness()?;
        }
        let floor = self.window.floor().min(kernel.ring.oldest_open().unwrap_or(u64::MAX));
        if floor > kernel.ring.consumer() {
            kernel.ring.release(floor);
        }
        Ok(())
    }

    /// Notes where the reader stands: frames made from now on end there.
    pub(super) fn look(&mut self, ring: &dyn Ring) {
        self.at = Reader {
            position: ring.position(),
            oldest_open: ring.oldest_open().unwrap_or(u64::MAX),
            stuck_bytes: ring.size() / STUCK_RING_PART,
        };
    }

    /// Puts the batch into a frame.
    pub(super) fn close_batch(&mut self) {
        if !self.batch.is_empty() {
            let writes = self.batch.take();
            self.push_body(Body::Writes(writes));
        }
    }

    /// Closes the batch and appends a frame at the reader's position. Returns its number.
    pub(super) fn push_frame(&mut self, body: Body) -> u64 {
        self.close_batch();
        self.push_body(body)
    }

    pub(super) fn push_body(&mut self, body: Body) -> u64 {
        let Reader { position, oldest_open, stuck_bytes } = self.at;
        let stuck_before = position.saturating_sub(stuck_bytes);
        let floor = position.min(self.inflight.oldest(stuck_before).unwrap_or(u64::MAX)).min(oldest_open);
        let lsn = match &body {
            // An entry after the batch may be numbered already.
            Body::Writes(writes) => {
                writes.first_lsn.saturating_add(writes.entries.len() as u64).saturating_sub(1)
            }
            Body::LineStart(line) => line.lsn,
            _ => self.lsn,
        };
        self.window.push(self.generation, lsn, position, floor, body)
    }

    pub(super) fn next_lsn(&mut self) -> u64 {
        self.lsn = self.lsn.saturating_add(1);
        self.lsn
    }

    fn schedule_heartbeat(&mut self, kernel: &Kernel<'_>, now_us: u64) {
        let waiting = self.barriers.iter().any(|barrier| matches!(barrier.kind, BarrierKind::Heartbeat));
        if !self.connected || waiting || (now_us < self.heartbeat_due_us && !self.heartbeat_wanted) {
            return;
        }
        self.heartbeat_wanted = false;
        self.heartbeat_due_us = now_us.saturating_add(self.heartbeat_us);
        self.push_barrier(kernel, now_us, BarrierKind::Heartbeat);
    }

    pub(super) fn heartbeat(&mut self, kernel: &mut Kernel<'_>, boottime_us: u64) -> Result<(), EngineError> {
        self.take_strays(kernel)?;
        let clean = self.poll_witness(kernel)? && self.kernel_is_current(kernel);
        if clean {
            self.clean_lsn = self.lsn;
            self.verify.beat();
        }
        let open = |disk: &Disk| disk.gap_from.is_some() || disk.stale_line;
        let whole = clean && self.absent.is_empty() && !self.disks.values().any(open);
        let generation = self.kernel_generation.filter(|_| whole);
        let report = self.report(kernel);
        let disks = report
            .disks
            .iter()
            .map(|disk| DiskStatus {
                disk_id: disk.id.0,
                state: disk.state.into(),
                dirty_bytes: disk.dirty_bytes,
                copied_bytes: disk.copied_bytes,
                sent_bytes: disk.sent_bytes,
            })
            .collect();
        let body = Heartbeat {
            lsn: self.lsn,
            boottime_us,
            clean,
            ring_bytes: report.ring_bytes,
            ring_bytes_used: report.ring_bytes_used,
            dropped: report.dropped,
            rss_bytes: self.settings.rss_bytes,
            disks,
            missing: self.settings.missing.clone(),
        };
        let seq = self.push_frame(Body::Heartbeat(body));
        if clean {
            let end = generation.map(|generation| (generation, self.at.position));
            self.offered.beat(Beat { seq, lsn: self.lsn, end });
        }
        Ok(())
    }

    /// Full capture, and no restart of capture in the ring that was not read yet.
    pub(super) fn kernel_is_current(&self, kernel: &Kernel<'_>) -> bool {
        let status = kernel.control.status();
        status.mode == Mode::Full && self.kernel_generation.is_none_or(|known| known == status.generation)
    }

    fn poll_witness(&mut self, kernel: &mut Kernel<'_>) -> Result<bool, EngineError> {
        if self.witness_seq.is_some() {
            return Ok(false);
        }
        match kernel.control.witness() {
            Ok(Witness::Clean) => Ok(true),
            Err(_) => Ok(false),
            Ok(Witness::Mismatch { slots, detail }) => {
                let slots: Vec<Slot> =
                    slots.into_iter().filter(|slot| self.disks.contains_key(slot)).collect();
                for slot in &slots {
                    self.mark_whole(kernel.dirty, *slot)?;
                }
                let gap_from = self.clean_lsn.saturating_add(1);
                self.start_line(kernel.dirty, &slots, GapCause::WitnessMismatch, gap_from, detail);
                self.defer_line(kernel.ring, &slots);
                self.witness_seq = Some(self.window.last_seq());
                Ok(false)
            }
        }
    }

    /// Numbers for `status` and heartbeats.
    #[must_use]
    pub fn report(&self, kernel: &Kernel<'_>) -> StatusReport {
        let status = kernel.control.status();
        let disks = self
            .disks
            .iter()
            .map(|(slot, disk)| DiskReport {
                id: disk.id,
                slot: *slot,
                state: disk.state(status.mode == Mode::DirtyOnly, self.hash_key.is_some()),
                dirty_bytes: kernel.dirty.pending_blocks(*slot).saturating_mul(BLOCK_BYTES),
                copied_bytes: disk.copied_bytes,
                sent_bytes: disk.sent_bytes,
                read_errors: disk.read_errors,
            })
            .collect();
        StatusReport {
            captured_lsn: self.lsn,
            acked_lsn: self.window.acked().lsn,
            ring_bytes_used: kernel.ring.producer().saturating_sub(kernel.ring.consumer()),
            ring_bytes: kernel.ring.size(),
            dropped: status.drops,
            window_bytes: self.window.bytes(),
            generation: self.generation,
            ladder: self.ladder(status.mode),
            spool: self.spool_report(),
            disks,
        }
    }

    pub(super) fn reset_stream(&mut self, end: End, granted_bytes: u64) {
        let spool = self.window.spool.emptied();
        self.window = Window::start_after(end, spool);
        self.window.grant(granted_bytes);
        self.lsn = end.lsn;
        self.batch = Batch::default();
        self.inflight.clear();
        self.said_bytes.clear();
        self.barriers.clear();
        self.offered = Offered::default();
        self.absent.clear();
        self.copy.forget();
        self.questions.clear();
        self.verify.disconnected();
        self.witness_seq = None;
    }
}
