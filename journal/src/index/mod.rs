//! Where each written sector of a segment lies: index entries, and the index of a segment that is not sealed yet.
//!
//! Writes are split at 64 KiB chunk boundaries of the disk, so that one chunk's entries lie together; ranges of zeroes
//! longer than a chunk are kept whole in a list of their own.

mod entry;
mod memory;

pub use entry::IndexEntry;
pub(crate) use entry::{CHUNK_SECTORS, INDEX_ENTRY_BYTES, Key, Place};
pub(crate) use memory::{MemoryIndex, Summary, touching};
