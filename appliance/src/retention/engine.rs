//! The worker: one VM after another, one fold at a time.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tidemark_journal::Journal;
use tidemark_journal::retention::{
    Advanced, Due, FoldError, ImageKeeper, Policy, Pressure, Terms, advance, due, held_back as held_back_of,
    step_bytes,
};
use tidemark_journal::store::ChunkStore;
use tidemark_proto::ids::VmId;
use tidemark_proto::v1::Alarm;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::clock::{Now, RetentionClock, Tick};
use super::collect::collect;
use super::effective::{defined, effective_of, note};
use super::pace::Pacer;
use crate::core::Core;
use crate::fleet::Vm;
use crate::images::SHARED_DOMAIN;
use crate::metrics::VmLabel;
use crate::sets;

/// Between looks at all VMs. A window is at most this and a fold longer than its policy says.
const INTERVAL: Duration = Duration::from_secs(30);

/// Between looks while space is short: a stream at 100 MB/s writes half a gigabyte meanwhile.
const INTERVAL_SHORT: Duration = Duration::from_secs(5);

/// Less than a step is folded once it is older than the window by this part of it.
const FOLD_LATE_DIVISOR: u64 = 8;

/// Between collections. What they free waits no longer than that for it, unless space is short.
const COLLECT_INTERVAL: Duration = Duration::from_secs(600);

/// Between copies of the clock to disk, microseconds. What a crash loses of it the kernel's clock makes up for.
const CLOCK_SAVE_US: u64 = 300 * 1_000_000;

/// What a run did to one VM.
#[derive(Debug)]
pub struct Ran {
    /// The VM's name.
    pub vm: String,
    /// What was done, or why not all of it.
    pub outcome: Result<Advanced, String>,
}

/// Retention of this appliance.
#[derive(Debug)]
pub struct Retention {
    keeper: Arc<ImageKeeper>,
    clock: Mutex<RetentionClock>,
    clock_path: PathBuf,
    clock_saved_us: AtomicU64,
    wake: Notify,
    paused: AtomicBool,
    /// Held while a run is under way: one at a time.
    running: tokio::sync::Mutex<()>,
    problems: Mutex<BTreeMap<String, String>>,
    /// By clone, what it keeps of another's log.
    held_back: Mutex<BTreeMap<VmId, u64>>,
    /// Something may be garbage since the last collection.
    garbage: AtomicBool,
    /// The store had no space for a fold since the last collection.
    full: AtomicBool,
    collected: Mutex<Instant>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Retention {
    /// Over a store; the clock is kept in a file. `least_us`: the latest time that any journal has seen.
    #[must_use]
    pub fn new(keeper: Arc<ImageKeeper>, clock_path: PathBuf, least_us: u64) -> Self {
        Self {
            keeper,
            clock: Mutex::new(RetentionClock::load(&clock_path, &Tick::now(), least_us)),
            clock_path,
            clock_saved_us: AtomicU64::new(0),
            wake: Notify::new(),
            paused: AtomicBool::new(false),
            running: tokio::sync::Mutex::default(),
            problems: Mutex::default(),
            held_back: Mutex::default(),
            // What a crash left half-built.
            garbage: AtomicBool::new(true),
            full: AtomicBool::new(false),
            collected: Mutex::new(Instant::now()),
        }
    }

    /// Reads images of this appliance's store for views.
    #[must_use]
    pub fn keeper(&self) -> Arc<ImageKeeper> {
        Arc::clone(&self.keeper)
    }

    /// Looks soon.
    pub fn wake(&self) {
        self.wake.notify_one();
    }

    /// Something in the store may be garbage now.
    pub fn soiled(&self) {
        self.garbage.store(true, Ordering::Relaxed);
    }

    /// Ends the fold under way soon and begins none, or goes on.
    pub fn pause(&self, paused: bool) {
        self.paused.store(paused, Ordering::SeqCst);
        self.wake();
    }

    /// Whether nothing is folded for now.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.paused.load(Ordering::SeqCst)
    }

