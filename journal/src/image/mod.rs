//! Images: one disk as of one LSN, as chunks of the store. Immutable; images share whatever they have in common.
//!
//! An image has two parts. A Merkle tree of 256-way nodes leads to the 64 KiB chunks of the disk; holes are absent
//! children and cost nothing. Above it lie *delta tables*: which sectors of which chunks were written since their chunk
//! was, and where in the store these sectors are. A fold moves each surviving block once, into a delta chunk, instead
//! of rewriting 64 KiB for it; a chunk is rewritten when 5/8 of it is pending. Tables are merged eight to one, level by
//! level, entries only.
//!
//! ## Tree node, version 1; integers are little-endian; a chunk of the store
//! Magic `TMTN`, version u8 = 1, height u8 (0: children are disk chunks), reserved u16 = 0, bitmap 32 (bit n of byte
//! n / 8: child n is there), chunk ids 32 each, ascending. Child n of a node of height h covers 256^h chunks.
//!
//! ## Table page, version 1; a chunk of the store
//! Inner: magic `TMDI`, version u8 = 1, height u8 (from 1), reserved u16 = 0, count u32, reserved u32 = 0, then
//! {first chunk number u64, page id 32}, ascending.
//! Leaf: magic `TMDL`, version u8 = 1, reserved u8 = 0, sources u16, entries u32, runs u32, then the sources' chunk ids;
//! entries {chunk number u64, first run u32, runs u8, flags u8 (bit 0: reset, older tables say nothing more about this
//! chunk), reserved u16 = 0}, ascending; runs {first sector u8, sectors u8, source u16 (65535: zeroes), sector in the
//! source u16}, ascending and apart.
//!
//! ## Descriptor, version 1
//! Magic `TMIMAGE1`, version u16 = 1, reserved u16 = 0, bytes u32 (all of it), key domain 16, disk u32, tree height u8,
//! root is there u8, tables u16, LSN u64, size in bytes u64, root 32 (zeroes if absent), tables newest first {level u8,
//! height u8, reserved u16 = 0, reserved u32 = 0, root 32}, hash 32: BLAKE3 of all before. That hash is the image's
//! identity.
//!
//! ## History
//! Version 1: first light.

mod builder;
mod descriptor;
mod diff;
mod error;
mod node;
mod page;
mod pending;
mod reader;
mod table;
mod tree;
mod walk;

pub use builder::ImageBuilder;
pub use descriptor::{Image, ImageId};
pub use diff::diff;
pub use error::ImageError;
pub use node::decode_node;
pub use page::decode_page;
pub use reader::{ImageExtent, ImageReader};
pub use walk::{Affected, ImageDamage, affected, mark, verify};

/// Sectors of a chunk.
pub(crate) const CHUNK_SECTORS: u64 = 128;

/// Sectors of a chunk that may be pending: from so many on the chunk is rewritten. Three quarters: bytes written fall
/// with it (server mix 2.02, 1.93, 1.87 for each byte received at 5/8, 6/8, 7/8; `tests/bench journal`), while reads visit
/// more deltas and replaced content stays longer.
pub(crate) const REWRITE_SECTORS: usize = 96;

/// Tables of one level; so many are merged into one of the next.
pub(crate) const TABLES_PER_LEVEL: usize = 8;
