//! What the worker, the session and the keeper of the gates share.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tidemark_proto::limits::{SYNC_LEASE_US, SYNC_VOLUMES_MAX};
use tidemark_proto::v1::{SyncState, SyncVolume};

use super::page::{OnLapse, Page};
use crate::control::VolumeStatus;

/// Promises are renewed only while acknowledgements come: the last one, with no gap open, at most this long ago. A dead
/// appliance is thus noticed after this time and a write waits for at most this time and the lease.
pub(crate) const FRESH_US: u64 = 1_000_000;

/// One volume that is to be in synchronous mode.
#[derive(Debug)]
pub(crate) struct Gate {
    pub(crate) path: PathBuf,
    /// Device-mapper's name.
    pub(crate) name: String,
    pub(crate) on_lapse: OnLapse,
    pub(crate) hold_max_s: u32,
    pub(crate) page: Arc<Page>,
    /// Everything is acknowledged since the promise was made: it may be told.
    pub(super) in_force: AtomicBool,
    /// The gate is to be removed: no promise is renewed.
    pub(super) leaving: AtomicBool,
    /// The newest promise that was told to the appliance.
    told_us: AtomicU64,
    standing: Mutex<Standing>,
}

/// Where a gate stands, for people.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Standing {
    pub(super) in_place: bool,
    /// Why it is not in force.
    pub(super) cause: String,
}

impl Gate {
    pub(super) fn new(
        path: PathBuf,
        name: String,
        on_lapse: OnLapse,
        hold_max_s: u32,
        page: Arc<Page>,
    ) -> Self {
        let hold_us = if on_lapse == OnLapse::Hold { u64::from(hold_max_s) * 1_000_000 } else { 0 };
        page.words().hold_us.store(hold_us, Ordering::Release);
        Self {
            path,
            name,
            on_lapse,
            hold_max_s,
            page,
            in_force: AtomicBool::new(false),
            leaving: AtomicBool::new(false),
            told_us: AtomicU64::new(0),
            standing: Mutex::default(),
        }
    }

    pub(super) fn stand(&self, in_place: bool, cause: &str) -> bool {
        let mut standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
        let new = Standing { in_place, cause: cause.to_owned() };
        let changed = *standing != new;
        *standing = new;
        changed
    }

    pub(super) fn standing(&self) -> Standing {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The promise that holds, told or not; 0 when nothing is promised.
    fn proven_us(&self) -> u64 {
        if self.in_force.load(Ordering::Acquire) { self.page.promise_us() } else { 0 }
    }
}

/// All gates of this splitter.
#[derive(Debug, Default)]
pub(crate) struct Gates {
    list: Mutex<Vec<Arc<Gate>>>,
    /// When an acknowledgement came last while no gap was open; 0 before.
    fresh_us: AtomicU64,
    connected: AtomicBool,
    waiting: AtomicBool,
    /// The appliance records promises.
    granted: AtomicBool,
}

impl Gates {
    pub(crate) fn list(&self) -> Vec<Arc<Gate>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn add(&self, gate: Arc<Gate>) {
        self.list.lock().unwrap_or_else(PoisonError::into_inner).push(gate);
    }

    pub(super) fn forget(&self, name: &str) {
        self.list.lock().unwrap_or_else(PoisonError::into_inner).retain(|gate| gate.name != name);
    }

    /// A write waits.
    pub(super) fn wait(&self) {
        self.waiting.store(true, Ordering::Release);
    }

    /// The worker: whether a write began to wait since the last look.
    pub(crate) fn take_waiting(&self) -> bool {
        self.waiting.swap(false, Ordering::AcqRel)
    }

    /// The worker: everything up to here is acknowledged, just now.
    pub(crate) fn publish(&self, capture: [u64; 2], generation: u32, position: u64, now_us: u64) {
        self.fresh_us.store(now_us, Ordering::Release);
        for gate in self.list() {
            gate.page.publish(capture, u64::from(generation), position);
        }
    }

    /// A session began or ended; `granted` when its appliance records promises.
    pub(crate) fn connected(&self, connected: bool, granted: bool) {
        self.connected.store(connected, Ordering::Release);
        self.granted.store(granted, Ordering::Release);
    }

    /// Why no promise can be made now; `None` when it can.
    pub(super) fn obstacle(&self, now_us: u64) -> Option<&'static str> {
        if !self.connected.load(Ordering::Acquire) {
            Some("not connected to the appliance")
        } else if !self.granted.load(Ordering::Acquire) {
            Some("the appliance is older than synchronous mode: upgrade it")
        } else if now_us.saturating_sub(self.fresh_us.load(Ordering::Acquire)) > FRESH_US {
            Some("a copy or resync is running, or the appliance does not acknowledge in time")
        } else {
            None
        }
    }

    /// The session, as it makes a ping: renews what can be renewed and says what is promised.
    pub(crate) fn promises(&self, now_us: u64) -> Vec<SyncVolume> {
        let possible = self.obstacle(now_us).is_none();
        self.list().iter().take(SYNC_VOLUMES_MAX).map(|gate| self.promise(gate, possible, now_us)).collect()
    }

    fn promise(&self, gate: &Gate, possible: bool, now_us: u64) -> SyncVolume {
        let standing = gate.standing();
        let mut said = SyncVolume {
            volume: gate.path.display().to_string(),
            state: SyncState::NotInForce.into(),
            promised_until_us: 0,
            cause: standing.cause,
        };
        let in_force = gate.in_force.load(Ordering::Acquire);
        if gate.leaving.load(Ordering::Acquire) {
            said.state = SyncState::Leaving.into();
        } else if in_force && possible && gate.page.extend(now_us.saturating_add(SYNC_LEASE_US)) {
            said.state = SyncState::InForce.into();
            said.promised_until_us = gate.page.promise_us();
            gate.told_us.store(said.promised_until_us, Ordering::Release);
            said.cause = String::new();
        }
        said
    }

    /// For `status`.
    pub(crate) fn status(&self, now_us: u64, wall_us: u64) -> Vec<VolumeStatus> {
        let status = |gate: &Arc<Gate>| {
            let (standing, words) = (gate.standing(), gate.page.words());
            let proven = gate.proven_us();
            let in_force = proven > now_us;
            VolumeStatus {
                path: gate.path.clone(),
                mode: "sync".to_owned(),
                in_force,
                gate: if standing.in_place { "in-place" } else { "missing" }.to_owned(),
                cause: if in_force { String::new() } else { standing.cause },
                proven_until_us: (proven != 0).then(|| wall_us.saturating_add(proven).saturating_sub(now_us)),
                on_lapse: match gate.on_lapse {
                    OnLapse::Async => "async".to_owned(),
                    OnLapse::Hold => format!("hold {} s", gate.hold_max_s),
                },
                lapses: words.lapses.load(Ordering::Acquire),
                waiting_writes: words.held_now.load(Ordering::Acquire),
                waited_writes: words.held.load(Ordering::Acquire),
                waited_us: words.held_us.load(Ordering::Acquire),
                waited_max_us: words.held_max_us.load(Ordering::Acquire),
                unreplicated_writes: words.unreplicated.load(Ordering::Acquire),
                process: words.process.load(Ordering::Acquire),
            }
        };
        self.list().iter().map(status).collect()
    }
}
