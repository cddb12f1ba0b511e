//! The worker: the one owner of capture and engine.

mod barrier;
mod bookmarks;
mod disks;
mod presence;
mod report;
mod sets;
mod spooling;

use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use tidemark_proto::v1::{SplitterMessage, StreamPosition, Welcome, splitter_message};
use tidemark_splitter_core::engine::{Engine, EngineError, Kernel, Notice, Resumed, Synced};
use tokio::sync::{mpsc as async_mpsc, oneshot, watch};

use super::boottime::now_us;
use super::command::{Command, HelloFacts};
use super::disk_reader::{self, Task};
use super::handle::Handle;
use super::outbound::Outbound;
use super::parts::{KernelSide, Parts};
use super::protection::Protection;
use super::spooler::{self, Spooler};
use crate::gate::Gates;
use crate::state::{Disks, StateDir};
use barrier::Barriers;
use bookmarks::Bookmarks;
use presence::Presence;
use sets::SetBookmarks;

/// Shortest sleep between two looks at the ring. The ring does not wake its reader: under load a wake-up per write
/// would cost more than the write.
const SLEEP_MIN: Duration = Duration::from_micros(200);
/// Longest sleep, reached when nothing happens: 250 wake-ups a second.
const SLEEP_MAX: Duration = Duration::from_millis(4);
/// How often resident memory is measured.
const MEASURE_INTERVAL: Duration = Duration::from_secs(1);
/// Commands taken in one round at most, so that a flood of acknowledgements does not stop the ring's reader.
const COMMANDS_MAX: usize = 256;

/// How the worker is to work.
pub(super) struct Options {
    /// Size of the ring, in bytes.
    pub(super) ring_bytes: u64,
    /// The folder of freeze hooks.
    pub(super) hooks: PathBuf,
    pub(super) spool: spooler::Options,
}

/// Opens the capture when disks are to be protected, and starts the thread. The receiver yields the reason when the
/// thread ends by itself; `restart` is raised whenever a session must begin anew.
///
/// # Errors
/// When the capture cannot be opened.
pub(super) fn start(
    state: StateDir,
    options: Options,
    restart: watch::Sender<u64>,
    parts: Parts,
    gates: Arc<Gates>,
) -> Result<(Handle, oneshot::Receiver<String>)> {
    let (commands, queue) = mpsc::channel();
    let (handles, handle_of_worker) = mpsc::sync_channel::<Handle>(1);
    let (opened, opening) = mpsc::sync_channel::<Result<()>>(1);
    let (ended, end) = oneshot::channel();
    let thread = thread::Builder::new()
        .name("worker".into())
        .spawn(move || {
            let Ok(handle) = handle_of_worker.recv() else { return };
            let spooler = Spooler::new(options.spool, handle.clone());
            let built = disk_reader::start(handle.clone(), parts.reader)
                .context("cannot start the disk reader")
                .and_then(|reads| {
                    let ends = Ends { restart, queue, reads, handle, spooler };
                    let (ring_bytes, hooks) = (options.ring_bytes, options.hooks);
                    Worker::open(state, ring_bytes, hooks, ends, parts.kernel, gates)
                });
            match built {
                Err(error) => drop(opened.send(Err(error))),
                Ok(mut worker) => {
                    let _ = opened.send(Ok(()));
                    if let Err(error) = worker.run() {
                        let _ = ended.send(format!("capture cannot go on: {error}"));
                    }
                }
            }
        })
        .context("cannot start the capture thread")?;
    let handle = Handle::new(commands, thread.thread().clone());
    let _ = handles.send(handle.clone());
    opening.recv().context("the capture thread ended")??;
    Ok((handle, end))
}

struct Session {
    outbound: Outbound,
    /// A message that did not fit.
    waiting: Option<SplitterMessage>,
}

/// What connects the worker with other threads.
struct Ends {
    restart: watch::Sender<u64>,
    queue: mpsc::Receiver<Command>,
    reads: mpsc::Sender<Task>,
    handle: Handle,
    spooler: Spooler,
}

