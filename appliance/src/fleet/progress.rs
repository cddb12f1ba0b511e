//! How fast a copy or comparison of a disk advances.

use std::collections::BTreeMap;
use std::time::Duration;

use tidemark_proto::v1::{DiskState, DiskStatus, Heartbeat};
use tokio::time::Instant;

/// How long a copy must have been watched before its end is guessed.
const WATCHED_MIN: Duration = Duration::from_secs(1);

/// Copies that are running, by disk, as this session has seen them.
#[derive(Debug, Clone, Default)]
pub struct Progress(BTreeMap<u32, Begun>);

#[derive(Debug, Clone, Copy)]
struct Begun {
    at: Instant,
    copied_bytes: u64,
}

fn is_copying(disk: &DiskStatus) -> bool {
    matches!(disk.state(), DiskState::InitialSync | DiskState::Resync | DiskState::Verify)
}

impl Progress {
    /// Takes a heartbeat that came in at `at`.
    pub(crate) fn follow(&mut self, heartbeat: &Heartbeat, at: Instant) {
        let running = |id: u32| heartbeat.disks.iter().find(|disk| disk.disk_id == id && is_copying(disk));
        // A copy that counts less than before is another one.
        self.0.retain(|id, begun| running(*id).is_some_and(|disk| disk.copied_bytes >= begun.copied_bytes));
        for disk in heartbeat.disks.iter().filter(|disk| is_copying(disk)) {
            self.0.entry(disk.disk_id).or_insert(Begun { at, copied_bytes: disk.copied_bytes });
        }
    }

    /// Milliseconds until the disk's copy ends if it goes on like this; `None` while that cannot be said.
    pub(crate) fn left_ms(&self, disk: &DiskStatus, at: Instant) -> Option<u64> {
        let begun = self.0.get(&disk.disk_id)?;
        let watched = at.saturating_duration_since(begun.at);
        let copied = disk.copied_bytes.saturating_sub(begun.copied_bytes);
        if watched < WATCHED_MIN || copied == 0 {
            return None;
        }
        let left = watched.as_millis().saturating_mul(disk.dirty_bytes.into()) / u128::from(copied);
        u64::try_from(left).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn beat(state: DiskState, copied_bytes: u64, dirty_bytes: u64) -> Heartbeat {
        let disk = DiskStatus { disk_id: 1, state: state.into(), dirty_bytes, copied_bytes, sent_bytes: 0 };
        Heartbeat { disks: vec![disk], ..Heartbeat::default() }
    }

    #[test]
    fn what_is_left_is_guessed_from_what_was_seen_of_this_copy() {
        let (start, mut progress) = (Instant::now(), Progress::default());
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut follow = |heartbeat: &Heartbeat, at| {
            progress.follow(heartbeat, at);
            progress.left_ms(&heartbeat.disks[0], at)
        };
        assert_eq!(follow(&beat(DiskState::Verify, 100, 900), start), None);
        assert_eq!(follow(&beat(DiskState::Verify, 300, 700), after(2)), Some(7000));
        assert_eq!(follow(&beat(DiskState::Protected, 1000, 0), after(9)), None);
        assert_eq!(follow(&beat(DiskState::Resync, 0, 50), after(20)), None, "another copy begins anew");
        assert_eq!(follow(&beat(DiskState::Resync, 25, 25), after(22)), Some(2000));
    }
}
