//! Up to where the appliance has everything: to the newest acknowledged clean heartbeat.

use std::collections::VecDeque;

use super::limits::BEATS_MAX;

/// Up to where everything is at the appliance; see [`Engine::synced`](super::Engine::synced).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Synced {
    /// The kernel's generation in which this holds.
    pub generation: u32,
    /// Ring position.
    pub ring_position: u64,
    /// Number of the heartbeat's frame: another one with the same position says that it still holds.
    pub seq: u64,
}

/// A clean heartbeat on its way.
#[derive(Debug, Clone, Copy)]
pub(super) struct Beat {
    /// Number of its frame.
    pub(super) seq: u64,
    /// Up to where points are offered, outside gaps.
    pub(super) lsn: u64,
    /// Kernel's generation and ring position, when no disk has a gap open.
    pub(super) end: Option<(u32, u64)>,
}

/// Clean heartbeats on their way, and what the newest acknowledged ones say.
#[derive(Debug, Default)]
pub(super) struct Offered {
    lsn: u64,
    synced: Option<Synced>,
    /// Oldest first.
    beats: VecDeque<Beat>,
}

impl Offered {
    /// A clean heartbeat travels.
    pub(super) fn beat(&mut self, beat: Beat) {
        if self.beats.len() >= BEATS_MAX {
            self.beats.pop_front();
        }
        self.beats.push_back(beat);
    }

    /// Everything up to frame `acked_seq` is acknowledged.
    pub(super) fn acked(&mut self, acked_seq: u64) {
        while let Some(Beat { seq, lsn, end }) = self.beats.pop_front_if(|beat| beat.seq <= acked_seq) {
            self.lsn = lsn;
            let synced = end.map(|(generation, ring_position)| Synced { generation, ring_position, seq });
            self.synced = synced.or(self.synced);
        }
    }

    pub(super) fn lsn(&self) -> u64 {
        self.lsn
    }

    pub(super) fn synced(&self) -> Option<Synced> {
        self.synced
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn beat(seq: u64, lsn: u64) -> Beat {
        Beat { seq, lsn, end: None }
    }

    #[test]
    fn a_point_is_offered_once_a_clean_heartbeat_behind_it_is_acknowledged() {
        let mut offered = Offered::default();
        offered.beat(beat(3, 10));
        offered.beat(beat(7, 25));
        offered.acked(2);
        assert_eq!(offered.lsn(), 0);
        offered.acked(6);
        assert_eq!(offered.lsn(), 10);
        offered.acked(9);
        assert_eq!(offered.lsn(), 25);
    }

    #[test]
    fn a_heartbeat_in_a_gap_takes_back_nothing_that_was_synced() {
        let mut offered = Offered::default();
        offered.beat(Beat { end: Some((4, 100)), ..beat(3, 10) });
        offered.beat(beat(7, 25));
        offered.acked(2);
        assert_eq!(offered.synced(), None);
        offered.acked(7);
        assert_eq!(offered.synced(), Some(Synced { generation: 4, ring_position: 100, seq: 3 }));
        assert_eq!(offered.lsn(), 25);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut offered = Offered::default();
        (0..2 * BEATS_MAX as u64).for_each(|seq| offered.beat(beat(seq, seq)));
        assert_eq!(offered.beats.len(), BEATS_MAX);
    }
}
