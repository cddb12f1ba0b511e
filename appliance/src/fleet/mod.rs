//! The VMs of this appliance: each with its journal, its live stream if any, and what is known about it now.

mod barrier;
mod live;
mod log;
mod progress;
#[cfg(test)]
pub(crate) mod scripted;
mod status;
mod verify;
mod vm;

pub use barrier::{Hearing, Said, Seat};
pub use live::{Command, Live, MarkerAsk, PlacedMarker, SessionHandle};
pub use log::{Durable, LogDown, LogKeys, VmLog};
pub use progress::Progress;
pub use status::{alarms, vm_info};
pub use verify::{JobState, KeptDoubt, VerifiedDisk, VerifyJob};
pub use vm::{Fleet, MarkerOutcome, Origin, Vm};
