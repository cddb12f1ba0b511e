//! Opened views: what `ReadView` and exports read from.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};

use thiserror::Error;
use tidemark_journal::view::View;
use tidemark_proto::ids::{DiskId, Lsn, VmId};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::rights::Right;

/// Views open at once at most: each may hold some 20 MB. Further ones are refused.
const VIEWS_MAX: usize = 64;

/// Views that one person who is no administrator may hold at once: all its mounts, and room for everybody else.
const PERSON_VIEWS_MAX: usize = 16;

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
#[error("{0} views are open, which is the most: unmount or end one first")]
pub struct TooManyViews(usize);

/// By which right somebody who is no administrator opened a view.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Who.
    pub person: String,
    /// The right.
    pub right: Right,
}

#[derive(Debug)]
struct Open {
    view: OpenedView,
    /// `None`: administrators alone read it.
    holder: Option<Holder>,
    /// Cancelled when the holder has no right to it any more.
    ended: CancellationToken,
}

impl Open {
    fn is_of(&self, person: &str) -> bool {
        self.holder.as_ref().is_some_and(|holder| holder.person == person)
    }
}

/// Views that consoles hold open. A view is forgotten when its lease is dropped, that is with its stream.
#[derive(Debug, Default)]
pub struct Leases {
    open: Mutex<HashMap<Uuid, Open>>,
}

impl Leases {
    /// Keeps a view until the lease is dropped, for a person that has a right to it or for administrators.
    ///
    /// # Errors
    /// When too many are open.
    pub fn hold(
        self: &Arc<Self>,
        view: OpenedView,
        holder: Option<Holder>,
    ) -> Result<ViewLease, TooManyViews> {
        let id = Uuid::new_v4();
        let Ok(mut open) = self.open.lock() else { return Err(TooManyViews(VIEWS_MAX)) };
        if open.len() >= VIEWS_MAX {
            return Err(TooManyViews(VIEWS_MAX));
        }
        if let Some(holder) = &holder
            && open.values().filter(|other| other.is_of(&holder.person)).count() >= PERSON_VIEWS_MAX
        {
            return Err(TooManyViews(PERSON_VIEWS_MAX));
        }
        let ended = CancellationToken::new();
        open.insert(id, Open { view, holder, ended: ended.clone() });
        Ok(ViewLease { id, leases: Arc::clone(self), ended })
    }

    /// A view that is held. A person finds those alone that it holds itself; an administrator (`None`) finds all.
    #[must_use]
    pub fn get(&self, id: Uuid, person: Option<&str>) -> Option<OpenedView> {
        let open = self.open.lock().ok()?;
        open.get(&id)
            .filter(|open| person.is_none_or(|person| open.is_of(person)))
            .map(|open| open.view.clone())
    }

    /// The persons that hold any.
    #[must_use]
    pub fn persons(&self) -> HashSet<String> {
        let person = |open: &Open| open.holder.as_ref().map(|holder| holder.person.clone());
        self.open.lock().map(|open| open.values().filter_map(person).collect()).unwrap_or_default()
    }

    /// Ends the views of a person that it may not hold any more.
    pub fn end_unless(&self, person: &str, may: impl Fn(Right, VmId) -> bool) {
        let Ok(mut open) = self.open.lock() else { return };
        open.retain(|_, open| {
            let keep = match &open.holder {
                Some(holder) if holder.person == person => may(holder.right, open.view.vm),
                _ => true,
            };
            if !keep {
                open.ended.cancel();
            }
            keep
        });
    }

    /// How many are held.
    #[must_use]
    pub fn count(&self) -> usize {
        self.open.lock().map_or(0, |open| open.len())
    }

    /// Whether a view of this VM is held.
    #[must_use]
    pub fn holds(&self, vm: VmId) -> bool {
        self.open.lock().is_ok_and(|open| open.values().any(|open| open.view.vm == vm))
    }
}

/// Keeps one view open.
#[derive(Debug)]
pub struct ViewLease {
    id: Uuid,
    leases: Arc<Leases>,
    ended: CancellationToken,
}

impl ViewLease {
    /// The name under which [`Leases::get`] finds the view.
    #[must_use]
    pub fn id(&self) -> Uuid {
        self.id
    }

    /// Cancelled when the right by which the view was opened is revoked.
    #[must_use]
    pub fn ended(&self) -> CancellationToken {
        self.ended.clone()
    }
}

impl Drop for ViewLease {
    fn drop(&mut self) {
        if let Ok(mut open) = self.leases.open.lock() {
            open.remove(&self.id);
        }
    }
}
