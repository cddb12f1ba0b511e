//! One live stream. A reader task takes messages off the connection; the session owns everything else: it selects an
//! event, applies it, and lets one blocking call at a time append what has come in.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tidemark_proto::limits::TEXT_MAX_BYTES;
use tidemark_proto::v1::{
    Ack, ApplianceMessage, Frame, Goodbye, Hello, MarkerRequest, SetBookmarkRequest, SplitterMessage,
    Welcome, appliance_message, frame, splitter_message,
};
use tidemark_proto::version;
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::appender::{Appended, Appender, MarkerPlaced, Resized, Stop};
use super::bookmarks::keep_marker;
use super::compare::{Answered, Questions};
use super::hello::{self, Refusal};
use super::offers::NotTaken;
use super::reader::{self, Inbound};
use super::verify::Verifying;
use crate::clock::now_us;
use crate::core::Core;
use crate::fleet::{Command, Durable, SessionHandle, Vm};
use crate::metrics::VmLabel;
use crate::sets;
use crate::templates::Source;
use crate::transport::Peer;

/// How long a client may take for its first message. A slower one is cut off.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// Silence after which a stream counts as dead: a hundred heartbeats.
const IDLE_TIMEOUT_US: u64 = 20_000_000;

/// How long a message to the splitter may take to leave. A splitter that does not read is cut off.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);

/// Between checks of silence and of the certificate's validity.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Frames appended in one blocking call at most, so that acknowledgements and commands get their turn.
const BATCH_FRAMES_MAX: usize = 64;

/// Between notes of a guest's spool: each is a call of the catalog, for which the stream waits.
const SPOOL_NOTED: Duration = Duration::from_secs(1);

/// Commands that wait for a session at most. Further ones fail.
const COMMANDS_MAX: usize = 64;

static NEXT_SESSION: AtomicU64 = AtomicU64::new(1);

pub(super) type Outbound = mpsc::Sender<Result<ApplianceMessage, Status>>;

/// Why a session ended.
#[derive(Debug)]
pub(super) enum End {
    /// The splitter closed the stream or vanished.
    Left(String),
    /// This side ends it.
    Goodbye { reason: String, retry: bool },
    /// The splitter broke a rule.
    Broken(String),
    /// Nothing more is accepted from the VM.
    Quarantine(String),
    /// The machine is a copy of the one that is connected.
    Copy { reason: String, hostname: String },
    /// The journal has to be opened again.
    JournalFailed(String),
}

/// Serves one stream to its end.
pub(super) async fn run(
    core: Arc<Core>,
    vm: Arc<Vm>,
    peer: Peer,
    mut inbound: Streaming<SplitterMessage>,
    outbound: Outbound,
) {
    let hello = match tokio::time::timeout(HELLO_TIMEOUT, inbound.message()).await {
        Ok(Ok(Some(SplitterMessage { body: Some(splitter_message::Body::Hello(hello)) }))) => hello,
        Ok(Ok(Some(_))) => return broken(&core, &outbound, "the first message must be Hello").await,
        Ok(Ok(None)) => return,
        Ok(Err(status)) => return broken(&core, &outbound, status.message()).await,
        Err(_) => return broken(&core, &outbound, "no Hello came in time").await,
    };
    let end = match begin(&core, &vm, &hello, peer, &outbound).await {
        Err(end) => end,
        Ok((mut session, welcome)) => {
            let handle = session.handle.clone();
            tracing::info!(
                session = handle.id,
                lsn = welcome.durable.as_ref().map(|at| at.lsn),
                "stream begins"
            );
            core.metrics.sessions.inc();
            // Whatever happens to this task, the next hello must not wait for it for ever.
            let _done = handle.done.clone().drop_guard();
            let end = session.serve(welcome, inbound).await;
            session.settle().await;
            drop(session);
            if matches!(end, End::JournalFailed(_)) {
                let log = Arc::clone(&vm.log);
                // Views may still hold the journal for a moment; nothing here waits for that but the next hello.
                let _ = tokio::task::spawn_blocking(move || log.reopen()).await;
            }
            vm.end_session(handle.id, end.reason());
            core.metrics.sessions.dec();
            end
        }
    };
    finish(&core, &vm, end, &outbound).await;
}

