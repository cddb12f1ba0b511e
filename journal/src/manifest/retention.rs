//! What the manifest says about how long things are kept: pins, the cutoff, and the images below the log.

use std::sync::Arc;

use tidemark_proto::ids::{DiskId, Lsn};

use crate::records::{ImageNames, Kept, KeptDisk, Pin, PinKind};
use crate::timeline::Event;
use crate::wire::{Put, Reader, length};

/// A change of what is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Keep {
    /// Tag 1.
    Pin(Pin),
    /// Tag 2.
    Revoked(String),
    /// Tag 3: points below are given up.
    Cutoff(Lsn),
}

impl Keep {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Pin(pin) => {
                out.u8(1);
                out.text(&pin.name);
                out.u8(pin.kind as u8);
                out.u64(pin.lsn.0);
                out.u64(pin.until_us.unwrap_or(0));
            }
            Self::Revoked(name) => {
                out.u8(2);
                out.text(name);
            }
            Self::Cutoff(lsn) => {
                out.u8(3);
                out.u64(lsn.0);
            }
        }
    }

    pub(crate) fn decode(reader: &mut Reader<'_>) -> Option<Self> {
        Some(match reader.u8()? {
            1 => Self::Pin(Pin {
                name: reader.text()?.to_owned(),
                kind: PinKind::from_number(reader.u8()?)?,
                lsn: Lsn(reader.u64()?),
                until_us: Some(reader.u64()?).filter(|until| *until > 0),
            }),
            2 => Self::Revoked(reader.text()?.to_owned()),
            3 => Self::Cutoff(Lsn(reader.u64()?)),
            _ => return None,
        })
    }
}

/// The first ordinal in the base of a branch: nothing was dropped, and there is a base all the same. Other journals have 0
/// there before segments are dropped, and at least 2 afterwards.
pub(crate) const FIRST_OF_BRANCH: u64 = 1;

/// A change of the snapshots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Keeping {
    /// Tag 1.
    Kept(Arc<Kept>),
    /// Tag 2.
    Dropped(Lsn),
}

impl Keeping {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Kept(kept) => {
                out.u8(1);
                out.u64(kept.lsn.0);
                out.u64(kept.time_us);
                out.u64(kept.until_us);
                out.u32(length(kept.disks.len()));
                for disk in &kept.disks {
                    out.u32(disk.id.0);
                    out.u64(disk.size_bytes);
                    out.bytes(&disk.image);
                }
            }
            Self::Dropped(lsn) => {
                out.u8(2);
                out.u64(lsn.0);
            }
        }
    }

    pub(crate) fn decode(reader: &mut Reader<'_>) -> Option<Self> {
        Some(match reader.u8()? {
            1 => {
                let (lsn, time_us, until_us) = (Lsn(reader.u64()?), reader.u64()?, reader.u64()?);
                let count = reader.count(16)?;
                let disks: Option<_> = (0..count).map(|_| kept_disk(reader)).collect();
                Self::Kept(Arc::new(Kept { lsn, time_us, until_us, disks: disks? }))
            }
            2 => Self::Dropped(Lsn(reader.u64()?)),
            _ => return None,
        })
    }
}

fn kept_disk(reader: &mut Reader<'_>) -> Option<KeptDisk> {
    Some(KeptDisk { id: DiskId(reader.u32()?), size_bytes: reader.u64()?, image: reader.bytes()?.to_vec() })
}

/// The images that hold everything up to an LSN, and what is left of the segments that were dropped.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Base {
    pub lsn: Lsn,
    /// Time of that LSN.
    pub time_us: u64,
    /// Segments with lower ordinals are no part of the journal any more.
    pub first_ordinal: u64,
    /// Hash of the last frame that was dropped.
    pub last_hash: [u8; 32],
    /// Time of the last LSN that was dropped.
    pub floor_us: u64,
    /// First lines of disks, of dropped segments.
    pub first_lines: Vec<(DiskId, Lsn)>,
    /// Of the events of dropped segments, those that still matter.
    pub events: Vec<Event>,
    /// By disk, what its image is to whoever keeps images.
    pub images: ImageNames,
}

impl Base {
    pub(crate) fn image(&self, disk: DiskId) -> Option<&[u8]> {
        self.images.iter().find(|(of, _)| *of == disk).map(|(_, image)| image.as_slice())
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.u64(self.lsn.0);
        out.u64(self.time_us);
        out.u64(self.first_ordinal);
        out.put(&self.last_hash);
        out.u64(self.floor_us);
        out.u32(length(self.first_lines.len()));
        for (disk, line) in &self.first_lines {
            out.u32(disk.0);
            out.u64(line.0);
        }
        out.u32(length(self.events.len()));
        for event in &self.events {
            event.encode(out);
        }
        out.u32(length(self.images.len()));
        for (disk, image) in &self.images {
            out.u32(disk.0);
            out.bytes(image);
        }
    }

    pub(crate) fn decode(reader: &mut Reader<'_>) -> Option<Self> {
        let (lsn, time_us, first_ordinal) = (Lsn(reader.u64()?), reader.u64()?, reader.u64()?);
        let (last_hash, floor_us) = (reader.array()?, reader.u64()?);
        let count = reader.count(12)?;
        let first_lines: Option<_> =
            (0..count).map(|_| Some((DiskId(reader.u32()?), Lsn(reader.u64()?)))).collect();
        let count = reader.count(17)?;
        let events: Option<_> = (0..count).map(|_| Event::decode(reader)).collect();
        let count = reader.count(8)?;
        let images: Option<_> =
            (0..count).map(|_| Some((DiskId(reader.u32()?), reader.bytes()?.to_vec()))).collect();
        let (first_lines, events, images) = (first_lines?, events?, images?);
        Some(Self { lsn, time_us, first_ordinal, last_hash, floor_us, first_lines, events, images })
    }
}
