//! The engine: one owner of all state, without clock, threads or OS calls.
//!
//! The driver passes in what happened (a welcome, an acknowledgement, a finished read, the time) and calls
//! [`Engine::step`]; it takes out frames to send, ranges to read and notices. Bird's-eye view of the modules:
//!
//! - `batch`: captured writes become the payload and table of a frame, copied from the ring once.
//! - `inflight`: which requests are between issue and completion, and where they overlap.
//! - `window`: frames sent and not acknowledged, with the positions a resumed stream starts from.
//! - `spool`: the ladder of overload, and frames that wait in a file; `spooled`: how the engine uses it.
//! - `copy`: initial copy and resync: what is being read, what awaits its acknowledgement.
//! - `asking`: whether hashes go first; `compare`: questions and what becomes of their answers.
//! - `verify`: comparison on request, while no line is open.
//! - `disk`: per disk, its line and its gap.
//! - `barrier`: heartbeats and markers waiting for their place in the ring; `markers`: how they are placed; `offered`: up to where
//!   points are offered, and everything is at the appliance.
//! - `apply`: units of the ring; `lines`: misses, lines and generations; `reads`: what is read next; `resume`: hello
//!   and welcome.

mod apply;
mod asking;
mod barrier;
mod batch;
mod clock;
mod compare;
mod copy;
mod core;
mod disk;
mod inflight;
mod limits;
mod lines;
mod markers;
mod offered;
mod reads;
mod resume;
mod spool;
mod spooled;
mod verify;
mod window;

#[cfg(test)]
#[allow(clippy::cast_possible_truncation, reason = "the simulated disks have a hundred sectors")]
mod simulation;

pub use barrier::{Achieved, MarkerRequest, Place};
pub use clock::{ClockEstimate, ClockFilter};
pub use copy::{Hashing, ReadContent, ReadRequest};
pub use core::{Engine, EngineError, Kernel, Notice, Settings, StatusReport};
pub use disk::{DiskConfig, DiskReport};
pub use limits::*;
pub use offered::Synced;
pub use resume::{Refusal, Resumed};
pub use spool::{SpoolContent, SpoolEvent, SpoolFact, SpoolOrder, SpoolReport, SpoolSettings, SpooledFrame};
pub use spooled::Ladder;
