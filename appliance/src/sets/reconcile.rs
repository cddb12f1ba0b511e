//! Seeing who came to a set and who left it.

use std::collections::HashMap;
use std::sync::Arc;

use tidemark_proto::ids::VmId;
use tokio::sync::Mutex;

use super::{Set, Tagged, all, candidates, copy, policy_of};
use crate::catalog::{AssignmentRow, CatalogError, ChangeRow};
use crate::clock::now_us;
use crate::core::Core;
use crate::retention::forget_note;

/// One look at the sets at a time.
#[derive(Debug, Default)]
pub struct Reconciling(Mutex<()>);

/// Notes who came and went since the last look; called after whatever may have changed that, with what it was. A failure is
/// logged: the next look finds the same.
pub async fn reconcile(core: &Core, cause: &str) {
    let _alone = core.reconciling.0.lock().await;
    if let Err(error) = look(core, cause).await {
        tracing::error!(%error, cause, "cannot note who is in which set");
    }
    copy::keep(core).await;
}

/// The journal's copy of a VM's policy is for a lost catalog. What a set gave goes with the set, so the copy goes, too, unless
/// another set or the VM itself has a policy.
async fn take_back(sets: &[Set], assignments: &[AssignmentRow], vm: &Tagged) {
    let own = assignments.iter().any(|row| row.is_of(vm.vm.id));
    if !own && policy_of(sets, vm).is_none() {
        let vm = Arc::clone(&vm.vm);
        let _ = tokio::task::spawn_blocking(move || forget_note(&vm)).await;
    }
}

/// A set has no policy any more: takes back what it gave.
///
/// # Errors
/// What the database says.
pub async fn take_back_from(core: &Core, set: &str) -> Result<(), CatalogError> {
    let sets = all(&core.catalog).await?;
    let Some(set) = sets.iter().find(|known| known.name == set) else { return Ok(()) };
    let assignments = core.catalog.assignments().await?;
    for vm in candidates(&core.catalog, &core.fleet).await?.iter().filter(|vm| set.has(vm)) {
        take_back(&sets, &assignments, vm).await;
    }
    Ok(())
}

async fn look(core: &Core, cause: &str) -> Result<(), CatalogError> {
    let known = core.catalog.set_members().await?;
    let sets = all(&core.catalog).await?;
    if known.is_empty() && sets.is_empty() {
        return Ok(());
    }
    let vms = candidates(&core.catalog, &core.fleet).await?;
    let assignments = core.catalog.assignments().await?;
    let now_us = now_us();
    let mut members: HashMap<(&str, VmId), &str> = HashMap::new();
    for set in &sets {
        for vm in vms.iter().filter(|vm| set.has(vm)) {
            members.insert((&set.name, vm.vm.id), &vm.vm.name);
        }
    }
    let mut changed = false;
    for row in &known {
        let Some(vm) = row.vm() else { continue };
        if members.remove(&(row.set_name.as_str(), vm)).is_some() {
            continue;
        }
        changed = true;
        if let Some(left) = vms.iter().find(|candidate| candidate.vm.id == vm) {
            take_back(&sets, &assignments, left).await;
        }
        let change = ChangeRow::new(&row.set_name, &row.vm_name, now_us, false, cause);
        core.catalog.change_member(vm, &change).await?;
        core.audit("appliance", "leave set", &row.vm_name, &format!("{}: {cause}", row.set_name)).await;
        tracing::info!(vm = row.vm_name, set = row.set_name, cause, "a VM left a set");
    }
    for ((set, vm), name) in members {
        changed = true;
        core.catalog.change_member(vm, &ChangeRow::new(set, name, now_us, true, cause)).await?;
        core.audit("appliance", "join set", name, &format!("{set}: {cause}")).await;
        tracing::info!(vm = name, set, cause, "a VM joined a set");
    }
    if changed {
        core.retention.wake();
    }
    Ok(())
}
