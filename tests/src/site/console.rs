//! The command line, as people and scripts use it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::Value;

use super::{Site, program};
use crate::leftovers::{Resource, Undo};
use crate::process::output_of;

/// `point list --json`.
#[derive(Debug, Clone, Deserialize)]
pub struct PointList {
    /// Ranges in which every LSN is a point.
    pub windows: Vec<Window>,
    /// Named points.
    pub points: Vec<Value>,
    /// Ranges without points.
    pub gaps: Vec<Gap>,
}

/// A range of points, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Window {
    /// First point.
    pub from_lsn: u64,
    /// Last point.
    pub to_lsn: u64,
    /// Time of the first point, on the appliance's clock.
    pub from_time: jiff::Timestamp,
    /// Time of the last.
    pub to_time: jiff::Timestamp,
}

/// A range without points.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Gap {
    /// First LSN that is no point.
    pub from_lsn: u64,
    /// First LSN that is one again; 0 or absent while the gap is open.
    #[serde(default)]
    pub to_lsn: Option<u64>,
    /// Why.
    pub cause: String,
    /// More of it.
    #[serde(default)]
    pub detail: String,
}

impl Gap {
    /// True until its resync is done.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.to_lsn.unwrap_or(0) == 0
    }
}

impl Site {
    fn console(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = Command::new(program("tidemark")?);
        command.arg("--context").arg(self.data().join("admin.context")).args(arguments).env("NO_COLOR", "1");
        Ok(command)
    }

    /// Runs a command of the console and returns what it printed.
    ///
    /// # Errors
    /// When it fails; with what it said.
    pub fn cli(&self, arguments: &[&str]) -> Result<String> {
        output_of(&mut self.console(arguments)?)
    }

    /// The same with `--json`.
    ///
    /// # Errors
    /// When it fails or prints no JSON.
    pub fn cli_json(&self, arguments: &[&str]) -> Result<Value> {
        let printed = self.cli(&[arguments, &["--json"]].concat())?;
        serde_json::from_str(&printed).with_context(|| format!("{arguments:?} printed {printed}"))
    }

    /// Runs a command that must fail with status 1 and one line on standard error, which is returned.
    ///
    /// # Errors
    /// When it succeeds, or says more or less than one line.
    pub fn cli_refused(&self, arguments: &[&str]) -> Result<String> {
        let output = self.console(arguments)?.output()?;
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        ensure!(output.status.code() == Some(1), "{arguments:?} ended with {}: {said}", output.status);
        ensure!(!said.is_empty(), "{arguments:?} failed without a word");
        Ok(said)
    }

    /// Waits for a VM's state.
    ///
    /// # Errors
    /// When it is not reached in time; with the states the VM is in.
    pub fn wait_state(&self, vm: &str, state: &str, timeout: Duration) -> Result<()> {
        let timeout = format!("{}s", timeout.as_secs());
        self.cli(&["vm", "wait", vm, "--state", state, "--timeout", &timeout])
            .map(drop)
            .with_context(|| format!("vm list: {}", self.cli(&["vm", "list", "--json"]).unwrap_or_default()))
    }

    /// One entry of `vm list`.
    ///
    /// # Errors
    /// When there is no such VM.
    pub fn vm(&self, name: &str) -> Result<Value> {
        let all = self.cli_json(&["vm", "list"])?;
        let found = all.as_array().into_iter().flatten().find(|vm| vm["name"] == name).cloned();
        found.with_context(|| format!("no VM {name} in {all}"))
    }

    /// Windows, named points and gaps of a VM.
    ///
    /// # Errors
    /// As the command.
    pub fn points(&self, vm: &str) -> Result<PointList> {
        Ok(serde_json::from_value(self.cli_json(&["point", "list", vm])?)?)
    }

    /// Places a bookmark: everything written before the call lies at or below the LSN returned.
    ///
    /// # Errors
    /// As the command.
    pub fn bookmark(&self, vm: &str, name: &str) -> Result<u64> {
        let answer = self.cli_json(&["bookmark", "create", name, "--vm", vm])?;
        answer["points"][0]["lsn"].as_u64().with_context(|| format!("no LSN in {answer}"))
    }

    /// Waits until the point is offered for recovery.
    ///
    /// # Errors
    /// When it is not in time.
    pub fn wait_point(&self, vm: &str, lsn: u64, timeout: Duration) -> Result<()> {
        let began = Instant::now();
        loop {
            let points = self.points(vm)?;
            if points.windows.iter().any(|window| window.from_lsn <= lsn && lsn <= window.to_lsn) {
                return Ok(());
            }
            if began.elapsed() > timeout {
                bail!("LSN {lsn} of {vm} is no point after {timeout:?}: {points:?}");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The content of the VM's disk number `disk` (from 0) at a point, read from an export by `nbdcopy`.
    ///
    /// # Errors
    /// When the export is refused or cannot be read.
    pub fn image(&self, vm: &str, disk: usize, when: &str) -> Result<Vec<u8>> {
        let exports = self.cli_json(&["export", vm, "--at", when])?;
        let exports = exports.as_array().with_context(|| format!("`export` printed {exports}"))?;
        let export = exports.get(disk).with_context(|| format!("no disk {disk} in {exports:?}"))?;
        let uri = export["uri"].as_str().context("an export has a URI")?;
        let copy = tempfile::Builder::new().prefix("tidemark-view-").tempfile_in("/dev/shm")?;
        let copied = output_of(Command::new("nbdcopy").arg(uri).arg(copy.path()));
        for export in exports {
            let id = export["id"].as_str().map_or_else(|| export["id"].to_string(), str::to_owned);
            self.cli(&["export", "stop", &id])?;
        }
        copied?;
        Ok(fs::read(copy.path())?)
    }

    /// The appliance's metrics page.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn metrics(&self) -> Result<String> {
        super::appliance::http_get(self.http(), "/metrics")
    }
}

/// A point mounted by `tidemark mount --writable`; unmounted when dropped.
#[derive(Debug)]
pub struct View {
    /// The point.
    pub lsn: u64,
    context: PathBuf,
    dir: PathBuf,
    _record: Resource,
}

impl Drop for View {
    fn drop(&mut self) {
        if let Ok(program) = program("tidemark") {
            let _ = output_of(
                Command::new(program).arg("--context").arg(&self.context).arg("unmount").arg(&self.dir),
            );
        }
    }
}

impl Site {
    /// Mounts a point in the empty folder `dir`, with a writable overlay.
    ///
    /// # Errors
    /// As the command.
    pub fn mount(&self, vm: &str, when: &str, dir: &Path) -> Result<View> {
        let record = Resource::register(Undo::Mount(dir.to_owned()))?;
        let shown = dir.to_string_lossy();
        let answer = self.cli_json(&["mount", vm, "--at", when, &shown, "--writable"])?;
        let lsn = answer["lsn"].as_u64().with_context(|| format!("no LSN in {answer}"))?;
        Ok(View { lsn, context: self.data().join("admin.context"), dir: dir.to_owned(), _record: record })
    }
}
