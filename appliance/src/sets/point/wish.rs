//! What point is wanted.

use std::sync::Arc;

use tidemark_proto::limits::HOLD_MAX_MS;
use tidemark_proto::v1::Consistency;

use crate::fleet::Vm;
use crate::sets::barrier::Limits;
use crate::sets::{HoldMode, Set};

/// How long a member may take to hold everything where nothing is frozen: a gate stops in microseconds, a suspend waits for
/// I/O in flight, which a disk under load answers within some hundred milliseconds.
const PREPARE_US: u64 = 500_000;

/// As above, where file systems are frozen: that writes back what is dirty first.
const PREPARE_FREEZE_US: u64 = 2_000_000;

/// How long a member that holds may take to reserve its place, a look at a counter: many round trips of a wide network.
const MARK_US: u64 = 1_000_000;

/// After what time a member lets go by itself: PREPARE and MARK at their slowest and the way there and back, half of what the
/// protocol allows.
const HOLD_US: u64 = HOLD_MAX_MS as u64 * 1000 / 2;

/// How long a member may take to tell its LSN once it has let go: it reads its ring up to the place first, 256 MiB after
/// an overload. Nothing is held meanwhile.
const RELEASE_US: u64 = 20_000_000;

/// A point that is wanted.
#[derive(Debug, Clone)]
pub struct Wish {
    /// Of which set.
    pub set: Set,
    /// Of a bookmark; empty for an automatic point.
    pub name: String,
    /// What it must be good for.
    pub level: Consistency,
    /// A lower level will do.
    pub allow_lower: bool,
}

/// A member as it is looked at for one point.
#[derive(Debug, Clone)]
pub(super) struct Member {
    pub(super) vm: Arc<Vm>,
    /// What its marker is to be named by; empty for a place without one.
    pub(super) bookmark_id: String,
}

impl Wish {
    /// An automatic point.
    #[must_use]
    pub fn automatic(set: Set) -> Self {
        Self { set, name: String::new(), level: Consistency::Crash, allow_lower: true }
    }

    /// Whether nobody is to be held. Somebody who asks for more than crash consistency wants writers held, whatever automatic
    /// points may do.
    pub(super) fn by_clock(&self) -> bool {
        self.level.or_crash() == Consistency::Crash && self.set.hold == HoldMode::Clock
    }

    /// Whether file systems may be frozen where only crash consistency is wanted.
    pub(super) fn freeze(&self) -> bool {
        self.set.hold == HoldMode::Freeze
    }

    /// Whether each member must achieve the level, or there is no point.
    pub(super) fn strict(&self) -> bool {
        self.level.or_crash() > Consistency::Crash && !self.allow_lower
    }

    /// Whether freeze hooks run.
    pub(super) fn quiesces(&self) -> bool {
        self.level == Consistency::Application
    }

    pub(super) fn limits(&self) -> Limits {
        let freezes = self.freeze() || self.level.or_crash() > Consistency::Crash;
        Limits {
            prepare_us: if freezes { PREPARE_FREEZE_US } else { PREPARE_US },
            mark_us: MARK_US,
            release_us: RELEASE_US,
            hold_us: HOLD_US,
        }
    }
}
