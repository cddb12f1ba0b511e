//! The portable half of a splitter: what is true on every guest operating system.
//!
//! [`capture`] holds the contracts which the operating system's side implements: the ring of captured writes, the
//! control of the kernel side, the dirty maps, the disk reader. It knows no OS call, no clock and no thread, so
//! the same code runs against a kernel and against a simulation. [`engine`] is the state machine between that side and
//! the appliance's stream.

#![deny(clippy::indexing_slicing)]

pub mod capture;
pub mod engine;
