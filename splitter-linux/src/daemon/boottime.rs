//! The guest's boot time: the clock of all captured writes.

use nix::time::{ClockId, clock_gettime};

/// Microseconds of `CLOCK_BOOTTIME`. It exists on every kernel this program runs on; 0 would only make times unknown.
pub(crate) fn now_us() -> u64 {
    let Ok(now) = clock_gettime(ClockId::CLOCK_BOOTTIME) else { return 0 };
    let seconds = u64::try_from(now.tv_sec()).unwrap_or(0);
    let nanoseconds = u64::try_from(now.tv_nsec()).unwrap_or(0);
    seconds.saturating_mul(1_000_000).saturating_add(nanoseconds / 1000)
}
