//! What waits for its place in the ring.

use tidemark_proto::limits::{NAME_MAX_CHARS, TEXT_MAX_BYTES};

/// A bookmark to be placed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MarkerRequest {
    /// The appliance's request, 0 for a bookmark placed inside the guest.
    pub request_id: u64,
    /// Unique id of the bookmark.
    pub bookmark_id: String,
    /// Its name.
    pub name: String,
}

impl MarkerRequest {
    /// Why the request is refused whatever the state.
    pub(super) fn problem(&self) -> Option<&'static str> {
        if self.name.is_empty() || self.name.chars().count() > NAME_MAX_CHARS {
            return Some("a bookmark's name has 1 to 128 characters");
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
}
