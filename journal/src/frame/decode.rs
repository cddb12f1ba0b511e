//! Bytes to frames. Takes anything, panics at nothing.

use thiserror::Error;
use tidemark_proto::ids::{DiskId, Lsn};
use tidemark_proto::limits::{CHECKSUM_PIECE_BYTES, SECTOR_BYTES};

use super::header::{Cover, FrameHeader, FrameKind, HASHED_HEADER_BYTES, PAYLOAD_HASH_BYTES, frame_lengths};
use super::{Body, ENTRY_BYTES, Entry, EntryKind, FRAME_HEADER_BYTES, Frame, Seal};
use crate::wire::{Reader, same_hash, size};

/// Why bytes are not a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The bytes end before the frame does.
    #[error("the file ends inside a frame")]
    Short,
    /// Magic or lengths cannot be those of a frame.
    #[error("no frame begins here")]
    NoFrame,
    /// Header, table, cover or checksums are not what was written.
    #[error("the frame's hash does not match")]
    Hash,
    /// Written as it is, but by a newer version.
    #[error("the frame has a version, kind or flag this program does not know")]
    Unknown,
    /// The hash matches but the content breaks the format: written wrongly.
    #[error("the frame's content breaks the format")]
    Content,
}

/// A frame whose head was verified. The payload was not: see [`payload_damage`] and [`DecodedFrame::has_payload`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecodedFrame {
    /// The fixed fields.
    pub header: FrameHeader,
    /// The content, the payload excepted.
    pub table: Table,
    /// CRC-32C of each 4 KiB of payload, as stored.
    pub crc32c: Vec<u32>,
    /// BLAKE3 keyed with the segment's key, over the payload as stored; `None` without payload and in version 1.
    pub payload_hash: Option<[u8; 32]>,
    /// What opens the payload, when it is encrypted.
    pub seal: Option<Seal>,
    /// Hash of the head, which the next frame repeats.
    pub hash: [u8; 32],
}

/// A decoded table.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are those of `Body`")]
pub enum Table {
    /// Writes or base blocks.
    Entries(Vec<Entry>),
    /// A line's start.
    LineStart { gap_from_lsn: Lsn, cause: u32, dirty_bytes: u64, detail: String, disks: Vec<DiskId> },
    /// A line's end.
    LineEnd { disks: Vec<DiskId> },
    /// A bookmark.
    Marker { request_id: u64, bookmark_id: String, name: String },
    /// A sample.
    Heartbeat { time_us: u64, clean: bool },
    /// A new size.
    Resize { disk: DiskId, size_bytes: u64 },
    /// The end of a segment: frames and payload bytes before it.
    Footer { frames: u64, payload_bytes: u64 },
}

/// Decodes the head of the frame that `bytes` begins with; `key` is that of its segment. The payload need not be there.
///
/// # Errors
/// See [`FrameError`].
pub fn decode(bytes: &[u8], key: &[u8; 32]) -> Result<DecodedFrame, FrameError> {
    let fixed = bytes.get(..FRAME_HEADER_BYTES).ok_or(FrameError::Short)?;
    let lengths = frame_lengths(fixed).ok_or(FrameError::NoFrame)?;
    let rest = bytes.get(FRAME_HEADER_BYTES..lengths.head()).ok_or(FrameError::Short)?;
    let (hashed, stored) = fixed.split_at_checked(HASHED_HEADER_BYTES).ok_or(FrameError::Short)?;
    let mut hasher = blake3::Hasher::new_keyed(key);
    hasher.update(hashed);
    hasher.update(rest);
    let hash = *hasher.finalize().as_bytes();
    if !stored.try_into().is_ok_and(|stored| same_hash(stored, &hash)) {
        return Err(FrameError::Hash);
    }
    let header = FrameHeader::decode(hashed).ok_or(FrameError::Unknown)?;
    let (table, rest) = rest.split_at_checked(lengths.table).ok_or(FrameError::Content)?;
    let table = decode_table(header.kind, table, lengths.payload as u64).ok_or(FrameError::Content)?;
    let (cover, checksums) = rest.split_at_checked(lengths.cover).ok_or(FrameError::Content)?;
    let (seal, payload_hash) = decode_cover(&header, cover).ok_or(FrameError::Content)?;
    let crc32c = checksums.as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect();
    Ok(DecodedFrame { header, table, crc32c, payload_hash, seal, hash })
}

type DecodedCover = (Option<Seal>, Option<[u8; 32]>);

fn decode_cover(header: &FrameHeader, bytes: &[u8]) -> Option<DecodedCover> {
    if header.cover == Cover::Encrypted && header.payload_bytes == 0 {
        return None;
    }
    let Some(place) = bytes.len().checked_sub(PAYLOAD_HASH_BYTES) else { return Some((None, None)) };
    let (seal, hash) = bytes.split_at_checked(place)?;
    let seal = if header.cover == Cover::Encrypted { Some(Seal::decode(seal)?) } else { None };
    Some((seal, Some(hash.try_into().ok()?)))
}

