//! The clock that retention goes by. A wall clock can be set; what is given up by a wrong one does not come back.
//!
//! Locks go by proven time: what the kernel counted since the last look, within one boot, suspends included. Of the time
//! between two boots only some minutes count. That clock may lag behind the true time, never lead: locks end late, not
//! early. It follows the wall clock only as far as a clock that is being slewed differs from one that is not.
//!
//! Windows go by the same, but a wall clock that stays ahead is believed in the end: else they would grow by every long
//! downtime for ever.

use std::path::Path;

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::clock::now_us;
use crate::data_dir::{FileError, write_private};

const MINUTE_US: u64 = 60 * 1_000_000;

/// Of the time between two boots, what counts at most: a restart with checks of the firmware.
const DOWNTIME_MAX_US: u64 = 15 * MINUTE_US;

/// How far the wall clock may be ahead of what is proven before that is a jump.
const JUMP_US: u64 = 5 * MINUTE_US;

/// How long a jump must stand before windows believe it: time to see the alarm and set the clock right.
const DISPUTE_US: u64 = 24 * 60 * MINUTE_US;

/// No true time is before this program was written: 2026-01-01. A machine whose battery is empty starts at 1970, and a clock
/// that begins there would stay decades behind, with locks that never end.
const PLAUSIBLE_US: u64 = 1_767_225_600_000_000;

/// A clock that is slewed gains or loses at most one part in so many: 500 ppm, as kernels allow.
const SLEW_PARTS: u64 = 2000;

/// What the machine's clocks say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tick {
    /// The wall clock, microseconds since 1970.
    pub wall_us: u64,
    /// Time since the boot, suspends included, microseconds.
    pub boot_us: u64,
    /// Which boot.
    pub boot: String,
}

impl Tick {
    /// Now. Where the kernel tells nothing, no time counts as proven.
    #[must_use]
    pub fn now() -> Self {
        let since = clock_gettime(ClockId::CLOCK_BOOTTIME).ok();
        let boot_us = since.and_then(|since| {
            let seconds = u64::try_from(since.tv_sec()).ok()?;
            let micros = u64::try_from(since.tv_nsec()).ok()? / 1000;
            seconds.checked_mul(1_000_000)?.checked_add(micros)
        });
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Self { wall_us: now_us(), boot_us: boot_us.unwrap_or(0), boot: boot.trim().to_owned() }
    }
}

/// The time as retention sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// For locks and holds, microseconds since 1970.
    pub locks_us: u64,
    /// For windows and schedules, microseconds since 1970.
    pub windows_us: u64,
    /// The wall clock is ahead, and nobody knows why.
    pub jump: Option<Jump>,
}

/// A jump of the wall clock that is not believed yet; of nothing by nothing while the clock was never set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Jump {
    /// How far the wall clock is ahead of windows, microseconds.
    pub ahead_us: u64,
    /// When windows will believe it, microseconds from now.
    pub believed_in_us: u64,
}

/// The clock, as it is kept on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetentionClock {
    boot: String,
    boot_us: u64,
    wall_us: u64,
    locks_us: u64,
    windows_us: u64,
    disputed_us: u64,
}

impl RetentionClock {
    /// Begins at `least_us`, what journals have seen already, or at the wall clock where none has seen anything.
    #[must_use]
    pub fn new(tick: &Tick, least_us: u64) -> Self {
        let begin = if least_us == 0 { tick.wall_us } else { least_us };
        Self {
            boot: tick.boot.clone(),
            boot_us: tick.boot_us,
            wall_us: tick.wall_us,
            locks_us: begin,
            windows_us: begin,
            disputed_us: 0,
        }
    }

    /// Reads the clock that was kept in a file; without one, or with a damaged one, begins anew.
    #[must_use]
    pub fn load(path: &Path, tick: &Tick, least_us: u64) -> Self {
        let kept = std::fs::read_to_string(path).ok().and_then(|text| toml::from_str::<Self>(&text).ok());
        let mut clock = kept.unwrap_or_else(|| Self::new(tick, least_us));
        clock.locks_us = clock.locks_us.max(least_us);
        clock.windows_us = clock.windows_us.max(clock.locks_us);
        clock
    }

