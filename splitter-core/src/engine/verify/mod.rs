//! Verify on request: the disks are read again and compared with what the journal has, while everything goes on.
//!
//! No line is open, so a place may be written at any moment. A range is compared as of the LSN when its read began, and
//! only those blocks of it that no request touched from then until the ring was read to where it ended after the read:
//! of them the disk and the journal hold one and the same version at that LSN. The others are read again.
//!
//! What differs is asked about again in blocks, and once more after the next clean heartbeat: a write that was missed and
//! that a counter or a dirty bit tells of is repaired by then, under its own cause. What still differs is a difference
//! that nothing else has noticed: it opens a gap, and the blocks are read under its line.

mod comparing;
mod job;
mod run;

pub(super) use comparing::Verify;
