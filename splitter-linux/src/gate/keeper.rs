//! The keeper: a thread of the splitter that has every wanted gate in place and in force.
//!
//! It compares what is wanted (`gates.toml`) with what the kernel has, ten times a second, and does the next step: that
//! serves a first insertion, a volume that came up without its gate after a reboot, a gate whose process was killed, and
//! a splitter that was restarted beside a running gate, all alike.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use tidemark_proto::limits::{SYNC_LEASE_US, SYNC_VOLUMES_MAX};

use super::error::GateError;
use super::insertion;
use super::launch::{self, Process, Work};
use super::mapper::Mapper;
use super::page::{self, OnLapse, Page};
use super::sampler::{Sample, Sampler};
use super::shared::{Gate, Gates};
use super::volume::Volume;
use crate::capture;
use crate::daemon::{Handle, now_us};
use crate::disks::{self, Disk};
use crate::state::{StateDir, SyncVolumeConfig};

const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// Between two attempts at something that failed. Each may take a while and is logged.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);
/// Between a lapse and the next promise: a link that comes and goes must not make the guest wait all the time.
const REST_US: u64 = 1_000_000;

/// What a person asks.
#[derive(Debug)]
pub(crate) enum Order {
    /// Synchronous mode for this volume.
    Sync { path: PathBuf, on_lapse: OnLapse, hold_max_s: u32, reply: Reply },
    /// Asynchronous mode.
    Async { path: PathBuf, reply: Reply },
}

type Reply = tokio::sync::oneshot::Sender<Result<(), String>>;

/// Progress with one gate.
#[derive(Debug, Default)]
struct Progress {
    process: Option<Process>,
    retry_at: Option<Instant>,
    /// A promise was made that is not told yet: everything up to here must be acknowledged first.
    entering: Option<Sample>,
    was_in_force: bool,
    rest_until_us: u64,
}

#[derive(Debug)]
struct Keeper {
    state: StateDir,
    capture: String,
    gates: Arc<Gates>,
    progress: BTreeMap<String, Progress>,
    worker: Handle,
}

/// Starts the keeper. It ends with the process; gates stay.
pub(crate) fn start(
    state: StateDir,
    gates: Arc<Gates>,
    worker: Handle,
) -> std::io::Result<mpsc::SyncSender<Order>> {
    let (orders, queue) = mpsc::sync_channel(16);
    let capture = capture::name_for(state.root());
    let mut keeper = Keeper { state, capture, gates, progress: BTreeMap::new(), worker };
    std::thread::Builder::new().name("gates".into()).spawn(move || {
        keeper.adopt();
        loop {
            match queue.recv_timeout(LOOK_INTERVAL) {
                Ok(order) => keeper.obey(order),
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
            }
            for gate in keeper.gates.list() {
                keeper.look(&gate);
            }
        }
    })?;
    Ok(orders)
}

impl Keeper {
    /// The gates of a previous process, or of before a reboot.
    fn adopt(&mut self) {
        let wanted = self.state.gates().unwrap_or_else(|error| {
            tracing::error!(%error, "it is not known which volumes are to be in synchronous mode");
            crate::state::GatesFile::default()
        });
        for config in wanted.volumes {
            match Page::open(&page::folder(&self.capture, &config.name)) {
                Ok(page) => {
                    self.hold(config.path, config.name, config.on_lapse, config.hold_max_s, page);
                }
                Err(error) => tracing::error!(%error, volume = config.name, "its gate cannot be reached"),
            }
        }
    }

