//! What a test must not leave behind, also when it is killed.
//!
//! Each process, mount, loop device, pinned program, control group and folder is written down *before* it is used, in
//! a record under [`registry`] that names its owner by pid and start time. A living owner undoes its own; [`sweep`]
//! undoes those of dead owners, and only what the records name.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// How to remove one thing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Undo {
    /// Kill this process, if it is still the one that started at that clock tick.
    Process { pid: u32, start: u64 },
    /// Unmount what is mounted here.
    Mount(PathBuf),
    /// Detach the loop device, if it still has this backing file.
    Loop { device: PathBuf, backing: PathBuf },
    /// Remove pinned BPF objects and their folder.
    Pins(PathBuf),
    /// Remove an empty control group.
    Cgroup(PathBuf),
    /// Remove a folder and everything in it.
    Folder(PathBuf),
}

impl Undo {
    /// Removes the thing; a thing that is gone already is fine.
    pub fn run(&self) {
        match self {
            Self::Process { pid, start } => {
                if start_of(*pid) == Some(*start) {
                    let _ = signal(*pid, nix::sys::signal::Signal::SIGKILL);
                    for _ in 0..100 {
                        if start_of(*pid) != Some(*start) {
                            break;
                        }
                        std::thread::sleep(Duration::from_millis(10));
                    }
                }
            }
            Self::Mount(path) => unmount(path),
            Self::Loop { device, backing } => {
                if backing_of(device).as_deref() == Some(backing.as_path()) {
                    let _ = Command::new("losetup").arg("-d").arg(device).status();
                }
            }
            Self::Pins(path) => {
                // The splitter mounts a file system of its own there: a pinned program lives as long as that.
                if let Ok(entries) = fs::read_dir(path) {
                    for entry in entries.flatten() {
                        let _ = fs::remove_dir_all(entry.path());
                    }
                }
                unmount(path);
                let _ = fs::remove_dir_all(path);
            }
            Self::Folder(path) => {
                let _ = fs::remove_dir_all(path);
            }
            Self::Cgroup(path) => {
                let _ = fs::remove_dir(path);
            }
        }
    }
}

fn unmount(path: &Path) {
    while is_mounted(path) {
        if nix::mount::umount(path).is_err()
            && nix::mount::umount2(path, nix::mount::MntFlags::MNT_DETACH).is_err()
        {
            break;
        }
    }
}

/// A thing to be removed when this value is dropped, or by a later [`sweep`].
#[derive(Debug)]
pub struct Resource {
    record: PathBuf,
    undo: Undo,
}

impl Resource {
    /// Writes the record.
    ///
    /// # Errors
    /// When the registry cannot be written.
    pub fn register(undo: Undo) -> Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let folder = registry().join(owner_name());
        fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        let record = folder.join(format!("{:06}", NEXT.fetch_add(1, Ordering::SeqCst)));
        fs::write(&record, serde_json::to_vec(&undo)?)
            .with_context(|| format!("write {}", record.display()))?;
        Ok(Self { record, undo })
    }

    /// What is registered.
    #[must_use]
    pub fn undo(&self) -> &Undo {
        &self.undo
    }
}

impl Drop for Resource {
    fn drop(&mut self) {
        self.undo.run();
        let _ = fs::remove_file(&self.record);
        if let Some(folder) = self.record.parent() {
            // Only succeeds for the last record.
            let _ = fs::remove_dir(folder);
        }
    }
}

/// Where the records are, per user.
#[must_use]
pub fn registry() -> PathBuf {
    base().join("registry")
}

/// The folder for everything the tests keep between processes, per user.
#[must_use]
pub fn base() -> PathBuf {
    std::env::var_os("TIDEMARK_TEST_DIR").map_or_else(
        || PathBuf::from(format!("/var/tmp/tidemark-tests-{}", nix::unistd::geteuid())),
        PathBuf::from,
    )
}

/// Removes what dead owners left; returns what was removed.
///
/// # Errors
/// When the registry cannot be read.
pub fn sweep() -> Result<Vec<Undo>> {
    let mut undone = Vec::new();
    let Ok(owners) = fs::read_dir(registry()) else { return Ok(undone) };
    for owner in owners {
        let owner = owner?;
        if owner_lives(&owner.file_name().to_string_lossy()) {
            continue;
        }
        let Ok(records) = fs::read_dir(owner.path()) else { continue };
        let mut records: Vec<PathBuf> = records.filter_map(|record| Some(record.ok()?.path())).collect();
        records.sort();
        // Processes first, then the youngest: a mount before the loop device below it.
        let mut undos: Vec<(PathBuf, Undo)> = Vec::new();
        for record in records.into_iter().rev() {
            if let Some(undo) = fs::read(&record).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()) {
                undos.push((record, undo));
            }
        }
        undos.sort_by_key(|(_, undo)| !matches!(undo, Undo::Process { .. }));
        for (record, undo) in undos {
            undo.run();
            let _ = fs::remove_file(record);
            undone.push(undo);
        }
        let _ = fs::remove_dir_all(owner.path());
    }
    Ok(undone)
}

/// Start time of a process in clock ticks since boot; `None` when there is no such process or it is a zombie.
#[must_use]
pub fn start_of(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    if fields.next()? == "Z" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// Sends a signal to one process.
///
/// # Errors
/// As `kill(2)`.
pub fn signal(pid: u32, signal: nix::sys::signal::Signal) -> Result<()> {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(pid)?);
    nix::sys::signal::kill(pid, signal).with_context(|| format!("send {signal} to {pid}"))
}

/// True while something is mounted at `path`.
#[must_use]
pub fn is_mounted(path: &Path) -> bool {
    let Ok(mounts) = fs::read_to_string("/proc/self/mounts") else { return false };
    mounts.lines().any(|line| line.split(' ').nth(1).is_some_and(|at| Path::new(at) == path))
}

/// The backing file of a loop device, `None` when it is detached.
#[must_use]
pub fn backing_of(device: &Path) -> Option<PathBuf> {
    let name = device.file_name()?.to_string_lossy().into_owned();
    let backing = fs::read_to_string(format!("/sys/block/{name}/loop/backing_file")).ok()?;
    // The kernel appends this once the file's folder is gone.
    let backing = backing.trim_end();
    Some(PathBuf::from(backing.strip_suffix(" (deleted)").unwrap_or(backing)))
}

fn owner_name() -> String {
    let pid = std::process::id();
    format!("{pid}-{}", start_of(pid).unwrap_or(0))
}

fn owner_lives(name: &str) -> bool {
    name.split_once('-').is_some_and(|(pid, start)| {
        let (Ok(pid), Ok(start)) = (pid.parse(), start.parse()) else { return false };
        start_of(pid) == Some(start)
    })
}
