//! What retention has folded of points, and forgetting automatic points.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use tidemark_proto::ids::{Lsn, VmId};

use super::Set;
use crate::catalog::{CatalogError, SetPointRow};
use crate::core::Core;

/// Automatic points kept of one set at most, the newest: a day of one every five seconds is 17,280.
pub const AUTOMATIC_MAX: u32 = 20_000;

/// Points looked at in one go.
const BATCH: u32 = 500;

/// Below what the logs of all VMs were folded, and what stayed of that.
#[derive(Debug, Default)]
pub struct Floors(HashMap<VmId, (Lsn, HashSet<Lsn>)>);

impl Floors {
    /// As they are now. A VM whose log cannot be read counts as one that has everything: it may be mended.
    pub async fn look(core: &Arc<Core>) -> Self {
        let vms = core.fleet.all();
        let looked = tokio::task::spawn_blocking(move || {
            let floor = |vm: &crate::fleet::Vm| match vm.log.journal() {
                Ok(journal) => (
                    journal.base().map_or(Lsn::ZERO, |(lsn, _)| lsn),
                    journal.snapshots().iter().map(|kept| kept.lsn).collect(),
                ),
                Err(_) => (Lsn::ZERO, HashSet::new()),
            };
            Self(vms.iter().map(|vm| (vm.id, floor(vm))).collect())
        });
        looked.await.unwrap_or_default()
    }

    /// Whether an LSN that was a point still is one.
    #[must_use]
    pub fn has(&self, vm: VmId, lsn: Lsn) -> bool {
        self.0.get(&vm).is_some_and(|(floor, kept)| lsn >= *floor || kept.contains(&lsn))
    }

    /// Whether any member of a point can still be recovered to it.
    #[must_use]
    pub fn has_any(&self, point: &SetPointRow) -> bool {
        point.members().iter().any(|member| member.vm().is_some_and(|vm| self.has(vm, member.lsn())))
    }
}

/// Forgets the automatic points of which no member can be recovered any more, and those beyond [`AUTOMATIC_MAX`]. A failure
/// is logged: the next pass finds the same.
pub(super) async fn thin(core: Arc<Core>, sets: Vec<Set>) {
    let floors = Floors::look(&core).await;
    for set in &sets {
        if core.stopping.is_cancelled() {
            return;
        }
        if let Err(error) = thin_set(&core, &floors, &set.name).await {
            tracing::error!(set = set.name, %error, "cannot thin the points of a set");
        }
    }
}

async fn thin_set(core: &Core, floors: &Floors, set: &str) -> Result<(), CatalogError> {
    core.catalog.cap_set_points(set, AUTOMATIC_MAX).await?;
    // The oldest are folded first. A batch with one that lasts is the last.
    loop {
        let oldest = core.catalog.oldest_set_points(set, BATCH).await?;
        let mut lasts = oldest.is_empty();
        for point in &oldest {
            if floors.has_any(point) {
                lasts = true;
            } else {
                core.catalog.remove_set_point(&point.id).await?;
            }
        }
        if lasts || core.stopping.is_cancelled() {
            return Ok(());
        }
    }
}