    fn hold(&self, path: PathBuf, name: String, on_lapse: OnLapse, hold_max_s: u32, page: Page) -> Arc<Gate> {
        let gate = Arc::new(Gate::new(path, name, on_lapse, hold_max_s, Arc::new(page)));
        // A promise of the process before this one was told; it is kept, and made anew from here.
        self.gates.add(Arc::clone(&gate));
        follow_waiters(&gate, Arc::clone(&self.gates), self.worker.clone());
        gate
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Sync { path, on_lapse, hold_max_s, reply } => {
                let done = self.make_sync(path, on_lapse, hold_max_s).map_err(|error| format!("{error:#}"));
                let _ = reply.send(done);
            }
            Order::Async { path, reply } => {
                let _ = reply.send(self.make_async(&path).map_err(|error| format!("{error:#}")));
            }
        }
    }

    fn make_sync(&mut self, path: PathBuf, on_lapse: OnLapse, hold_max_s: u32) -> anyhow::Result<()> {
        launch::check()?;
        let mapper = Mapper::open()?;
        let volume = Volume::at(&mapper, &path)?;
        let name = volume.mapped.name.clone();
        if let Some(known) = self.gates.list().into_iter().find(|gate| gate.name == name) {
            anyhow::ensure!(
                known.on_lapse == on_lapse && known.hold_max_s == hold_max_s,
                "{} is in mode sync with another --on-lapse: switch it to async first",
                path.display()
            );
            return Ok(());
        }
        let mut wanted = self.state.gates()?;
        anyhow::ensure!(
            wanted.volumes.len() < SYNC_VOLUMES_MAX,
            "{SYNC_VOLUMES_MAX} volumes are in synchronous mode already, which is the most one VM can have"
        );
        volume.check(&path, &self.protected()?, self.state.root())?;
        // Before the gate is there: one that nobody remembers would have no successor should it die.
        let before = wanted.clone();
        let config = SyncVolumeConfig { path: path.clone(), name: name.clone(), on_lapse, hold_max_s };
        wanted.volumes.push(config);
        self.state.store_gates(&wanted)?;
        let process = match insertion::insert(&mapper, &self.capture, &volume) {
            Ok(process) => process,
            Err(error) => {
                self.state.store_gates(&before)?;
                return Err(error.into());
            }
        };
        let page = Page::open(&page::folder(&self.capture, &name))?;
        self.progress.insert(name.clone(), Progress { process: Some(process), ..Progress::default() });
        let gate = self.hold(path, name, on_lapse, hold_max_s, page);
        gate.stand(true, "everything written before is on its way");
        tracing::info!(volume = gate.name, "the gate is in place");
        Ok(())
    }

    fn protected(&self) -> anyhow::Result<Vec<Disk>> {
        let known = self.state.disks()?.disks;
        Ok(known.iter().filter_map(|disk| disks::find(&disk.identity).ok()).collect())
    }

    /// First the promise ends, which the appliance knows of; then the gate is taken away.
    fn make_async(&mut self, path: &Path) -> anyhow::Result<()> {
        let mapper = Mapper::open()?;
        let volume = Volume::at(&mapper, path).ok();
        let name = volume.as_ref().map(|volume| volume.mapped.name.clone());
        let known =
            self.gates.list().into_iter().find(|gate| Some(&gate.name) == name.as_ref() || gate.path == path);
        let gate = match (known, volume) {
            (Some(gate), _) => gate,
            // Nobody remembers it.
            (None, Some(volume)) if volume.gated_by.is_some() => {
                let page = Page::open(&page::folder(&self.capture, &volume.mapped.name))?;
                self.hold(path.to_owned(), volume.mapped.name, OnLapse::Async, 0, page)
            }
            // Nothing to do is done.
            (None, Some(_)) => return Ok(()),
            (None, None) => return Err(GateError::NotMapped(path.to_owned()).into()),
        };
        gate.leaving.store(true, Ordering::Release);
        gate.stand(true, "it is being switched to async");
        insertion::end_promise(&gate.page);
        gate.in_force.store(false, Ordering::Release);
        if let Some(volume) = Volume::named(&mapper, &gate.name)? {
            insertion::remove(&mapper, &self.capture, &volume)?;
        }
        if let Some(process) = self.progress.remove(&gate.name).and_then(|progress| progress.process) {
            process.wait();
        }
        self.gates.forget(&gate.name);
        // Only now: until it is away a splitter that starts anew must look after it.
        let mut wanted = self.state.gates()?;
        wanted.volumes.retain(|config| config.name != gate.name);
        self.state.store_gates(&wanted)?;
        tracing::info!(volume = gate.name, "the gate is removed; the volume is in mode async");
        Ok(())
    }

    /// The next step with one gate.
    fn look(&mut self, gate: &Arc<Gate>) {
        match self.put_in_place(gate) {
            Ok(true) => self.put_in_force(gate),
            Ok(false) => {}
            Err(error) => self.put_off(gate, false, &error.to_string()),
        }
    }

    fn put_off(&mut self, gate: &Arc<Gate>, in_place: bool, cause: &str) {
        let progress = self.progress.entry(gate.name.clone()).or_default();
        progress.retry_at = Some(Instant::now() + RETRY_INTERVAL);
        // It is entered anew, whether or not the promise lapses meanwhile.
        (progress.was_in_force, progress.entering) = (false, None);
        gate.in_force.store(false, Ordering::Release);
        if gate.stand(in_place, cause) {
            tracing::warn!(volume = gate.name, cause, "synchronous mode is not in force");
        }
    }

    /// Whether it is there and was there before.
    fn put_in_place(&mut self, gate: &Arc<Gate>) -> Result<bool, GateError> {
        let progress = self.progress.entry(gate.name.clone()).or_default();
        if let Some(process) = &mut progress.process {
            process.collect();
        }
        if progress.retry_at.is_some_and(|at| Instant::now() < at) {
            return Ok(false);
        }
        progress.retry_at = None;
        let mapper = Mapper::open()?;
        let Some(volume) = Volume::named(&mapper, &gate.name)? else {
            return Err(GateError::NotStarted(format!("{} is not active", gate.path.display())));
        };
        if volume.gated_by.is_some() {
            if insertion::process_runs(&self.capture, &gate.name) {
                return Ok(true);
            }
            tracing::warn!(volume = gate.name, "the gate's process is gone; another takes over");
            progress.process = Some(launch::start(&self.capture, &gate.name, Work::Serve)?);
            return Ok(true);
        }
        // A reboot, or somebody changed the volume's table: what was promised may not have been kept.
        gate.in_force.store(false, Ordering::Release);
        if gate.page.promise_us() != 0 {
            tracing::warn!(volume = gate.name, "the volume lost its gate: LVM has changed it");
        }
        let disks = self.protected().map_err(|error| GateError::NotStarted(format!("{error:#}")))?;
        volume.check(&gate.path, &disks, self.state.root())?;
        let process = insertion::insert(&mapper, &self.capture, &volume)?;
        tracing::info!(volume = gate.name, "the gate is in place again");
        let name = gate.name.clone();
        self.progress.insert(name.clone(), Progress { process: Some(process), ..Progress::default() });
        // Its folder was made anew, and with it the page.
        let page = Page::open(&page::folder(&self.capture, &name))?;
        self.gates.forget(&name);
        self.hold(gate.path.clone(), name, gate.on_lapse, gate.hold_max_s, page).stand(true, "just in place");
        Ok(false)
    }

    /// Makes promises, and notices when one has lapsed.
    fn put_in_force(&mut self, gate: &Arc<Gate>) {
        let Some(progress) = self.progress.get_mut(&gate.name) else { return };
        if progress.retry_at.is_some() || gate.leaving.load(Ordering::Acquire) {
            return;
        }
        let now = now_us();
        let obstacle = self.gates.obstacle(now);
        if gate.page.promise_us() == 0 {
            let lapsed = progress.was_in_force || progress.entering.is_some();
            gate.in_force.store(false, Ordering::Release);
            progress.entering = None;
            if lapsed {
                progress.rest_until_us = now.saturating_add(REST_US);
                let cause = obstacle.unwrap_or("acknowledgements took longer than the lease");
                tracing::warn!(
                    volume = gate.name,
                    cause,
                    "synchronous mode lapsed: writes complete without the appliance"
                );
                progress.was_in_force = false;
            }
            if let Some(cause) = obstacle {
                gate.stand(true, cause);
                return;
            }
            if now < progress.rest_until_us {
                gate.stand(true, "it lapsed a moment ago");
                return;
            }
            match Sampler::of(&self.capture) {
                // First the promise, then the sample: whatever completed without one is in the ring before it.
                Ok(sampler) => {
                    gate.page.words().promise_us.store(now.saturating_add(SYNC_LEASE_US), Ordering::SeqCst);
                    progress.entering = Some(sampler.sample());
                    gate.stand(true, "everything written before is on its way");
                }
                Err(error) => self.put_off(gate, true, &error.to_string()),
            }
        } else if let Some(before) = progress.entering {
            if gate.page.covers(before.generation, before.position) {
                progress.entering = None;
                progress.was_in_force = true;
                gate.in_force.store(true, Ordering::Release);
                gate.stand(true, "");
                tracing::info!(volume = gate.name, "synchronous mode is in force");
            }
        } else if !progress.was_in_force {
            // A promise of the process before this one: it held, so it goes on once everything is acknowledged again.
            if let Ok(sampler) = Sampler::of(&self.capture) {
                progress.entering = Some(sampler.sample());
            }
        } else if let Some(cause) = obstacle {
            gate.stand(true, cause);
        }
    }
}