async fn broken(core: &Core, outbound: &Outbound, reason: &str) {
    core.metrics.rejected("stream");
    tracing::warn!(reason, "stream refused");
    goodbye(outbound, reason, false).await;
}

/// Admits the hello and registers the session.
async fn begin<'a>(
    core: &'a Arc<Core>,
    vm: &'a Arc<Vm>,
    hello: &Hello,
    peer: Peer,
    outbound: &'a Outbound,
) -> Result<(Session<'a>, Welcome), End> {
    let _admission = vm.admission.lock().await;
    let admitted = hello::admit(core, vm, hello).await.map_err(|refusal| match refusal {
        Refusal::Later(reason) => End::Goodbye { reason, retry: true },
        Refusal::Final(reason) => End::Goodbye { reason, retry: false },
        Refusal::Quarantine(reason) => End::Quarantine(reason),
        Refusal::Copy(reason) => End::Copy {
            reason,
            hostname: hello.platform.as_ref().map(|platform| platform.hostname.clone()).unwrap_or_default(),
        },
    })?;
    let (sender, commands) = mpsc::channel(COMMANDS_MAX);
    let id = NEXT_SESSION.fetch_add(1, Ordering::Relaxed);
    let protocol = admitted.welcome.protocol;
    let handle = hello::handle(id, hello, protocol, sender, CancellationToken::new());
    vm.begin_session(handle.clone());
    let appended_seq = admitted.welcome.durable.as_ref().map_or(0, |durable| durable.seq);
    let session = Session {
        core,
        vm,
        peer,
        handle,
        outbound,
        commands,
        durable: vm.log.watch(),
        questions: Questions::new(
            Arc::clone(&admitted.journal),
            admitted.hash_key,
            admitted.templates.then(|| Arc::clone(&core.templates)),
        ),
        verifying: Verifying::new(
            Arc::clone(&admitted.journal),
            admitted.hash_key.filter(|_| protocol >= version::VERIFY),
        ),
        begun: false,
        spooling: None,
        appender: Some(Appender::new(admitted.journal, admitted.capture_id, admitted.last_time_us)),
        appending: None,
        queue: VecDeque::new(),
        pending_nonce_hash: Some(admitted.pending_nonce_hash),
        received_seq: appended_seq,
        appended_seq,
        acked_seq: appended_seq,
        markers: VecDeque::new(),
        resizes: Vec::new(),
        label: VmLabel { vm: vm.name.clone() },
    };
    Ok((session, admitted.welcome))
}

async fn finish(core: &Core, vm: &Vm, end: End, outbound: &Outbound) {
    match end {
        End::Left(reason) => tracing::info!(reason, "stream ended"),
        End::Goodbye { reason, retry } => {
            tracing::info!(reason, retry, "stream ended by the appliance");
            goodbye(outbound, &reason, retry).await;
        }
        End::Broken(reason) => {
            core.metrics.rejected("stream");
            tracing::warn!(reason, "stream refused: the splitter broke the protocol");
            goodbye(outbound, &reason, true).await;
        }
        End::Quarantine(reason) => {
            core.metrics.rejected("quarantine");
            tracing::warn!(reason, "VM quarantined");
            if let Err(error) = core.catalog.quarantine(vm.id, &reason).await {
                tracing::error!(%error, "cannot record the quarantine");
            }
            core.audit("appliance", "quarantine", &vm.name, &reason).await;
            let text = format!(
                "this VM is quarantined ({reason}): run `tidemark token create --vm {} --replace` and enrol again",
                vm.name
            );
            vm.close_session(&text, false);
            goodbye(outbound, &text, false).await;
        }
        End::Copy { reason, hostname } => {
            core.metrics.rejected("copy");
            tracing::warn!(reason, hostname, "a copy of the VM was refused; the original goes on");
            core.audit("appliance", "refuse a copy", &vm.name, &reason).await;
            vm.update_live(|live| live.copy_refused(now_us(), &hostname));
            let name = &vm.name;
            let text = format!(
                "this machine is a copy of '{name}', which is connected ({reason}): enrol it as a VM of its own, with a token of \
                 `tidemark token create --vm NEW-NAME`; if this one takes its place, stop the other and use \
                 `tidemark token create --vm {name} --replace`"
            );
            goodbye(outbound, &text, false).await;
        }
        End::JournalFailed(reason) => {
            tracing::error!(reason, "stream ended: the journal failed and was opened again");
            goodbye(outbound, "the appliance's journal failed and is being opened again", true).await;
        }
    }
}

