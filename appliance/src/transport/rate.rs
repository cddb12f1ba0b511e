//! How often a secret may be tried by callers without a certificate.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Attempts of one address per [`WINDOW`]: an operator's typing errors and a rack's worth of guests behind one NAT.
/// Further ones are refused until the window ends.
const PER_ADDRESS: u32 = 30;

/// Attempts of all addresses per [`WINDOW`]. Each costs a database look-up and perhaps a signature.
const TOTAL: u32 = 600;

/// See above.
const WINDOW: Duration = Duration::from_secs(60);

/// Counts attempts.
#[derive(Debug)]
pub(crate) struct Rate {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    since: Instant,
    total: u32,
    by_address: HashMap<IpAddr, u32>,
}

impl Rate {
    pub(crate) fn new(now: Instant) -> Self {
        Self { state: Mutex::new(State { since: now, total: 0, by_address: HashMap::new() }) }
    }

    /// Whether one more attempt is allowed. The table is bounded by `TOTAL` and emptied with each window.
    pub(crate) fn allow(&self, address: Option<IpAddr>, now: Instant) -> bool {
        let Ok(mut state) = self.state.lock() else { return false };
        if now.duration_since(state.since) >= WINDOW {
            *state = State { since: now, total: 0, by_address: HashMap::new() };
        }
        if state.total >= TOTAL {
            return false;
        }
        let count = address.map(|address| state.by_address.entry(address).or_insert(0));
        if let Some(count) = count {
            if *count >= PER_ADDRESS {
                return false;
            }
            *count += 1;
        }
        state.total += 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_is_held_back_before_others_and_the_window_ends() {
        let start = Instant::now();
        let rate = Rate::new(start);
        let address = |last| Some(IpAddr::from([10, 0, 0, last]));
        for _ in 0..PER_ADDRESS {
            assert!(rate.allow(address(1), start));
        }
        assert!(!rate.allow(address(1), start));
        assert!(rate.allow(address(2), start));
        assert!(rate.allow(address(1), start + WINDOW));
        for last in 0..=255 {
            for _ in 0..PER_ADDRESS {
                rate.allow(address(last), start + WINDOW);
            }
        }
        assert!(!rate.allow(None, start + WINDOW), "the total is bounded too");
    }
}
