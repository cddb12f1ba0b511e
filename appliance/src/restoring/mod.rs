//! Restoring a disk onto the machine it is for, by a grant: the only service besides enrolment that needs no client
//! certificate. The machine says by hashes what its disk has, and gets what differs.

mod answer;
mod running;
mod service;

pub use running::Restores;
pub use service::{REQUEST_MAX_BYTES, RestoreService};