struct Worker {
    state: StateDir,
    ring_bytes: u64,
    restart: watch::Sender<u64>,
    queue: mpsc::Receiver<Command>,
    reads: mpsc::Sender<Task>,
    /// This worker, for threads that it starts.
    handle: Handle,
    kernel: Box<dyn KernelSide>,
    gates: Arc<Gates>,
    /// An acknowledgement came since the gates were told.
    acked: bool,
    /// What the gates were told last.
    published: Option<Synced>,
    spooler: Spooler,
    wanted: Disks,
    protection: Option<Protection>,
    engine: Engine,
    session: Option<Session>,
    /// Of the last session.
    protocol: u32,
    bookmarks: Bookmarks,
    barriers: Barriers,
    set_bookmarks: SetBookmarks,
    measured: Option<Instant>,
    presence: Presence,
    resident_bytes: u64,
}

impl Worker {
    fn open(
        state: StateDir,
        ring_bytes: u64,
        hooks: PathBuf,
        Ends { restart, queue, reads, handle, spooler }: Ends,
        kernel: Box<dyn KernelSide>,
        gates: Arc<Gates>,
    ) -> Result<Self> {
        let wanted = state.disks()?;
        let protection = if wanted.disks.is_empty() {
            None
        } else {
            Some(Protection::open(&state, ring_bytes, &wanted, &reads)?)
        };
        let mut worker = Self {
            state,
            ring_bytes,
            restart,
            queue,
            reads,
            handle,
            kernel,
            gates,
            acked: false,
            published: None,
            spooler,
            wanted,
            protection,
            engine: Engine::new(),
            session: None,
            protocol: 0,
            bookmarks: Bookmarks::new(hooks),
            barriers: Barriers::default(),
            set_bookmarks: SetBookmarks::default(),
            measured: None,
            presence: Presence::default(),
            resident_bytes: 0,
        };
        worker.open_spool();
        Ok(worker)
    }

    fn run(&mut self) -> Result<(), EngineError> {
        let mut sleep = SLEEP_MIN;
        loop {
            let mut busy = false;
            for _ in 0..COMMANDS_MAX {
                match self.queue.try_recv() {
                    Ok(Command::Stop) | Err(mpsc::TryRecvError::Disconnected) => return Ok(()),
                    Ok(command) => {
                        busy = true;
                        self.take(command)?;
                    }
                    Err(mpsc::TryRecvError::Empty) => break,
                }
            }
            self.measure();
            self.look_at_disks()?;
            self.publish();
            let more = self.step()?;
            self.spooler.hand_on(&mut self.engine);
            let sent = self.send_frames();
            self.take_notices();
            self.send_answers();
            self.hold_for_next();
            self.bookmarks.answer(self.engine.offered_lsn());
            if more {
                continue;
            }
            sleep = if busy || sent { SLEEP_MIN } else { (sleep * 2).min(SLEEP_MAX) };
            thread::park_timeout(sleep);
        }
    }

    fn step(&mut self) -> Result<bool, EngineError> {
        let Some(protection) = &mut self.protection else { return Ok(false) };
        let (engine, reads) = (&mut self.engine, &self.reads);
        let mut outcome = Ok(false);
        self.kernel.lend(&mut protection.capture, &mut |kernel| outcome = advance(engine, kernel, reads));
        outcome
    }

    /// Tells the gates what is acknowledged.
    fn publish(&mut self) {
        if self.gates.take_waiting() {
            self.engine.want_heartbeat();
        }
        let Some(protection) = &self.protection else { return };
        if !std::mem::take(&mut self.acked) {
            return;
        }
        let before = self.published;
        self.published = self.engine.synced();
        if let Some(synced) = self.published.filter(|_| self.published != before) {
            let capture = protection.capture.capture_words();
            self.gates.publish(capture, synced.generation, synced.ring_position, now_us());
        }
    }

