//! `tidemark-splitter status`, and how lines are printed.

use std::io::Write;

use anyhow::{Context as _, Result, bail};

use crate::control::{self, ControlError, DiskStatus, Reply, Request, Status, VolumeStatus};
use crate::gate::OnLapse;
use crate::state::{StateDir, SyncVolumeConfig};

/// Prints one line; a closed pipe is an error, not a panic.
pub(super) fn line(text: &str) -> Result<()> {
    writeln!(std::io::stdout(), "{text}").context("cannot print")
}

pub(super) fn status(state: &StateDir, json: bool) -> Result<()> {
    let status = current(state)?;
    if json {
        return line(&serde_json::to_string_pretty(&status)?);
    }
    let connection = match (&status.quarantined, status.running, status.connected) {
        (Some(reason), ..) => format!("quarantined: {reason}"),
        (None, false, _) => "not running".to_owned(),
        (None, true, false) => "running, not connected".to_owned(),
        (None, true, true) => "connected".to_owned(),
    };
    line(&format!("{}: {connection}", status.vm))?;
    if let Some(except) = &status.all_except {
        let but = if except.is_empty() { String::new() } else { format!(" but {}", except.join(", ")) };
        line(&format!("  every disk is protected{but}, also one that is added"))?;
    }
    for disk in &status.refused {
        line(&format!("  {}  NOT protected: {}", disk.path.display(), disk.reason))?;
    }
    for disk in status.disks.iter().filter(|disk| !disk.reason.is_empty()) {
        line(&format!("  {}  {}: {}", disk.path.display(), disk.state, disk.reason))?;
    }
    for disk in status.disks.iter().filter(|disk| disk.reason.is_empty()) {
        line(&format!(
            "  {} {}  {}  {} MiB to read again",
            disk.id,
            disk.path.display(),
            disk.state,
            disk.dirty_bytes >> 20
        ))?;
    }
    for volume in &status.volumes {
        let standing = match volume.proven_until_us {
            Some(until) if volume.in_force => format!("sync, proven until {}", utc(until)),
            _ => format!("sync is wanted and NOT IN FORCE: {}", volume.cause),
        };
        line(&format!(
            "  {}  {standing}  gate {}, on lapse {}; {} lapses, {} writes without the appliance",
            volume.path.display(),
            volume.gate,
            volume.on_lapse,
            volume.lapses,
            volume.unreplicated_writes
        ))?;
    }
    line(&format!(
        "  captured LSN {}, durable {}; ring {} of {} MiB used, spool {} of {} MiB; {} writes dropped; {} MiB resident",
        status.captured_lsn,
        status.acked_lsn,
        status.ring_bytes_used >> 20,
        status.ring_bytes >> 20,
        status.spool_bytes_used >> 20,
        status.spool_bytes >> 20,
        status.dropped,
        status.rss_bytes >> 20
    ))?;
    if status.ladder == "spool" {
        line(&format!(
            "  behind: {} MiB wait in the spool, the link is slower than the writes",
            status.spool_waiting_bytes >> 20
        ))?;
    }
    match &status.spool_off {
        Some(reason) if status.running => line(&format!("  no spool: {reason}")),
        _ => Ok(()),
    }
}

/// The running splitter's report, or what the state folder alone tells.
pub(super) fn current(state: &StateDir) -> Result<Status> {
    match control::ask(state, &Request::Status) {
        Ok(Reply::Status(status)) => Ok(status),
        Ok(_) => bail!("the running splitter is of another version: restart it"),
        Err(ControlError::NotRunning { .. }) => at_rest(state),
        Err(error) => Err(error.into()),
    }
}

fn at_rest_volume(config: SyncVolumeConfig) -> VolumeStatus {
    VolumeStatus {
        path: config.path,
        mode: "sync".into(),
        gate: "unknown".into(),
        cause: "the splitter is not running".into(),
        on_lapse: match config.on_lapse {
            OnLapse::Async => "async".to_owned(),
            OnLapse::Hold => format!("hold {} s", config.hold_max_s),
        },
        ..VolumeStatus::default()
    }
}

/// A moment for people, RFC 3339 in UTC, to the second.
pub(super) fn utc(us: u64) -> String {
    let time = i64::try_from(us).ok().and_then(|us| jiff::Timestamp::from_microsecond(us).ok());
    time.map_or_else(|| "an unknown time".to_owned(), |time| time.strftime("%FT%TZ").to_string())
}

fn at_rest(state: &StateDir) -> Result<Status> {
    let noted = state.disks()?;
    let all_except = noted.all.map(|all| all.except);
    let disks = noted.disks.into_iter().map(|disk| DiskStatus {
        path: disk.path,
        mode: "async".into(),
        state: "waiting".into(),
        identity: disk.identity,
        ..DiskStatus::default()
    });
    Ok(Status {
        vm: state.identity()?.vm_name,
        quarantined: state.quarantine()?.map(|quarantine| quarantine.reason),
        all_except,
        disks: disks.collect(),
        volumes: state.gates()?.volumes.into_iter().map(at_rest_volume).collect(),
        ..Status::default()
    })
}
