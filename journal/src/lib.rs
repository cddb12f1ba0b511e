//! The journal of one VM: every captured write of all its disks, in capture order, in append-only segments, and views
//! of any disk as of any LSN. Nothing here knows the network, SQL, an asynchronous run time or the wall clock: time
//! and randomness are passed in, files are behind [`storage::Storage`].
//!
//! The parts, from bytes to answers:
//! - [`storage`]: the directory of files a journal lives in, real ([`storage::OsStorage`]) or in RAM with faults
//!   ([`storage::SimStorage`]).
//! - [`frame`], [`segment`], [`leaf`], [`manifest`]: the four formats, each documented where it is encoded;
//!   `FORMAT.md` is the overview.
//! - [`recovery`]: what an unclean end means, as a decision table.
//! - [`timeline`]: which LSNs and times are recovery points, and which are in gaps.
//! - [`view`]: the content of a disk as of an LSN.
//! - [`Journal`]: the writer and the source of timelines and views. [`verify`] and [`dump`]: the offline tools.
#![deny(clippy::indexing_slicing)]

pub mod error;
pub mod frame;
mod journal;
mod options;
mod position;
mod records;
pub mod recovery;
pub mod storage;
pub mod timeline;
pub mod view;

pub use error::{AppendError, OpenError, ReadError, SyncError, ViewError};
pub use journal::Journal;
pub use options::{Options, limits};
pub use position::Position;
pub use records::{DiskRecord, Statistics};
pub use recovery::{Damage, RecoveryReport};

/// Checks every byte of every file. Changes nothing and needs no lock.
pub fn verify(storage: &dyn storage::Storage) -> Result<VerifyReport, OpenError> {
    let _ = storage;
    Err(OpenError::Option("not built yet"))
}

/// Prints every record in order, for people.
pub fn dump(storage: &dyn storage::Storage, out: &mut dyn std::io::Write) -> Result<(), OpenError> {
    let _ = (storage, out);
    Err(OpenError::Option("not built yet"))
}

/// What [`verify`] found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Everything that is not as written, in file order. Empty: all is well.
    pub damage: Vec<Damage>,
    /// Unacknowledged bytes at the end of the log: no damage.
    pub torn_tail: Option<Damage>,
    /// Files read.
    pub files: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Frames checked.
    pub frames: u64,
}
