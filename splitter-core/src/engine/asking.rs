//! Whether it pays to ask about a range before it is sent.

use super::limits::{ASKING_FROM, ASKING_PROBE, ASKING_SURE};

/// What recent answers teach, per disk. A range that is asked about and not known costs a second read and a round trip.
#[derive(Debug, Default)]
pub(super) struct Asking {
    /// How much of what was asked about was known: 0 to [`ASKING_SURE`], recent answers weigh more.
    score: u32,
    unasked: u32,
}

impl Asking {
    /// Every block is in doubt: most of them are as they were.
    pub(super) fn hope(&mut self) {
        self.score = ASKING_SURE;
    }

    /// These blocks were written and not captured: most of them differ.
    pub(super) fn doubt(&mut self) {
        self.score = 0;
    }

    /// Whether the next range is asked about.
    pub(super) fn next(&mut self) -> bool {
        if self.score >= ASKING_FROM {
            return true;
        }
        self.unasked = (self.unasked + 1) % ASKING_PROBE;
        self.unasked == 0
    }

    /// Of `bytes` asked about, `known_bytes` were known.
    pub(super) fn learn(&mut self, known_bytes: u64, bytes: u64) {
        let sure = u64::from(ASKING_SURE);
        let share = (known_bytes.min(bytes) * sure).checked_div(bytes).unwrap_or(0);
        let share = u32::try_from(share).unwrap_or(ASKING_SURE);
        self.score = (self.score * 7 + share).div_ceil(8).min(ASKING_SURE);
        if share == 0 && self.score < 8 {
            // Rounding up would keep it above zero for ever.
            self.score = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asking_stops_where_it_does_not_pay_and_begins_again_where_it_does() {
        let mut asking = Asking::default();
        asking.hope();
        let asked = |asking: &mut Asking, known: u64| {
            let asks = |_: &i32| {
                let asks = asking.next();
                if asks {
                    asking.learn(known, 1 << 20);
                }
                asks
            };
            (0..160).filter(asks).count()
        };
        assert_eq!(asked(&mut asking, 1 << 20), 160);
        assert!(asked(&mut asking, 0) <= 21, "a dozen in vain, then one in sixteen");
        asked(&mut asking, 0);
        assert!(asked(&mut asking, 1 << 20) > 100, "it is noticed that it pays");
        asking.doubt();
        assert_eq!(asked(&mut asking, 0), 10);
    }
}
