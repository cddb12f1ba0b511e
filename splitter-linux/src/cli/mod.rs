//! The commands of `tidemark-splitter`. Each is one function; `run` belongs to the daemon.

mod arguments;
mod enroll;
mod mode;
mod protect;
mod status;

pub use arguments::{Arguments, Command, LogFormat, RunOptions};

use std::time::Duration;

use anyhow::{Result, bail};

use crate::control::{self, Reply, Request};
use crate::daemon::Parts;
use crate::state::StateDir;

/// Runs one command to its end. The parts are those of the daemon, should the command be `run`: the product passes
/// [`Parts::default`].
///
/// # Errors
/// One line that says what to do.
pub fn run(arguments: Arguments, parts: Parts) -> Result<()> {
    match arguments.command {
        Command::Enroll { appliance, token, state } => {
            enroll::enroll(&StateDir::new(&state), &appliance, &token)
        }
        Command::Protect { state, disks, wait } => protect::protect(&StateDir::new(&state), disks, wait),
        Command::Unprotect { state, disk } => protect::unprotect(&StateDir::new(&state), disk),
        Command::Run(options) => crate::daemon::run(options, parts),
        Command::Mode { state, volume, mode, on_lapse, hold_max } => {
            mode::switch(&StateDir::new(&state), volume, mode, on_lapse, hold_max)
        }
        Command::Hold { state, hold_ms, deadline_ms } => mode::hold(
            &StateDir::new(&state),
            Duration::from_millis(hold_ms),
            Duration::from_millis(deadline_ms),
        ),
        Command::Gate { capture, volume } => Ok(crate::gate::run(&capture, &volume)?),
        Command::Bookmark { name, state } => bookmark(&StateDir::new(&state), name),
        Command::Status { state, json } => status::status(&StateDir::new(&state), json),
        Command::Unload { state } => protect::unload(&StateDir::new(&state)),
    }
}

fn bookmark(state: &StateDir, name: String) -> Result<()> {
    match control::ask(state, &Request::Bookmark { name })? {
        Reply::Bookmark(placed) => status::line(&format!("{} at LSN {}", placed.name, placed.lsn)),
        _ => bail!("the running splitter is of another version: restart it"),
    }
}
