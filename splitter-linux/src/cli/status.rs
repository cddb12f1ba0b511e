//! `tidemark-splitter status`, and how lines are printed.

use std::io::Write;

use anyhow::{Context as _, Result, bail};

use crate::control::{self, ControlError, DiskStatus, Reply, Request, Status};
use crate::state::StateDir;

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
    for disk in &status.disks {
        line(&format!(
            "  {} {}  {}  {} MiB to read again",
            disk.id,
            disk.path.display(),
            disk.state,
            disk.dirty_bytes >> 20
        ))?;
    }
    line(&format!(
        "  captured LSN {}, durable {}; ring {} of {} MiB used; {} writes dropped; {} MiB resident",
        status.captured_lsn,
        status.acked_lsn,
        status.ring_bytes_used >> 20,
        status.ring_bytes >> 20,
        status.dropped,
        status.rss_bytes >> 20
    ))
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

fn at_rest(state: &StateDir) -> Result<Status> {
    let disks = state.disks()?.disks.into_iter().map(|disk| DiskStatus {
        path: disk.path,
        mode: "async".into(),
        state: "waiting".into(),
        ..DiskStatus::default()
    });
    Ok(Status {
        vm: state.identity()?.vm_name,
        quarantined: state.quarantine()?.map(|quarantine| quarantine.reason),
        disks: disks.collect(),
        ..Status::default()
    })
}
