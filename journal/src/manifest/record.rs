//! One record's body, to bytes and back.

use std::sync::Arc;

use tidemark_proto::ids::{CaptureId, ChainHash, DiskId, Generation, Lsn};

use super::retention::{Base, Keep, Keeping};
use super::state::DiskState;
use crate::Position;
use crate::attest::Statement;
use crate::index::Summary;
use crate::node::Span;
use crate::records::DiskRecord;
use crate::timeline::Event;
use crate::wire::{Put, Reader, length};

/// A segment that has no leaf index yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SegmentOpen {
    pub ordinal: u64,
    pub seq_before: u64,
    pub lsn_before: Lsn,
    pub previous: [u8; 32],
}

/// A sealed segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sealed {
    pub ordinal: u64,
    pub bytes: u64,
    pub leaf_bytes: u64,
    pub leaf_hash: [u8; 32],
    pub last_hash: [u8; 32],
    pub position: Position,
    pub summary: Summary,
    pub events: Vec<Event>,
}

/// A merged node, or that there is none any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NodeRecord {
    pub span: Span,
    /// Bytes of its file; 0: it is no part of the journal any more.
    pub bytes: u64,
    pub extents: u64,
    pub hash: [u8; 32],
}

/// A change of the journal's state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Record {
    Writer(u64),
    Disk(DiskState),
    Note(String, Vec<u8>),
    Open(SegmentOpen),
    Sealed(Arc<Sealed>),
    Dropped(u64),
    Durable {
        seq: u64,
        lsn: Lsn,
    },
    SnapshotEnd,
    Closed {
        seq: u64,
        lsn: Lsn,
    },
    Node(NodeRecord),
    Base(Arc<Base>),
    /// With the time of the change, µs.
    Keep(u64, Keep),
    Keeping(Keeping),
    Statement(Statement),
    /// Keyed BLAKE3 of the file of a segment below `HashedFrom`.
    Content(u64, [u8; 32]),
    /// In segments from this ordinal on, hashes cover every payload.
    HashedFrom(u64),
}

/// First of the kinds that a later version may write.
pub(crate) const RESERVED_KINDS: u16 = 22;

impl Record {
    pub(crate) fn kind(&self) -> u16 {
        match self {
            Self::Writer(_) => 1,
            Self::Disk(_) => 2,
            Self::Note(..) => 3,
            Self::Open(_) => 4,
            Self::Sealed(_) => 5,
            Self::Dropped(_) => 6,
            Self::Durable { .. } => 7,
            Self::SnapshotEnd => 8,
            Self::Closed { .. } => 9,
            Self::Node(_) => 16,
            Self::Base(_) => 17,
            Self::Keep(..) => 18,
            Self::Keeping(_) => 24,
            Self::Statement(_) => 19,
            Self::Content(..) => 20,
            Self::HashedFrom(_) => 21,
        }
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Writer(generation) => out.u64(*generation),
            Self::Disk(disk) => {
                out.u32(disk.record.id.0);
                out.text(&disk.record.identity);
                out.text(&disk.record.path);
                out.u64(disk.record.size_bytes);
                out.u32(length(disk.sizes.len()));
                for (lsn, bytes) in &disk.sizes {
                    out.u64(lsn.0);
                    out.u64(*bytes);
                }
            }
            Self::Note(key, value) => {
                out.text(key);
                out.bytes(value);
            }
            Self::Open(open) => {
                out.u64(open.ordinal);
                out.u64(open.seq_before);
                out.u64(open.lsn_before.0);
                out.put(&open.previous);
            }
            Self::Sealed(sealed) => encode_sealed(sealed, out),
            Self::Dropped(ordinal) | Self::HashedFrom(ordinal) => out.u64(*ordinal),
            Self::Statement(statement) => statement.encode(out),
            Self::Content(ordinal, hash) => {
                out.u64(*ordinal);
                out.put(hash);
            }
            Self::Durable { seq, lsn } | Self::Closed { seq, lsn } => {
                out.u64(*seq);
                out.u64(lsn.0);
            }
            Self::SnapshotEnd => {}
            Self::Base(base) => base.encode(out),
            Self::Keep(time_us, keep) => {
                out.u64(*time_us);
                keep.encode(out);
            }
            Self::Keeping(keeping) => keeping.encode(out),
            Self::Node(node) => {
                out.u16(node.span.level);
                out.u64(node.span.first);
                out.u64(node.bytes);
                out.u64(node.extents);
                out.put(&node.hash);
            }
        }
    }

    /// `None`: not a body of that kind.
    pub(crate) fn decode(kind: u16, body: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(body);
        let record = match kind {
            1 => Self::Writer(reader.u64()?),
            2 => Self::Disk(decode_disk(&mut reader)?),
            3 => Self::Note(reader.text()?.to_owned(), reader.bytes()?.to_vec()),
            4 => Self::Open(SegmentOpen {
                ordinal: reader.u64()?,
                seq_before: reader.u64()?,
                lsn_before: Lsn(reader.u64()?),
                previous: reader.array()?,
            }),
            5 => Self::Sealed(Arc::new(decode_sealed(&mut reader)?)),
            6 => Self::Dropped(reader.u64()?),
            7 => Self::Durable { seq: reader.u64()?, lsn: Lsn(reader.u64()?) },
            8 => Self::SnapshotEnd,
            9 => Self::Closed { seq: reader.u64()?, lsn: Lsn(reader.u64()?) },
            16 => {
                let span = Span { level: reader.u16()?, first: reader.u64()? };
                let (bytes, extents) = (reader.u64()?, reader.u64()?);
                let node = NodeRecord { span, bytes, extents, hash: reader.array()? };
                Self::Node(span.is_aligned().then_some(node)?)
            }
            17 => Self::Base(Arc::new(Base::decode(&mut reader)?)),
            18 => Self::Keep(reader.u64()?, Keep::decode(&mut reader)?),
            24 => Self::Keeping(Keeping::decode(&mut reader)?),
            19 => Self::Statement(Statement::decode(&mut reader)?),
            20 => Self::Content(reader.u64()?, reader.array()?),
            21 => Self::HashedFrom(reader.u64()?),
            _ => return None,
        };
        reader.end()?;
        Some(record)
    }
}

