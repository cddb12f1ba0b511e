//! Requests between issue and completion.

use std::collections::{BTreeMap, HashMap};

use tidemark_proto::limits::{FRAME_MAX_BYTES, SECTOR_BYTES};

use crate::capture::{BlockRange, Slot};

/// Sectors of the longest captured request; longer ones (discards) widen it.
const LONGEST_AT_FIRST: u64 = FRAME_MAX_BYTES as u64 / SECTOR_BYTES;

/// A request whose completion was not read yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) slot: Slot,
    pub(super) start_sector: u64,
    pub(super) sectors: u64,
    /// Its LSN, or 0 when it has none: below every line.
    pub(super) lsn: u64,
    /// Whether its content is in the stream. If not, the range is read again after its completion.
    pub(super) captured: bool,
    /// Ring position of its issue record.
    pub(super) position: u64,
    /// Given back to the block layer; the same request will be issued again.
    pub(super) requeued: bool,
}

impl Request {
    fn end_sector(&self) -> u64 {
        self.start_sector.saturating_add(self.sectors)
    }

    pub(super) fn range(&self) -> BlockRange {
        BlockRange::of_sectors(self.start_sector, self.sectors)
    }
}

/// The set of them, searchable by request and by place.
#[derive(Debug)]
pub(super) struct InFlight {
    requests: HashMap<u64, Request>,
    places: BTreeMap<(Slot, u64, u64), ()>,
    longest_sectors: u64,
}

impl Default for InFlight {
    fn default() -> Self {
        Self { requests: HashMap::new(), places: BTreeMap::new(), longest_sectors: LONGEST_AT_FIRST }
    }
}

impl InFlight {
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    pub(super) fn insert(&mut self, key: u64, request: Request) {
        self.remove(key);
        self.longest_sectors = self.longest_sectors.max(request.sectors);
        self.places.insert((request.slot, request.start_sector, key), ());
        self.requests.insert(key, request);
    }

    pub(super) fn remove(&mut self, key: u64) -> Option<Request> {
        let request = self.requests.remove(&key)?;
        self.places.remove(&(request.slot, request.start_sector, key));
        Some(request)
    }

    pub(super) fn requeued(&mut self, key: u64) {
        if let Some(request) = self.requests.get_mut(&key) {
            request.requeued = true;
        }
    }

    pub(super) fn forget_disk(&mut self, slot: Slot) {
        self.requests.retain(|_, request| request.slot != slot);
        self.places.retain(|(place, _, _), ()| *place != slot);
    }

    /// Forgets requests issued before a ring position.
    pub(super) fn forget_before(&mut self, position: u64) {
        let old: Vec<u64> = self
            .requests
            .iter()
            .filter(|(_, request)| request.position < position)
            .map(|(key, _)| *key)
            .collect();
        for key in old {
            self.remove(key);
        }
    }

    /// Requests that touch a sector range.
    pub(super) fn touching(
        &self,
        slot: Slot,
        start_sector: u64,
        sectors: u64,
    ) -> impl Iterator<Item = &Request> {
        let from = start_sector.saturating_sub(self.longest_sectors);
        let end = start_sector.saturating_add(sectors);
        self.places
            .range((slot, from, 0)..(slot, end, 0))
            .filter_map(|((_, _, other), ())| self.requests.get(other))
            .filter(move |other| other.end_sector() > start_sector)
    }

    /// Whether a write below `line` may still be changing the blocks.
    pub(super) fn blocks_reading(&self, slot: Slot, range: BlockRange, line: u64) -> bool {
        let sectors = range.blocks().saturating_mul(crate::capture::BLOCK_SECTORS);
        self.touching(slot, range.start_sector(), sectors).any(|request| request.lsn < line)
    }

    /// Ring position from which the set can be rebuilt, not counting requests issued before `stuck_before`.
    pub(super) fn oldest(&self, stuck_before: u64) -> Option<u64> {
        self.requests
            .values()
            .map(|request| request.position)
            .filter(|position| *position >= stuck_before)
            .min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(start_sector: u64, sectors: u64, lsn: u64) -> Request {
        Request {
            slot: Slot(0),
            start_sector,
            sectors,
            lsn,
            captured: true,
            position: lsn * 10,
            requeued: false,
        }
    }

    #[test]
    fn overlaps_are_found_also_behind_a_shorter_neighbour_and_of_long_discards() {
        let mut set = InFlight::default();
        set.insert(1, request(100, 50, 1));
        set.insert(2, request(110, 1, 2));
        set.insert(3, request(0, 1 << 20, 3));
        let found: Vec<u64> = set.touching(Slot(0), 140, 2).map(|request| request.lsn).collect();
        assert_eq!(found, [3, 1]);
        assert_eq!(set.touching(Slot(0), 150, 2).count(), 1);
        assert_eq!(set.touching(Slot(1), 140, 2).count(), 0);
        assert!(set.blocks_reading(Slot(0), BlockRange { start: 13, end: 14 }, 2));
        assert!(!set.blocks_reading(Slot(0), BlockRange { start: 13, end: 14 }, 1));
        assert_eq!(set.oldest(0), Some(10));
        assert_eq!(set.oldest(11), Some(20));
        set.remove(1);
        set.forget_before(20);
        assert_eq!(set.oldest(0), Some(20), "what was issued at the position stays");
        set.forget_disk(Slot(0));
        assert_eq!(set.oldest(0), None);
    }
}
