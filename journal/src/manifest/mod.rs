//! The manifest: the sole authority over what belongs to the journal. A log of records on top of a snapshot; a new
//! snapshot replaces the file by a durable rename.
//!
//! ## Layout, version 3; integers are little-endian
//! Header, 104 bytes: magic `TMMANI01`, version u16 = 3 (1 and 2 are read), header bytes u16 = 104, reserved u32 = 0, VM id 16, key 32,
//! seq of the first record u64, hash 32 (BLAKE3 keyed with the key, over bytes 0..72).
//!
//! Record: magic `TMMR`, kind u16, reserved u16 = 0, body bytes u32, seq u64, durable seq u64 (the highest record seq
//! known to be durable when it was written; 0 in snapshots), hash 32 (keyed, over the hash of the record before (of the
//! header for the first), bytes 0..28 and the body), body.
//!
//! | kind | record | body (a text or bytes are length u32 and bytes) |
//! |---|---|---|
//! | 1 | writer | writer generation u64 |
//! | 2 | disk | id u32, identity, path, size u64, then size count u32 and sizes {from LSN u64, bytes u64} |
//! | 3 | note | key, value; an empty value removes it |
//! | 4 | segment open | ordinal u64, seq before u64, LSN before u64, hash of the last frame before 32 |
//! | 5 | segment sealed | ordinal, bytes, leaf bytes u64; leaf hash 32; hash of its last frame 32; position at its end {seq, LSN u64, capture id 16, ring position u64, chain 32, generation u64}; first LSN, last LSN, first time, last time, lowest and highest entry LSN, payload bytes u64; event count u32, events |
//! | 6 | segment dropped | ordinal u64: it held nothing acknowledged |
//! | 7 | durable | seq u64, LSN u64: what is acknowledged; written after the sync it speaks of, itself unsynced |
//! | 8 | snapshot end | the records before it are the whole state |
//! | 9 | closed | a clean end; seq u64, LSN u64 |
//! | 16 | node | level u16, first ordinal, bytes (0: no part of the journal any more), extents u64; its trailer's hash 32; since version 2 |
//! | 17 | base | LSN, time, first ordinal u64; hash of the last dropped frame 32; last dropped time u64; disk count u32, {disk u32, LSN of its first line u64}; event count u32, events that still matter; image count u32, {disk u32, what the image is to its keeper}; since version 2 |
//! | 18 | keep | time of the change u64, then tag u8: 1 pin {name, kind u8 (1 lease, 2 bookmark, 3 clone, 4 lock, 5 replica), LSN u64, until u64 (0: no end)}, 2 revoked {name}, 3 cutoff {LSN u64}; since version 2 |
//! | 19 | statement | kind u8, segment, frames, seq, LSN, time u64 each, head 32, digest of the state 32, public key 32, signature 64: [`crate::attest`]; since version 3 |
//! | 20 | content | ordinal u64 of a segment below record 21; BLAKE3 keyed with the key, over its file 32; since version 3 |
//! | 21 | hashed from | ordinal u64: in segments from it on, hashes cover every payload; since version 3 |
//! | 24 | keeping | tag u8: 1 kept {LSN, time, until u64; disk count u32, {disk u32, size u64, what the image is to its keeper}}, 2 dropped {LSN u64}; since version 3 |
//!
//! Events: see the table kinds of [`crate::frame`]; tag u8 (1 line start, 2 line end, 3 marker, 4 resize, 5 clean
//! heartbeat), LSN u64, time u64, then: line start {gap from u64, time before u64, cause u32, detail, disks}, line end
//! {disks}, marker {request id u64, bookmark id, name}, resize {disk u32, bytes u64}; disks are count u32 and u32 each.
//!
//! ## History
//! Version 1: first light. Version 2: nodes, images, pins. Version 3: statements, hashes over payload, snapshots. A manifest of
//! an older version that is written on holds records of this one until its next snapshot; older programs refuse both.

mod log;
mod read;
mod record;
mod retention;
mod state;

pub(crate) use log::ManifestLog;
pub use read::{ManifestError, ManifestRecord, decode};
pub(crate) use read::{Read, read};
pub(crate) use record::{NodeRecord, Record, Sealed, SegmentOpen};
pub(crate) use retention::{Base, FIRST_OF_BRANCH, Keep, Keeping};
pub(crate) use state::{DiskState, State};

/// The manifest's file.
pub const MANIFEST_FILE: &str = "manifest";

/// A snapshot before it takes the manifest's name.
pub(crate) const MANIFEST_NEW_FILE: &str = "manifest.new";

pub(crate) const MAGIC: [u8; 8] = *b"TMMANI01";
/// The version that is written; older ones are read.
pub(crate) const VERSION: u16 = 3;
pub(crate) const HEADER_BYTES: usize = 104;
pub(crate) const RECORD_MAGIC: [u8; 4] = *b"TMMR";
pub(crate) const RECORD_HEADER_BYTES: usize = 60;
pub(crate) const HASHED_RECORD_BYTES: usize = 28;
