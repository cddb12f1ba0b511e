//! The events of a stream, put together: gaps, markers, and each disk's life.

use std::collections::BTreeMap;

use tidemark_proto::ids::{DiskId, Lsn};

use super::event::{Event, What};
use super::{Gap, Horizon, Marker, Point};

/// Everything the timeline says, but for the times of single LSNs.
#[derive(Debug, Clone, Default)]
pub(crate) struct History {
    pub gaps: Vec<Gap>,
    pub markers: Vec<Marker>,
    pub disks: BTreeMap<DiskId, DiskHistory>,
    /// The oldest point: images hold what was before.
    pub floor: Option<Point>,
}

/// A disk over LSNs.
#[derive(Debug, Clone, Default)]
pub(crate) struct DiskHistory {
    /// LSN of its first line: before it, nothing of the disk is known.
    pub first_line: Option<Lsn>,
    /// Sizes from an LSN on, in order.
    pub sizes: Vec<(Lsn, u64)>,
}

impl DiskHistory {
    pub(crate) fn size_at(&self, lsn: Lsn) -> u64 {
        let sizes = self.sizes.iter().rev();
        let known = sizes.filter(|(from, _)| *from <= lsn).map(|(_, size)| *size).next();
        known.or(self.sizes.first().map(|(_, size)| *size)).unwrap_or(0)
    }

    /// The smallest size the disk had above `floor` and up to `lsn`.
    pub(crate) fn smallest_between(&self, floor: Lsn, lsn: Lsn) -> u64 {
        let changed = self.sizes.iter().filter(|(from, _)| floor < *from && *from <= lsn);
        changed
            .map(|(_, size)| *size)
            .min()
            .unwrap_or(u64::MAX)
            .min(self.size_at(floor))
            .min(self.size_at(lsn))
    }
}

impl History {
    /// Takes an event; events come in LSN order. A horizon is returned instead.
    pub(crate) fn apply(&mut self, event: &Event) -> Option<Horizon> {
        match &event.what {
            What::LineStart { gap_from, time_before_us, cause, detail, disks } => {
                for disk in disks {
                    self.disks.entry(*disk).or_default().first_line.get_or_insert(event.lsn);
                }
                self.gaps.push(Gap {
                    from: *gap_from,
                    to: None,
                    from_time_us: *time_before_us,
                    to_time_us: None,
                    line: event.lsn,
                    cause: *cause,
                    detail: detail.clone(),
                    disks: disks.clone(),
                });
            }
            What::LineEnd { disks } => self.close(event, disks),
            What::Marker { request_id, bookmark_id, name } => self.markers.push(Marker {
                point: Point { lsn: event.lsn, time_us: event.time_us },
                bookmark_id: bookmark_id.clone(),
                name: name.clone(),
                request_id: *request_id,
            }),
            What::Resize { disk, size_bytes } => {
                self.disks.entry(*disk).or_default().sizes.push((event.lsn, *size_bytes));
            }
            What::Horizon => return Some(Horizon { lsn: event.lsn, time_us: event.time_us }),
        }
        None
    }

    /// Ends the open gaps of these disks; a gap that also concerns others is split.
    fn close(&mut self, event: &Event, disks: &[DiskId]) {
        let mut left = Vec::new();
        for gap in self.gaps.iter_mut().filter(|gap| gap.to.is_none()) {
            let (closed, open): (Vec<_>, Vec<_>) =
                gap.disks.iter().copied().partition(|disk| disks.contains(disk));
            if closed.is_empty() {
                continue;
            }
            if !open.is_empty() {
                left.push(Gap { disks: open, ..gap.clone() });
            }
            gap.disks = closed;
            gap.to = Some(event.lsn);
            gap.to_time_us = Some(event.time_us);
        }
        self.gaps.append(&mut left);
    }

    /// Whether a line begun at `line` is open for the disk.
    pub(crate) fn line_open(&self, line: Lsn, disk: DiskId) -> bool {
        self.gaps.iter().rev().any(|gap| gap.line == line && gap.to.is_none() && gap.disks.contains(&disk))
    }

    /// Disks with an open gap, sorted.
    pub(crate) fn open_disks(&self) -> Vec<DiskId> {
        let open = self.gaps.iter().filter(|gap| gap.to.is_none());
        let mut disks: Vec<DiskId> = open.flat_map(|gap| gap.disks.iter().copied()).collect();
        disks.sort();
        disks.dedup();
        disks
    }
}
