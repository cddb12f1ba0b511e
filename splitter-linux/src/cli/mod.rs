//! The commands of `tidemark-splitter`. Each is one function; `run` belongs to the daemon.

mod arguments;
mod enroll;
mod mode;
mod protect;
mod restore;
mod status;

pub use arguments::{Arguments, Command, Level, LogFormat, RunOptions};

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::CommandFactory as _;
use tidemark_proto::v1::Consistency;

use crate::control::{self, Bookmark, Reply, Request};
use crate::daemon::Parts;
use crate::hold;
use crate::state::StateDir;

/// Runs one command to its end. The parts are those of the daemon, should the command be `run`: the product passes
/// [`Parts::default`].
///
/// # Errors
/// One line that says what to do.
pub fn run(arguments: Arguments, parts: Parts) -> Result<()> {
    match arguments.command {
        Command::Enroll { appliance, token, state, no_start } => {
            enroll::enroll(&StateDir::new(&state), &appliance, &token, !no_start)
        }
        Command::Protect { state, all: true, except, wait, .. } => {
            protect::protect_all(&StateDir::new(&state), except, wait)
        }
        Command::Protect { state, disks, wait, .. } => protect::protect(&StateDir::new(&state), disks, wait),
        Command::Unprotect { state, disk: Some(disk), .. } => {
            protect::unprotect(&StateDir::new(&state), disk)
        }
        Command::Unprotect { state, disk: None, .. } => protect::unprotect_all(&StateDir::new(&state)),
        Command::Run(options) => crate::daemon::run(options, parts),
        Command::Mode { state, volume, mode, on_lapse, hold_max } => {
            mode::switch(&StateDir::new(&state), volume, mode, on_lapse, hold_max)
        }
        Command::Hold { state, hold_ms, deadline_ms } => mode::hold(
            &StateDir::new(&state),
            Duration::from_millis(hold_ms),
            Duration::from_millis(deadline_ms),
        ),
        Command::Gate { capture, volume, clear: false } => Ok(crate::gate::run(&capture, &volume)?),
        Command::Gate { capture, volume, clear: true } => Ok(crate::gate::clear(&capture, &volume)?),
        Command::Ungate { state } => mode::ungate(&StateDir::new(&state)),
        Command::Bookmark { name, set, state, consistency, allow_lower, json } => {
            let consistency = match Consistency::from(consistency) {
                Consistency::Unspecified | Consistency::Crash => String::new(),
                level => level.word().to_owned(),
            };
            let set = set.unwrap_or_default();
            bookmark(&StateDir::new(&state), &Request::Bookmark { name, set, consistency, allow_lower }, json)
        }
        Command::Restore { appliance, grant, disk, json } => {
            restore::restore(&appliance, &grant, &disk, json)
        }
        Command::Status { state, json } => status::status(&StateDir::new(&state), json),
        Command::HoldWatchdog { quiesce_ms, deadline_ms } => {
            hold::run_watchdog(Duration::from_millis(quiesce_ms), Duration::from_millis(deadline_ms));
            Ok(())
        }
        Command::Unload { state } => protect::unload(&StateDir::new(&state)),
        Command::Attach { state, ring_mib } => protect::attach(&StateDir::new(&state), ring_mib),
        Command::Calibrate => crate::capture::note_page_constant().map_err(Into::into),
        Command::Identities { state } => protect::identities(&StateDir::new(&state)),
        Command::Manual { dir } => {
            clap_mangen::generate_to(Arguments::command(), dir).context("cannot write the manual pages")
        }
    }
}

fn bookmark(state: &StateDir, request: &Request, json: bool) -> Result<()> {
    match control::ask(state, request)? {
        Reply::Bookmark(placed) if json => status::line(&serde_json::to_string_pretty(&placed)?),
        Reply::Bookmark(placed) => {
            let Bookmark { name, lsn, achieved, hold_us, reason, .. } = placed;
            let held = if hold_us > 0 { format!(", held for {hold_us} us") } else { String::new() };
            let why = if reason.is_empty() { reason } else { format!(": {reason}") };
            status::line(&format!("{name} at LSN {lsn}, {achieved} consistent{held}{why}"))
        }
        _ => bail!("the running splitter is of another version: restart it"),
    }
}
