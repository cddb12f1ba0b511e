//! One VM, and all of them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};

use tidemark_journal::branch::BranchPoint;
use tidemark_proto::ids::VmId;
use tidemark_proto::v1;
use tokio::sync::oneshot;
use uuid::Uuid;

use super::barrier::Place;
use super::{Command, Live, PlacedMarker, SessionHandle, VerifyJob, VmLog};

/// What became of a marker that was asked for.
pub type MarkerOutcome = Result<PlacedMarker, String>;

/// Markers of one VM that are waited for at the same time, at most. Further requests are refused.
const MARKERS_WAITING_MAX: usize = 64;

/// Where a clone comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// The VM or clone and the point that it continues; `None` when it needs no other (any more).
    pub point: Option<BranchPoint>,
    /// The template it was made from: the object's id.
    pub template: Option<Uuid>,
    /// When it was made, microseconds since 1970.
    pub created_us: u64,
}

/// One VM, or a clone of one: a clone has no stream.
#[derive(Debug)]
pub struct Vm {
    /// Its id.
    pub id: VmId,
    /// Its name.
    pub name: String,
    /// Its journal.
    pub log: Arc<VmLog>,
    /// Of a clone, where it comes from.
    pub origin: Option<Origin>,
    /// Held while a hello is judged: one at a time.
    pub(crate) admission: tokio::sync::Mutex<()>,
    session: Mutex<Option<SessionHandle>>,
    live: Mutex<Live>,
    pub(super) verify: Mutex<Option<VerifyJob>>,
    waiting: Mutex<HashMap<u64, oneshot::Sender<MarkerOutcome>>>,
    pub(super) barrier: Place,
    next_request: AtomicU64,
}

impl Vm {
    /// A VM without a session.
    #[must_use]
    pub fn new(id: VmId, name: String, log: Arc<VmLog>) -> Self {
        Self {
            id,
            name,
            log,
            origin: None,
            admission: tokio::sync::Mutex::new(()),
            session: Mutex::default(),
            live: Mutex::default(),
            verify: Mutex::default(),
            waiting: Mutex::default(),
            barrier: Place::default(),
            // Request numbers of an earlier process must not be taken for ours.
            next_request: AtomicU64::new(crate::clock::now_us().max(1)),
        }
    }

    /// A clone.
    #[must_use]
    pub fn of_clone(id: VmId, name: String, log: Arc<VmLog>, origin: Origin) -> Self {
        Self { origin: Some(origin), ..Self::new(id, name, log) }
    }

    /// Of a clone, the point that its history continues; `None` when it needs no other, also since it was folded.
    #[must_use]
    pub fn continues(&self) -> Option<BranchPoint> {
        let point = self.origin?.point?;
        match self.log.journal() {
            Ok(journal) if !journal.needs_parent() => None,
            _ => Some(point),
        }
    }

    /// Of a clone, whose history lies below it.
    #[must_use]
    pub fn parent(&self) -> Option<VmId> {
        Some(self.continues()?.parent)
    }

    /// The live session.
    #[must_use]
    pub fn session(&self) -> Option<SessionHandle> {
        self.session.lock().ok()?.clone()
    }

    /// The stream's newest facts.
    #[must_use]
    pub fn live(&self) -> Live {
        self.live.lock().map(|live| live.clone()).unwrap_or_default()
    }

    pub(crate) fn update_live(&self, change: impl FnOnce(&mut Live)) {
        if let Ok(mut live) = self.live.lock() {
            change(&mut live);
        }
    }

    pub(crate) fn begin_session(&self, handle: SessionHandle) {
        if let Ok(mut session) = self.session.lock() {
            *session = Some(handle);
        }
        self.update_live(Live::begin);
    }

    /// Ends session `id`, unless another has taken over, and fails the markers and the barrier's answer it owed.
    pub(crate) fn end_session(&self, id: u64, reason: &str) {
        let Ok(mut session) = self.session.lock() else { return };
        if session.as_ref().is_some_and(|current| current.id == id) {
            *session = None;
            drop(session);
            self.update_live(|live| {
                live.connected = false;
                live.last_end = Some(reason.to_owned());
            });
            self.barrier_gone(reason);
            let waiting =
                self.waiting.lock().map(|mut waiting| std::mem::take(&mut *waiting)).unwrap_or_default();
            for (_, sender) in waiting {
                // Nobody waiting any more is fine.
                let _ = sender.send(Err(format!("the splitter's connection ended: {reason}")));
            }
        }
    }

