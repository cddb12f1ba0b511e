//! What was read of packs, on the local disk: pieces of up to 1 MiB, a file each, least recently used out.
//!
//! Every byte is verified when it is read (BLAKE3 per 64 KiB), so nothing is synced: what a crash or a bad disk leaves
//! behind is found, dropped and fetched again. Packs are encrypted, and so is what lies here.
//!
//! ## File `piece-<32 digits of the pack>-<8 digits of the piece>`, version 1; integers are little-endian
//! Magic `TMPIECE1`, version u16 = 1, blocks u16, bytes u32, pack 16, piece u32, reserved u32 = 0, then BLAKE3 of each
//! block of 64 KiB (the last may be shorter), then BLAKE3 of all before, then the bytes.
//!
//! ## History
//! Version 1: first light. Another version is dropped and fetched again.

mod file;
mod pieces;

pub use pieces::{CacheStatistics, PieceCache};
