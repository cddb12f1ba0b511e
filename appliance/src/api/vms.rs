//! VMs and the state of the whole appliance.

use std::sync::Arc;

use tidemark_proto::ids::VmId;
use tidemark_proto::v1::{Alarm, Empty, ListVmsResponse, StatusReply, VmInfo};
use tonic::Status;

use super::{blocking, catalog, vm_named};
use crate::clock::now_us;
use crate::clones::{kept_by_pins, names as clone_names};
use crate::core::Core;
use crate::fleet::{Vm, alarms, vm_info};
use crate::master_key;
use crate::sets::reconcile;
use crate::transport::Peer;

pub(super) async fn list(core: &Arc<Core>, name: &str) -> Result<ListVmsResponse, Status> {
    if !name.is_empty() && vm_named(core, name)?.origin.is_some() {
        let text = format!("'{name}' is a clone: `tidemark clone list` shows it");
        return Err(Status::failed_precondition(text));
    }
    let mut vms = describe(core).await?;
    vms.retain(|vm| name.is_empty() || vm.name == name);
    Ok(ListVmsResponse { vms, appliance_time_us: now_us() })
}

pub(super) async fn status(core: &Arc<Core>) -> Result<StatusReply, Status> {
    let vms = describe(core).await?;
    let space = *core.space.borrow();
    let shared = Arc::clone(core);
    let journals = blocking(move || Ok(journal_alarms(&shared))).await?;
    let found = core.catalog.verifies_that_found().await.map_err(catalog)?;
    let found = found.into_iter().filter_map(|(vm, bytes)| verify_alarm(core, vm, bytes));
    let of_vms = alarms(&vms, &space).into_iter();
    Ok(StatusReply {
        alarms: of_vms.chain(core.retention.alarms()).chain(journals).chain(found).collect(),
        vms,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        appliance_time_us: now_us(),
        data_free_bytes: space.free_bytes,
    })
}

/// Bytes of a log that may stay only for a clone before that is an alarm: a day of a busy VM.
const HELD_BACK_ALARM_BYTES: u64 = 16 << 30;

/// What an operator should look at, of the journals, the clones and the keys.
fn journal_alarms(core: &Core) -> Vec<Alarm> {
    let mut alarms = Vec::new();
    // Its record stays only when a start could not finish it.
    if master_key::pending(&core.data).is_ok_and(|record| record.is_some()) {
        let text = master_key::UNFINISHED.to_owned();
        alarms.push(Alarm { vm: String::new(), severity: "critical".to_owned(), text });
    }
    let mut warn = |vm: &Vm, severity: &str, text: String| {
        alarms.push(Alarm { vm: vm.name.clone(), severity: severity.to_owned(), text });
    };
    for vm in core.fleet.with_clones() {
        // Of a VM its state says so.
        if let Some(problem) = vm.log.problem().filter(|_| vm.origin.is_some()) {
            warn(&vm, "critical", format!("the clone is damaged or down: {problem}"));
        }
        let bytes = core.retention.held_back(vm.id);
        if bytes > HELD_BACK_ALARM_BYTES {
            let text = format!(
                "{bytes} bytes of the log of what the clone was made from stay only for it: remove the clone when it is not \
                 needed"
            );
            warn(&vm, "warning", text);
        }
        let unhashed = vm.log.journal().map(|journal| journal.unhashed_segments()).unwrap_or_default();
        if let Some((ordinal, problem)) = unhashed.first() {
            let text = format!(
                "{} segments of an older version cannot be signed, the first is {ordinal} ({problem}): look with \
                 `tidemark journal verify`",
                unhashed.len()
            );
            warn(&vm, "warning", text);
        }
    }
    alarms
}

/// What verifies of a VM found, until one finds nothing on those disks.
fn verify_alarm(core: &Core, vm: VmId, differing_bytes: u64) -> Option<Alarm> {
    let vm = core.fleet.get(vm)?;
    let text = format!(
        "a verify found {differing_bytes} bytes that were not as in the journal, and read them again: `tidemark point list {}` shows \
         which points are in doubt; find out what wrote them past the splitter, then run `tidemark vm verify {}` again",
        vm.name, vm.name
    );
    Some(Alarm { vm: vm.name.clone(), severity: "warning".into(), text })
}

