//! A frame's head (header, table, cover, checksums) as bytes. The payload is not copied here: it is written from where
//! it lies.

use tidemark_proto::ids::Lsn;

use super::header::{Cover, FrameHeader, FrameKind, HASHED_HEADER_BYTES};
use super::{Body, Entry, FRAME_HEADER_BYTES, Frame, Seal};
use crate::Position;
use crate::wire::{Put, length};

/// What a frame's header says besides its content.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Context<'a> {
    pub key: &'a [u8; 32],
    pub segment: u64,
    pub ordinal: u64,
    pub writer_generation: u64,
    pub durable: Position,
    pub previous: [u8; 32],
}

/// A frame's payload as it is stored.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stored<'a> {
    pub bytes: &'a [u8],
    /// CRC-32C of each 4 KiB of these bytes.
    pub crc32c: &'a [u32],
    /// What opens them, when they are encrypted.
    pub seal: Option<&'a Seal>,
}

/// Replaces `out` by the frame's head and returns its hash.
pub(crate) fn encode(
    frame: &Frame<'_>,
    stored: &Stored<'_>,
    context: &Context<'_>,
    out: &mut Vec<u8>,
) -> (FrameHeader, [u8; 32]) {
    let (kind, first_lsn) = parts(&frame.body);
    out.clear();
    out.resize(FRAME_HEADER_BYTES, 0);
    encode_table(&frame.body, out);
    let table_bytes = length(out.len() - FRAME_HEADER_BYTES);
    if let Some(seal) = stored.seal {
        seal.encode(out);
    }
    if !stored.bytes.is_empty() {
        out.put(blake3::keyed_hash(context.key, stored.bytes).as_bytes());
    }
    let header = FrameHeader {
        kind,
        cover: if stored.seal.is_some() { Cover::Encrypted } else { Cover::Hashed },
        table_bytes,
        payload_bytes: length(stored.bytes.len()),
        segment: context.segment,
        ordinal: context.ordinal,
        position: frame.position,
        appliance_time_us: frame.appliance_time_us,
        clock_error_us: frame.clock_error_us,
        writer_generation: context.writer_generation,
        durable_seq: context.durable.seq,
        durable_lsn: context.durable.lsn,
        first_lsn,
        previous: context.previous,
    };
    let hash = finish(&header, stored.crc32c, context.key, out);
    (header, hash)
}

/// The frame that closes a segment.
pub(crate) fn encode_footer(
    position: Position,
    context: &Context<'_>,
    payload_bytes: u64,
    out: &mut Vec<u8>,
) -> [u8; 32] {
    out.clear();
    out.resize(FRAME_HEADER_BYTES, 0);
    out.u64(context.ordinal);
    out.u64(payload_bytes);
    let header = FrameHeader {
        kind: FrameKind::Footer,
        cover: Cover::Hashed,
        table_bytes: 16,
        payload_bytes: 0,
        segment: context.segment,
        ordinal: context.ordinal,
        position,
        appliance_time_us: 0,
        clock_error_us: 0,
        writer_generation: context.writer_generation,
        durable_seq: context.durable.seq,
        durable_lsn: context.durable.lsn,
        first_lsn: Lsn::ZERO,
        previous: context.previous,
    };
    finish(&header, &[], context.key, out)
}

/// Fills in the header and its hash in front of the table, and the checksums behind the cover.
fn finish(header: &FrameHeader, checksums: &[u32], key: &[u8; 32], out: &mut Vec<u8>) -> [u8; 32] {
    out.reserve(4 * checksums.len());
    for checksum in checksums {
        out.u32(*checksum);
    }
    let mut fixed = Vec::with_capacity(FRAME_HEADER_BYTES);
    header.encode(&mut fixed);
    debug_assert_eq!(fixed.len(), HASHED_HEADER_BYTES);
    let mut hasher = blake3::Hasher::new_keyed(key);
    hasher.update(&fixed);
    hasher.update(out.get(FRAME_HEADER_BYTES..).unwrap_or_default());
    let hash = *hasher.finalize().as_bytes();
    fixed.put(&hash);
    if let Some(head) = out.get_mut(..FRAME_HEADER_BYTES) {
        head.copy_from_slice(&fixed);
    }
    hash
}

fn parts(body: &Body<'_>) -> (FrameKind, Lsn) {
    match *body {
        Body::Writes { first_lsn, .. } => (FrameKind::Writes, first_lsn),
        Body::Base { line_lsn, .. } => (FrameKind::Base, line_lsn),
        Body::LineStart { lsn, .. } => (FrameKind::LineStart, lsn),
        Body::LineEnd { lsn, .. } => (FrameKind::LineEnd, lsn),
        Body::Marker { lsn, .. } => (FrameKind::Marker, lsn),
        Body::Heartbeat { lsn, .. } => (FrameKind::Heartbeat, lsn),
        Body::Resize { lsn, .. } => (FrameKind::Resize, lsn),
    }
}

fn encode_table(body: &Body<'_>, out: &mut Vec<u8>) {
    match *body {
        Body::Writes { entries, .. } | Body::Base { entries, .. } => encode_entries(entries, out),
        Body::LineStart { gap_from_lsn, cause, detail, disks, dirty_bytes, .. } => {
            out.u64(gap_from_lsn.0);
            out.u32(cause);
            out.u64(dirty_bytes);
            out.text(detail);
            encode_disks(disks, out);
        }
        Body::LineEnd { disks, .. } => encode_disks(disks, out),
        Body::Marker { bookmark_id, name, request_id, .. } => {
            out.u64(request_id);
            out.text(bookmark_id);
            out.text(name);
        }
        Body::Heartbeat { time_us, clean, .. } => {
            out.u64(time_us);
            out.u8(u8::from(clean));
        }
        Body::Resize { disk, size_bytes, .. } => {
            out.u32(disk.0);
            out.u64(size_bytes);
        }
    }
}

fn encode_entries(entries: &[Entry], out: &mut Vec<u8>) {
    out.reserve(entries.len() * super::ENTRY_BYTES);
    for entry in entries {
        out.u32(entry.disk.0);
        out.u32(entry.sectors);
        out.u64(entry.start_sector);
        out.u32(entry.time_delta_us);
        out.u8(entry.kind as u8);
        out.u8(0);
        out.u16(entry.flags);
    }
}

fn encode_disks(disks: &[tidemark_proto::ids::DiskId], out: &mut Vec<u8>) {
    out.u32(length(disks.len()));
    for disk in disks {
        out.u32(disk.0);
    }
}
