//! Removing a clone.

use std::collections::BTreeSet;
use std::sync::Arc;

use tidemark_journal::{Journal, PinKind};
use tidemark_proto::ids::VmId;

use super::{CloneError, PIN_TIME_US, kept_by_pins, of_pin, pin_name};
use crate::core::Core;
use crate::fleet::Vm;
use crate::retention::defined;

/// Names for a refusal: of many, the first few.
pub(crate) fn names(clones: &[Arc<Vm>]) -> String {
    const SHOWN: usize = 10;
    let shown: Vec<_> = clones.iter().take(SHOWN).map(|clone| format!("'{}'", clone.name)).collect();
    let more = clones.len().saturating_sub(SHOWN);
    let shown = shown.join(", ");
    if more == 0 { shown } else { format!("{shown} and {more} more") }
}

/// Removes a clone and what was written into it, durably.
///
/// # Errors
/// [`CloneError::InUse`] when a clone was made from it, its points are locked, or it is exported, mounted or read.
pub async fn remove(core: &Arc<Core>, name: &str) -> Result<(), CloneError> {
    let _changing = core.clones.changing.lock().await;
    let clone = core.fleet.by_name(name).filter(|vm| vm.origin.is_some());
    let clone = clone.ok_or_else(|| CloneError::Unknown(name.to_owned()))?;
    let children = core.fleet.clones_of(clone.id);
    if !children.is_empty() {
        let text = format!("'{name}' has clones: remove {} first", names(&children));
        return Err(CloneError::InUse(text));
    }
    if core.exports.list().await.iter().any(|export| export.vm == name) {
        let text = format!("'{name}' is exported: `tidemark export list`, then `tidemark export stop ID`");
        return Err(CloneError::InUse(text));
    }
    if core.leases.holds(clone.id) || core.clones.holds(clone.id) {
        return Err(CloneError::InUse(format!("a view of '{name}' is open: unmount or end it first")));
    }
    refuse_needed(core, &clone).await?;
    let (shared, id) = (Arc::clone(core), clone.id);
    let removed = tokio::task::spawn_blocking(move || take_away(&shared, &clone));
    removed.await.map_err(|error| CloneError::Journal(error.to_string()))??;
    // Rows that stay name nothing.
    if let Err(error) = core.catalog.forget_rights_of_vm(id).await {
        tracing::warn!(%error, clone = name, "cannot forget the rights of a removed clone");
    }
    if let Err(error) = core.catalog.unassign_policy(id).await {
        tracing::warn!(%error, clone = name, "cannot forget the policy of a removed clone");
    }
    Ok(())
}

/// A retention lock stands against everybody, and a clone needs what it was made from, also one that is down and so does
/// not say what that is.
async fn refuse_needed(core: &Arc<Core>, clone: &Arc<Vm>) -> Result<(), CloneError> {
    let Ok(journal) = clone.log.journal() else { return refuse_unknown(core, clone).await };
    kept_by_pins(core, &clone.name, &journal).map_or(Ok(()), |why| Err(CloneError::InUse(why)))
}

/// The journal of a clone is down, so its pins are not known. It can go if no other clone can continue it, and if no
/// policy locks points; else a clone that is damaged for good would keep all garbage of the store.
async fn refuse_unknown(core: &Core, clone: &Vm) -> Result<(), CloneError> {
    let name = &clone.name;
    let pinned: BTreeSet<_> = core.fleet.with_clones().iter().flat_map(|vm| clones_pinned(vm)).collect();
    let nameless = |other: &Arc<Vm>| {
        let known = other.origin.is_some_and(|origin| origin.point.is_some() || origin.template.is_some());
        // What it was made from is the one whose pin it has: not this clone.
        other.id != clone.id && !known && !pinned.contains(&other.id) && other.log.journal().is_err()
    };
    let others: Vec<_> = core.fleet.clones().into_iter().filter(nameless).collect();
    if !others.is_empty() {
        let text = format!(
            "the journal of '{name}' cannot be read, so it is not known whether it has clones: mend it or remove {} first",
            names(&others)
        );
        return Err(CloneError::InUse(text));
    }
    if defined(&core.catalog.policies().await?).iter().any(|named| named.policy.lock_us > 0) {
        let text = format!(
            "the journal of '{name}' cannot be read, so it is not known whether its points are locked, as there is a policy \
             with a lock: mend it first"
        );
        return Err(CloneError::InUse(text));
    }
    Ok(())
}

/// The clones that a journal has pins for; none when it is down.
fn clones_pinned(vm: &Vm) -> Vec<VmId> {
    let pins = vm.log.journal().map(|journal| journal.pins()).unwrap_or_default();
    pins.iter().filter(|pin| pin.kind == PinKind::Clone).filter_map(|pin| of_pin(&pin.name)).collect()
}

fn take_away(core: &Core, clone: &Vm) -> Result<(), CloneError> {
    let doomed = core.data.doomed_clone(clone.id);
    std::fs::rename(core.data.clone_folder(clone.id), &doomed)
        .map_err(|error| CloneError::Journal(format!("the clone's folder cannot be moved: {error}")))?;
    core.data.sync_clones()?;
    core.fleet.remove(clone.id);
    core.clones.forget(clone.id);
    core.retention.forget(clone.id, &clone.name);
    core.retention.soiled();
    core.metrics.forget(&clone.name);
    clone.log.close("the clone was removed");
    // From here on it is gone; what fails now is done at the next start.
    let pin = pin_name(clone.id);
    if let Some(journal) = holder(core, clone, &pin)
        && let Err(error) = journal.revoke_pin(&pin, PIN_TIME_US)
    {
        tracing::warn!(%error, clone = clone.name, "cannot revoke the pin of a removed clone yet");
    }
    if let Err(error) = std::fs::remove_dir_all(&doomed) {
        tracing::warn!(%error, folder = %doomed.display(), "cannot delete a removed clone's folder yet");
    }
    Ok(())
}

/// The journal that keeps a clone's point. A clone that is down does not say what it was made from; the pin does.
fn holder(core: &Core, clone: &Vm, pin: &str) -> Option<Arc<Journal>> {
    if let Some(parent) = clone.parent().and_then(|parent| core.fleet.get(parent)) {
        return parent.log.writable().ok();
    }
    let mut journals = core.fleet.with_clones().into_iter().filter_map(|vm| vm.log.writable().ok());
    journals.find(|journal| journal.pins().iter().any(|held| held.name == pin))
}
