//! The state of a VM as people see it. Nothing here is better than what is durable.

use tidemark_journal::timeline::{Gap, Timeline};
use tidemark_proto::v1::{Alarm, DiskState, GapCause, VmDisk, VmInfo, VmSync};

use super::{Live, VerifyJob, Vm};
use crate::catalog::VmRow;
use crate::recovery::cause_text;
use crate::space::Space;

/// Milliseconds of RPO above which an alarm is shown: ten times the goal, beyond any hiccup of a healthy stream.
const RPO_ALARM_MS: u64 = 10_000;

/// Describes a VM at `now_us`.
#[must_use]
pub fn vm_info(vm: &Vm, row: &VmRow, now_us: u64) -> VmInfo {
    let live = vm.live();
    let mut info = VmInfo { name: vm.name.clone(), id: vm.id.to_string(), ..VmInfo::default() };
    let journal = match vm.log.journal() {
        Ok(journal) => journal,
        Err(down) => {
            info.state = "error".into();
            info.reason = down.0;
            return info;
        }
    };
    let timeline = journal.timeline();
    let durable = journal.durable();
    let statistics = journal.statistics();
    info.generation = durable.generation.0;
    info.durable_lsn = durable.lsn.0;
    info.captured_lsn = journal.appended().lsn.0.max(live.heartbeat.as_ref().map_or(0, |beat| beat.lsn));
    info.lag_bytes = live.heartbeat.as_ref().map_or(0, |beat| beat.ring_bytes_used);
    if let Some(backlog) = live.backlog.filter(|_| live.connected) {
        info.spool_bytes = backlog.spool_bytes;
        info.spool_limit_bytes = backlog.spool_limit_bytes;
        info.lag_bytes = backlog.ring_bytes_used.saturating_add(backlog.spool_bytes);
    }
    info.journal_bytes = statistics.segment_bytes.saturating_add(statistics.index_bytes);
    info.payload_bytes = statistics.payload_bytes;
    if let Some(horizon) = timeline.horizon() {
        info.latest_lsn = horizon.lsn.0;
        info.rpo_ms =
            Some(newest_point_us(&timeline).map_or(u64::MAX, |point| now_us.saturating_sub(point)) / 1000);
    }
    let open: Vec<&Gap> = timeline.gaps().iter().filter(|gap| gap.to.is_none()).collect();
    info.disks = journal.disks().into_iter().map(|disk| disk_info(&disk, &open, &live)).collect();
    let (state, reason) = state(vm, row, &live, &timeline, &open, durable.lsn.0, now_us);
    info.state = state.into();
    info.reason = reason;
    info.sync = live.sync.into_iter().map(|volume| standing(volume, live.connected, now_us)).collect();
    info.verify = vm.verify().filter(VerifyJob::is_running).map(|job| job.info(&vm.name));
    info
}

/// A promise that was not renewed is over, whatever the splitter said last.
fn standing(mut volume: VmSync, connected: bool, now_us: u64) -> VmSync {
    if volume.in_force && volume.proven_until_us.is_none_or(|until| until < now_us) {
        volume.in_force = false;
        volume.cause =
            if connected { "the splitter does not renew it" } else { "its splitter is not connected" }.into();
    }
    volume
}

/// Time of the newest durable recoverable point of all disks: the horizon, or the last point before the first gap that
/// is still open. `None` when there is none.
fn newest_point_us(timeline: &Timeline) -> Option<u64> {
    let horizon = timeline.horizon()?;
    let first_open = timeline.gaps().iter().filter(|gap| gap.to.is_none()).min_by_key(|gap| gap.from);
    match first_open {
        Some(gap) if gap.from <= horizon.lsn => (gap.from_time_us > 0).then_some(gap.from_time_us),
        _ => Some(horizon.time_us),
    }
}

fn state(
    vm: &Vm,
    row: &VmRow,
    live: &Live,
    timeline: &Timeline,
    open: &[&Gap],
    durable_lsn: u64,
    now_us: u64,
) -> (&'static str, String) {
    if let Some(reason) = &row.quarantine {
        return ("quarantined", reason.clone());
    }
    if let Some(problem) = vm.log.problem() {
        return ("error", problem);
    }
    if durable_lsn == 0 {
        let reason =
            if live.connected { "no disk is protected yet" } else { "its splitter has not connected yet" };
        return ("new", reason.into());
    }
    if !live.connected {
        let end = live.last_end.as_deref().unwrap_or("since the appliance started");
        return ("disconnected", format!("its splitter is not connected ({end})"));
    }
    let reports = |wanted: DiskState| {
        live.heartbeat
            .iter()
            .flat_map(|beat| &beat.disks)
            .any(|disk| DiskState::try_from(disk.state).is_ok_and(|state| state == wanted))
    };
    if let Some(missing) = live.heartbeat.iter().flat_map(|beat| &beat.missing).next() {
        return (
            "error",
            format!(
                "the protected disk {} is missing in the machine ({}); points of the other disks are recoverable with --disk",
                missing.path, missing.reason
            ),
        );
    }
    if reports(DiskState::DirtyOnly) {
        return ("dirty-only", "writes are noted and not captured until the splitter catches up".into());
    }
    if let Some(gap) = open.iter().find(|gap| gap.cause == GapCause::InitialCopy as u32) {
        return ("initial-sync", format!("first copy of {} is running", disk_list(gap)));
    }
    if let Some(gap) = open.first().filter(|_| reports(DiskState::Verify)) {
        return (
            "verify",
            format!("{} is compared by hashes after: {}", disk_list(gap), cause_text(gap.cause)),
        );
    }
    if let Some(gap) = open.first() {
        return ("resync", format!("{} is read again after: {}", disk_list(gap), cause_text(gap.cause)));
    }
    if live.heartbeat.is_none() {
        // It may be about to say what was missed while it was away.
        return (
            "disconnected",
            "its splitter has just connected, and has not told how its disks are".into(),
        );
    }
    if timeline.horizon().is_none() {
        return ("initial-sync", "no heartbeat has confirmed a point yet".into());
    }
    ("protected", live.copy_text(now_us).unwrap_or_default())
}

