//! The stamp workload and its checker: oracle 1, "any write, exactly".
//!
//! Every 512-byte sector the workload writes carries the number of its write, its own address, a time and a checksum.
//! The workload keeps its own log of submissions and completions, away from the disk. From an image of the disk and
//! that log the checker decides whether the image is a state that the history allows.

mod check;
mod history;
mod sector;
mod workload;

pub use check::{Checker, Verdict, Violation};
pub use history::{History, Kind, Operation};
pub use sector::{SECTOR_BYTES, Sector, Stamp};
pub use workload::{AlignedBuffer, Options, Report, StopOnDrop, Workload, run};
