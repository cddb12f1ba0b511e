//! Frames: the records of a segment.
//!
//! ## Layout, version 2; integers are little-endian
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | magic `TMFRAME1` |
//! | 8 | 2 | version = 2 (1 is read) |
//! | 10 | 1 | kind: 1 writes, 2 base, 3 line start, 4 line end, 5 marker, 6 heartbeat, 7 resize, 8 footer |
//! | 11 | 1 | flags: bit 1 payload encrypted; reserved: bit 0 payload compressed in blocks |
//! | 12 | 4 | table bytes |
//! | 16 | 4 | checksum count = ceil(payload bytes / 4096) |
//! | 20 | 4 | payload bytes |
//! | 24 | 8 | segment ordinal |
//! | 32 | 8 | frame ordinal in the segment, from 0 |
//! | 40 | 8 | seq |
//! | 48 | 8 | LSN after this frame |
//! | 56 | 8 | capture generation |
//! | 64 | 8 | ring position |
//! | 72 | 16 | capture id |
//! | 88 | 32 | stream chain |
//! | 120 | 8 | appliance time, µs |
//! | 128 | 8 | clock error, µs |
//! | 136 | 8 | writer generation |
//! | 144 | 8 | highest durable seq known when it was written |
//! | 152 | 8 | highest durable LSN known when it was written |
//! | 160 | 8 | first LSN (writes), line LSN (base), own LSN (events); last LSN taken (heartbeat) |
//! | 168 | 32 | hash of the previous frame; of the segment header for frame 0 |
//! | 200 | 32 | hash of bytes 0..200 and of all between the header and the payload: BLAKE3 keyed with the segment's key |
//! | 232 | | table, tags, salt, payload hash, checksums (u32 each), payload |
//!
//! The hash is checked before any field is used, the lengths, version and flags excepted, which only say how much to
//! hash. Each checksum is the CRC-32C of 4 KiB of payload (the last may cover less). A frame with payload has its hash:
//! BLAKE3 keyed with the segment's key, 32 bytes. So a frame's hash stands for every byte of the log up to it. If
//! the payload is encrypted, the tag of each 4 KiB (16 bytes each) and the salt (32) come first (`crate::encryption`);
//! hash and checksums are over bytes as stored, so that a check needs no keys.
//!
//! Table of writes and base, 24 bytes per entry: disk u32, sectors u32, start sector u64, time delta µs u32, kind u8
//! (1 data, 2 zeroes, 3 discard, 4 flush), reserved u8 = 0, flags u16. Data entries take their payload in order; entry
//! i of writes has LSN first + i. Tables of the others (a text is length u32 and bytes):
//! - line start: gap-from LSN u64, cause u32, dirty bytes u64, detail text, disk count u32, disks u32 each
//! - line end: disk count u32, disks u32 each
//! - marker: request id u64, bookmark id text (a UUID; behind a space the consistency level, if above crash), name text;
//!   without a name a place that only its asker knows, which is no event
//! - heartbeat: time µs u64, clean u8
//! - resize: disk u32, size in bytes u64
//! - footer: closes the segment: frame count u64, payload bytes u64
//!
//! ## History
//! Version 1: first light; neither payload hash nor encryption, so that checksums alone cover the payload. Version 2:
//! the payload hash, and encryption.

mod body;
mod decode;
mod encode;
mod header;
mod seal;

pub use body::{Body, Entry, EntryKind, Frame};
pub use decode::{DecodedFrame, FrameError, Table, decode, payload_damage};
pub(crate) use encode::{Context, Stored, encode, encode_footer};
pub use header::{Cover, FRAME_HEADER_BYTES, FrameHeader, FrameKind};
pub(crate) use header::{FRAME_MAGIC, PAYLOAD_HASH_BYTES, SALT_BYTES, frame_lengths};
pub use seal::Seal;

/// Bytes of one entry of a table.
pub const ENTRY_BYTES: usize = 24;

/// Bytes of a frame's table at most: the largest table that the limits of the protocol allow, with room.
pub const TABLE_MAX_BYTES: usize = 1 << 20;
