//! The fixed part of a frame.

use tidemark_proto::ids::{CaptureId, ChainHash, Generation, Lsn};
use tidemark_proto::limits::{CHECKSUM_PIECE_BYTES, FRAME_MAX_BYTES};

use super::TABLE_MAX_BYTES;
use crate::Position;
use crate::store::TAG_BYTES;
use crate::wire::{Put, Reader, size};

/// First bytes of every frame.
pub(crate) const FRAME_MAGIC: [u8; 8] = *b"TMFRAME1";

/// Bytes of a frame before its table.
pub const FRAME_HEADER_BYTES: usize = 232;

/// Bytes of the header that its hash covers.
pub(crate) const HASHED_HEADER_BYTES: usize = 200;

/// How a frame's payload is covered: what lies between its table and its checksums, and what its version and flags say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cover {
    /// By checksums alone, which find damage and no forgery: version 1.
    Checked,
    /// By a hash besides.
    Hashed,
    /// By a hash besides, and encrypted.
    Encrypted,
}

impl Cover {
    fn version(self) -> u16 {
        match self {
            Self::Checked => 1,
            Self::Hashed | Self::Encrypted => 2,
        }
    }

    fn flags(self) -> u8 {
        if self == Self::Encrypted { 2 } else { 0 }
    }

    /// `None`: a version or flag this program does not know.
    fn of(version: u16, flags: u8) -> Option<Self> {
        [Self::Checked, Self::Hashed, Self::Encrypted]
            .into_iter()
            .find(|cover| (cover.version(), cover.flags()) == (version, flags))
    }

    /// Bytes between the table and the checksums of a payload of that many bytes; a frame without payload has none.
    pub(crate) fn bytes(self, payload_bytes: usize) -> usize {
        match self {
            _ if payload_bytes == 0 => 0,
            Self::Checked => 0,
            Self::Hashed => PAYLOAD_HASH_BYTES,
            Self::Encrypted => TAG_BYTES * checksum_count(payload_bytes) + SALT_BYTES + PAYLOAD_HASH_BYTES,
        }
    }
}

/// Bytes of a payload's hash.
pub(crate) const PAYLOAD_HASH_BYTES: usize = 32;

/// Bytes of the salt of an encrypted payload's key.
pub(crate) const SALT_BYTES: usize = 32;

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
    /// How its payload is covered.
    pub cover: Cover,
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

/// Lengths of a frame's parts, as far as they can be right, from an unverified header.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lengths {
    pub table: usize,
    pub cover: usize,
    pub payload: usize,
}

impl Lengths {
    /// Bytes before the payload.
    pub(crate) fn head(&self) -> usize {
        FRAME_HEADER_BYTES + self.table + self.cover + 4 * checksum_count(self.payload)
    }
}

/// `None`: no frame begins so. Of an unknown version or flag nothing but the table and the payload is known to follow:
/// decoding says so.
pub(crate) fn frame_lengths(header: &[u8]) -> Option<Lengths> {
    let mut reader = Reader::new(header);
    if reader.array()? != FRAME_MAGIC {
        return None;
    }
    let (version, _, flags) = (reader.u16()?, reader.u8()?, reader.u8()?);
    let (table, checksums, payload) = (reader.u32()?, reader.u32()?, reader.u32()?);
    let (table, checksums, payload) = (size(table.into()), size(checksums.into()), size(payload.into()));
    let cover = Cover::of(version, flags).map_or(0, |cover| cover.bytes(payload));
    (table <= TABLE_MAX_BYTES && payload <= FRAME_MAX_BYTES && checksums == checksum_count(payload))
        .then_some(Lengths { table, cover, payload })
}

impl FrameHeader {
    /// Bytes before the payload: header, table, what covers the payload, and checksums.
    #[must_use]
    pub fn head_bytes(&self) -> usize {
        let payload = size(self.payload_bytes.into());
        Lengths { table: size(self.table_bytes.into()), cover: self.cover.bytes(payload), payload }.head()
    }

    /// Bytes of the whole frame.
    #[must_use]
    pub fn frame_bytes(&self) -> u64 {
        self.head_bytes() as u64 + u64::from(self.payload_bytes)
    }

    /// The bytes that the hash covers.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.put(&FRAME_MAGIC);
        out.u16(self.cover.version());
        out.u8(self.kind as u8);
        out.u8(self.cover.flags());
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

    /// Decodes bytes whose hash was checked. `None`: a version, kind or flag this program does not know.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(bytes);
        reader.array::<8>()?;
        let version = reader.u16()?;
        let kind = FrameKind::from_number(reader.u8()?)?;
        let cover = Cover::of(version, reader.u8()?)?;
        let table_bytes = reader.u32()?;
        reader.u32()?;
        let payload_bytes = reader.u32()?;
        let (segment, ordinal, seq, lsn) = (reader.u64()?, reader.u64()?, reader.u64()?, Lsn(reader.u64()?));
        let (generation, ring_position) = (Generation(reader.u64()?), reader.u64()?);
        let (capture_id, chain) = (CaptureId(reader.array()?), ChainHash(reader.array()?));
        Some(Self {
            kind,
            cover,
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