    /// Takes what a ping says of volumes in synchronous mode; returns those whose standing changed.
    ///
    /// A promise is in the guest's boot time. Its end in the appliance's time is the earliest that the measured clocks
    /// allow, so "proven until" is never said to be later than it is.
    pub(crate) fn take_promises(&self, ping: &v1::Ping) -> Vec<v1::VmSync> {
        let mut changed = Vec::new();
        self.update_live(|live| {
            let before = std::mem::take(&mut live.sync);
            for said in &ping.sync {
                let old = before.iter().find(|old| old.volume == said.volume);
                let in_force = said.state == i32::from(v1::SyncState::InForce);
                let until = said
                    .promised_until_us
                    .saturating_add_signed(ping.clock_offset_us)
                    .saturating_sub(ping.clock_error_us);
                let proven_until_us =
                    if in_force { Some(until) } else { old.and_then(|old| old.proven_until_us) };
                let new = v1::VmSync {
                    volume: said.volume.clone(),
                    in_force,
                    cause: said.cause.clone(),
                    proven_until_us,
                };
                if old.is_none_or(|old| old.in_force != in_force || old.cause != new.cause) {
                    changed.push(new.clone());
                }
                live.sync.push(new);
            }
        });
        changed
    }

    /// Whether a volume of it is in synchronous mode.
    pub(crate) fn promised(&self) -> bool {
        self.live.lock().is_ok_and(|live| live.sync.iter().any(|volume| volume.in_force))
    }

    /// Asks the live session to end; it does so soon. False when there is none.
    pub(crate) fn close_session(&self, reason: &str, retry: bool) -> bool {
        let Some(session) = self.session() else { return false };
        let _ = session.commands.try_send(Command::Close { reason: reason.to_owned(), retry });
        true
    }

    /// Registers a marker to wait for. Returns its request number and where the outcome arrives.
    ///
    /// # Errors
    /// When too many are waited for.
    pub(crate) fn expect_marker(&self) -> Result<(u64, oneshot::Receiver<MarkerOutcome>), String> {
        let request_id = self.next_request.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        let Ok(mut waiting) = self.waiting.lock() else { return Err("internal state was lost".into()) };
        waiting.retain(|_, sender| !sender.is_closed());
        if waiting.len() >= MARKERS_WAITING_MAX {
            return Err(format!("{MARKERS_WAITING_MAX} bookmarks of this VM are being placed: try again"));
        }
        waiting.insert(request_id, sender);
        Ok((request_id, receiver))
    }

    /// Tells the one who asked for a marker.
    pub(crate) fn marker_done(&self, request_id: u64, outcome: MarkerOutcome) {
        let sender = self.waiting.lock().ok().and_then(|mut waiting| waiting.remove(&request_id));
        if let Some(sender) = sender {
            let _ = sender.send(outcome);
        }
    }
}

/// All VMs of this appliance, and the clones. What a VM is named, no clone is.
#[derive(Debug, Default)]
pub struct Fleet {
    vms: RwLock<HashMap<VmId, Arc<Vm>>>,
}

impl Fleet {
    /// A VM or clone by id.
    #[must_use]
    pub fn get(&self, id: VmId) -> Option<Arc<Vm>> {
        self.vms.read().ok()?.get(&id).cloned()
    }

    /// A VM or clone by name.
    #[must_use]
    pub fn by_name(&self, name: &str) -> Option<Arc<Vm>> {
        self.vms.read().ok()?.values().find(|vm| vm.name == name).cloned()
    }

    fn sorted(&self, which: impl Fn(&Vm) -> bool) -> Vec<Arc<Vm>> {
        let chosen = |vms: &HashMap<VmId, Arc<Vm>>| vms.values().filter(|vm| which(vm)).cloned().collect();
        let mut vms: Vec<Arc<Vm>> = self.vms.read().map(|vms| chosen(&vms)).unwrap_or_default();
        vms.sort_by(|a, b| a.name.cmp(&b.name));
        vms
    }

    /// All VMs by name, without clones.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Vm>> {
        self.sorted(|vm| vm.origin.is_none())
    }

    /// All clones by name.
    #[must_use]
    pub fn clones(&self) -> Vec<Arc<Vm>> {
        self.sorted(|vm| vm.origin.is_some())
    }

    /// VMs and clones: everything that has a journal.
    #[must_use]
    pub fn with_clones(&self) -> Vec<Arc<Vm>> {
        self.sorted(|_| true)
    }

    /// The clones made from a VM or clone, by name.
    #[must_use]
    pub fn clones_of(&self, parent: VmId) -> Vec<Arc<Vm>> {
        // What it began with first: that is known without its journal.
        let began =
            |vm: &Vm| vm.origin.and_then(|origin| origin.point).is_some_and(|point| point.parent == parent);
        self.sorted(|vm| began(vm) && vm.parent() == Some(parent))
    }

    /// The clones made from a template, by name. One that cannot be read, and so does not say what it was made from, counts
    /// as one of each.
    #[must_use]
    pub fn clones_of_template(&self, template: Uuid) -> Vec<Arc<Vm>> {
        self.sorted(|vm| {
            vm.origin.is_some_and(|origin| match origin.template {
                Some(of) => of == template,
                None => origin.point.is_none() && vm.log.journal().is_err(),
            })
        })
    }

    /// Adds a VM; one that is there stays.
    pub fn add(&self, vm: Vm) {
        if let Ok(mut vms) = self.vms.write() {
            vms.entry(vm.id).or_insert_with(|| Arc::new(vm));
        }
    }

    /// Removes a VM or clone.
    pub fn remove(&self, id: VmId) {
        if let Ok(mut vms) = self.vms.write() {
            vms.remove(&id);
        }
    }
}
