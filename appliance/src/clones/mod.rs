//! Clones: writable views over a point that last. Each is a journal of its own that branches off its parent's
//! ([`tidemark_journal::branch`]), in `DIR/clones/ID/journal`; the parent's manifest holds a pin for it.
//!
//! What there is, is what has a folder of that name. So a clone is made in this order, each step durable before the next:
//! pin, journal in a folder of another name, rename. And removed in this: rename, revoke the pin, delete. At the start,
//! folders of other names are deleted, pins without a clone are revoked, and a clone without its pin gets it back
//! ([`open_all`]).
//!
//! A clone of a template has no parent and no pin: its journal names the template's image as its base, so collections keep
//! its chunks as long as the clone's folder is there, and the object cannot be removed meanwhile.

mod independent;
mod make;
mod needed;
mod registry;
mod remove;
mod startup;
mod volume;

pub(crate) use independent::{let_parent_go, let_views_go};
pub use make::{Below, CloneError, create};
pub(crate) use needed::kept_by_pins;
pub use registry::{Clones, HeldVolume, VolumeLease};
pub(crate) use remove::names;
pub use remove::remove;
pub use startup::open_all;
pub use volume::{CloneSource, Volume};

/// The name of the pin that a clone has in its parent's manifest.
fn pin_name(clone: tidemark_proto::ids::VmId) -> String {
    format!("{PIN_PREFIX}{clone}")
}

/// The clone whose pin has this name; `None`: it is no clone's.
pub(crate) fn of_pin(name: &str) -> Option<tidemark_proto::ids::VmId> {
    name.strip_prefix(PIN_PREFIX)?.parse().ok()
}

/// The time of changes to such pins: none. They end by no clock, and only retention's own may move the clock of a journal,
/// by which locks end.
const PIN_TIME_US: u64 = 0;

/// What the names of such pins begin with.
const PIN_PREFIX: &str = "clone:";

/// The note under which a clone's journal keeps when it was made: microseconds since 1970, u64, little-endian.
const CREATED_NOTE: &str = "clone.created";

/// The note under which a clone's journal keeps which template it was made from: the object's id, 16 bytes.
const TEMPLATE_NOTE: &str = "clone.template";
