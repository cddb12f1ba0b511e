//! The time that locks are judged by. While the machine runs it goes on with the time since boot, whatever the wall clock
//! is set to; over a reboot, which leaves no other witness, it takes the wall clock for a quarter of an hour at most, and
//! never goes back.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::clock::now_us;
use crate::data_dir::{FileError, read_text, write_private};

/// Microseconds that a reboot counts for at most, as for the locks of VMs: the wall clock is the only witness of them.
const DOWNTIME_MAX_US: u64 = 15 * 60 * 1_000_000;

/// What was known last, in the file `clock`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    version: u32,
    /// Microseconds since 1970.
    time_us: u64,
    boot: String,
    /// Microseconds since that boot, sleep included.
    since_boot_us: u64,
}

/// A clock that cannot be set.
#[derive(Debug)]
pub struct LockClock {
    file: PathBuf,
    known: Mutex<Known>,
}

impl LockClock {
    /// Goes on from what the file says.
    ///
    /// # Errors
    /// When the file cannot be read or written, or is not as written.
    pub fn open(file: &Path) -> Result<Self, FileError> {
        let present =
            Known { version: 1, time_us: now_us(), boot: boot_id(), since_boot_us: since_boot_us() };
        let known = if file.exists() {
            let text = read_text(file)?;
            // A file that is not as written says nothing; locks are then judged from the wall clock on.
            serde_json::from_str::<Known>(&text).ok().map_or_else(
                || {
                    tracing::warn!(path = %file.display(), "the clock of locks is not as written and begins anew");
                    present.clone()
                },
                |before| advanced(&before, &present),
            )
        } else {
            present
        };
        let clock = Self { file: file.to_path_buf(), known: Mutex::new(known) };
        clock.now_us()?;
        Ok(clock)
    }

    /// Microseconds since 1970, by this clock. Durable, so that no later look is earlier.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn now_us(&self) -> Result<u64, FileError> {
        let present =
            Known { version: 1, time_us: now_us(), boot: boot_id(), since_boot_us: since_boot_us() };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        *known = advanced(&known, &present);
        let text = serde_json::to_string(&*known).unwrap_or_default();
        write_private(&self.file, text.as_bytes())?;
        Ok(known.time_us)
    }
}

/// What is known at `present`, whose time is the wall clock's.
fn advanced(before: &Known, present: &Known) -> Known {
    let time_us = if before.boot == present.boot {
        before.time_us.saturating_add(present.since_boot_us.saturating_sub(before.since_boot_us))
    } else {
        let away_us = present.time_us.saturating_sub(before.time_us);
        before.time_us.saturating_add(away_us.min(DOWNTIME_MAX_US))
    };
    Known { time_us, ..present.clone() }
}

fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

fn since_boot_us() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_BOOTTIME).map(std::time::Duration::from).unwrap_or_default();
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(boot: &str, time_us: u64, since_boot_us: u64) -> Known {
        Known { version: 1, time_us, boot: boot.to_owned(), since_boot_us }
    }

    #[test]
    fn setting_the_wall_clock_moves_no_lock() {
        let before = known("a", 1000, 50);
        assert_eq!(advanced(&before, &known("a", 9_000_000, 60)).time_us, 1010, "set forward");
        assert_eq!(advanced(&before, &known("a", 1, 60)).time_us, 1010, "set back");
        assert_eq!(advanced(&before, &known("b", 1500, 5)).time_us, 1500, "a reboot");
        assert_eq!(advanced(&before, &known("b", 10, 5)).time_us, 1000, "a reboot with a lost clock");
    }

    #[test]
    fn the_clock_goes_on_where_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("clock");
        let first = LockClock::open(&file).unwrap().now_us().unwrap();
        let ahead = Known { time_us: first + 1_000_000_000, ..known(&boot_id(), 0, since_boot_us()) };
        write_private(&file, serde_json::to_string(&ahead).unwrap().as_bytes()).unwrap();
        assert!(LockClock::open(&file).unwrap().now_us().unwrap() >= first + 1_000_000_000);
        std::fs::write(&file, "torn").unwrap();
        assert!(LockClock::open(&file).unwrap().now_us().unwrap() < first + 1_000_000_000);
    }
}
