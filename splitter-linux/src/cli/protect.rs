//! `tidemark-splitter protect`, `unprotect` and the hidden `unload`, `attach` and `identities`.

use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::status::{current, line};
use crate::control::{self, ControlError, Request, Status};
use crate::state::StateDir;
use crate::{capture, daemon, service};

/// How often `--wait` looks. The initial copy takes seconds at least.
const POLL: Duration = Duration::from_millis(200);

pub(super) fn protect(state: &StateDir, paths: Vec<PathBuf>, wait: bool) -> Result<()> {
    state.identity()?;
    match control::ask(state, &Request::Protect { paths: paths.clone() }) {
        Ok(_) => {}
        Err(ControlError::NotRunning { .. }) if !wait => {
            daemon::note(state, &paths)?;
            return line(&format!("noted; protection starts with '{}'", service::start_command(state)));
        }
        Err(error) => return Err(error.into()),
    }
    if wait {
        wait_protected(state, &paths)?;
    }
    for path in &paths {
        line(&format!("{}: {}", path.display(), if wait { "protected" } else { "initial copy has begun" }))?;
    }
    Ok(())
}

pub(super) fn protect_all(state: &StateDir, except: Vec<String>, wait: bool) -> Result<()> {
    state.identity()?;
    match control::ask(state, &Request::ProtectAll { except: except.clone() }) {
        Ok(_) => {}
        Err(ControlError::NotRunning { .. }) if !wait => {
            daemon::note_all(state, except)?;
            return line(&format!("noted; protection starts with '{}'", service::start_command(state)));
        }
        Err(error) => return Err(error.into()),
    }
    // The running splitter looks for disks at once; what it finds is in its status a moment later.
    thread::sleep(POLL);
    let status = current(state)?;
    let status = if wait && !status.disks.is_empty() { wait_until(state, all_protected)? } else { status };
    for disk in &status.disks {
        line(&format!("{}: {}", disk.path.display(), disk.state))?;
    }
    match status.refused.as_slice() {
        [] if status.disks.is_empty() => {
            bail!(
                "no disk of this machine is left to protect: see --except; one that is added later is protected"
            )
        }
        [] => Ok(()),
        [first, ..] => bail!("not protected: {}", first.reason),
    }
}

fn all_protected(status: &Status) -> bool {
    !status.disks.is_empty() && status.disks.iter().all(|disk| disk.state == "protected")
}

fn wait_protected(state: &StateDir, paths: &[PathBuf]) -> Result<()> {
    wait_until(state, |status| paths.iter().all(|path| is_protected(status, path))).map(drop)
}

fn wait_until(state: &StateDir, done: impl Fn(&Status) -> bool) -> Result<Status> {
    loop {
        let status = current(state)?;
        if let Some(reason) = &status.quarantined {
            bail!("the appliance quarantined this machine ({reason}): have it enrolled again with --replace");
        }
        if !status.running {
            bail!("the splitter stopped while waiting: see its log, then run it again");
        }
        if done(&status) {
            return Ok(status);
        }
        thread::sleep(POLL);
    }
}

fn is_protected(status: &Status, path: &PathBuf) -> bool {
    let real = path.canonicalize().unwrap_or_else(|_| path.clone());
    status.disks.iter().any(|disk| (disk.path == *path || disk.path == real) && disk.state == "protected")
}

pub(super) fn unprotect(state: &StateDir, path: PathBuf) -> Result<()> {
    match control::ask(state, &Request::Unprotect { path: path.clone() }) {
        Ok(_) => {}
        Err(ControlError::NotRunning { .. }) => daemon::forget(state, &path)?,
        Err(error) => return Err(error.into()),
    }
    line(&format!("{}: protected no longer; its history stays at the appliance", path.display()))
}

pub(super) fn unprotect_all(state: &StateDir) -> Result<()> {
    match control::ask(state, &Request::UnprotectAll) {
        Ok(_) => {}
        Err(ControlError::NotRunning { .. }) => daemon::forget_all(state)?,
        Err(error) => return Err(error.into()),
    }
    line("no disk is protected any longer; their history stays at the appliance")
}

pub(super) fn unload(state: &StateDir) -> Result<()> {
    let _lock = state.lock()?;
    // A gate completes writes by the tap's word.
    crate::gate::take_out(state).context(super::mode::STILL_GATED)?;
    capture::unload(&capture::name_for(state.root()))?;
    line("the tap is out of the kernel")
}

/// For the initramfs: a disk that is not there yet is no failure, a later call or the service takes it up.
pub(super) fn attach(state: &StateDir, ring_mib: u32) -> Result<()> {
    let attached = daemon::attach(state, u64::from(ring_mib) << 20)?;
    for path in &attached.present {
        line(&format!("{}: what changes is noted", path.display()))?;
    }
    for reason in &attached.missing {
        line(&format!("not yet: {reason}"))?;
    }
    Ok(())
}

pub(super) fn identities(state: &StateDir) -> Result<()> {
    state.disks()?.disks.iter().try_for_each(|disk| line(&disk.identity))
}
