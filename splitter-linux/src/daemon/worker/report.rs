//! What the worker says of itself: for `status`, and for the heartbeats.

use std::time::Instant;

use tidemark_proto::v1::DiskState;
use tidemark_splitter_core::engine::{Settings, StatusReport};

use super::super::boottime::now_us;
use super::super::hardening;
use super::{MEASURE_INTERVAL, Worker};
use crate::control::{DiskStatus, Status};

impl Worker {
    pub(super) fn measure(&mut self) {
        if self.measured.is_none_or(|at| at.elapsed() >= MEASURE_INTERVAL) {
            self.measured = Some(Instant::now());
            self.resident_bytes = hardening::resident_bytes();
            let missing = self.presence.missing.clone();
            self.engine.set_settings(Settings { rss_bytes: self.resident_bytes, missing });
        }
    }

    pub(super) fn status(&mut self) -> Status {
        let mut status = Status {
            vm: self.state.identity().map(|identity| identity.vm_name).unwrap_or_default(),
            connected: self.session.is_some(),
            running: true,
            quarantined: self.state.quarantine().ok().flatten().map(|quarantine| quarantine.reason),
            rss_bytes: self.resident_bytes,
            all_except: self.wanted.all.as_ref().map(|all| all.except.clone()),
            refused: self.presence.refused.clone(),
            ..Status::default()
        };
        status.volumes = self.gates.status(now_us(), wall_us());
        let Some(protection) = &mut self.protection else { return status };
        let engine = &self.engine;
        let mut report = StatusReport::default();
        self.kernel.lend(&mut protection.capture, &mut |kernel| report = engine.report(kernel));
        status.captured_lsn = report.captured_lsn;
        status.acked_lsn = report.acked_lsn;
        status.ring_bytes_used = report.ring_bytes_used;
        status.ring_bytes = report.ring_bytes;
        status.dropped = report.dropped;
        for known in &self.wanted.disks {
            let held = protection.held.iter().find(|held| held.disk.identity == known.identity);
            let disk = held.and_then(|held| report.disks.iter().find(|disk| disk.slot == held.slot));
            let missing = self.presence.missing.iter().find(|missing| missing.identity == known.identity);
            status.disks.push(DiskStatus {
                id: disk.map(|disk| disk.id.to_string()).unwrap_or_default(),
                path: held.map_or_else(|| known.path.clone(), |held| held.disk.path.clone()),
                mode: "async".to_owned(),
                state: match (disk, missing) {
                    (_, Some(_)) => "missing",
                    (Some(disk), None) => state_word(disk.state),
                    (None, None) => "waiting",
                }
                .to_owned(),
                identity: known.identity.clone(),
                reason: missing.map(|missing| missing.reason.clone()).unwrap_or_default(),
                dirty_bytes: disk.map_or(0, |disk| disk.dirty_bytes),
                copied_bytes: disk.map_or(0, |disk| disk.copied_bytes),
                sent_bytes: disk.map_or(0, |disk| disk.sent_bytes),
            });
        }
        Self::show_ladder(&mut status, report);
        status
    }
}

/// Microseconds since 1970, for people only.
fn wall_us() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_micros()).unwrap_or(u64::MAX)
}

fn state_word(state: DiskState) -> &'static str {
    match state {
        DiskState::InitialSync => "initial-sync",
        DiskState::Protected => "protected",
        DiskState::DirtyOnly => "dirty-only",
        DiskState::Resync => "resync",
        DiskState::Verify => "verify",
        DiskState::Unspecified => "waiting",
    }
}