fn disk_list(gap: &Gap) -> String {
    gap.disks.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn disk_info(disk: &tidemark_journal::DiskRecord, open: &[&Gap], live: &Live) -> VmDisk {
    let gap = open.iter().find(|gap| gap.disks.contains(&disk.id));
    let report =
        live.heartbeat.iter().flat_map(|beat| &beat.disks).find(|status| status.disk_id == disk.id.0);
    let reported = report.and_then(|status| DiskState::try_from(status.state).ok()).unwrap_or_default();
    let mut missing = live.heartbeat.iter().flat_map(|beat| &beat.missing);
    let is_missing = missing.any(|missing| missing.identity == disk.identity);
    let state = match (gap, live.connected) {
        (_, false) => "disconnected",
        (_, true) if is_missing => "missing",
        (_, true) if reported == DiskState::DirtyOnly => "dirty-only",
        (Some(gap), true) if gap.cause == GapCause::InitialCopy as u32 => "initial-sync",
        (Some(_), true) if reported == DiskState::Verify => "verify",
        (Some(_), true) => "resync",
        (None, true) if report.is_some() => "protected",
        (None, true) => "unprotected",
    };
    VmDisk {
        id: disk.id.to_string(),
        path: disk.path.clone(),
        size_bytes: disk.size_bytes,
        identity: disk.identity.clone(),
        state: state.into(),
        dirty_bytes: report.map_or(0, |status| status.dirty_bytes),
        copied_bytes: report.map_or(0, |status| status.copied_bytes),
        sent_bytes: report.map_or(0, |status| status.sent_bytes),
        left_ms: report.zip(live.heartbeat_at).and_then(|(status, at)| live.progress.left_ms(status, at)),
    }
}

/// What an operator should look at.
#[must_use]
pub fn alarms(vms: &[VmInfo], space: &Space) -> Vec<Alarm> {
    let alarm = |vm: &str, severity: &str, text: String| Alarm {
        vm: vm.to_owned(),
        severity: severity.to_owned(),
        text,
    };
    let mut alarms = Vec::new();
    if space.full {
        let text = format!(
            "ingest has stopped: {} bytes are free below the data folder: add space",
            space.free_bytes
        );
        alarms.push(alarm("", "critical", text));
    } else if space.low() {
        alarms.push(alarm(
            "",
            "warning",
            format!("only {} bytes are free below the data folder", space.free_bytes),
        ));
    }
    for vm in vms {
        match vm.state.as_str() {
            "quarantined" | "error" => alarms.push(alarm(&vm.name, "critical", vm.reason.clone())),
            "protected" if !vm.reason.is_empty() => {
                alarms.push(alarm(&vm.name, "warning", vm.reason.clone()))
            }
            "disconnected" => alarms.push(alarm(&vm.name, "warning", vm.reason.clone())),
            "dirty-only" | "resync" | "verify" => {
                alarms.push(alarm(&vm.name, "warning", format!("a gap is open: {}", vm.reason)));
            }
            _ => {}
        }
        for volume in vm.sync.iter().filter(|volume| !volume.in_force) {
            let text =
                format!("{} is not in synchronous mode, which is wanted: {}", volume.volume, volume.cause);
            alarms.push(alarm(&vm.name, "warning", text));
        }
        if vm.spool_bytes > 0 {
            let text = format!(
                "behind: {} MiB of at most {} wait in the guest's spool, its writes come faster than they arrive here",
                vm.spool_bytes >> 20,
                vm.spool_limit_bytes >> 20
            );
            alarms.push(alarm(&vm.name, "warning", text));
        }
        if let Some(rpo_ms) = vm.rpo_ms.filter(|rpo_ms| *rpo_ms > RPO_ALARM_MS) {
            alarms.push(alarm(
                &vm.name,
                "warning",
                format!("the newest recoverable point is {} s old", rpo_ms / 1000),
            ));
        }
    }
    alarms
}