    fn take(&mut self, command: Command) -> Result<(), EngineError> {
        match command {
            Command::Hello { reply } => {
                let _ = reply.send(self.hello());
            }
            Command::Welcome { welcome, outbound, reply } => {
                let outcome = self.welcomed(&welcome);
                if outcome.is_ok() {
                    self.session = Some(Session { outbound, waiting: None });
                }
                let _ = reply.send(outcome);
            }
            Command::Disconnected => {
                self.session = None;
                self.barriers.disconnected();
                self.set_bookmarks.disconnected();
                self.engine.disconnected();
            }
            Command::Ack(position) => self.acknowledged(&position),
            Command::Clock(estimate) => self.engine.set_clock(estimate),
            Command::Marker(ask) => self.ask(ask),
            Command::Bookmark { name, wanted, allow_lower, reply } => {
                self.bookmark(name, wanted, allow_lower, reply);
            }
            Command::Reserve { reply } => {
                let _ = reply.send(self.reserve());
            }
            Command::Held { ask, taken } => self.held(ask, taken),
            Command::HoldOver { failed } => self.hold_over(&failed),
            Command::Barrier(order) => self.barrier_order(order),
            Command::Quiesced { request_id, problem } => self.quiesced(request_id, problem),
            Command::StandsStill { request_id, method } => self.stands_still(request_id, method),
            Command::BarrierHeld { request_id, taken } => self.barrier_held(request_id, taken),
            Command::SetBookmark { request, reply } => self.set_bookmark(request, reply),
            Command::SetBookmarkDone(done) => self.set_bookmarks.done(&done),
            Command::ReadDone { token, content } => {
                if let Some(protection) = &mut self.protection {
                    let (engine, mut content) = (&mut self.engine, content);
                    self.kernel.lend(&mut protection.capture, &mut |kernel| {
                        engine.read_done(kernel, token, content.take(), now_us());
                    });
                }
            }
            Command::Answer(answer) => {
                if let Some(protection) = &mut self.protection {
                    let engine = &mut self.engine;
                    self.kernel.lend(&mut protection.capture, &mut |kernel| {
                        engine.answered(kernel, &answer, now_us());
                    });
                }
            }
            Command::Spool(event) => self.take_spool_event(event),
            Command::Verify(request) => {
                tracing::info!(job = request.job_id, "the appliance asks for a verify");
                self.engine.verify(&request, now_us());
            }
            Command::VerifyAnswer(answer) => {
                let Some(protection) = &mut self.protection else { return Ok(()) };
                let (engine, mut outcome) = (&mut self.engine, Ok(()));
                self.kernel.lend(&mut protection.capture, &mut |kernel| {
                    outcome = engine.verify_answered(kernel, &answer, now_us());
                });
                return outcome;
            }
            Command::Protect { paths, reply } => {
                let _ = reply.send(self.protect(&paths).map_err(|error| format!("{error:#}")));
            }
            Command::ProtectAll { except, reply } => {
                let _ = reply.send(self.protect_all(except).map_err(|error| format!("{error:#}")));
            }
            Command::UnprotectAll { reply } => {
                let _ = reply.send(self.unprotect_all().map_err(|error| format!("{error:#}")));
            }
            Command::Unprotect { path, reply } => {
                let _ = reply.send(self.unprotect(&path).map_err(|error| format!("{error:#}")));
            }
            Command::Status { reply } => {
                let _ = reply.send(self.status());
            }
            // Handled by the loop.
            Command::Stop => {}
        }
        Ok(())
    }

    fn hello(&self) -> Option<HelloFacts> {
        let protection = self.protection.as_ref()?;
        let mut disks = protection.hello();
        disks.extend(self.missing_in_hello());
        if disks.is_empty() {
            return None;
        }
        Some(HelloFacts {
            capture_id: protection.capture.capture_id().0.to_vec(),
            disks,
            last_acked: self.engine.last_acked(),
        })
    }

    fn welcomed(&mut self, welcome: &Welcome) -> Result<(), String> {
        let Some(protection) = &mut self.protection else {
            return Err("no disk is protected any more".to_owned());
        };
        let configs = protection.configs(welcome, &self.wanted)?;
        let engine = &mut self.engine;
        let mut resumed = Err("the capture was not lent".to_owned());
        self.kernel.lend(&mut protection.capture, &mut |kernel| {
            resumed = engine.welcomed(kernel, welcome, &configs, now_us()).map_err(|error| error.to_string());
        });
        let resumed = resumed?;
        self.protocol = welcome.protocol;
        for held in &mut protection.held {
            held.fresh = false;
        }
        self.welcomed_missing(welcome);
        match resumed {
            Resumed::Connection => tracing::info!("session established"),
            Resumed::Process => {
                tracing::info!("session established; going on where the last process stopped")
            }
            Resumed::Capture => tracing::info!("session established; every disk is copied"),
        }
        Ok(())
    }

    fn acknowledged(&mut self, position: &StreamPosition) {
        self.acked = true;
        if let Err(error) = self.engine.acknowledged(position) {
            tracing::error!(%error, "acknowledgement refused");
            self.session = None;
            self.engine.disconnected();
            self.begin_session_anew();
        }
    }

