//! The fixed part of a frame.

use tidemark_proto::ids::{CaptureId, ChainHash, Generation, Lsn};
use tidemark_proto::limits::{CHECKSUM_PIECE_BYTES, FRAME_MAX_BYTES};

use super::TABLE_MAX_BYTES;
use crate::Position;
use crate::wire::{Put, Reader, size};

/// First bytes of every frame.
pub(crate) const FRAME_MAGIC: [u8; 8] = *b"TMFRAME1";

/// Bytes of a frame before its table.
pub const FRAME_HEADER_BYTES: usize = 232;

/// Bytes of the header that its hash covers.
pub(crate) const HASHED_HEADER_BYTES: usize = 200;

/// Version of the layout.
const VERSION: u16 = 1;

/// What a frame holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameKind {
    /// Captured writes.
    Writes = 1,
    /// Blocks of initial copy or resync.
    Base = 2,
    /// A gap begins.
    LineStart = 3,
    /// Gaps end.
    LineEnd = 4,
    /// A bookmark.
    Marker = 5,
    /// A sample of the ring's position in time.
    Heartbeat = 6,
    /// A disk's new size.
    Resize = 7,
    /// The segment is closed.
    Footer = 8,
}

impl FrameKind {
    fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Writes,
            2 => Self::Base,
            3 => Self::LineStart,
            4 => Self::LineEnd,
            5 => Self::Marker,
            6 => Self::Heartbeat,
            7 => Self::Resize,
            8 => Self::Footer,
            _ => return None,
        })
    }
}

/// The fixed fields; the module documentation of [`crate::frame`] gives their places.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// What it holds.
    pub kind: FrameKind,
    /// Bytes of the table.
    pub table_bytes: u32,
    /// Bytes of the payload.
    pub payload_bytes: u32,
    /// The segment it was written to.
    pub segment: u64,
    /// Its number in the segment, from 0.
    pub ordinal: u64,
    /// Where the stream stands after it.
    pub position: Position,
    /// Appliance time, microseconds since the epoch.
    pub appliance_time_us: u64,
    /// Error bound of that time, microseconds.
    pub clock_error_us: u64,
    /// Grows with each opening for writing.
    pub writer_generation: u64,
    /// Highest seq known to be durable when it was written.
    pub durable_seq: u64,
    /// Highest LSN known to be durable when it was written.
    pub durable_lsn: Lsn,
    /// First, line or own LSN, by kind.
    pub first_lsn: Lsn,
    /// Hash of the frame before.
    pub previous: [u8; 32],
}

/// Checksums of a payload of that many bytes.
pub(crate) fn checksum_count(payload_bytes: usize) -> usize {
    payload_bytes.div_ceil(CHECKSUM_PIECE_BYTES)
}

/// Bytes of table and payload, as far as they can be right, from an unverified header.
pub(crate) fn frame_lengths(header: &[u8]) -> Option<(usize, usize)> {
    let mut reader = Reader::new(header);
    if reader.array()? != FRAME_MAGIC {
        return None;
    }
    reader.take(4)?;
    let (table, checksums, payload) = (reader.u32()?, reader.u32()?, reader.u32()?);
    let (table, checksums, payload) = (size(table.into()), size(checksums.into()), size(payload.into()));
    (table <= TABLE_MAX_BYTES && payload <= FRAME_MAX_BYTES && checksums == checksum_count(payload))
        .then_some((table, payload))
}

impl FrameHeader {
    /// Bytes before the payload: header, table and checksums.
    #[must_use]
    pub fn head_bytes(&self) -> usize {
        FRAME_HEADER_BYTES
            + size(self.table_bytes.into())
            + 4 * checksum_count(size(self.payload_bytes.into()))
    }

    /// Bytes of the whole frame.
    #[must_use]
    pub fn frame_bytes(&self) -> u64 {
        self.head_bytes() as u64 + u64::from(self.payload_bytes)
    }

    /// The bytes that the hash covers.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.put(&FRAME_MAGIC);
        out.u16(VERSION);
        out.u8(self.kind as u8);
        out.u8(0);
        out.u32(self.table_bytes);
        out.u32(crate::wire::length(checksum_count(size(self.payload_bytes.into()))));
        out.u32(self.payload_bytes);
        out.u64(self.segment);
        out.u64(self.ordinal);
        out.u64(self.position.seq);
        out.u64(self.position.lsn.0);
        out.u64(self.position.generation.0);
        out.u64(self.position.ring_position);
        out.put(&self.position.capture_id.0);
        out.put(&self.position.chain.0);
        out.u64(self.appliance_time_us);
        out.u64(self.clock_error_us);
        out.u64(self.writer_generation);
        out.u64(self.durable_seq);
        out.u64(self.durable_lsn.0);
        out.u64(self.first_lsn.0);
        out.put(&self.previous);
    }

    /// Decodes bytes whose hash was checked. `None`: a version or kind this program does not know.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(bytes);
        reader.array::<8>()?;
        if reader.u16()? != VERSION {
            return None;
        }
        let kind = FrameKind::from_number(reader.u8()?)?;
        if reader.u8()? != 0 {
            return None;
        }
        let table_bytes = reader.u32()?;
        reader.u32()?;
        let payload_bytes = reader.u32()?;
        let (segment, ordinal, seq, lsn) = (reader.u64()?, reader.u64()?, reader.u64()?, Lsn(reader.u64()?));
        let (generation, ring_position) = (Generation(reader.u64()?), reader.u64()?);
        let (capture_id, chain) = (CaptureId(reader.array()?), ChainHash(reader.array()?));
        Some(Self {
            kind,
            table_bytes,
            payload_bytes,
            segment,
            ordinal,
            position: Position { seq, lsn, capture_id, ring_position, chain, generation },
            appliance_time_us: reader.u64()?,
            clock_error_us: reader.u64()?,
            writer_generation: reader.u64()?,
            durable_seq: reader.u64()?,
            durable_lsn: Lsn(reader.u64()?),
            first_lsn: Lsn(reader.u64()?),
            previous: reader.array()?,
        })
    }
}