    /// The time as retention sees it.
    #[must_use]
    pub fn now(&self) -> Now {
        let mut clock = lock(&self.clock);
        let now = clock.observe(&Tick::now());
        if now.locks_us.saturating_sub(self.clock_saved_us.load(Ordering::Relaxed)) >= CLOCK_SAVE_US {
            match clock.save(&self.clock_path) {
                Ok(()) => self.clock_saved_us.store(now.locks_us, Ordering::Relaxed),
                Err(error) => tracing::warn!(%error, "cannot keep the clock of retention"),
            }
        }
        now
    }

    /// What an operator should look at.
    #[must_use]
    pub fn alarms(&self) -> Vec<Alarm> {
        let alarm =
            |vm: &str, text: String| Alarm { vm: vm.to_owned(), severity: "warning".to_owned(), text };
        let mut alarms: Vec<Alarm> = lock(&self.problems)
            .iter()
            .map(|(vm, problem)| alarm(vm, format!("retention does not go on: {problem}")))
            .collect();
        if let Some(jump) = self.now().jump {
            let text = if jump.ahead_us == 0 {
                "the clock was never set: nothing is folded and no lock or hold ends until it is; set the clock".to_owned()
            } else {
                format!(
                    "the clock is {} min ahead of what can be explained: windows follow it in {} min, locks do not; \
                 check the clock",
                    jump.ahead_us / 60_000_000,
                    jump.believed_in_us / 60_000_000
                )
            };
            alarms.push(alarm("", text));
        }
        if self.is_paused() {
            alarms.push(alarm("", "folding is paused: journals grow until it is resumed".to_owned()));
        }
        alarms
    }

    /// Works until `ending`.
    pub async fn work(core: Arc<Core>, ending: CancellationToken) {
        loop {
            let interval = if core.space.borrow().low() { INTERVAL_SHORT } else { INTERVAL };
            tokio::select! {
                () = tokio::time::sleep(interval) => {}
                () = core.retention.wake.notified() => {}
                () = ending.cancelled() => return,
            }
            if core.stopping.is_cancelled() {
                continue;
            }
            let (sender, done) = tokio::sync::oneshot::channel();
            let shared = Arc::clone(&core);
            // As a task that shutdown waits for: a journal in use is not closed cleanly.
            core.tasks.spawn(async move {
                Self::run(&shared, None, false).await;
                let _ = sender.send(());
            });
            let _ = done.await;
        }
    }

    /// Does what is due of one VM, or of all; with `force` also what is not worth it yet, and a collection.
    pub async fn run(core: &Arc<Core>, only: Option<&Arc<Vm>>, force: bool) -> Vec<Ran> {
        let _running = core.retention.running.lock().await;
        let (policies, assignments) = match (core.catalog.policies().await, sets::assignments(core).await) {
            (Ok(policies), Ok(assignments)) => (defined(&policies), assignments),
            (Err(error), _) | (_, Err(error)) => {
                tracing::warn!(%error, "retention waits for the catalog");
                return Vec::new();
            }
        };
        let pressure = if core.space.borrow().low() { Pressure::Shorten } else { Pressure::None };
        let (mut ran, mut collected) = (Vec::new(), false);
        for vm in in_order(core.fleet.with_clones()) {
            if only.is_some_and(|only| only.id != vm.id) || core.stopping.is_cancelled() {
                continue;
            }
            let named = effective_of(core, &vm, &policies, &assignments);
            let (shared, one) = (Arc::clone(core), Arc::clone(&vm));
            let stepped = tokio::task::spawn_blocking(move || {
                // A clone follows what it was made from, so it has no note of its own.
                if one.origin.is_none() {
                    note(&one, &named);
                }
                shared.retention.step(&shared, &one, &named.policy, pressure, force)
            });
            let outcome = stepped.await.unwrap_or_else(|error| Err(error.to_string()));
            if let Some(outcome) = outcome.transpose() {
                ran.push(Ran { vm: vm.name.clone(), outcome });
            }
            // What the others need may be garbage. Once: what one collection left, a second one at once leaves too.
            if core.retention.full.swap(false, Ordering::Relaxed) && !collected {
                core.retention.collect_if_due(core, true).await;
                collected = true;
            }
        }
        core.retention.collect_if_due(core, force || pressure == Pressure::Shorten).await;
        ran
    }

