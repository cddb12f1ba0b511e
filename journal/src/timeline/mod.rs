//! Which LSNs and times are recovery points, and which lie in gaps.

mod event;
mod history;
mod snapshot;

use std::fmt;

use thiserror::Error;
use tidemark_proto::ids::{DiskId, Lsn};

pub(crate) use event::{Event, What, as_decoded};
pub(crate) use history::History;
pub use snapshot::Timeline;

use crate::error::ReadError;

/// A recovery point: an LSN and its time, microseconds since the epoch by the appliance's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Point {
    /// The LSN.
    pub lsn: Lsn,
    /// When it was captured.
    pub time_us: u64,
}

/// Why an LSN or time is no recovery point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum RefusedCause {
    /// Inside a gap; the number is the protocol's `GapCause`.
    Gap(u32),
    /// Before the first complete copy of a disk.
    BeforeHistory,
    /// Between snapshots, where retention has folded the writes into images.
    Folded,
    /// After the newest point that is durable and known to miss nothing.
    AfterLatest,
}

/// A refusal with the nearest points on both sides.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub struct Refused {
    /// Why.
    pub cause: RefusedCause,
    /// The nearest recovery point before.
    pub before: Option<Point>,
    /// The nearest recovery point after.
    pub after: Option<Point>,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.cause {
            RefusedCause::Gap(_) => "no recovery point exists there: it lies in a gap",
            RefusedCause::BeforeHistory => "no recovery point exists there: it lies before the history",
            RefusedCause::Folded => {
                "no recovery point exists there any more: only snapshots are kept of that time"
            }
            RefusedCause::AfterLatest => "no recovery point exists there yet: it lies after the latest",
        })?;
        match (self.before, self.after) {
            (Some(before), Some(after)) => {
                write!(f, "; the nearest are lsn:{} and lsn:{}", before.lsn, after.lsn)
            }
            (Some(point), None) | (None, Some(point)) => write!(f, "; the nearest is lsn:{}", point.lsn),
            (None, None) => f.write_str("; there is none at all"),
        }
    }
}

/// A question to the timeline has no answer.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TimelineError {
    /// Not a recovery point.
    #[error("{0}")]
    Refused(Box<Refused>),
    /// The journal cannot be read there.
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// An interval of LSNs that are no recovery points of some disks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// First LSN inside.
    pub from: Lsn,
    /// First LSN after it; `None` while it is open.
    pub to: Option<Lsn>,
    /// Time of the last good point before it; 0 when there is none.
    pub from_time_us: u64,
    /// Time of `to`; `None` while it is open.
    pub to_time_us: Option<u64>,
    /// LSN of the line that opened it.
    pub line: Lsn,
    /// The protocol's `GapCause`.
    pub cause: u32,
    /// For people.
    pub detail: String,
    /// The disks it concerns.
    pub disks: Vec<DiskId>,
}

/// An unbroken run of recovery points, both ends inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// First point.
    pub from: Point,
    /// Last point.
    pub to: Point,
}

/// A bookmark's place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Marker {
    /// Where.
    pub point: Point,
    /// Identity of the bookmark, as the appliance gave it: it keeps the level there, too.
    pub bookmark_id: String,
    /// Its name when it was placed.
    pub name: String,
    /// The appliance's request it answers; 0 when it was placed in the guest.
    pub request_id: u64,
}

/// The newest heartbeat known to miss nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Horizon {
    /// Points up to here may be offered.
    pub lsn: Lsn,
    /// When it was sampled: RPO is now minus this.
    pub time_us: u64,
}
