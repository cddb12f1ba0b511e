//! Writes and reads of the spool, on a thread of their own: a slow disk may fill the ring, but not stop its reader.

use std::path::PathBuf;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use tidemark_splitter_core::engine::{Engine, SpoolContent, SpoolEvent, SpoolOrder, SpoolSettings};

use super::command::Command;
use super::handle::Handle;
use crate::capture::{LinuxCapture, SpoolMemory};
use crate::disks::{self, Disk};
use crate::spool::format::Key;
use crate::spool::{self, Room, Store, StoreError};

/// How often an idle spool looks at the space on its disk.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Writes between two reports of the space; the engine counts in between.
const REPORT_WRITES: u32 = 16;

/// Where the spool lies and what it may hold.
#[derive(Debug, Clone)]
pub(super) struct Options {
    pub(super) folder: PathBuf,
    /// 0: nothing is written.
    pub(super) limit_bytes: u64,
}

enum Task {
    Order(SpoolOrder),
    Limit(u64),
    /// The capture has ended, and its frames with it.
    Destroy,
}

/// The worker's end of the spool.
#[derive(Debug)]
pub(super) struct Spooler {
    options: Options,
    worker: Handle,
    tasks: Option<mpsc::Sender<Task>>,
    settings: SpoolSettings,
}

impl Spooler {
    pub(super) fn new(options: Options, worker: Handle) -> Self {
        Self { options, worker, tasks: None, settings: SpoolSettings::default() }
    }

    /// Opens the spool of a capture, and tells the engine what is in it.
    pub(super) fn open(&mut self, engine: &mut Engine, capture: &LinuxCapture, protected: &[Disk]) {
        self.settings = self.judge(protected);
        match self.start(capture) {
            Ok(content) => {
                if !content.facts.is_empty() {
                    tracing::info!(frames = content.facts.len(), "found frames in the spool");
                }
                engine.restore_spool(content);
            }
            Err((reason, in_use)) => {
                self.settings = SpoolSettings { limit_bytes: 0, refused: Some(reason.clone()) };
                let damage = Some(reason);
                engine.restore_spool(SpoolContent { facts: Vec::new(), in_use, damage });
            }
        }
        if let Some(reason) = &self.settings.refused {
            tracing::info!(reason, "there is no spool");
        }
        engine.set_spool(self.settings.clone());
    }

    /// The settings for these protected disks.
    fn judge(&self, protected: &[Disk]) -> SpoolSettings {
        if self.options.limit_bytes == 0 {
            return SpoolSettings { limit_bytes: 0, refused: Some("turned off by --spool-mib 0".to_owned()) };
        }
        match disks::refuse_feedback(&self.options.folder, protected) {
            Ok(()) => SpoolSettings { limit_bytes: self.options.limit_bytes, refused: None },
            Err(refusal) => SpoolSettings { limit_bytes: 0, refused: Some(refusal.to_string()) },
        }
    }

    /// Starts the thread, unless there is nothing to do for it. The error says whether the ring leans on the spool.
    fn start(&mut self, capture: &LinuxCapture) -> Result<SpoolContent, (String, bool)> {
        let failed = |error: std::io::Error| (format!("the spool's memory cannot be used: {error}"), true);
        let found = capture.find_spool_memory().map_err(failed)?;
        let in_use = found.as_ref().is_some_and(SpoolMemory::is_in_use);
        if self.settings.limit_bytes == 0 && !in_use {
            // What an earlier capture left there is of no use to anybody.
            let _ = spool::destroy(&self.options.folder);
            return Ok(SpoolContent::default());
        }
        let memory = match found {
            Some(memory) => memory,
            None => capture
                .spool_memory()
                .map_err(|error| (format!("the spool's memory cannot be made: {error}"), false))?,
        };
        let (store, facts, damage) = Store::open(
            &self.options.folder,
            capture.capture_id(),
            Key(memory.key()),
            self.settings.limit_bytes,
        )
        .map_err(|error| (error_text(&error), in_use))?;
        let (tasks, queue) = mpsc::channel();
        let worker = self.worker.clone();
        thread::Builder::new()
            .name("spool".into())
            .spawn(move || Serving { store, memory, worker, told: None, unreported: 0 }.run(&queue))
            .map_err(|error| (format!("the spool's thread cannot be started: {error}"), in_use))?;
        self.tasks = Some(tasks);
        Ok(SpoolContent { facts, in_use, damage })
    }

