//! One version of a range of sectors.
//!
//! Encoded in 36 bytes, little-endian: disk u32, sectors u32, start sector u64, LSN u64, arrival u32, payload start
//! u32, payload sectors u16, offset sectors u16.

use std::cmp::Reverse;

use tidemark_proto::ids::{DiskId, Lsn};

use crate::wire::{Put, Reader};

/// Sectors of a chunk: 64 KiB, the unit of lookups.
pub(crate) const CHUNK_SECTORS: u64 = 128;

/// Bytes of an encoded entry.
pub(crate) const INDEX_ENTRY_BYTES: usize = 36;

/// The order of entries in an index: by chunk, newest first.
pub(crate) type Key = (u32, u64, Reverse<u64>, Reverse<u32>);

/// A version of `sectors` sectors from `start` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexEntry {
    /// Which disk.
    pub disk: DiskId,
    /// First sector.
    pub start: u64,
    /// Sectors, at least 1.
    pub sectors: u32,
    /// The write's LSN, or the line's for base blocks.
    pub lsn: Lsn,
    /// Number in the segment, in order of arrival: the later of two base blocks of one line wins.
    pub arrival: u32,
    /// Where the bytes are.
    pub(crate) place: Place,
}

/// Where an entry's bytes are in its segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// No bytes: zeroes. Stored as payload sectors 0, payload start 0 for zeroes and 1 for a discard.
    Zero {
        /// The guest does not care about the content.
        discard: bool,
    },
    /// In the payload of a frame.
    Payload {
        /// Byte in the segment where the frame's payload begins; its checksums lie directly before.
        payload_start: u32,
        /// Sectors of that payload.
        payload_sectors: u16,
        /// Sectors of the payload before the entry's first.
        offset_sectors: u16,
    },
}

impl IndexEntry {
    pub(crate) fn chunk(&self) -> u64 {
        self.start / CHUNK_SECTORS
    }

    pub(crate) fn end(&self) -> u64 {
        self.start.saturating_add(self.sectors.into())
    }

    pub(crate) fn key(&self) -> Key {
        (self.disk.0, self.chunk(), Reverse(self.lsn.0), Reverse(self.arrival))
    }

    /// Whether it may reach over a chunk's end and so is not kept by chunk.
    pub(crate) fn is_wide(&self) -> bool {
        u64::from(self.sectors) > CHUNK_SECTORS
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.u32(self.disk.0);
        out.u32(self.sectors);
        out.u64(self.start);
        out.u64(self.lsn.0);
        out.u32(self.arrival);
        let (payload_start, payload_sectors, offset_sectors) = match self.place {
            Place::Zero { discard } => (u32::from(discard), 0, 0),
            Place::Payload { payload_start, payload_sectors, offset_sectors } => {
                (payload_start, payload_sectors, offset_sectors)
            }
        };
        out.u32(payload_start);
        out.u16(payload_sectors);
        out.u16(offset_sectors);
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(bytes);
        let (disk, sectors) = (DiskId(reader.u32()?), reader.u32()?);
        let (start, lsn, arrival) = (reader.u64()?, Lsn(reader.u64()?), reader.u32()?);
        let (payload_start, payload_sectors, offset_sectors) = (reader.u32()?, reader.u16()?, reader.u16()?);
        let place = match (payload_sectors, payload_start) {
            (0, 0 | 1) => Place::Zero { discard: payload_start == 1 },
            (0, _) => return None,
            _ => {
                let end = u32::from(offset_sectors).checked_add(sectors)?;
                if end > u32::from(payload_sectors) {
                    return None;
                }
                Place::Payload { payload_start, payload_sectors, offset_sectors }
            }
        };
        let in_chunk = start % CHUNK_SECTORS + u64::from(sectors) <= CHUNK_SECTORS;
        let wide = u64::from(sectors) > CHUNK_SECTORS && matches!(place, Place::Zero { .. });
        (sectors > 0 && (in_chunk || wide)).then_some(Self { disk, start, sectors, lsn, arrival, place })
    }
}
