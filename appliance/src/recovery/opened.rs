//! Opened views: what `ReadView` and exports read from.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use thiserror::Error;
use tidemark_journal::view::View;
use tidemark_proto::ids::{DiskId, Lsn, VmId};
use uuid::Uuid;

/// Views open at once at most: each may hold some 20 MB. Further ones are refused.
const VIEWS_MAX: usize = 64;

/// A disk of an opened view.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenedDisk {
    /// Which disk.
    pub id: DiskId,
    /// The kernel's name when last seen: for people only.
    pub path: String,
    /// Size as of the view's LSN, bytes.
    pub size_bytes: u64,
}

/// The disks of one VM as of one point: read-only, cheap to clone, usable from any thread. Reading blocks: call
/// [`View::read_at`] and [`View::extents`] from a blocking thread. What is read stays alive as long as a clone does.
#[derive(Debug, Clone)]
pub struct OpenedView {
    /// The journal's view.
    pub view: View,
    /// Whose disks they are.
    pub vm: VmId,
    /// The VM's name when the view was opened.
    pub vm_name: String,
    /// The point.
    pub lsn: Lsn,
    /// When it was captured, appliance time, microseconds since 1970.
    pub time_us: u64,
    /// The disks that are exact at the point, by id.
    pub disks: Vec<OpenedDisk>,
    /// What a person should know of the point, one sentence each.
    pub warnings: Vec<String>,
}

impl OpenedView {
    /// A disk by id.
    #[must_use]
    pub fn disk(&self, id: DiskId) -> Option<&OpenedDisk> {
        self.disks.iter().find(|disk| disk.id == id)
    }
}

/// Too many views are open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("{VIEWS_MAX} views are open, which is the most: unmount or end one first")]
pub struct TooManyViews;

/// Views that consoles hold open. A view is forgotten when its lease is dropped, that is with its stream.
#[derive(Debug, Default)]
pub struct Leases {
    open: Mutex<HashMap<Uuid, OpenedView>>,
}

impl Leases {
    /// Keeps a view until the lease is dropped.
    ///
    /// # Errors
    /// When too many are open.
    pub fn hold(self: &Arc<Self>, view: OpenedView) -> Result<ViewLease, TooManyViews> {
        let id = Uuid::new_v4();
        let Ok(mut open) = self.open.lock() else { return Err(TooManyViews) };
        if open.len() >= VIEWS_MAX {
            return Err(TooManyViews);
        }
        open.insert(id, view);
        Ok(ViewLease { id, leases: Arc::clone(self) })
    }

    /// A view that is held.
    #[must_use]
    pub fn get(&self, id: Uuid) -> Option<OpenedView> {
        self.open.lock().ok()?.get(&id).cloned()
    }

    /// How many are held.
    #[must_use]
    pub fn count(&self) -> usize {
        self.open.lock().map_or(0, |open| open.len())
    }

    /// Whether a view of this VM is held.
    #[must_use]
    pub fn holds(&self, vm: VmId) -> bool {
        self.open.lock().is_ok_and(|open| open.values().any(|view| view.vm == vm))
    }
}

/// Keeps one view open.
#[derive(Debug)]
pub struct ViewLease {
    id: Uuid,
    leases: Arc<Leases>,
}

impl ViewLease {
    /// The name under which [`Leases::get`] finds the view.
    #[must_use]
    pub fn id(&self) -> Uuid {
        self.id
    }
}

impl Drop for ViewLease {
    fn drop(&mut self) {
        if let Ok(mut open) = self.leases.open.lock() {
            open.remove(&self.id);
        }
    }
}