    fn take_notices(&mut self) {
        while let Some(notice) = self.engine.next_notice() {
            match notice {
                Notice::MarkerPlaced { request, lsn } => {
                    if !self.barriers.placed(request.request_id, lsn) {
                        self.bookmarks.placed(request, lsn);
                    }
                }
                Notice::MarkerFailed { request, reason } => {
                    if !self.barriers.failed(request.request_id, &reason) {
                        self.bookmarks.failed(&request, reason);
                    }
                }
                Notice::LineStarted { lsn, gap_from, cause, detail, dirty_bytes } => {
                    tracing::info!(
                        lsn,
                        gap_from,
                        cause = cause.as_str_name(),
                        detail,
                        dirty_bytes,
                        "gap opened"
                    );
                    self.bookmarks.lose(gap_from);
                }
                Notice::LineEnded { lsn, slot } => self.line_ended(lsn, slot),
                Notice::ReadFailed { slot } => {
                    tracing::warn!(slot = slot.0, "a protected disk cannot be read; trying again");
                }
                Notice::Spooling { .. } | Notice::SpoolFailed { .. } | Notice::SpoolLost { .. } => {
                    self.take_spool_notice(&notice);
                }
                Notice::RestartFailed { detail } => tracing::warn!(detail, "capture cannot be restarted yet"),
            }
        }
    }

    fn line_ended(&mut self, lsn: u64, slot: tidemark_splitter_core::capture::Slot) {
        tracing::info!(lsn, slot = slot.0, "gap closed");
        let Some(protection) = &self.protection else { return };
        let Some(held) = protection.held.iter().find(|held| held.slot == slot) else { return };
        let known = self.wanted.disks.iter_mut().find(|known| known.identity == held.disk.identity);
        if let Some(known) = known.filter(|known| !known.copied) {
            known.copied = true;
            if let Err(error) = self.state.store_disks(&self.wanted) {
                tracing::warn!(%error, "cannot note that the initial copy is complete");
            }
        }
    }

    /// Hands on answers that others wait for; what does not fit waits.
    fn send_answers(&mut self) {
        let Some(session) = &self.session else { return };
        while let Ok(place) = session.outbound.urgent.try_reserve() {
            let answer = self.barriers.answers.pop_front().map(splitter_message::Body::BarrierAnswer);
            let body = answer.or_else(|| self.set_bookmarks.next().map(splitter_message::Body::SetBookmark));
            let Some(body) = body else { return };
            place.send(SplitterMessage { body: Some(body) });
        }
    }

    /// Hands on what fits. Whether anything did.
    fn send_frames(&mut self) -> bool {
        let Some(session) = &mut self.session else { return false };
        let mut sent = false;
        loop {
            let next = session.waiting.take().or_else(|| {
                let failed = self.bookmarks.failed.pop_front().map(splitter_message::Body::MarkerFailed);
                let engine = &mut self.engine;
                let body = failed
                    .or_else(|| engine.next_question().map(splitter_message::Body::HashQuestion))
                    .or_else(|| engine.next_verify_question().map(splitter_message::Body::VerifyQuestion))
                    .or_else(|| engine.next_verify_report(now_us()).map(splitter_message::Body::VerifyReport))
                    .or_else(|| engine.next_frame().map(splitter_message::Body::Frame))?;
                Some(SplitterMessage { body: Some(body) })
            });
            let Some(message) = next else { return sent };
            match session.outbound.frames.try_send(message) {
                Ok(()) => sent = true,
                Err(async_mpsc::error::TrySendError::Full(message)) => {
                    session.waiting = Some(message);
                    return sent;
                }
                // The session is ending and says so itself.
                Err(async_mpsc::error::TrySendError::Closed(_)) => return sent,
            }
        }
    }

    fn begin_session_anew(&self) {
        self.restart.send_modify(|count| *count += 1);
    }
}

/// Steps the engine and hands on what it wants to read.
fn advance(
    engine: &mut Engine,
    kernel: &mut Kernel<'_>,
    reads: &mpsc::Sender<Task>,
) -> Result<bool, EngineError> {
    let more = engine.step(kernel, now_us())?;
    while let Some(request) = engine.next_read(kernel, now_us())? {
        // The reader ends only with this thread.
        let _ = reads.send(Task::Read(request));
    }
    Ok(more)
}