fn decode_table(kind: FrameKind, bytes: &[u8], payload_bytes: u64) -> Option<Table> {
    let mut reader = Reader::new(bytes);
    let table = match kind {
        FrameKind::Writes | FrameKind::Base => {
            return decode_entries(bytes, payload_bytes).map(Table::Entries);
        }
        FrameKind::LineStart => Table::LineStart {
            gap_from_lsn: Lsn(reader.u64()?),
            cause: reader.u32()?,
            dirty_bytes: reader.u64()?,
            detail: reader.text()?.to_owned(),
            disks: decode_disks(&mut reader)?,
        },
        FrameKind::LineEnd => Table::LineEnd { disks: decode_disks(&mut reader)? },
        FrameKind::Marker => Table::Marker {
            request_id: reader.u64()?,
            bookmark_id: reader.text()?.to_owned(),
            name: reader.text()?.to_owned(),
        },
        FrameKind::Heartbeat => Table::Heartbeat { time_us: reader.u64()?, clean: reader.u8()? == 1 },
        FrameKind::Resize => Table::Resize { disk: DiskId(reader.u32()?), size_bytes: reader.u64()? },
        FrameKind::Footer => Table::Footer { frames: reader.u64()?, payload_bytes: reader.u64()? },
    };
    reader.end()?;
    (payload_bytes == 0).then_some(table)
}

fn decode_entries(bytes: &[u8], payload_bytes: u64) -> Option<Vec<Entry>> {
    if !bytes.len().is_multiple_of(ENTRY_BYTES) {
        return None;
    }
    let mut entries = Vec::with_capacity(bytes.len() / ENTRY_BYTES);
    let mut payload = 0_u64;
    for bytes in bytes.chunks_exact(ENTRY_BYTES) {
        let mut reader = Reader::new(bytes);
        let (disk, sectors) = (DiskId(reader.u32()?), reader.u32()?);
        let (start_sector, time_delta_us) = (reader.u64()?, reader.u32()?);
        let kind = EntryKind::from_number(reader.u8()?)?;
        if reader.u8()? != 0 {
            return None;
        }
        start_sector.checked_add(sectors.into())?.checked_mul(SECTOR_BYTES)?;
        let entry = Entry { disk, kind, start_sector, sectors, flags: reader.u16()?, time_delta_us };
        payload = payload.checked_add(entry.payload_bytes())?;
        entries.push(entry);
    }
    (payload == payload_bytes).then_some(entries)
}

fn decode_disks(reader: &mut Reader<'_>) -> Option<Vec<DiskId>> {
    let count = reader.count(4)?;
    (0..count).map(|_| reader.u32().map(DiskId)).collect()
}

/// The first 4 KiB piece of `payload` that does not match its checksum, as an offset in the payload.
#[must_use]
pub fn payload_damage(payload: &[u8], crc32c: &[u32]) -> Option<usize> {
    let mut pieces = payload.chunks(CHECKSUM_PIECE_BYTES).zip(crc32c).enumerate();
    pieces
        .find(|(_, (piece, checksum))| crc32c::crc32c(piece) != **checksum)
        .map(|(index, _)| index * CHECKSUM_PIECE_BYTES)
}

impl DecodedFrame {
    /// Whether these are the bytes that the frame's hash is over; `key` is that of its segment. In version 1 there is no
    /// such hash, and any bytes are.
    #[must_use]
    pub fn has_payload(&self, payload: &[u8], key: &[u8; 32]) -> bool {
        self.payload_hash.is_none_or(|stored| same_hash(&stored, blake3::keyed_hash(key, payload).as_bytes()))
    }

    /// The frame as it was appended; `None` for a footer, and for a payload that is encrypted.
    #[must_use]
    pub fn frame<'a>(&'a self, payload: &'a [u8]) -> Option<Frame<'a>> {
        if self.seal.is_some() {
            return None;
        }
        let lsn = self.header.first_lsn;
        let crc32c = self.crc32c.as_slice();
        let body = match &self.table {
            Table::Entries(entries) if self.header.kind == FrameKind::Base => {
                Body::Base { line_lsn: lsn, entries, payload, crc32c }
            }
            Table::Entries(entries) => Body::Writes { first_lsn: lsn, entries, payload, crc32c },
            Table::LineStart { gap_from_lsn, cause, dirty_bytes, detail, disks } => Body::LineStart {
                lsn,
                gap_from_lsn: *gap_from_lsn,
                cause: *cause,
                detail,
                disks,
                dirty_bytes: *dirty_bytes,
            },
            Table::LineEnd { disks } => Body::LineEnd { lsn, disks },
            Table::Marker { request_id, bookmark_id, name } => {
                Body::Marker { lsn, bookmark_id, name, request_id: *request_id }
            }
            Table::Heartbeat { time_us, clean } => Body::Heartbeat { lsn, time_us: *time_us, clean: *clean },
            Table::Resize { disk, size_bytes } => Body::Resize { lsn, disk: *disk, size_bytes: *size_bytes },
            Table::Footer { .. } => return None,
        };
        Some(Frame {
            position: self.header.position,
            appliance_time_us: self.header.appliance_time_us,
            clock_error_us: self.header.clock_error_us,
            body,
        })
    }

    /// Bytes of the payload that this frame should have.
    #[must_use]
    pub fn payload_bytes(&self) -> usize {
        size(self.header.payload_bytes.into())
    }
}
