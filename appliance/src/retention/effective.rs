//! Which policy holds for a VM. The catalog says so; the VM's journal keeps a copy, which counts when the catalog was lost.

use tidemark_journal::retention::{Policy, Schedule};
use tidemark_proto::ids::VmId;

use super::policies::{NamedPolicy, parse};
use crate::catalog::{AssignmentRow, PolicyRow};
use crate::core::Core;
use crate::fleet::Vm;

/// The name of the policy of VMs that were given none.
pub const DEFAULT_POLICY: &str = "default";

/// The note under which a journal keeps its VM's policy.
const POLICY_NOTE: &str = "retention.policy";

const HOUR_US: u64 = 3600 * 1_000_000;

/// The policy named default until an administrator defines another one of that name.
fn built_in() -> NamedPolicy {
    let policy = Policy {
        window_us: 7 * 24 * HOUR_US,
        window_min_us: 24 * HOUR_US,
        window_bytes: None,
        schedule: Schedule { hourly: 24, daily: 14, weekly: 8, monthly: 12, yearly: 0 },
        lock_us: 0,
    };
    NamedPolicy { name: DEFAULT_POLICY.to_owned(), policy }
}

/// The policies that administrators defined.
#[must_use]
pub fn defined(rows: &[PolicyRow]) -> Vec<NamedPolicy> {
    // What is stored was checked when it came in.
    rows.iter().filter_map(|row| parse(&row.body).ok()).flatten().collect()
}

/// All policies by name, the built-in one among them unless it was redefined.
#[must_use]
pub fn all(rows: &[PolicyRow]) -> Vec<NamedPolicy> {
    let mut all = defined(rows);
    if !all.iter().any(|named| named.name == DEFAULT_POLICY) {
        all.push(built_in());
    }
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

/// The policy of a VM: as assigned, else as its journal says it was assigned, else the default: as redefined, else as the
/// journal says it was.
#[must_use]
pub fn effective(vm: &Vm, defined: &[NamedPolicy], assignments: &[AssignmentRow]) -> NamedPolicy {
    let named = |name: &str| defined.iter().find(|named| named.name == name).cloned();
    let noted = noted(vm);
    let of_name = |name: &str| named(name).or_else(|| (name == DEFAULT_POLICY).then(built_in));
    of_catalog(vm.id, assignments)
        .and_then(of_name)
        .or_else(|| noted.clone().filter(|noted| noted.name != DEFAULT_POLICY))
        .or_else(|| named(DEFAULT_POLICY))
        .or(noted)
        .unwrap_or_else(built_in)
}

/// The policy of a VM or clone: a clone that was given none has that of what it was made from.
#[must_use]
pub fn effective_of(
    core: &Core,
    vm: &Vm,
    defined: &[NamedPolicy],
    assignments: &[AssignmentRow],
) -> NamedPolicy {
    if vm.origin.is_none() || of_catalog(vm.id, assignments).is_some() {
        return effective(vm, defined, assignments);
    }
    // Clones lie upon each other a bounded number of times, and none upon itself.
    match vm.parent().and_then(|parent| core.fleet.get(parent)) {
        Some(parent) => effective_of(core, &parent, defined, assignments),
        None => effective(vm, defined, assignments),
    }
}

fn of_catalog(vm: VmId, assignments: &[AssignmentRow]) -> Option<&str> {
    assignments.iter().find(|row| row.is_of(vm)).map(|row| row.policy.as_str())
}

/// What the journal's note says.
fn noted(vm: &Vm) -> Option<NamedPolicy> {
    let note = vm.log.journal().ok()?.note(POLICY_NOTE)?;
    parse(std::str::from_utf8(&note).ok()?).ok()?.into_iter().next()
}

/// Forgets what the journal says of the VM's policy: it was that of a set which the VM has left. Blocks.
pub(crate) fn forget_note(vm: &Vm) {
    let Ok(journal) = vm.log.writable() else { return };
    if journal.note(POLICY_NOTE).is_some_and(|note| !note.is_empty())
        && let Err(error) = journal.put_note(POLICY_NOTE, b"")
    {
        tracing::warn!(vm = vm.name, %error, "cannot forget the VM's former policy in its journal");
    }
}

/// Keeps the policy of a VM in its journal, so that a lost catalog shortens no window. Blocks.
pub(super) fn note(vm: &Vm, named: &NamedPolicy) {
    let body = named.to_toml();
    let Ok(journal) = vm.log.writable() else { return };
    if journal.note(POLICY_NOTE).as_deref() == Some(body.as_bytes()) {
        return;
    }
    if let Err(error) = journal.put_note(POLICY_NOTE, body.as_bytes()) {
        tracing::warn!(vm = vm.name, %error, "cannot keep the VM's policy in its journal");
    }
}
