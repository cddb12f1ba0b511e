//! Offset between guest boot time and the appliance's time, NTP-like.

/// Samples kept; the one with the shortest round trip wins. At one ping a second this is a minute, in which a quartz
/// drifts by a few milliseconds at most.
const SAMPLES: usize = 64;

/// Microseconds of error added per second of a sample's age: 100 ppm, twice the drift of a bad quartz.
const DRIFT_PPM: u64 = 100;

/// `appliance time = boot time + offset`, wrong by at most `error`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ClockEstimate {
    /// Microseconds to add to guest boot time.
    pub offset_us: i64,
    /// Bound of the error in microseconds: half the round trip and drift since.
    pub error_us: u64,
}

#[derive(Debug, Clone, Copy)]
struct Sample {
    estimate: ClockEstimate,
    at_us: u64,
}

/// Chooses the best of the recent samples.
#[derive(Debug, Default)]
pub struct ClockFilter {
    samples: std::collections::VecDeque<Sample>,
}

impl ClockFilter {
    /// Whether no pong came back yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.samples.is_empty()
    }

    /// A pong came back: boot times of sending and receiving, the appliance's time in between.
    pub fn sample(&mut self, sent_us: u64, received_us: u64, appliance_us: u64) {
        let round_trip = received_us.saturating_sub(sent_us);
        let middle = sent_us.saturating_add(round_trip / 2);
        let offset_us = i128::from(appliance_us) - i128::from(middle);
        let Ok(offset_us) = i64::try_from(offset_us) else { return };
        let estimate = ClockEstimate { offset_us, error_us: round_trip.div_ceil(2) };
        if self.samples.len() == SAMPLES {
            self.samples.pop_front();
        }
        self.samples.push_back(Sample { estimate, at_us: received_us });
    }

    /// The best estimate now; zero offset with the largest error before the first sample.
    #[must_use]
    pub fn estimate(&self, now_us: u64) -> ClockEstimate {
        self.samples
            .iter()
            .map(|sample| {
                let age_us = now_us.saturating_sub(sample.at_us);
                let drift_us = age_us.saturating_mul(DRIFT_PPM) / 1_000_000;
                let error_us = sample.estimate.error_us.saturating_add(drift_us);
                ClockEstimate { error_us, ..sample.estimate }
            })
            .min_by_key(|estimate| estimate.error_us)
            .unwrap_or(ClockEstimate { offset_us: 0, error_us: u64::MAX })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shortest_round_trip_wins_until_it_is_old() {
        let mut filter = ClockFilter::default();
        assert_eq!(filter.estimate(0).error_us, u64::MAX);
        filter.sample(1_000, 1_200, 5_001_100);
        filter.sample(2_000, 12_000, 5_009_000);
        assert_eq!(filter.estimate(12_000), ClockEstimate { offset_us: 5_000_000, error_us: 101 });
        filter.sample(200_000_000, 200_000_400, 205_000_200);
        assert_eq!(filter.estimate(200_000_400).error_us, 200);
    }
}