async fn goodbye(outbound: &Outbound, reason: &str, retry: bool) {
    let message = Goodbye { reason: reason.to_owned(), retry };
    // A splitter that has gone needs no farewell.
    let _ = send(outbound, appliance_message::Body::Goodbye(message)).await;
}

pub(super) async fn send(outbound: &Outbound, body: appliance_message::Body) -> bool {
    let message = Ok(ApplianceMessage { body: Some(body) });
    matches!(tokio::time::timeout(SEND_TIMEOUT, outbound.send(message)).await, Ok(Ok(())))
}

impl End {
    fn reason(&self) -> &str {
        match self {
            Self::Left(reason)
            | Self::Goodbye { reason, .. }
            | Self::Broken(reason)
            | Self::Quarantine(reason)
            | Self::Copy { reason, .. }
            | Self::JournalFailed(reason) => reason,
        }
    }
}

impl From<Stop> for End {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Invalid(problem) => Self::Broken(problem),
            Stop::Fork(_) => Self::Quarantine(stop.to_string()),
            Stop::Full | Stop::NotHere => Self::Goodbye { reason: stop.to_string(), retry: true },
            Stop::Journal(problem) => Self::JournalFailed(problem),
        }
    }
}

/// A frame that waits to be appended, with the content that it names, and what it counts against the connection's budget.
struct Queued {
    frame: Frame,
    named: Vec<Source>,
    permit: OwnedSemaphorePermit,
}

struct Batch {
    appender: Appender,
    appended: Appended,
    last_seq: Option<u64>,
    outcome: Result<(), Stop>,
}

impl From<NotTaken> for End {
    fn from(not_taken: NotTaken) -> Self {
        match not_taken {
            NotTaken::Broken(problem) => Self::Broken(problem.into()),
            NotTaken::NotOffered => Stop::NotHere.into(),
        }
    }
}

pub(super) struct Session<'a> {
    pub(super) core: &'a Arc<Core>,
    pub(super) vm: &'a Arc<Vm>,
    peer: Peer,
    handle: SessionHandle,
    pub(super) outbound: &'a Outbound,
    commands: mpsc::Receiver<Command>,
    durable: watch::Receiver<Durable>,
    /// Absent while a batch is being appended, and after an error.
    appender: Option<Appender>,
    appending: Option<JoinHandle<Batch>>,
    queue: VecDeque<Queued>,
    questions: Questions,
    pub(super) verifying: Verifying,
    /// The first frame came: the splitter knows its disks.
    pub(super) begun: bool,
    /// Whether frames wait in the guest, as was noted last.
    spooling: Option<(bool, tokio::time::Instant)>,
    /// Present until the splitter has saved its new nonce; no frame is taken before.
    pending_nonce_hash: Option<String>,
    pub(super) received_seq: u64,
    appended_seq: u64,
    acked_seq: u64,
    /// Appended, not yet durable.
    markers: VecDeque<MarkerPlaced>,
    /// Appended, not yet durable.
    resizes: Vec<Resized>,
    pub(super) label: VmLabel,
}

