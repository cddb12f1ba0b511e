//! How often points may be asked for.

use std::collections::{HashMap, VecDeque};
use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;

/// Points on demand of one set in this time: each may hold all its members for seconds. More are refused.
const SET_INTERVAL: Duration = Duration::from_secs(1);

/// Points that one caller may ask for in [`CALLER_INTERVAL`]. More are refused.
const CALLER_POINTS: usize = 10;

/// See [`CALLER_POINTS`].
const CALLER_INTERVAL: Duration = Duration::from_secs(60);

/// What was asked for lately.
#[derive(Debug, Default)]
pub struct Limits {
    callers: Mutex<HashMap<String, VecDeque<Instant>>>,
    sets: Mutex<HashMap<String, Instant>>,
}

impl Limits {
    /// Counts what a caller asks for.
    ///
    /// # Errors
    /// When it asks too often, in words.
    pub fn admit_caller(&self, caller: &str, now: Instant) -> Result<(), String> {
        let Ok(mut callers) = self.callers.lock() else { return Ok(()) };
        callers.retain(|_, asked| {
            asked.retain(|at| now.duration_since(*at) < CALLER_INTERVAL);
            !asked.is_empty()
        });
        let asked = callers.entry(caller.to_owned()).or_default();
        if asked.len() >= CALLER_POINTS {
            let seconds = CALLER_INTERVAL.as_secs();
            return Err(format!(
                "{CALLER_POINTS} points of sets were asked for in {seconds} s, which is the most: try again later"
            ));
        }
        asked.push_back(now);
        Ok(())
    }

    /// Counts a point of a set.
    ///
    /// # Errors
    /// When the last is too near, in words.
    pub fn admit_set(&self, set: &str, now: Instant) -> Result<(), String> {
        let Ok(mut sets) = self.sets.lock() else { return Ok(()) };
        sets.retain(|_, at| now.duration_since(*at) < SET_INTERVAL);
        if sets.contains_key(set) {
            return Err(format!(
                "a point of the set '{set}' was asked for less than a second ago: try again"
            ));
        }
        sets.insert(set.to_owned(), now);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_set_and_each_caller_has_a_limit_of_its_own() {
        let (limits, now) = (Limits::default(), Instant::now());
        limits.admit_set("a", now).unwrap();
        limits.admit_set("b", now).unwrap();
        assert!(limits.admit_set("a", now + SET_INTERVAL / 2).unwrap_err().contains("'a'"));
        limits.admit_set("a", now + SET_INTERVAL).unwrap();
        for second in 0..CALLER_POINTS as u64 {
            limits.admit_caller("x", now + Duration::from_secs(second)).unwrap();
        }
        assert!(limits.admit_caller("x", now + CALLER_INTERVAL / 2).is_err());
        limits.admit_caller("y", now + CALLER_INTERVAL / 2).unwrap();
        limits.admit_caller("x", now + CALLER_INTERVAL).unwrap();
        assert!(limits.admit_caller("x", now + CALLER_INTERVAL).is_err(), "one has become old, one");
    }
}