/// All VMs, by name.
pub(crate) async fn describe(core: &Arc<Core>) -> Result<Vec<VmInfo>, Status> {
    let rows = core.catalog.vms().await.map_err(catalog)?;
    let core = Arc::clone(core);
    blocking(move || {
        let now_us = now_us();
        let vms = core.fleet.all();
        let row_of = |vm| rows.iter().find(|row| row.vm() == vm);
        Ok(vms.iter().filter_map(|vm| Some(vm_info(vm, row_of(vm.id)?, now_us))).collect())
    })
    .await
}

/// Accepts no certificate of the VM any more.
async fn shut_out(core: &Core, vm: VmId) -> Result<(), Status> {
    for certificate in core.catalog.certificates().await.map_err(catalog)? {
        if certificate.vm() == Some(vm) {
            core.gate.revoke(&certificate.serial);
        }
    }
    Ok(())
}

/// A retention lock stands against everybody, and so against removing its VM; a clone needs what it was made from.
fn refuse_pinned(core: &Core, vm: &Vm) -> Result<(), Status> {
    let journal = vm.log.journal().map_err(|down| {
        Status::unavailable(format!(
            "the journal of '{}' cannot be read ({down}), so it is not known whether its points are locked or cloned: mend it \
             first",
            vm.name
        ))
    })?;
    kept_by_pins(core, &vm.name, &journal).map_or(Ok(()), |why| Err(Status::failed_precondition(why)))
}

pub(super) async fn remove(core: &Arc<Core>, caller: &Peer, name: &str) -> Result<Empty, Status> {
    let _changing = core.clones.changing.lock().await;
    let vm = vm_named(core, name)?;
    if vm.origin.is_some() {
        let text = format!("'{name}' is a clone: `tidemark clone remove {name}`");
        return Err(Status::failed_precondition(text));
    }
    let clones = core.fleet.clones_of(vm.id);
    if !clones.is_empty() {
        let text = format!("'{name}' has clones: remove {} first", clone_names(&clones));
        return Err(Status::failed_precondition(text));
    }
    if core.exports.list().await.iter().any(|export| export.vm == name) {
        return Err(Status::failed_precondition(format!(
            "'{name}' is exported: `tidemark export list`, then `tidemark export stop ID`"
        )));
    }
    if core.leases.holds(vm.id) {
        return Err(Status::failed_precondition(format!(
            "a view of '{name}' is open: unmount or end it first"
        )));
    }
    refuse_pinned(core, &vm)?;
    shut_out(core, vm.id).await?;
    vm.close_session("the VM was removed", false);
    if let Some(session) = vm.session() {
        let timeout = std::time::Duration::from_secs(10);
        if tokio::time::timeout(timeout, session.done.cancelled()).await.is_err() {
            return Err(Status::unavailable("the VM's stream is still being closed: try again"));
        }
    }
    let (data, doomed) = (core.data.vm(vm.id), core.data.doomed(vm.id));
    // Out of the way first: a folder that stays would come back as a VM when the appliance starts.
    std::fs::rename(&data, &doomed).or_else(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Ok(()),
        _ => Err(Status::internal(format!("moving {} aside: {error}", data.display()))),
    })?;
    core.catalog.remove_vm(vm.id, now_us()).await.map_err(catalog)?;
    // Again, now that the catalog has them revoked: one may have been renewed meanwhile.
    shut_out(core, vm.id).await?;
    core.fleet.remove(vm.id);
    reconcile(core, "the VM was removed").await;
    core.retention.forget(vm.id, name);
    core.metrics.forget(name);
    core.retention.soiled();
    core.audit(&caller.role.uri(), "remove VM", name, &vm.id.to_string()).await;
    tracing::info!(vm = name, "VM removed");
    blocking(move || {
        vm.log.close("the VM was removed");
        std::fs::remove_dir_all(&doomed).or_else(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Ok(()),
            _ => Err(Status::internal(format!("the VM is removed; deleting {}: {error}", doomed.display()))),
        })
    })
    .await?;
    Ok(Empty {})
}
