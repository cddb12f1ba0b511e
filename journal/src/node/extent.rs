//! A run of sectors and where its last version lies.

use tidemark_proto::ids::{DiskId, Lsn};

use crate::index::{IndexEntry, Place};

/// The last version of `[start, end)` of a disk, among some segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    pub disk: DiskId,
    pub start: u64,
    /// Sector after its last; above `start`.
    pub end: u64,
    pub lsn: Lsn,
    pub segment: u64,
    /// As in [`IndexEntry`]; 0 when it comes from a node, which has no other version of that segment.
    pub arrival: u32,
    pub place: Place,
}

impl Extent {
    pub(crate) fn of(entry: &IndexEntry, segment: u64) -> Self {
        let (disk, start, end) = (entry.disk, entry.start, entry.end());
        Self { disk, start, end, lsn: entry.lsn, segment, arrival: entry.arrival, place: entry.place }
    }

    /// Without its first sectors, so that it begins at `start`.
    pub(crate) fn from(mut self, start: u64) -> Self {
        let skipped = start.saturating_sub(self.start);
        if let Place::Payload { offset_sectors, .. } = &mut self.place {
            *offset_sectors = offset_sectors.saturating_add(u16::try_from(skipped).unwrap_or(u16::MAX));
        }
        self.start = self.start.saturating_add(skipped);
        self
    }

    /// What decides between versions of a sector: the highest is the last.
    pub(crate) fn order(&self) -> (u64, u64, u32) {
        (self.lsn.0, self.segment, self.arrival)
    }

    /// Takes `next` in if both are one run of one version's bytes.
    pub(crate) fn join(&mut self, next: &Self) -> bool {
        let same = self.disk == next.disk && self.order() == next.order();
        let follows = match (self.place, next.place) {
            (Place::Zero { discard }, Place::Zero { discard: other }) => discard == other,
            (
                Place::Payload { payload_start, payload_sectors, offset_sectors },
                Place::Payload { payload_start: start, payload_sectors: sectors, offset_sectors: offset },
            ) => {
                (payload_start, payload_sectors) == (start, sectors)
                    && u64::from(offset_sectors) + (self.end - self.start) == u64::from(offset)
            }
            _ => false,
        };
        let joins = same && follows && self.end == next.start;
        if joins {
            self.end = next.end;
        }
        joins
    }
}