/// Wakes the worker whenever a write begins to wait: the ring does not wake its reader.
fn follow_waiters(gate: &Arc<Gate>, gates: Arc<Gates>, worker: Handle) {
    let page = Arc::downgrade(&gate.page);
    let follow = move || {
        let mut seen = 0;
        while let Some(page) = page.upgrade() {
            let word = &page.words().waiting;
            let now = word.load(Ordering::Acquire);
            if now != seen {
                seen = now;
                gates.wait();
                worker.kick();
            }
            page::wait(word, seen, LOOK_INTERVAL * 5);
        }
    };
    if let Err(error) = std::thread::Builder::new().name("gate-waiters".into()).spawn(follow) {
        tracing::warn!(%error, "writes in synchronous mode wait for the next look at the ring");
    }
}

/// Without a splitter: takes every gate of this state away and forgets it. The state must be locked by the caller.
///
/// # Errors
/// When a gate cannot be taken away; it is remembered then, and goes on serving.
pub(crate) fn take_out(state: &StateDir) -> anyhow::Result<()> {
    let capture = capture::name_for(state.root());
    let mut wanted = state.gates()?;
    while let Some(config) = wanted.volumes.last().cloned() {
        let mapper = Mapper::open()?;
        insertion::end_promise(&Page::open(&page::folder(&capture, &config.name))?);
        match Volume::named(&mapper, &config.name)? {
            Some(volume) => insertion::remove(&mapper, &capture, &volume)?,
            None => insertion::clear_away(&mapper, &capture, &config.name)?,
        }
        wanted.volumes.pop();
        state.store_gates(&wanted)?;
    }
    Ok(())
}
