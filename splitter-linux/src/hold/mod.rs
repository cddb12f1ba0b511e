//! Holding still for a moment what writes to the protected disks, so that a bookmark is better than a power cut.
//!
//! - `plan`: which file systems lie on the disks, in which order they can be frozen, and what else writes there.
//! - `watchdog`: the process that lets everything go at the deadline and when the agent dies; `guard`: the agent's end.
//! - `freeze`: the two calls for a file system; `crate::gate` has those for volumes. `hooks`: what applications do before and after.
//! - `resident`: the program in memory. `things`: what is held at once, and how. `take`: the order of it all.
//!
//! While anything is held the agent's thread neither opens, writes nor logs anything: it has descriptors and waits for the
//! worker, with a bound. So a file system may be frozen that the agent itself lies on.

mod freeze;
mod guard;
mod hooks;
mod message;
mod mounts;
mod plan;
mod resident;
mod take;
mod things;
mod watchdog;

pub use hooks::HOOKS_FOLDER;
pub use plan::{FileSystem, Means, Plan, Volume, plan};
pub use take::{Conduct, Gated, Hold, Taken};
pub use watchdog::run as run_watchdog;
