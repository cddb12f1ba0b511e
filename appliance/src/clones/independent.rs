//! A clone whose own history was folded into images needs what it was made from no more.

use tidemark_proto::ids::VmId;

use super::{PIN_TIME_US, pin_name};
use crate::core::Core;
use crate::fleet::Vm;
use crate::metrics::VmLabel;

/// Takes the pin of a clone away once nothing of it reads its parent any more. Blocks. What fails now is done at the next
/// look, or at the next start.
pub(crate) fn let_parent_go(core: &Core, clone: &Vm) {
    let Some(point) = clone.origin.and_then(|origin| origin.point) else { return };
    let Ok(own) = clone.log.journal() else { return };
    if own.branch_point().is_some() {
        return;
    }
    let Some(parent) = core.fleet.get(point.parent) else { return };
    let Ok(journal) = parent.log.writable() else { return };
    let name = pin_name(clone.id);
    if !journal.pins().iter().any(|pin| pin.name == name) {
        return;
    }
    // Its base is images by now; what was read before is kept for the next read, here and by its own clones.
    own.let_go_below();
    let_views_go(core, clone.id);
    // What is not known to be independent is not.
    if own.needs_parent() {
        return;
    }
    match journal.revoke_pin(&name, PIN_TIME_US) {
        Ok(()) => {
            core.retention.forget_held_back(clone.id);
            core.metrics.held_back.get_or_create(&VmLabel { vm: clone.name.clone() }).set(0);
            tracing::info!(clone = clone.name, of = parent.name, "the clone is independent now");
        }
        Err(error) => tracing::warn!(%error, clone = clone.name, "cannot revoke the pin of a clone yet"),
    }
}

/// Ends the views of a VM or clone that writers and clones of it keep for their next read. Until then they keep files and
/// images that were given up.
pub(crate) fn let_views_go(core: &Core, of: VmId) {
    core.clones.let_go(of);
    for clone in core.fleet.clones_of(of) {
        if let Ok(branch) = clone.log.journal() {
            branch.let_go_below();
        }
    }
}