impl Session<'_> {
    async fn serve(&mut self, welcome: Welcome, inbound: Streaming<SplitterMessage>) -> End {
        if !send(self.outbound, appliance_message::Body::Welcome(welcome)).await {
            return End::Left("the splitter left before it was welcomed".into());
        }
        let (mut received, _reader) = reader::spawn(inbound, self.outbound.clone(), self.handle.clone());
        let (mut space, stopping) = (self.core.space.clone(), self.core.stopping.clone());
        let revoked = self.peer.revoked.clone();
        let mut check = tokio::time::interval(CHECK_INTERVAL);
        let mut left = false;
        loop {
            self.start_append();
            self.questions.start(self.appended_seq, &self.core.compare_slots);
            self.verifying.start(self.appended_seq, &self.core.compare_slots);
            if left
                && self.queue.is_empty()
                && self.appending.is_none()
                && self.acked_seq >= self.appended_seq
            {
                return End::Left("the splitter closed the stream".into());
            }
            let step = tokio::select! {
                biased;
                () = stopping.cancelled() => Err(later("the appliance is shutting down")),
                () = revoked.cancelled() => Err(End::Goodbye { reason: "the certificate was revoked".into(), retry: false }),
                command = self.commands.recv() => self.command(command).await,
                Ok(()) = self.durable.changed() => self.committed().await,
                Ok(()) = space.changed() => match space.borrow_and_update().full {
                    true => Err(later("the appliance's disk is full")),
                    false => Ok(()),
                },
                batch = joined(&mut self.appending) => self.appended(batch).await,
                answered = self.questions.answered() => self.answered(answered).await,
                answers = self.verifying.answered() => self.verify_answered(answers).await,
                message = received.recv(), if !left => match message {
                    Some(Inbound::Closed) | None => { left = true; Ok(()) }
                    Some(message) => self.received(message).await,
                },
                _ = check.tick() => self.check(left),
            };
            if let Err(end) = step {
                return end;
            }
        }
    }

    /// Waits for the blocking call that still uses the journal.
    async fn settle(&mut self) {
        if let Some(appending) = self.appending.take() {
            let _ = appending.await;
            self.core.committer.dirty(&self.vm.log, false);
        }
        self.appender = None;
        self.questions.stop();
        self.verifying.stop();
    }

    fn start_append(&mut self) {
        if self.queue.is_empty() {
            return;
        }
        let Some(mut appender) = self.appender.take() else { return };
        let count = self.queue.len().min(BATCH_FRAMES_MAX);
        let frames: Vec<_> = self.queue.drain(..count).collect();
        self.appending = Some(tokio::task::spawn_blocking(move || {
            let mut appended = Appended::default();
            let (mut outcome, mut last_seq) = (Ok(()), None);
            for Queued { frame, named, permit } in frames {
                outcome = appender.append(&frame, &named, now_us(), &mut appended);
                drop(permit);
                if outcome.is_err() {
                    break;
                }
                last_seq = Some(frame.seq);
            }
            Batch { appender, appended, last_seq, outcome }
        }));
    }

    async fn appended(&mut self, batch: Result<Batch, String>) -> Result<(), End> {
        self.appending = None;
        let batch = batch.map_err(End::JournalFailed)?;
        if let Some(seq) = batch.last_seq {
            self.appended_seq = seq;
            // A write that waits for the appliance waits for this commit.
            let urgent = !batch.appended.markers.is_empty() || self.vm.promised();
            self.core.committer.dirty(&self.vm.log, urgent);
        }
        let metrics = &self.core.metrics;
        metrics.received_bytes.get_or_create(&self.label).inc_by(batch.appended.payload_bytes);
        metrics.received_frames.get_or_create(&self.label).inc_by(batch.appended.frames);
        metrics.template_bytes.get_or_create(&self.label).inc_by(batch.appended.template_bytes);
        let Appended { heartbeat, backlog, clock_error_us, .. } = batch.appended;
        if batch.appended.frames > 0 {
            self.note_spool(backlog.is_some()).await;
        }
        self.vm.update_live(|live| {
            live.backlog = backlog;
            live.clock_error_us = clock_error_us.or(live.clock_error_us);
            if let Some(heartbeat) = heartbeat {
                live.beat(heartbeat, tokio::time::Instant::now());
            }
        });
        self.markers.extend(batch.appended.markers);
        self.resizes.extend(batch.appended.resizes);
        batch.outcome?;
        self.appender = Some(batch.appender);
        Ok(())
    }

    /// Frames wait in the guest, or no more: on the timeline, if that is news.
    async fn note_spool(&mut self, waits: bool) {
        let news = self.spooling.is_none_or(|(noted, _)| noted != waits);
        // A guest that changes its mind with every frame is noted once a second.
        if !news || self.spooling.is_some_and(|(_, at)| at.elapsed() < SPOOL_NOTED) {
            return;
        }
        self.spooling = Some((waits, tokio::time::Instant::now()));
        let (lsn, vm, catalog) = (self.durable.borrow().position.lsn, self.vm.id, &self.core.catalog);
        // Awaited: an end must not overtake its beginning.
        let noted = match waits {
            true => catalog.spool_began(vm, lsn, now_us()).await,
            false => catalog.spool_ended(vm, now_us()).await,
        };
        if let Err(error) = noted {
            tracing::error!(%error, waits, "cannot note that a spool is in use, or no more");
        }
    }

    async fn answered(&mut self, answered: Result<Answered, String>) -> Result<(), End> {
        let answered = answered.map_err(|problem| {
            tracing::error!(problem, "comparing by hashes ended unexpectedly");
            later("comparing by hashes failed at the appliance")
        })?;
        let metrics = &self.core.metrics;
        metrics.compared_bytes.get_or_create(&self.label).inc_by(answered.asked_bytes);
        metrics.known_bytes.get_or_create(&self.label).inc_by(answered.known_bytes);
        for answer in answered.answers {
            if !send(self.outbound, appliance_message::Body::HashAnswer(answer)).await {
                return Err(End::Left("the splitter takes no more answers".into()));
            }
        }
        Ok(())
    }

    async fn committed(&mut self) -> Result<(), End> {
        let durable = self.durable.borrow_and_update().clone();
        if let Some(problem) = durable.failed {
            return Err(End::JournalFailed(problem.to_string()));
        }
        if durable.full {
            return Err(later("the appliance's disk is full"));
        }
        let position = durable.position;
        if position.seq > self.acked_seq {
            self.acked_seq = position.seq;
            let ack = Ack { durable: Some(hello::stream_position(&position)) };
            if !send(self.outbound, appliance_message::Body::Ack(ack)).await {
                return Err(End::Left("the splitter takes no more acknowledgements".into()));
            }
        }
        for resized in self.resizes.extract_if(.., |resized| resized.lsn <= position.lsn) {
            let vm = Arc::clone(self.vm);
            let work =
                tokio::task::spawn_blocking(move || vm.log.note_size(resized.disk, resized.size_bytes));
            self.core.tasks.spawn(async move {
                let _ = work.await;
            });
        }
        while self.markers.front().is_some_and(|marker| marker.lsn <= position.lsn) {
            let Some(marker) = self.markers.pop_front() else { break };
            let (core, vm) = (Arc::clone(self.core), Arc::clone(self.vm));
            self.core.tasks.spawn(async move { keep_marker(&core, &vm, marker).await });
        }
        Ok(())
    }

    async fn received(&mut self, message: Inbound) -> Result<(), End> {
        match message {
            Inbound::Frame(frame, permit) => {
                if self.pending_nonce_hash.is_some() {
                    return Err(End::Broken("a frame came before NonceSaved".into()));
                }
                let named = match &frame.body {
                    Some(frame::Body::Base(base)) => self.questions.redeem(base)?,
                    _ => Vec::new(),
                };
                self.received_seq = frame.seq;
                self.queue.push_back(Queued { frame, named, permit });
                if !std::mem::replace(&mut self.begun, true) {
                    return self.offer_verify().await;
                }
                Ok(())
            }
            Inbound::Question(question, permit) => {
                if self.pending_nonce_hash.is_some() {
                    return Err(End::Broken("a question came before NonceSaved".into()));
                }
                self.questions.ask(question, self.received_seq, permit).map_err(End::Broken)
            }
            Inbound::VerifyQuestion(question, permit) => self.verify_asked(question, permit),
            Inbound::VerifyReport(report, _permit) => self.verify_reported(&report),
            Inbound::NonceSaved => {
                if let Some(hash) = self.pending_nonce_hash.take() {
                    self.core
                        .catalog
                        .nonce_saved(self.vm.id, &hash)
                        .await
                        .map_err(|error| later(&error.to_string()))?;
                }
                Ok(())
            }
            Inbound::MarkerFailed(failed) => {
                let reason = failed.reason.chars().filter(|c| !c.is_control()).take(TEXT_MAX_BYTES);
                let reason: String = reason.collect();
                self.vm.marker_done(
                    failed.request_id,
                    Err(format!("the splitter could not place it: {reason}")),
                );
                Ok(())
            }
            Inbound::Sync(ping) => {
                for change in self.vm.take_promises(&ping) {
                    tracing::info!(
                        volume = change.volume,
                        in_force = change.in_force,
                        cause = change.cause,
                        "synchronous mode"
                    );
                }
                Ok(())
            }
            Inbound::Barrier(answer) => {
                self.vm.barrier_answered(answer);
                Ok(())
            }
            Inbound::SetBookmark(request) => {
                self.set_bookmark(request);
                Ok(())
            }
            Inbound::Broken(problem) => Err(End::Broken(problem)),
            Inbound::Lost(problem) => Err(End::Left(format!("the connection broke: {problem}"))),
            Inbound::Closed => Ok(()),
        }
    }

    async fn command(&mut self, command: Option<Command>) -> Result<(), End> {
        match command {
            None => Err(later("the VM was removed")),
            Some(Command::Close { reason, retry }) => Err(End::Goodbye { reason, retry }),
            Some(Command::Verify) => self.offer_verify().await,
            Some(Command::CancelVerify) => self.cancel_verify().await,
            Some(Command::Barrier(order)) => self.tell(appliance_message::Body::BarrierOrder(order)).await,
            Some(Command::SetBookmarkDone(done)) => {
                self.tell(appliance_message::Body::SetBookmarkDone(done)).await
            }
            Some(Command::Marker(ask)) => {
                let request = MarkerRequest {
                    request_id: ask.request_id,
                    name: ask.name,
                    bookmark_id: ask.bookmark_id,
                    consistency: ask.wanted.into(),
                    allow_lower: ask.allow_lower,
                };
                self.tell(appliance_message::Body::MarkerRequest(request)).await
            }
        }
    }

    async fn tell(&self, body: appliance_message::Body) -> Result<(), End> {
        if send(self.outbound, body).await {
            Ok(())
        } else {
            Err(End::Left("the splitter takes no more messages".into()))
        }
    }

    /// Somebody in the guest asks for a point of a set. It is taken beside the stream, which the point needs.
    fn set_bookmark(&self, request: SetBookmarkRequest) {
        let (core, vm) = (Arc::clone(self.core), Arc::clone(self.vm));
        let commands = self.handle.commands.clone();
        self.core.tasks.spawn(async move {
            let done = sets::bookmark_for_guest(&core, &vm, request).await;
            // The splitter may have gone meanwhile; the point stays.
            let _ = tokio::time::timeout(SEND_TIMEOUT, commands.send(Command::SetBookmarkDone(done))).await;
        });
    }

    fn check(&self, left: bool) -> Result<(), End> {
        let now_us = now_us();
        if now_us >= self.peer.not_after_us {
            return Err(later("the certificate has expired: reconnect with the renewed one"));
        }
        if left && self.outbound.is_closed() {
            return Err(End::Left("the splitter closed the stream".into()));
        }
        let silent_us = now_us.saturating_sub(self.handle.last_message_us.load(Ordering::Relaxed));
        if silent_us > IDLE_TIMEOUT_US && self.queue.is_empty() && self.appending.is_none() {
            return Err(later("nothing was heard from the splitter for 20 seconds"));
        }
        Ok(())
    }
}

fn later(reason: &str) -> End {
    End::Goodbye { reason: reason.to_owned(), retry: true }
}

/// The outcome of the running batch; never ready when none runs.
async fn joined(appending: &mut Option<JoinHandle<Batch>>) -> Result<Batch, String> {
    match appending {
        Some(handle) => handle.await.map_err(|error| format!("appending ended unexpectedly: {error}")),
        None => std::future::pending().await,
    }
}
