//! The disks of this machine: what names them, which can be protected, and reading them past the page cache.

mod disk;
mod feedback;
mod identity;
mod machine;
mod nesting;
pub(crate) mod procfs;
mod reader;
mod refusal;
pub(crate) mod sysfs;

pub use disk::{Disk, find, fingerprint, list};
pub use feedback::refuse_feedback;
pub use machine::check as check_machine;
pub use nesting::refuse_nested;
pub(crate) use reader::AlignedBuffer;
pub use reader::{DirectReader, DiskSet};
pub use refusal::Refusal;
