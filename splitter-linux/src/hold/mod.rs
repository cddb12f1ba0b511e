//! Holding still for a moment what writes to the protected disks, so that a bookmark is better than a power cut.
//!
//! - `plan`: which file systems lie on the disks, in which order they can be frozen, and what else writes there.
//! - `watchdog`: the process that lets everything go at the deadline and when the agent dies; `guard`: the agent's end.
//! - `freeze`: the two calls. `hooks`: what applications do before and after.
//! - `take`: the order of it all.
//!
//! While anything is held the agent's thread neither opens, writes nor logs anything: it has descriptors and waits for the
//! worker, with a bound. So a file system may be frozen that the agent itself lies on.

mod freeze;
mod guard;
mod hooks;
mod message;
mod mounts;
mod plan;
mod take;
mod watchdog;

pub use hooks::HOOKS_FOLDER;
pub use plan::{FileSystem, Plan, plan};
pub use take::{Hold, Reserve, Taken};
pub use watchdog::run as run_watchdog;