    /// One VM. `None`: nothing is due.
    fn step(
        &self,
        core: &Core,
        vm: &Vm,
        policy: &Policy,
        pressure: Pressure,
        force: bool,
    ) -> Result<Option<Advanced>, String> {
        let Ok(journal) = vm.log.writable() else { return Ok(None) };
        if self.is_paused() {
            return Ok(None);
        }
        let now = self.now();
        // The first fold of a branch writes all of its disks and frees little: not while space is short.
        let branch = journal.branch_point().is_some();
        if branch && pressure == Pressure::Shorten {
            return Ok(None);
        }
        let log_bytes = journal.log_parts().iter().map(|part| part.bytes).sum();
        let terms = Terms {
            policy: *policy,
            now_us: now.windows_us,
            lock_now_us: now.locks_us,
            pressure,
            step_bytes: step_bytes(log_bytes, core.space.borrow().free_bytes),
        };
        let mut pacer = Pacer::new(core, vm, &journal);
        let store: &Arc<ChunkStore> = core.images.store();
        let advanced = due(&journal, &terms).and_then(|due| {
            self.note_held_back(core, &journal, &due);
            if !force && !is_worth_it(&due, &terms) {
                return Ok(None);
            }
            let mut pace = |bytes| !(branch && core.space.borrow().low()) && pacer.go_on(bytes);
            advance(&journal, store, SHARED_DOMAIN, &terms, &mut pace).map(Some)
        });
        if core.fleet.get(vm.id).is_some() {
            let label = VmLabel { vm: vm.name.clone() };
            let snapshots = i64::try_from(journal.snapshots().len()).unwrap_or(i64::MAX);
            core.metrics.snapshots.get_or_create(&label).set(snapshots);
            let folded_bytes = advanced.as_ref().ok().copied().flatten().map_or(0, |done| done.folded_bytes);
            core.metrics.folded_bytes.get_or_create(&label).inc_by(folded_bytes);
        }
        match advanced {
            Ok(None) => {
                // Views may have kept a clone's parent when its history was folded, and have ended since.
                crate::clones::let_parent_go(core, vm);
                Ok(None)
            }
            Ok(Some(done)) => {
                if done.base.is_some() {
                    self.soiled();
                }
                crate::clones::let_parent_go(core, vm);
                if done.segments > 0 {
                    remove_what_clones_kept(core, vm, &journal)?;
                }
                lock(&self.problems).remove(&vm.name);
                if done.folded_bytes > 0 || done.segments > 0 || done.given_up > 0 {
                    tracing::info!(vm = vm.name, ?done, "history folded");
                }
                Ok(Some(done))
            }
            // Someone needs the journal, or the appliance ends: the next run goes on.
            Err(FoldError::Stopped) => {
                self.soiled();
                Ok(Some(Advanced::default()))
            }
            Err(error) => {
                self.soiled();
                if matches!(error, FoldError::Full) {
                    self.full.store(true, Ordering::Relaxed);
                }
                let problem = error.to_string();
                self.note_problem(core, vm, &problem);
                Err(problem)
            }
        }
    }

    /// Notes what clones keep of a journal's log.
    fn note_held_back(&self, core: &Core, journal: &Journal, due: &Due) {
        let mut held_back = lock(&self.held_back);
        for (pin, bytes) in held_back_of(journal, due) {
            let Some(clone) = crate::clones::of_pin(&pin).and_then(|id| core.fleet.get(id)) else { continue };
            let label = VmLabel { vm: clone.name.clone() };
            core.metrics.held_back.get_or_create(&label).set(i64::try_from(bytes).unwrap_or(i64::MAX));
            held_back.insert(clone.id, bytes);
        }
    }