fn decode_disk(reader: &mut Reader<'_>) -> Option<DiskState> {
    let record = DiskRecord {
        id: DiskId(reader.u32()?),
        identity: reader.text()?.to_owned(),
        path: reader.text()?.to_owned(),
        size_bytes: reader.u64()?,
    };
    let count = reader.count(16)?;
    let sizes: Option<Vec<_>> = (0..count).map(|_| Some((Lsn(reader.u64()?), reader.u64()?))).collect();
    Some(DiskState { record, sizes: sizes? })
}

fn encode_sealed(sealed: &Sealed, out: &mut Vec<u8>) {
    out.u64(sealed.ordinal);
    out.u64(sealed.bytes);
    out.u64(sealed.leaf_bytes);
    out.put(&sealed.leaf_hash);
    out.put(&sealed.last_hash);
    out.u64(sealed.position.seq);
    out.u64(sealed.position.lsn.0);
    out.put(&sealed.position.capture_id.0);
    out.u64(sealed.position.ring_position);
    out.put(&sealed.position.chain.0);
    out.u64(sealed.position.generation.0);
    let summary = &sealed.summary;
    for value in [
        summary.first_lsn,
        summary.last_lsn,
        summary.first_time_us,
        summary.last_time_us,
        summary.min_entry_lsn,
        summary.max_entry_lsn,
        summary.payload_bytes,
    ] {
        out.u64(value);
    }
    out.u32(length(sealed.events.len()));
    for event in &sealed.events {
        event.encode(out);
    }
}

fn decode_sealed(reader: &mut Reader<'_>) -> Option<Sealed> {
    let (ordinal, bytes, leaf_bytes) = (reader.u64()?, reader.u64()?, reader.u64()?);
    let (leaf_hash, last_hash) = (reader.array()?, reader.array()?);
    let position = Position {
        seq: reader.u64()?,
        lsn: Lsn(reader.u64()?),
        capture_id: CaptureId(reader.array()?),
        ring_position: reader.u64()?,
        chain: ChainHash(reader.array()?),
        generation: Generation(reader.u64()?),
    };
    let summary = Summary {
        first_lsn: reader.u64()?,
        last_lsn: reader.u64()?,
        first_time_us: reader.u64()?,
        last_time_us: reader.u64()?,
        min_entry_lsn: reader.u64()?,
        max_entry_lsn: reader.u64()?,
        payload_bytes: reader.u64()?,
    };
    let count = reader.count(17)?;
    let events: Option<Vec<_>> = (0..count).map(|_| Event::decode(reader)).collect();
    Some(Sealed { ordinal, bytes, leaf_bytes, leaf_hash, last_hash, position, summary, events: events? })
}
