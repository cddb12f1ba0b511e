//! Up to where points are offered for recovery: to the newest acknowledged clean heartbeat.

use std::collections::VecDeque;

use super::limits::BEATS_MAX;

/// Clean heartbeats on their way.
#[derive(Debug, Default)]
pub(super) struct Offered {
    lsn: u64,
    /// Number of the frame and LSN of each, oldest first.
    beats: VecDeque<(u64, u64)>,
}

impl Offered {
    /// A clean heartbeat travels in frame `seq`.
    pub(super) fn beat(&mut self, seq: u64, lsn: u64) {
        if self.beats.len() >= BEATS_MAX {
            self.beats.pop_front();
        }
        self.beats.push_back((seq, lsn));
    }

    /// Everything up to frame `seq` is acknowledged.
    pub(super) fn acked(&mut self, seq: u64) {
        while let Some((_, lsn)) = self.beats.pop_front_if(|(frame, _)| *frame <= seq) {
            self.lsn = lsn;
        }
    }

    pub(super) fn lsn(&self) -> u64 {
        self.lsn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_is_offered_once_a_clean_heartbeat_behind_it_is_acknowledged() {
        let mut offered = Offered::default();
        offered.beat(3, 10);
        offered.beat(7, 25);
        offered.acked(2);
        assert_eq!(offered.lsn(), 0);
        offered.acked(6);
        assert_eq!(offered.lsn(), 10);
        offered.acked(9);
        assert_eq!(offered.lsn(), 25);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut offered = Offered::default();
        (0..2 * BEATS_MAX as u64).for_each(|seq| offered.beat(seq, seq));
        assert_eq!(offered.beats.len(), BEATS_MAX);
    }
}