    /// Other disks are protected now.
    pub(super) fn follow(&mut self, engine: &mut Engine, capture: &LinuxCapture, protected: &[Disk]) {
        let settings = self.judge(protected);
        if settings == self.settings {
            return;
        }
        if self.tasks.is_none() {
            return self.open(engine, capture, protected);
        }
        if let Some(reason) = &settings.refused {
            tracing::info!(reason, "the spool is not written any more");
        }
        if let Some(tasks) = &self.tasks {
            let _ = tasks.send(Task::Limit(settings.limit_bytes));
        }
        engine.set_spool(settings.clone());
        self.settings = settings;
    }

    /// Hands the engine's orders on.
    pub(super) fn hand_on(&self, engine: &mut Engine) {
        while let Some(order) = engine.next_spool_order() {
            if let Some(tasks) = &self.tasks {
                // The thread ends only with this sender.
                let _ = tasks.send(Task::Order(order));
            }
        }
    }

    /// The capture has ended.
    pub(super) fn close(&mut self) {
        if let Some(tasks) = self.tasks.take() {
            let _ = tasks.send(Task::Destroy);
        }
        self.settings = SpoolSettings::default();
    }
}

/// One line of an error and what caused it.
fn error_text(error: &StoreError) -> String {
    match error {
        StoreError::Io { source, .. } => format!("{error}: {source}"),
        error => error.to_string(),
    }
}

/// The thread's state.
struct Serving {
    store: Store,
    memory: SpoolMemory,
    worker: Handle,
    told: Option<Room>,
    unreported: u32,
}

impl Serving {
    fn run(mut self, queue: &mpsc::Receiver<Task>) {
        self.report();
        loop {
            match queue.recv_timeout(LOOK_INTERVAL) {
                Ok(Task::Order(order)) => self.carry_out(order),
                Ok(Task::Limit(limit_bytes)) => {
                    self.store.set_limit(limit_bytes);
                    self.report();
                }
                Ok(Task::Destroy) => return self.store.clear(),
                Err(mpsc::RecvTimeoutError::Timeout) => self.report(),
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn tell(&self, event: SpoolEvent) {
        self.worker.send(Command::Spool(event));
    }

    fn report(&mut self) {
        let room = self.store.room();
        self.unreported = 0;
        if self.told != Some(room) {
            self.told = Some(room);
            let Room { used_bytes, room_bytes } = room;
            self.tell(SpoolEvent::Space { used_bytes, room_bytes });
        }
    }

    fn carry_out(&mut self, order: SpoolOrder) {
        match order {
            SpoolOrder::Write(frame) => {
                // Before the ring may be released on the strength of it.
                self.memory.set_in_use(true);
                match self.store.append(&frame) {
                    Ok(()) => {
                        self.tell(SpoolEvent::Written { seq: frame.frame.seq });
                        self.unreported += 1;
                        if self.unreported >= REPORT_WRITES {
                            self.report();
                        }
                    }
                    Err(error) => self.tell(SpoolEvent::WriteFailed { detail: error_text(&error) }),
                }
            }
            SpoolOrder::Read { after_seq, max_bytes } => {
                let event = match self.store.read(after_seq, max_bytes) {
                    Ok(frames) => SpoolEvent::Read(frames),
                    Err(error) => SpoolEvent::ReadFailed { detail: error_text(&error) },
                };
                self.tell(event);
            }
            SpoolOrder::GiveUp { seq } => {
                self.store.give_up(seq);
                if self.store.is_empty() {
                    self.memory.set_in_use(false);
                }
                self.report();
            }
            SpoolOrder::Clear => {
                self.store.clear();
                self.tell(SpoolEvent::Cleared);
                self.report();
            }
        }
    }
}
