//! From the guest's boot time to the appliance's time.

/// Maps boot times, never backwards: an entry is not earlier than the one before it and not later than now.
#[derive(Debug, Clone, Copy)]
pub(super) struct GuestClock {
    offset_us: i64,
    last_us: u64,
    now_us: u64,
}

impl GuestClock {
    /// `last_us` is the time of the newest entry so far.
    pub(super) fn new(last_us: u64) -> Self {
        Self { offset_us: 0, last_us, now_us: last_us }
    }

    /// Takes the offset that a frame carries, and the appliance's time.
    pub(super) fn set(&mut self, offset_us: i64, now_us: u64) {
        self.offset_us = offset_us;
        self.now_us = now_us;
    }

    /// The appliance time of a boot time.
    pub(super) fn map(&mut self, boottime_us: u64) -> u64 {
        let time = boottime_us.saturating_add_signed(self.offset_us).min(self.now_us);
        self.last_us = time.max(self.last_us);
        self.last_us
    }

    /// Time of the newest entry so far.
    pub(super) fn last(&self) -> u64 {
        self.last_us
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_never_go_backwards_and_never_beyond_now() {
        let mut clock = GuestClock::new(1_000);
        clock.set(500, 2_000);
        assert_eq!(clock.map(100), 1_000, "not before the last entry");
        assert_eq!(clock.map(700), 1_200);
        assert_eq!(clock.map(9_999), 2_000, "not after now");
        clock.set(i64::MIN, 1_500);
        assert_eq!(clock.map(u64::MAX), 2_000, "a clock set back does not reorder");
    }
}