    /// Keeps the clock, durably.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), FileError> {
        // Plain numbers and a text: it cannot fail.
        write_private(path, toml::to_string(self).unwrap_or_default().as_bytes())
    }

    /// Takes a look at the machine's clocks.
    pub fn observe(&mut self, tick: &Tick) -> Now {
        if self.locks_us < PLAUSIBLE_US && tick.wall_us >= PLAUSIBLE_US {
            // It has not begun yet: the first time that can be true is believed, as at a first start.
            *self = Self::new(tick, 0);
        }
        let same_boot = !tick.boot.is_empty() && tick.boot == self.boot && tick.boot_us >= self.boot_us;
        let elapsed = if same_boot {
            tick.boot_us - self.boot_us
        } else {
            tick.wall_us.saturating_sub(self.wall_us).min(DOWNTIME_MAX_US)
        };
        let slew = elapsed / SLEW_PARTS;
        let go = |from: u64| {
            let to = from.saturating_add(elapsed);
            tick.wall_us.clamp(to - slew, to.saturating_add(slew))
        };
        self.locks_us = go(self.locks_us);
        self.windows_us = go(self.windows_us);
        (self.boot, self.boot_us, self.wall_us) = (tick.boot.clone(), tick.boot_us, tick.wall_us);
        let ahead_us = tick.wall_us.saturating_sub(self.windows_us);
        self.disputed_us = if ahead_us > JUMP_US { self.disputed_us.saturating_add(elapsed) } else { 0 };
        if self.disputed_us >= DISPUTE_US {
            (self.windows_us, self.disputed_us) = (tick.wall_us, 0);
        }
        if self.locks_us < PLAUSIBLE_US {
            let jump = Some(Jump { ahead_us: 0, believed_in_us: 0 });
            return Now { locks_us: self.locks_us, windows_us: self.windows_us, jump };
        }
        let jump = (self.windows_us < tick.wall_us && ahead_us > JUMP_US)
            .then(|| Jump { ahead_us, believed_in_us: DISPUTE_US.saturating_sub(self.disputed_us) });
        Now { locks_us: self.locks_us, windows_us: self.windows_us, jump }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_US: u64 = 60 * MINUTE_US;
    const START: u64 = 1_795_810_500_000_000;

    fn tick(boot: &str, wall_us: u64, boot_us: u64) -> Tick {
        Tick { wall_us, boot_us, boot: boot.to_owned() }
    }

    #[test]
    fn a_jump_moves_no_lock_and_no_window_until_it_has_stood_for_a_day() {
        let year = 365 * 24 * HOUR_US;
        let mut clock = RetentionClock::new(&tick("a", START, 0), 0);
        let now = clock.observe(&tick("a", START + HOUR_US, HOUR_US));
        assert_eq!((now.locks_us, now.windows_us, now.jump), (START + HOUR_US, START + HOUR_US, None));
        let mut last = now;
        for hour in 2..40 {
            last = clock.observe(&tick("a", START + year + hour * HOUR_US, hour * HOUR_US));
            assert!(last.locks_us < START + hour * HOUR_US + 2 * MINUTE_US, "hour {hour}");
            assert_eq!(last.jump.is_some(), hour < 25, "hour {hour}: {last:?}");
        }
        assert_eq!(last.windows_us, START + year + 39 * HOUR_US);
        // Set right in time, nothing has happened.
        let mut clock = RetentionClock::new(&tick("a", START, 0), 0);
        assert!(clock.observe(&tick("a", START + year, HOUR_US)).jump.is_some());
        let now = clock.observe(&tick("a", START + 2 * HOUR_US, 2 * HOUR_US));
        assert!(now.jump.is_none() && now.windows_us.abs_diff(START + 2 * HOUR_US) < MINUTE_US);
    }

    #[test]
    fn a_clock_that_was_never_set_begins_when_it_is() {
        let mut clock = RetentionClock::new(&tick("a", 1_000_000, 5), 0);
        let now = clock.observe(&tick("a", 1_000_000 + HOUR_US, 5 + HOUR_US));
        assert_eq!(now.jump, Some(Jump { ahead_us: 0, believed_in_us: 0 }));
        assert!(now.locks_us < 2 * HOUR_US, "nothing ends by it: {now:?}");
        // Kept and loaded, also with journals that have seen that time.
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("clock");
        clock.save(&path).unwrap();
        let mut clock = RetentionClock::load(&path, &tick("b", 2_000_000, 1), HOUR_US);
        let set = tick("b", START, 1 + HOUR_US);
        assert_eq!(clock.observe(&set), Now { locks_us: START, windows_us: START, jump: None });
        // From then on a jump is one.
        let jumped = clock.observe(&tick("b", START + 9000 * HOUR_US, 1 + 2 * HOUR_US));
        assert!(jumped.locks_us < START + 2 * HOUR_US && jumped.jump.is_some(), "{jumped:?}");
    }

    #[test]
    fn downtime_counts_for_minutes_and_a_restart_of_the_process_counts_whole() {
        let mut clock = RetentionClock::new(&tick("a", START, 0), 0);
        let now = clock.observe(&tick("a", START + 9 * HOUR_US, 9 * HOUR_US));
        assert_eq!(now.locks_us, START + 9 * HOUR_US);
        let before = now.locks_us;
        let now = clock.observe(&tick("b", START + 90 * HOUR_US, MINUTE_US));
        assert_eq!(now.locks_us.abs_diff(before + DOWNTIME_MAX_US), DOWNTIME_MAX_US / SLEW_PARTS);
        assert!(now.jump.is_some());
        // Booting again and again gains no more than that each time.
        for boot in 0..20 {
            let name = format!("boot {boot}");
            clock.observe(&tick(&name, START + (100 + boot) * 1000 * HOUR_US, 0));
        }
        let now = clock.observe(&tick("last", START, 0));
        assert!(now.locks_us < before + 22 * (DOWNTIME_MAX_US + MINUTE_US));
    }

    #[test]
    fn no_sequence_of_clocks_makes_it_go_back_or_locks_lead_what_is_proven() {
        let mut state = 7_u64;
        let mut random = |most: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % most
        };
        for _ in 0..200 {
            let (mut wall, mut boot_us, mut boot) = (START, 0_u64, 0);
            let mut clock = RetentionClock::new(&tick("0", wall, 0), 0);
            let (mut proven, mut boots, mut last) = (0, 0, START);
            for _ in 0..200 {
                let step = random(2 * HOUR_US);
                (wall, boot_us) = (wall + step, boot_us + step);
                match random(10) {
                    0 => wall = START.saturating_sub(random(1000 * HOUR_US)),
                    1 => wall = START + random(100_000 * HOUR_US),
                    2 => (boot, boot_us, boots) = (boot + 1, 0, boots + 1),
                    _ => {}
                }
                let now = clock.observe(&tick(&boot.to_string(), wall, boot_us));
                proven += step;
                let most = proven + proven / SLEW_PARTS + boots * (DOWNTIME_MAX_US + MINUTE_US);
                assert!(now.locks_us >= last && now.windows_us >= now.locks_us.saturating_sub(HOUR_US));
                assert!(now.locks_us - START <= most, "{} of {most}", now.locks_us - START);
                last = now.locks_us;
            }
        }
    }

    #[test]
    fn it_is_kept_and_without_a_file_begins_where_journals_are() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("clock");
        let now = tick("a", START, 5);
        let mut clock = RetentionClock::load(&path, &now, 0);
        clock.observe(&tick("a", START + HOUR_US, 5 + HOUR_US));
        clock.save(&path).unwrap();
        assert_eq!(RetentionClock::load(&path, &now, 0), clock);
        std::fs::remove_file(&path).unwrap();
        let far = tick("a", START + 9000 * HOUR_US, 5);
        assert_eq!(RetentionClock::load(&path, &far, START).locks_us, START);
    }
}
