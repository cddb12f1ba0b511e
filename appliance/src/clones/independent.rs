//! A clone whose own history was folded into images needs what it was made from no more.

use super::{PIN_TIME_US, pin_name};
use crate::core::Core;
use crate::fleet::Vm;

/// Takes the pin of a clone away once nothing of it reads its parent any more. Blocks. What fails now is done at the next
/// fold, or at the next start.
pub(crate) fn let_parent_go(core: &Core, clone: &Vm) {
    let Some(point) = clone.origin.and_then(|origin| origin.point) else { return };
    // What is not known to be independent is not.
    if clone.log.journal().map_or(true, |journal| journal.needs_parent()) {
        return;
    }
    let Some(parent) = core.fleet.get(point.parent) else { return };
    let Ok(journal) = parent.log.writable() else { return };
    let name = pin_name(clone.id);
    if !journal.pins().iter().any(|pin| pin.name == name) {
        return;
    }
    match journal.revoke_pin(&name, PIN_TIME_US) {
        Ok(()) => {
            core.retention.forget_clone(clone.id);
            tracing::info!(clone = clone.name, of = parent.name, "the clone is independent now");
        }
        Err(error) => tracing::warn!(%error, clone = clone.name, "cannot revoke the pin of a clone yet"),
    }
}
