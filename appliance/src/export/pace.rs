//! Whether small reads are answered one after the other where they arrive, or beside each other on other threads.
//!
//! From memory, a small read costs less than handing it to another thread. From a disk it waits, and several that wait
//! beside each other are served several times as fast.

use std::time::Duration;

/// A small read that takes longer has waited for a disk: from memory the largest takes a fraction of it.
const SLOW: Duration = Duration::from_micros(150);
/// After a slow one, this many small reads go to other threads before one is tried here again.
const APART: u32 = 128;

/// The state of one connection.
#[derive(Debug, Default)]
pub(super) struct Pace {
    apart: u32,
}

impl Pace {
    /// Whether the next small read is answered where it arrives.
    pub(super) fn here(&mut self) -> bool {
        let here = self.apart == 0;
        self.apart = self.apart.saturating_sub(1);
        here
    }

    /// Says how long a read took that was answered where it arrived.
    pub(super) fn took(&mut self, time: Duration) {
        if time > SLOW {
            self.apart = APART;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_that_wait_go_apart_and_one_is_tried_again_later() {
        let mut pace = Pace::default();
        for _ in 0..1000 {
            assert!(pace.here());
            pace.took(Duration::from_micros(5));
        }
        assert!(pace.here());
        pace.took(Duration::from_millis(2));
        assert!((0..APART).all(|_| !pace.here()));
        assert!(pace.here());
    }
}
