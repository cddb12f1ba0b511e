//! What is wanted of retention. Plain data, checked.

use thiserror::Error;

/// Snapshots of one kind that a policy may ask for at most: a hundred years of hours have no use, and each snapshot is in
/// the manifest. More are refused.
const COUNT_MAX: u32 = 400;

/// How long points are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Any point younger than that, microseconds, stays recoverable while there is space.
    pub window_us: u64,
    /// No shortage of space makes the window shorter than that, microseconds.
    pub window_min_us: u64,
    /// Bytes of log beyond which the window ends early, but not before `window_min_us`.
    pub window_bytes: Option<u64>,
    /// What is kept beyond the window.
    pub schedule: Schedule,
    /// How long nobody can give up a snapshot of the schedule, microseconds from when it is made; 0: no lock.
    pub lock_us: u64,
}

/// How many snapshots of each kind are kept beyond the window, the newest first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Schedule {
    /// The last point of each of so many hours that had any.
    pub hourly: u32,
    /// Likewise of days, UTC.
    pub daily: u32,
    /// Likewise of weeks from Monday on.
    pub weekly: u32,
    /// Likewise of months.
    pub monthly: u32,
    /// Likewise of years.
    pub yearly: u32,
}

/// Whether there is space.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Pressure {
    /// There is.
    #[default]
    None,
    /// Little is left: windows become as short as policies allow.
    Shorten,
}

/// A policy contradicts itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum PolicyError {
    /// The guaranteed part of the window is longer than the window.
    #[error("window-min is longer than window")]
    Minimum,
    /// Too many snapshots of one kind.
    #[error("at most {COUNT_MAX} snapshots of each kind can be kept")]
    Count,
    /// A lock without snapshots to lock.
    #[error("lock needs a schedule: it locks the snapshots that the schedule makes")]
    Lock,
}

impl Policy {
    /// Checks that it can be followed.
    ///
    /// # Errors
    /// See [`PolicyError`].
    pub fn check(&self) -> Result<(), PolicyError> {
        let counts = self.schedule.counts();
        if self.window_min_us > self.window_us {
            return Err(PolicyError::Minimum);
        }
        if counts.iter().any(|count| *count > COUNT_MAX) {
            return Err(PolicyError::Count);
        }
        if self.lock_us > 0 && counts == [0; 5] {
            return Err(PolicyError::Lock);
        }
        Ok(())
    }
}

impl Schedule {
    /// By kind, in the order of [`super::Every::ALL`].
    pub(super) fn counts(&self) -> [u32; 5] {
        [self.hourly, self.daily, self.weekly, self.monthly, self.yearly]
    }
}
