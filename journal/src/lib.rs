//! The journal of one VM: every captured write of all its disks, in capture order, in append-only segments, and views
//! of any disk as of any LSN. Nothing here knows the network, SQL, an asynchronous run time or the wall clock: time
//! and randomness are passed in, files are behind [`storage::Storage`].
//!
//! The parts, from bytes to answers:
//! - [`storage`]: the directory of files a journal lives in, real ([`storage::OsStorage`]) or in RAM with faults
//!   ([`storage::SimStorage`]).
//! - [`frame`], [`segment`], [`leaf`], [`node`], [`manifest`]: the formats, each documented where it is encoded;
//!   `FORMAT.md` is the overview.
//! - [`recovery`]: what an unclean end means, as a decision table.
//! - [`timeline`]: which LSNs and times are recovery points, and which are in gaps.
//! - [`view`]: the content of a disk as of an LSN.
//! - [`image`]: a disk as of one LSN, as chunks of the store.
//! - [`store`]: chunks that all VMs share, compressed and encrypted.
//! - [`retention`]: what of the history is kept, and how the rest becomes images.
//! - [`branch`]: journals that begin at a point of another one, and writing into them.
//! - [`attest`]: what a signature outside the journal proves.
//! - [`encryption`]: payload at rest.
//! - [`changed`]: which bytes differ between two points.
//! - [`Journal`]: the writer and the source of timelines and views. [`verify`] and [`dump`]: the offline tools.
#![deny(clippy::indexing_slicing)]

pub mod attest;
pub mod branch;
pub mod changed;
mod dump;
pub mod encryption;
pub mod error;
pub mod frame;
pub mod image;
pub mod index;
mod journal;
pub mod leaf;
pub mod manifest;
pub mod node;
mod options;
mod position;
mod records;
pub mod recovery;
pub mod retention;
pub mod segment;
pub mod storage;
pub mod store;
pub mod timeline;
mod verify;
pub mod view;
mod wire;

pub use dump::{DumpError, dump};
pub use encryption::Encryption;
pub use error::{AppendError, OpenError, ReadError, RetentionError, SyncError, ViewError};
pub use journal::{Change, Fold, Journal, LiveImages};
pub use options::{Options, limits};
pub use position::Position;
pub use records::{DiskRecord, ImageNames, Kept, KeptDisk, LogPart, Pin, PinKind, Statistics};
pub use recovery::{Damage, RecoveryReport};
pub use verify::{VerifyReport, inspect, verify};
