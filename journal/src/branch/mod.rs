//! Branches: journals that begin at a point of another one, their parent.
//!
//! A branch is a journal like any other, in a directory of its own. Its manifest says what lies below its log in the place
//! where images are named (record 17): of each disk, the point of the parent that it continues, in 42 bytes:
//!
//! | bytes | field |
//! |---|---|
//! | 8 | `TMBRNCH1` |
//! | 16 | the parent: VM id |
//! | 8 | LSN in the parent, u64 |
//! | 4 | disk of the parent, u32 |
//! | 6 | zeroes |
//!
//! The record's hash covers them. LSNs go on where the parent stood, so that an LSN means the same content in both up to
//! there. Whoever keeps the parent pins it at that LSN ([`crate::PinKind::Clone`]): the branch has no copy.
//!
//! [`crate::Journal::create_branch`] makes one, [`ParentView`] reads below it, [`BranchWriter`] writes into it.
//!
//! What is no journal can be continued, too: [`crate::Journal::create_from_images`] makes a journal whose record 17 names
//! images of the chunk store at LSN 0, the way it does after a fold. It has no parent; it keeps its chunks itself
//! ([`crate::retention::mark_images`]).

mod parent;
mod point;
mod writer;

pub use parent::ParentView;
pub use point::{BranchPoint, BranchStart, ImageStart};
pub use writer::{BranchError, BranchWriter};
