//! Whether a VM or clone must stay, as the pins of its journal say.

use tidemark_journal::{Journal, Pin, PinKind};

use super::{names, of_pin};
use crate::core::Core;
use crate::recovery::rfc3339;

/// Why what is named must stay: clones continue it, or its points are locked. `None`: its pins let it go.
pub(crate) fn kept_by_pins(core: &Core, name: &str, journal: &Journal) -> Option<String> {
    // A clone whose own journal is down does not say what it was made from; the pin does.
    let pins = journal.pins();
    let clones = pins.iter().filter(|pin| pin.kind == PinKind::Clone).filter_map(|pin| of_pin(&pin.name));
    let clones: Vec<_> = clones.filter_map(|id| core.fleet.get(id)).collect();
    if !clones.is_empty() {
        return Some(format!("'{name}' has clones: remove {} first", names(&clones)));
    }
    let now_us = core.retention.now().locks_us.max(journal.retention_clock());
    let ends = |pin: &Pin| pin.until_us.filter(|until| pin.kind == PinKind::Lock && now_us < *until);
    let until_us = pins.iter().filter_map(ends).max()?;
    Some(format!("points of '{name}' are locked until {}: nobody can remove it before", rfc3339(until_us)))
}
