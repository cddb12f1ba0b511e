//! One hold, from the first look to the last thaw hook.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tidemark_proto::limits::{HOLD_MAX_MS, QUIESCE_MAX_MS, TEXT_MAX_BYTES};
use tidemark_proto::v1::Consistency;
use tidemark_splitter_core::engine::{Achieved, Place};

use super::freeze;
use super::guard::{Guard, Watched};
use super::hooks::{self, Hooks};
use super::message::Kind;
use super::plan::{FileSystem, Plan, plan};
use crate::disks::Disk;

/// What is to be held.
#[derive(Debug)]
pub struct Hold {
    /// The protected disks.
    pub disks: Vec<Disk>,
    /// The level that is asked for; above crash.
    pub wanted: Consistency,
    /// A lower level will do: file systems are frozen also where hooks fail.
    pub allow_lower: bool,
    /// The folder of hooks.
    pub hooks: PathBuf,
}

/// Reserves a place in the stream; called while everything stands still. It must return soon: writers wait for it.
pub trait Reserve: FnOnce() -> Result<Place, String> {}

impl<F: FnOnce() -> Result<Place, String>> Reserve for F {}

/// What came of it.
#[derive(Debug)]
pub struct Taken {
    /// The place in the stream where everything stood still, or was meant to.
    pub place: Option<Place>,
    /// What was achieved there.
    pub achieved: Achieved,
}

/// A file system and a descriptor of it.
struct Member<'a> {
    file_system: &'a FileSystem,
    file: File,
}

/// How far the freeze came.
#[derive(Default)]
struct Held {
    place: Option<Place>,
    hold_us: u64,
    reasons: Vec<String>,
}

impl Hold {
    /// Holds, reserves, lets go, and tells `settle` what came of it as soon as that is known; then the thaw hooks run.
    /// Returns what of them failed, for the log. Takes up to a minute, of which writers are held for [`HOLD_MAX_MS`] at
    /// most.
    pub fn take(self, reserve: impl Reserve, settle: impl FnOnce(Taken)) -> Vec<String> {
        let plan = plan(&self.disks);
        let opened = if plan.obstacles.is_empty() { open(&plan) } else { Err(plan.obstacles.clone()) };
        let members = match opened {
            Ok(members) => members,
            Err(reasons) => {
                settle(taken(Consistency::Crash, Held { reasons, ..Held::default() }));
                return Vec::new();
            }
        };
        let limits =
            (Duration::from_millis(QUIESCE_MAX_MS.into()), Duration::from_millis(HOLD_MAX_MS.into()));
        let guard = match Guard::start(limits.0, limits.1) {
            Ok(guard) => guard,
            Err(reason) => {
                settle(taken(Consistency::Crash, Held { reasons: vec![reason], ..Held::default() }));
                return Vec::new();
            }
        };
        tracing::info!(watchdog = guard.pid(), file_systems = members.len(), "holding still for a bookmark");
        let mut owed = Vec::new();
        let quiesced = match self.wanted {
            Consistency::Application => quiesce(&hooks::find(&self.hooks), &guard, &mut owed),
            _ => Ok(()),
        };
        let mut held = match &quiesced {
            // Nobody waits in vain.
            Err(_) if !self.allow_lower => Held::default(),
            _ => hold(&members, &guard, reserve),
        };
        // Asked before the level is told: a watchdog that fired let writers or applications go.
        let watched = guard.thawed();
        if watched != Watched::Kept && held.reasons.is_empty() {
            held.reasons.push(match watched {
                Watched::Silent => "the watchdog did not answer: what it let go is not known".to_owned(),
                _ => "the watchdog let go: the hold took too long".to_owned(),
            });
        }
        let level = match (held.place.is_some() && held.reasons.is_empty(), &quiesced) {
            (false, _) => Consistency::Crash,
            (true, Err(_)) => Consistency::Filesystem,
            (true, Ok(())) => self.wanted,
        };
        held.reasons.extend(quiesced.err());
        settle(taken(level, held));
        drop(members);
        // A hook may thaw twice, never not at all.
        let failed = if watched == Watched::Fired { Vec::new() } else { hooks::thaw(&owed) };
        guard.disarm();
        failed
    }
}

fn taken(consistency: Consistency, held: Held) -> Taken {
    let mut reason = held.reasons.join("; ");
    while reason.len() > TEXT_MAX_BYTES {
        reason.pop();
    }
    Taken { place: held.place, achieved: Achieved { consistency, hold_us: held.hold_us, reason } }
}

