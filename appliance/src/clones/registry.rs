//! The clones that are being written in this process.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tidemark_proto::ids::VmId;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::Volume;
use crate::core::Core;
use crate::fleet::Vm;

/// How often what nobody flushed is flushed: so much of a clone's history a crash may take.
const SETTLE_INTERVAL: Duration = Duration::from_secs(1);

/// Volumes and who holds them.
#[derive(Debug, Default)]
pub struct Clones {
    /// Held while a clone is made or removed, or a name is given to a VM.
    pub(crate) changing: tokio::sync::Mutex<()>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    volumes: HashMap<VmId, Arc<Volume>>,
    held: HashMap<Uuid, HeldVolume>,
}

/// A clone's present content, opened by a console.
#[derive(Debug, Clone)]
pub struct HeldVolume {
    /// Which clone.
    pub id: VmId,
    /// Its content.
    pub volume: Arc<Volume>,
}

impl Clones {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The volume of a clone: always the same one.
    pub fn volume(&self, core: &Core, clone: &Vm) -> Arc<Volume> {
        let mut state = self.state();
        let new = || Arc::new(Volume::new(Arc::clone(&clone.log), core.space.clone()));
        Arc::clone(state.volumes.entry(clone.id).or_insert_with(new))
    }

    /// Lets a console hold a volume until the lease is dropped. Whoever mounts a clone caches what it reads, so it is the
    /// only one; `None`: another does already.
    pub fn hold(self: &Arc<Self>, held: HeldVolume) -> Option<VolumeLease> {
        let mut state = self.state();
        if state.held.values().any(|other| other.id == held.id) {
            return None;
        }
        let id = Uuid::new_v4();
        state.held.insert(id, held);
        Some(VolumeLease { id, clones: Arc::clone(self) })
    }

    /// A volume that is held.
    #[must_use]
    pub fn held(&self, id: Uuid) -> Option<HeldVolume> {
        self.state().held.get(&id).cloned()
    }

    /// Whether a console holds this clone.
    #[must_use]
    pub fn holds(&self, clone: VmId) -> bool {
        self.state().held.values().any(|held| held.id == clone)
    }

    /// Lets go of what reads of a clone's content are served from; the next read looks again.
    pub(crate) fn let_go(&self, clone: VmId) {
        let volume = self.state().volumes.get(&clone).cloned();
        if let Some(volume) = volume {
            volume.let_go();
        }
    }

    /// Forgets a clone that is removed.
    pub(super) fn forget(&self, clone: VmId) {
        self.state().volumes.remove(&clone);
    }

    /// Flushes what was written and not flushed. Blocks.
    pub fn settle(&self) {
        let volumes: Vec<_> = self.state().volumes.values().cloned().collect();
        for volume in volumes {
            volume.settle();
        }
    }

    /// Flushes from time to time, until `ending`.
    pub async fn run(self: Arc<Self>, ending: CancellationToken) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(SETTLE_INTERVAL) => {}
                () = ending.cancelled() => return,
            }
            let clones = Arc::clone(&self);
            if tokio::task::spawn_blocking(move || clones.settle()).await.is_err() {
                tracing::error!("flushing clones ended unexpectedly");
            }
        }
    }
}

/// Keeps one volume held.
#[derive(Debug)]
pub struct VolumeLease {
    id: Uuid,
    clones: Arc<Clones>,
}

impl VolumeLease {
    /// The name under which [`Clones::held`] finds it.
    #[must_use]
    pub fn id(&self) -> Uuid {
        self.id
    }
}

impl Drop for VolumeLease {
    fn drop(&mut self) {
        let held = self.clones.state().held.remove(&self.id);
        drop(held);
    }
}
