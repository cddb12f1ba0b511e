//! Finding the clones when the appliance starts, and making pins and clones agree.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::Context;
use tidemark_journal::view::BaseImages;
use tidemark_journal::{Pin, PinKind};
use tidemark_proto::ids::VmId;
use uuid::Uuid;

use super::{CREATED_NOTE, PIN_TIME_US, TEMPLATE_NOTE, of_pin, pin_name};
use crate::data_dir::DataDir;
use crate::fleet::{Fleet, LogKeys, Origin, Vm, VmLog};

/// Opens all clones of the data folder, whose VMs are in the fleet already.
///
/// # Errors
/// When the folder cannot be listed. A clone that cannot be opened is kept as down.
pub async fn open_all(
    data: &DataDir,
    fleet: &Fleet,
    images: &Arc<dyn BaseImages>,
    keys: &LogKeys,
) -> anyhow::Result<()> {
    let ids = data.clones()?;
    let opening: Vec<_> = ids
        .iter()
        .map(|id| {
            let (id, folder) = (*id, data.clone_folder(*id).join("journal"));
            let (images, keys) = (Arc::clone(images), keys.clone());
            tokio::task::spawn_blocking(move || (id, VmLog::open_clone(id, &folder, images, keys)))
        })
        .collect();
    for opened in opening {
        let (id, log) = opened.await.context("opening a clone")?;
        fleet.add(found(fleet, id, log));
    }
    // All are there now: also those that others were made from.
    for clone in fleet.clones() {
        match clone.parent().map(|parent| fleet.get(parent)) {
            Some(Some(parent)) => clone.log.continue_from(Arc::clone(&parent.log)),
            Some(None) => {
                tracing::error!(
                    clone = clone.name,
                    "what this clone was made from is gone: it cannot be read"
                );
            }
            None => {}
        }
    }
    let all = fleet.with_clones();
    let ids: BTreeSet<VmId> = ids.into_iter().collect();
    tokio::task::spawn_blocking(move || agree(&all, &ids)).await.context("checking the pins of clones")
}

/// A clone as its journal describes it.
fn found(fleet: &Fleet, id: VmId, log: Arc<VmLog>) -> Vm {
    let journal = log.journal().ok();
    let created = journal.as_ref().and_then(|journal| journal.note(CREATED_NOTE));
    let created = created.and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes);
    let template = journal.as_ref().and_then(|journal| journal.note(TEMPLATE_NOTE));
    let origin = Origin {
        point: journal.as_ref().and_then(|journal| journal.branch_point()),
        template: template.and_then(|bytes| Uuid::from_slice(&bytes).ok()),
        created_us: created,
    };
    // A name that something else has by now is no reason to lose the clone.
    let fallback = format!("clone-{id}");
    let name = log.noted_name().filter(|name| fleet.by_name(name).is_none()).unwrap_or(fallback);
    Vm::of_clone(id, name, log, origin)
}

/// Revokes pins whose clone is gone, and pins again what a clone needs.
fn agree(all: &[Arc<Vm>], clones: &BTreeSet<VmId>) {
    for vm in all {
        let Ok(journal) = vm.log.writable() else { continue };
        let pins = journal.pins();
        let pinned = pins.iter().filter(|pin| pin.kind == PinKind::Clone);
        for pin in pinned {
            let of = of_pin(&pin.name);
            let independent = |id: VmId| {
                let clone = all.iter().find(|clone| clone.id == id);
                clone
                    .and_then(|clone| clone.log.journal().ok())
                    .is_some_and(|journal| !journal.needs_parent())
            };
            if of.is_some_and(|id| !clones.contains(&id) || independent(id)) {
                tracing::info!(vm = vm.name, pin = pin.name, "a pin that no clone needs is revoked");
                if let Err(error) = journal.revoke_pin(&pin.name, PIN_TIME_US) {
                    tracing::warn!(vm = vm.name, %error, "cannot revoke a pin without its clone");
                }
            }
        }
        let children = all.iter().filter(|clone| clone.parent() == Some(vm.id));
        for clone in children {
            let Some(point) = clone.origin.and_then(|origin| origin.point) else { continue };
            let name = pin_name(clone.id);
            if pins.iter().any(|pin| pin.name == name && pin.lsn <= point.lsn) {
                continue;
            }
            tracing::warn!(vm = vm.name, clone = clone.name, "a clone without its pin is pinned again");
            let pin = Pin { name, kind: PinKind::Clone, lsn: point.lsn, until_us: None };
            if let Err(error) = journal.put_pin(pin, PIN_TIME_US) {
                tracing::error!(clone = clone.name, %error, "a clone's point cannot be kept");
            }
        }
    }
}