    /// Bytes of a log that stay only for a clone, as of the last look.
    #[must_use]
    pub fn held_back(&self, clone: VmId) -> u64 {
        lock(&self.held_back).get(&clone).copied().unwrap_or(0)
    }

    /// A clone keeps nothing of another's log any more.
    pub fn forget_held_back(&self, clone: VmId) {
        lock(&self.held_back).remove(&clone);
    }

    /// A VM or clone is removed, and out of the fleet.
    pub fn forget(&self, id: VmId, name: &str) {
        self.forget_held_back(id);
        lock(&self.problems).remove(name);
    }

    /// Notes why a VM or clone is not folded, unless it was removed meanwhile: then nobody would take the note away.
    fn note_problem(&self, core: &Core, vm: &Vm, problem: &str) {
        let mut problems = lock(&self.problems);
        // Under the lock, which whoever removes it takes once it is out of the fleet.
        if core.fleet.get(vm.id).is_none() {
            return;
        }
        let known = problems.insert(vm.name.clone(), problem.to_owned());
        if known.as_deref() != Some(problem) {
            tracing::error!(vm = vm.name, problem, "cannot fold history");
        }
    }

    async fn collect_if_due(&self, core: &Arc<Core>, now: bool) {
        let waited = lock(&self.collected).elapsed() >= COLLECT_INTERVAL;
        if core.stopping.is_cancelled() || !(now || waited) || !self.garbage.swap(false, Ordering::Relaxed) {
            return;
        }
        *lock(&self.collected) = Instant::now();
        let shared = Arc::clone(core);
        let collected = tokio::task::spawn_blocking(move || collect(&shared)).await;
        match collected {
            Ok(Ok(report)) => {
                core.metrics.collected_bytes.inc_by(report.freed_bytes);
                lock(&self.problems).remove("");
                if report.freed_bytes > 0 {
                    tracing::info!(?report, "space freed in the chunk store");
                }
            }
            Ok(Err(error)) => {
                self.soiled();
                let problem = error.to_string();
                if lock(&self.problems).insert(String::new(), problem.clone()).as_ref() != Some(&problem) {
                    tracing::error!(problem, "cannot free space in the chunk store");
                }
            }
            Err(error) => tracing::error!(%error, "a collection ended unexpectedly"),
        }
    }
}

/// Those that a first fold makes independent of another's history come last: it takes the most space, and what the others
/// give back helps it.
fn in_order(vms: Vec<Arc<Vm>>) -> Vec<Arc<Vm>> {
    let branch = |vm: &Arc<Vm>| vm.log.journal().is_ok_and(|journal| journal.branch_point().is_some());
    let (branches, mut ordered): (Vec<_>, Vec<_>) = vms.into_iter().partition(branch);
    ordered.extend(branches);
    ordered
}

/// Removes files that stayed because a clone had them from its last read, of this one or below.
fn remove_what_clones_kept(core: &Core, vm: &Vm, journal: &Journal) -> Result<(), String> {
    crate::clones::let_views_go(core, vm.id);
    journal.drop_folded().map(drop).map_err(|error| error.to_string())
}

/// Whether what is due pays for the work it makes.
fn is_worth_it(due: &Due, terms: &Terms) -> bool {
    let patience = terms.policy.window_us.saturating_add(terms.policy.window_us / FOLD_LATE_DIVISOR);
    let late = due.foldable_since_us.is_some_and(|since| {
        terms.pressure == Pressure::Shorten || terms.now_us.saturating_sub(since) >= patience
    });
    !due.plan.stops.is_empty() || !due.plan.drop.is_empty() || due.foldable_bytes >= terms.step_bytes || late
}
