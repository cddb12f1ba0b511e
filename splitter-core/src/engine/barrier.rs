//! What waits for its place in the ring.

use tidemark_proto::limits::{NAME_MAX_CHARS, TEXT_MAX_BYTES};
use tidemark_proto::v1::Consistency;

/// What was achieved for a bookmark before it is placed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Achieved {
    /// The level.
    pub consistency: Consistency,
    /// How long writers were held, in microseconds.
    pub hold_us: u64,
    /// Why it is lower than was asked for; empty otherwise. At most [`TEXT_MAX_BYTES`].
    pub reason: String,
}

impl Default for Achieved {
    /// Nothing was held: the order of writes alone.
    fn default() -> Self {
        Self { consistency: Consistency::Crash, hold_us: 0, reason: String::new() }
    }
}

/// A place in the ring that was reserved while writers were held. The reader of the ring waits there until it is settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place(pub(super) u64);

/// A bookmark to be placed, or with neither name nor id a place alone: one that only its asker knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MarkerRequest {
    /// The appliance's request, 0 for a bookmark placed inside the guest.
    pub request_id: u64,
    /// Unique id of the bookmark.
    pub bookmark_id: String,
    /// Its name.
    pub name: String,
    /// What was achieved for it.
    pub achieved: Achieved,
}

impl MarkerRequest {
    /// Why the request is refused whatever the state.
    pub(super) fn problem(&self) -> Option<&'static str> {
        let nameless = self.name.is_empty() && !self.bookmark_id.is_empty();
        if nameless || self.name.chars().count() > NAME_MAX_CHARS {
            return Some("a bookmark's name has 1 to 128 characters");
        }
        if self.achieved.reason.len() > TEXT_MAX_BYTES {
            return Some("the reason for a bookmark's level is too long");
        }
        (self.bookmark_id.len() > TEXT_MAX_BYTES).then_some("the bookmark's id is too long")
    }
}

/// Something to be put into the stream once the ring is read up to a position.
#[derive(Debug)]
pub(super) struct Barrier {
    pub(super) position: u64,
    pub(super) boottime_us: u64,
    pub(super) kind: BarrierKind,
}

#[derive(Debug)]
pub(super) enum BarrierKind {
    Heartbeat,
    Marker(MarkerRequest),
    /// Nothing beyond it is read until it becomes a marker or nothing.
    Place(Place),
}
