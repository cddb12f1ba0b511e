//! From a point as a person names it to the disks' bytes as of it.

mod doubt;
mod opened;
mod when;

pub use doubt::{Doubt, Verified, doubts, with_kept};
pub use opened::{Holder, Leases, OpenedDisk, OpenedView, ViewLease};
pub use when::{PointRefused, RecoveryPoint, cause_text, resolve, rfc3339};
