//! `tidemark-splitter mode`.

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::arguments::Mode;
use super::status::{current, line};
use crate::capture;
use crate::control::{self, ControlError, Request};
use crate::gate::{self, OnLapse};
use crate::state::StateDir;

/// How long the command waits for the mode to be in force. The gate stays when it is not, and is in force later.
const FORCE_WAIT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(100);

pub(super) fn switch(
    state: &StateDir,
    volume: PathBuf,
    mode: Mode,
    on_lapse: OnLapse,
    hold_max_s: u32,
) -> Result<()> {
    state.identity()?;
    let sync = matches!(mode, Mode::Sync);
    control::ask(state, &Request::Mode { path: volume.clone(), sync, on_lapse, hold_max_s })?;
    if !sync {
        return line(&format!("{}: async", volume.display()));
    }
    let until = Instant::now() + FORCE_WAIT;
    loop {
        let status = current(state)?;
        let Some(found) = status.volumes.iter().find(|known| known.path == volume) else {
            // Named before by another of its paths: it is in place, `status` tells the rest.
            return line(&format!("{}: sync", volume.display()));
        };
        if found.in_force {
            return line(&format!("{}: sync, in force", volume.display()));
        }
        if Instant::now() > until {
            bail!(
                "{}: the gate is in place, but synchronous mode is not in force yet ({}): it will be by itself, see 'tidemark-splitter status'",
                volume.display(),
                found.cause
            );
        }
        thread::sleep(POLL);
    }
}

/// What to do about a gate that stays.
pub(super) const STILL_GATED: &str = "a volume is still in synchronous mode; its gate goes on serving it, but nobody would start another: run 'tidemark-splitter mode VOLUME async' ('tidemark-splitter status' names it), or unmount the volume, and try again";

/// The hidden `ungate`.
pub(super) fn ungate(state: &StateDir) -> Result<()> {
    for volume in state.gates()?.volumes {
        let path = volume.path;
        let order =
            Request::Mode { path: path.clone(), sync: false, on_lapse: volume.on_lapse, hold_max_s: 0 };
        match control::ask(state, &order) {
            Ok(_) => line(&format!("{}: async", path.display()))?,
            Err(ControlError::NotRunning { .. }) => {
                let _lock = state.lock()?;
                gate::take_out(state).context(STILL_GATED)?;
                return line("every volume: async");
            }
            Err(error) => return Err(error).context(STILL_GATED),
        }
    }
    Ok(())
}

/// The hidden `hold`.
pub(super) fn hold(state: &StateDir, hold: Duration, deadline: Duration) -> Result<()> {
    let volumes: Vec<String> = state.gates()?.volumes.into_iter().map(|volume| volume.name).collect();
    let held_us = gate::hold_all(&capture::name_for(state.root()), &volumes, hold, deadline)?;
    line(&format!("held for {held_us} us"))
}
