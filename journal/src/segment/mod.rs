//! Segments: a header, frames ([`crate::frame`]), and a footer frame once closed. Nothing lies between or after them.
//!
//! ## Header, version 2; integers are little-endian
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | magic `TMSEGM01` |
//! | 8 | 2 | version: 1 without a data key, else 2 |
//! | 10 | 2 | header bytes = 160 |
//! | 12 | 4 | ordinal of the data key that its frames' payload is encrypted with; 0: none |
//! | 16 | 16 | VM id |
//! | 32 | 8 | segment ordinal, from 1 |
//! | 40 | 8 | seq of the last frame before this segment |
//! | 48 | 8 | last LSN before this segment |
//! | 56 | 8 | writer generation |
//! | 64 | 32 | key of the hashes |
//! | 96 | 32 | hash of the last frame of the segment before; zeroes in the first |
//! | 128 | 32 | BLAKE3 keyed with the key, over bytes 0..128 |
//!
//! ## History
//! Version 1: first light. Version 2: data keys.

mod content;
mod scan;

use tidemark_proto::ids::{Lsn, VmId};

use crate::wire::{Put, Reader, same_hash};

pub(crate) use content::{content_hash, sound_content_hash};
pub(crate) use scan::{Scanner, Stop, newest_claim};

/// Bytes of a segment before its first frame.
pub const SEGMENT_HEADER_BYTES: usize = 160;

const MAGIC: [u8; 8] = *b"TMSEGM01";
const HASHED_BYTES: usize = 128;

/// The name of a segment's file.
#[must_use]
pub fn segment_name(ordinal: u64) -> String {
    format!("segment-{ordinal:016x}")
}

/// What a segment says about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Whose journal.
    pub vm: VmId,
    /// Its number, from 1, in log order.
    pub ordinal: u64,
    /// Seq of the last frame before it.
    pub seq_before: u64,
    /// Last LSN before it.
    pub lsn_before: Lsn,
    /// Who wrote it.
    pub writer_generation: u64,
    /// Which data key its frames' payload is encrypted with; 0: none.
    pub data_key: u32,
    /// Key of the hashes in it.
    pub key: [u8; 32],
    /// Hash of the last frame of the segment before.
    pub previous: [u8; 32],
}

impl SegmentHeader {
    /// The header and its hash, which the first frame repeats.
    pub(crate) fn encode(&self) -> (Vec<u8>, [u8; 32]) {
        let mut out = Vec::with_capacity(SEGMENT_HEADER_BYTES);
        out.put(&MAGIC);
        out.u16(if self.data_key == 0 { 1 } else { 2 });
        out.u16(160);
        out.u32(self.data_key);
        out.put(self.vm.0.as_bytes());
        out.u64(self.ordinal);
        out.u64(self.seq_before);
        out.u64(self.lsn_before.0);
        out.u64(self.writer_generation);
        out.put(&self.key);
        out.put(&self.previous);
        let hash = *blake3::keyed_hash(&self.key, &out).as_bytes();
        out.put(&hash);
        (out, hash)
    }

    /// Decodes the header that `bytes` begins with, and its hash. `None`: these are not the bytes that were written.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<(Self, [u8; 32])> {
        let (hashed, rest) = bytes.split_at_checked(HASHED_BYTES)?;
        let mut reader = Reader::new(hashed);
        if reader.array()? != MAGIC {
            return None;
        }
        let (version, length, data_key) = (reader.u16()?, reader.u16()?, reader.u32()?);
        if length != 160 || version != if data_key == 0 { 1 } else { 2 } {
            return None;
        }
        let header = Self {
            vm: VmId(uuid_from(reader.array()?)),
            ordinal: reader.u64()?,
            seq_before: reader.u64()?,
            lsn_before: Lsn(reader.u64()?),
            writer_generation: reader.u64()?,
            data_key,
            key: reader.array()?,
            previous: reader.array()?,
        };
        let hash = *blake3::keyed_hash(&header.key, hashed).as_bytes();
        same_hash(rest.first_chunk()?, &hash).then_some((header, hash))
    }
}

pub(crate) fn uuid_from(bytes: [u8; 16]) -> uuid::Uuid {
    uuid::Uuid::from_bytes(bytes)
}