/// Runs the freeze hooks. `owed` are those whose thaw must follow.
fn quiesce(found: &Hooks, guard: &Guard, owed: &mut Vec<PathBuf>) -> Result<(), String> {
    if !found.refused.is_empty() {
        return Err(found.refused.join("; "));
    }
    if found.run.is_empty() {
        return Err("no freeze hook is installed".to_owned());
    }
    hooks::freeze(&found.run, |hook| {
        guard.owe(hook)?;
        owed.push(hook.to_owned());
        Ok(())
    })
}

/// Opens a file of each file system: nothing is opened once something is held.
fn open(plan: &Plan) -> Result<Vec<Member<'_>>, Vec<String>> {
    let mut members = Vec::with_capacity(plan.file_systems.len());
    let mut reasons = Vec::new();
    for file_system in &plan.file_systems {
        match open_one(file_system) {
            Some(file) => members.push(Member { file_system, file }),
            None => reasons.push(format!("{} cannot be reached", file_system.path.display())),
        }
    }
    if reasons.is_empty() { Ok(members) } else { Err(reasons) }
}

/// Another file system may be mounted over the place: the number tells.
fn open_one(file_system: &FileSystem) -> Option<File> {
    let same = |file: &File| {
        let Ok(found) = file.metadata() else { return false };
        let number = (nix::sys::stat::major(found.dev()), nix::sys::stat::minor(found.dev()));
        // Each subvolume of a btrfs has its own.
        number == file_system.number || file_system.kind == "btrfs"
    };
    let open =
        |path| File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path).ok();
    file_system.reached_by.iter().filter_map(open).find(same)
}

/// Freezes all, reserves the place, thaws all. Between the first freeze and the last thaw this thread makes no other call.
fn hold(members: &[Member<'_>], guard: &Guard, reserve: impl Reserve) -> Held {
    let mut held = Held::default();
    let files: Vec<_> = members.iter().map(|member| (Kind::FileSystem, &member.file)).collect();
    let armed = guard.arm(&files).and_then(|()| {
        // What is dirty is written while nobody waits.
        members.iter().for_each(|member| freeze::sync(member.file.as_fd()));
        guard.begin()
    });
    if let Err(reason) = armed {
        held.reasons.push(reason);
        return held;
    }
    let deadline = Instant::now() + Duration::from_millis(HOLD_MAX_MS.into());
    let mut refused = None;
    let mut frozen = 0;
    freeze::be_io_flusher(true);
    let began = Instant::now();
    for member in members {
        if Instant::now() >= deadline {
            refused = Some((member, nix::Error::ETIMEDOUT.into()));
            break;
        }
        match freeze::freeze(member.file.as_fd()) {
            Ok(()) => frozen += 1,
            Err(error) => {
                refused = Some((member, error));
                break;
            }
        }
    }
    let reserved = refused.is_none().then(reserve);
    let mut broken = None;
    for member in members.iter().take(frozen).rev() {
        // One of our own freezes that is there no more was broken by somebody else: nothing is proven then.
        if freeze::thaw(member.file.as_fd()).is_err() {
            broken = Some(member);
        }
    }
    held.hold_us = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
    freeze::be_io_flusher(false);
    if let Some((member, error)) = refused {
        held.reasons.push(why_refused(member.file_system, &error));
    }
    if let Some(member) = broken {
        let path = member.file_system.path.display();
        held.reasons.push(format!("somebody else thawed {path} meanwhile"));
    }
    match reserved {
        Some(Ok(place)) => held.place = Some(place),
        Some(Err(reason)) => held.reasons.push(reason),
        None => {}
    }
    held
}

fn why_refused(file_system: &FileSystem, error: &std::io::Error) -> String {
    let (path, kind) = (file_system.path.display(), &file_system.kind);
    match error.raw_os_error() {
        Some(libc::EOPNOTSUPP) => format!("{path} cannot be frozen: {kind} does not support it"),
        Some(libc::EBUSY) => format!("{path} is frozen by somebody else"),
        Some(libc::ETIMEDOUT) => format!("{path} could not be frozen within {} s", HOLD_MAX_MS / 1000),
        _ => format!("{path} ({kind}) cannot be frozen: {error}"),
    }
}
