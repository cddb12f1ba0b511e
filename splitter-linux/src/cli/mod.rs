//! The commands of `tidemark-splitter`. Each is one function; `run` belongs to the daemon.

mod arguments;
mod enroll;
mod protect;
mod status;

pub use arguments::{Arguments, Command, LogFormat, RunOptions};

use anyhow::{Context as _, Result, bail};
use clap::CommandFactory as _;

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
        Command::Enroll { appliance, token, state, no_start } => {
            enroll::enroll(&StateDir::new(&state), &appliance, &token, !no_start)
        }
        Command::Protect { state, disks, wait } => protect::protect(&StateDir::new(&state), disks, wait),
        Command::Unprotect { state, disk } => protect::unprotect(&StateDir::new(&state), disk),
        Command::Run(options) => crate::daemon::run(options, parts),
        Command::Mode { .. } => bail!(
            "synchronous mode needs the gate, which this release does not have: every disk is in mode async"
        ),
        Command::Bookmark { name, state } => bookmark(&StateDir::new(&state), name),
        Command::Status { state, json } => status::status(&StateDir::new(&state), json),
        Command::Unload { state } => protect::unload(&StateDir::new(&state)),
        Command::Attach { state, ring_mib } => protect::attach(&StateDir::new(&state), ring_mib),
        Command::Calibrate => crate::capture::note_page_constant().map_err(Into::into),
        Command::Identities { state } => protect::identities(&StateDir::new(&state)),
        Command::Manual { dir } => {
            clap_mangen::generate_to(Arguments::command(), dir).context("cannot write the manual pages")
        }
    }
}

fn bookmark(state: &StateDir, name: String) -> Result<()> {
    match control::ask(state, &Request::Bookmark { name })? {
        Reply::Bookmark(placed) => status::line(&format!("{} at LSN {}", placed.name, placed.lsn)),
        _ => bail!("the running splitter is of another version: restart it"),
    }
}
