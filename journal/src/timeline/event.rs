//! What the timeline is made from: the events of a stream, as the manifest keeps them for sealed segments.

use tidemark_proto::ids::{DiskId, Lsn};

use crate::frame::{DecodedFrame, Frame, Table};
use crate::wire::{Put, Reader, length};

/// One event; encoded as a tag (u8), LSN u64, time u64, then its fields in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Event {
    pub lsn: Lsn,
    pub time_us: u64,
    pub what: What,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum What {
    /// Tag 1; `time_before_us` is that of the last LSN before the gap.
    LineStart { gap_from: Lsn, time_before_us: u64, cause: u32, detail: String, disks: Vec<DiskId> },
    /// Tag 2.
    LineEnd { disks: Vec<DiskId> },
    /// Tag 3.
    Marker { request_id: u64, bookmark_id: String, name: String },
    /// Tag 4.
    Resize { disk: DiskId, size_bytes: u64 },
    /// Tag 5: a clean heartbeat.
    Horizon,
}

impl Event {
    /// The event of a frame, if it is one. `time_before` gives the time of an LSN.
    pub(crate) fn of(frame: &DecodedFrame, time_us: u64, time_before: impl Fn(Lsn) -> u64) -> Option<Self> {
        let mut event = Self { lsn: frame.header.first_lsn, time_us, what: What::Horizon };
        event.what = match &frame.table {
            Table::Entries(_) | Table::Footer { .. } | Table::Heartbeat { clean: false, .. } => return None,
            Table::LineStart { gap_from_lsn, cause, detail, disks, .. } => What::LineStart {
                gap_from: *gap_from_lsn,
                time_before_us: time_before(Lsn(gap_from_lsn.0.saturating_sub(1))),
                cause: *cause,
                detail: detail.clone(),
                disks: disks.clone(),
            },
            Table::LineEnd { disks } => What::LineEnd { disks: disks.clone() },
            // A place that only its asker knows: it took an LSN, and thousands of them a day need no memory.
            Table::Marker { name, .. } if name.is_empty() => return None,
            Table::Marker { request_id, bookmark_id, name } => {
                What::Marker { request_id: *request_id, bookmark_id: bookmark_id.clone(), name: name.clone() }
            }
            Table::Heartbeat { time_us, clean: true } => {
                event.time_us = *time_us;
                What::Horizon
            }
            Table::Resize { disk, size_bytes } => What::Resize { disk: *disk, size_bytes: *size_bytes },
        };
        Some(event)
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.u8(match self.what {
            What::LineStart { .. } => 1,
            What::LineEnd { .. } => 2,
            What::Marker { .. } => 3,
            What::Resize { .. } => 4,
            What::Horizon => 5,
        });
        out.u64(self.lsn.0);
        out.u64(self.time_us);
        match &self.what {
            What::LineStart { gap_from, time_before_us, cause, detail, disks } => {
                out.u64(gap_from.0);
                out.u64(*time_before_us);
                out.u32(*cause);
                out.text(detail);
                encode_disks(disks, out);
            }
            What::LineEnd { disks } => encode_disks(disks, out),
            What::Marker { request_id, bookmark_id, name } => {
                out.u64(*request_id);
                out.text(bookmark_id);
                out.text(name);
            }
            What::Resize { disk, size_bytes } => {
                out.u32(disk.0);
                out.u64(*size_bytes);
            }
            What::Horizon => {}
        }
    }

    pub(crate) fn decode(reader: &mut Reader<'_>) -> Option<Self> {
        let tag = reader.u8()?;
        let (lsn, time_us) = (Lsn(reader.u64()?), reader.u64()?);
        let what = match tag {
            1 => What::LineStart {
                gap_from: Lsn(reader.u64()?),
                time_before_us: reader.u64()?,
                cause: reader.u32()?,
                detail: reader.text()?.to_owned(),
                disks: decode_disks(reader)?,
            },
            2 => What::LineEnd { disks: decode_disks(reader)? },
            3 => What::Marker {
                request_id: reader.u64()?,
                bookmark_id: reader.text()?.to_owned(),
                name: reader.text()?.to_owned(),
            },
            4 => What::Resize { disk: DiskId(reader.u32()?), size_bytes: reader.u64()? },
            5 => What::Horizon,
            _ => return None,
        };
        Some(Self { lsn, time_us, what })
    }
}

/// A frame to append in the shape of a decoded one, without its entries: events are made from either alike.
pub(crate) fn as_decoded(
    frame: &Frame<'_>,
    header: crate::frame::FrameHeader,
    hash: [u8; 32],
) -> DecodedFrame {
    use crate::frame::Body;
    let table = match frame.body {
        Body::Writes { .. } | Body::Base { .. } => Table::Entries(Vec::new()),
        Body::LineStart { gap_from_lsn, cause, detail, disks, dirty_bytes, .. } => Table::LineStart {
            gap_from_lsn,
            cause,
            dirty_bytes,
            detail: detail.to_owned(),
            disks: disks.to_vec(),
        },
        Body::LineEnd { disks, .. } => Table::LineEnd { disks: disks.to_vec() },
        Body::Marker { bookmark_id, name, request_id, .. } => {
            Table::Marker { request_id, bookmark_id: bookmark_id.to_owned(), name: name.to_owned() }
        }
        Body::Heartbeat { time_us, clean, .. } => Table::Heartbeat { time_us, clean },
        Body::Resize { disk, size_bytes, .. } => Table::Resize { disk, size_bytes },
    };
    DecodedFrame { header, table, crc32c: Vec::new(), payload_hash: None, seal: None, hash }
}

fn encode_disks(disks: &[DiskId], out: &mut Vec<u8>) {
    out.u32(length(disks.len()));
    for disk in disks {
        out.u32(disk.0);
    }
}

fn decode_disks(reader: &mut Reader<'_>) -> Option<Vec<DiskId>> {
    let count = reader.count(4)?;
    (0..count).map(|_| reader.u32().map(DiskId)).collect()
}
