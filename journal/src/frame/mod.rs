//! Frames: the records of a segment.

mod body;

pub use body::{Body, Entry, EntryKind, Frame};
