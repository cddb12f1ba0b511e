//! Which disks are protected: the state folder says what is wanted, the capture what is.

use std::path::{Path, PathBuf};
use std::sync::mpsc;

use tidemark_proto::ids::DiskId;
use tidemark_proto::limits::DISKS_MAX;
use tidemark_proto::v1::{self, GapCause, Welcome};
use tidemark_splitter_core::capture::Slot;
use tidemark_splitter_core::engine::DiskConfig;

use super::disk_reader::Task;
use crate::capture::{self, CaptureError, LinuxCapture, Origin, Settings};
use crate::disks::{self, Disk};
use crate::state::{All, Disks, ProtectedDisk, StateDir, StateError};

/// A disk under capture.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) slot: Slot,
    pub(super) disk: Disk,
    /// Capture of it began in this process: every block is to be copied.
    pub(super) fresh: bool,
    /// The appliance's id, once known.
    pub(super) id: Option<DiskId>,
}

/// The capture with its disks.
#[derive(Debug)]
pub(super) struct Protection {
    pub(super) capture: LinuxCapture,
    pub(super) held: Vec<Held>,
}

/// Adds disks to what is to be protected, without a running splitter.
///
/// # Errors
/// The first refusal; nothing is stored then.
pub fn note(state: &StateDir, paths: &[PathBuf]) -> Result<(), NoteError> {
    let _lock = state.lock()?;
    let mut wanted = state.disks()?;
    let mut present: Vec<Disk> =
        wanted.disks.iter().filter_map(|known| disks::find(&known.identity).ok()).collect();
    for path in paths {
        let disk = Disk::inspect(path)?;
        disks::refuse_nested(&disk, &present)?;
        remember(&mut wanted, &disk)?;
        present.push(disk);
    }
    Ok(state.store_disks(&wanted)?)
}

/// Notes that every disk is to be protected, without a running splitter.
///
/// # Errors
/// When the state cannot be stored.
pub fn note_all(state: &StateDir, except: Vec<String>) -> Result<(), NoteError> {
    let _lock = state.lock()?;
    let mut wanted = state.disks()?;
    wanted.all = Some(All { except });
    Ok(state.store_disks(&wanted)?)
}

/// Takes every disk from what is to be protected, without a running splitter. The capture ends.
///
/// # Errors
/// When a volume is in synchronous mode, the state cannot be stored, or the capture not be taken down.
pub fn forget_all(state: &StateDir) -> Result<(), NoteError> {
    let _lock = state.lock()?;
    if let Some(volume) = state.gates()?.volumes.first() {
        return Err(NoteError::Gated(volume.path.clone()));
    }
    state.store_disks(&Disks::default())?;
    capture::unload(&capture::name_for(state.root()))?;
    Ok(())
}

/// Takes a disk from what is to be protected, without a running splitter. With the last one the capture ends.
///
/// # Errors
/// When the disk is not protected.
pub fn forget(state: &StateDir, path: &Path) -> Result<(), NoteError> {
    let _lock = state.lock()?;
    let mut wanted = state.disks()?;
    let index = position(&wanted, path, &[]).ok_or_else(|| NoteError::NotProtected(path.to_owned()))?;
    if let Some(volume) = state.gates()?.volumes.first() {
        return Err(NoteError::Gated(volume.path.clone()));
    }
    let removed = wanted.disks.remove(index);
    leave_out(&mut wanted, removed.identity, path);
    state.store_disks(&wanted)?;
    // The capture still holds it; the next start of the splitter takes it out.
    if wanted.disks.is_empty() {
        capture::unload(&capture::name_for(state.root()))?;
    }
    Ok(())
}

/// What [`attach`] did.
#[derive(Debug, Default)]
pub struct Attached {
    /// Device files of the disks that the tap watches.
    pub present: Vec<PathBuf>,
    /// Why the others are not watched, a line each.
    pub missing: Vec<String>,
}

/// Loads the tap, where it is not loaded, and has it note what changes on the protected disks that are there. Nothing
/// is captured whole until a running splitter finds it. Every block of a disk that is new to the tap is pending
/// besides: what happened before is not known.
///
/// # Errors
/// When a splitter is running, or the capture cannot be opened.
pub fn attach(state: &StateDir, ring_bytes: u64) -> Result<Attached, NoteError> {
    let wanted = state.disks()?;
    let mut attached = Attached::default();
    if wanted.disks.is_empty() {
        return Ok(attached);
    }
    let _lock = state.lock()?;
    let (mut capture, _) = LinuxCapture::open(&settings(state, ring_bytes))?;
    // A help for the service, which finds it by itself otherwise.
    let _ = capture.note_page_constant();
    let mut present: Vec<Disk> = Vec::new();
    for known in &wanted.disks {
        let found = disks::find(&known.identity)
            .and_then(|disk| disks::refuse_nested(&disk, &present).map(|()| disk));
        match found {
            Ok(disk) => match hold(&mut capture, &disk) {
                Ok(_) => {
                    attached.present.push(disk.path.clone());
                    present.push(disk);
                }
                // The others are attached all the same.
                Err(error) => attached.missing.push(error.to_string()),
            },
            Err(reason) => attached.missing.push(reason.to_string()),
        }
    }
    Ok(attached)
}

fn settings(state: &StateDir, ring_bytes: u64) -> Settings {
    Settings { name: capture::name_for(state.root()), ring_bytes, constant_from: None }
}

/// Has the tap watch a disk; its slot, and whether it is new to the tap.
fn hold(capture: &mut LinuxCapture, disk: &Disk) -> Result<(Slot, bool), CaptureError> {
    // The same identity as another device was not captured in between: it begins anew.
    let stale: Vec<Slot> = capture
        .disks()
        .into_iter()
        .filter(|held| held.identity == disk.identity && held.disk_sequence != disk.disk_sequence)
        .map(|held| held.slot)
        .collect();
    for slot in stale {
        capture.remove_disk(slot)?;
    }
    let (slot, fresh) = capture.add_disk(disk)?;
    let known = capture.disks().into_iter().find(|held| held.slot == slot);
    if known.is_some_and(|known| known.sectors != disk.sectors) {
        // It changed while no splitter ran; the hello tells the new size, the maps must have it before.
        capture.resize_disk(slot, disk.sectors)?;
    }
    Ok((slot, fresh))
}

/// A change of the protected disks that was not made.
#[derive(Debug, thiserror::Error)]
pub enum NoteError {
    /// The disk cannot be protected.
    #[error(transparent)]
    Refused(#[from] disks::Refusal),
    /// The state folder cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// The kernel side failed.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// It is not protected.
    #[error("{0} is not protected: 'tidemark-splitter status' lists the disks that are")]
    NotProtected(PathBuf),
    /// A volume is in synchronous mode.
    #[error("{0} is in synchronous mode: start the splitter and switch it to async first")]
    Gated(PathBuf),
    /// Too many disks.
    #[error("{DISKS_MAX} disks are protected already, which is the most one VM can have")]
    TooMany,
}

/// Notes a disk as one to be protected, if it is not noted yet. The identity under which it is.
pub(super) fn remember(wanted: &mut Disks, disk: &Disk) -> Result<String, NoteError> {
    if let Some(known) = wanted.disks.iter_mut().find(|known| disk.answers_to(&known.identity)) {
        known.path.clone_from(&disk.path);
        known.size_bytes = disk.sectors.saturating_mul(512);
        return Ok(known.identity.clone());
    }
    if wanted.disks.len() >= DISKS_MAX {
        return Err(NoteError::TooMany);
    }
    wanted.disks.push(ProtectedDisk {
        identity: disk.identity.clone(),
        path: disk.path.clone(),
        copied: false,
        size_bytes: disk.sectors.saturating_mul(512),
    });
    Ok(disk.identity.clone())
}

/// Makes a disk whose protection ended an exception of `protect --all`, if that is in force: it would be protected
/// again at once otherwise.
pub(super) fn leave_out(wanted: &mut Disks, noted: String, path: &Path) {
    let Some(all) = &mut wanted.all else { return };
    // What was written to a disk without a name of its own may name it otherwise than it was noted.
    let present = Disk::inspect(path).ok().filter(|disk| !disk.answers_to(&noted));
    for identity in [Some(noted), present.map(|disk| disk.identity)].into_iter().flatten() {
        if !all.except.contains(&identity) {
            all.except.push(identity);
        }
    }
}

/// Index of the disk that a person names by a path: the disk there, under whatever identity it is noted or, as one of
/// `captured`, held; one that is missing by the path it had or by its identity.
pub(super) fn position(wanted: &Disks, path: &Path, captured: &[Disk]) -> Option<usize> {
    let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let found = Disk::inspect(path).ok();
    let held = found.as_ref().and_then(|disk| captured.iter().find(|held| held.is_same_device(disk)));
    wanted.disks.iter().position(|known| match (held, &found) {
        (Some(held), _) => known.identity == held.identity,
        (None, Some(disk)) => disk.answers_to(&known.identity),
        (None, None) => known.path == path || known.path == real || Path::new(&known.identity) == path,
    })
}

impl Protection {
    /// Opens the capture and has it hold exactly the wanted disks that are there.
    ///
    /// # Errors
    /// When the capture cannot be opened or a disk cannot be held.
    pub(super) fn open(
        state: &StateDir,
        ring_bytes: u64,
        wanted: &Disks,
        reads: &mpsc::Sender<Task>,
    ) -> Result<Self, CaptureError> {
        let (capture, origin) = LinuxCapture::open(&settings(state, ring_bytes))?;
        match &origin {
            Origin::Loaded { constant_from } => {
                tracing::info!(?constant_from, "tap loaded, self-test passed")
            }
            Origin::Reattached => {
                for disk in capture.disks() {
                    let marks = capture.marks(disk.slot);
                    tracing::info!(disk = disk.identity, marks, "found the tap running");
                }
            }
            Origin::Replaced { reason } => {
                tracing::warn!(reason, "replaced the tap of another version; disks are copied again")
            }
        }
        let mut protection = Self { capture, held: Vec::new() };
        for known in &wanted.disks {
            let found = disks::find(&known.identity)
                .and_then(|disk| disks::refuse_nested(&disk, &protection.disks()).map(|()| disk));
            match found {
                Ok(disk) => protection.add(disk, reads)?,
                // The worker looks for it again, and says that it is missing.
                Err(error) => {
                    tracing::warn!(disk = %known.path.display(), %error, "a protected disk cannot be captured")
                }
            }
        }
        for stray in protection.capture.disks() {
            if protection.held.iter().all(|held| held.slot != stray.slot) {
                protection.capture.remove_disk(stray.slot)?;
            }
        }
        Ok(protection)
    }

    /// The disks under capture.
    pub(super) fn disks(&self) -> Vec<Disk> {
        self.held.iter().map(|held| held.disk.clone()).collect()
    }

    /// Captures one more disk.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) fn add(&mut self, disk: Disk, reads: &mpsc::Sender<Task>) -> Result<(), CaptureError> {
        let same = |held: &Held| held.disk.identity == disk.identity || held.disk.is_same_device(&disk);
        if self.held.iter().any(same) {
            return Ok(());
        }
        let (slot, fresh) = hold(&mut self.capture, &disk)?;
        // The reader ends only with the worker; a refused open shows as failing reads.
        let _ = reads.send(Task::Open {
            slot,
            path: disk.path.clone(),
            logical_block_bytes: disk.logical_block_bytes,
        });
        self.held.push(Held { slot, disk, fresh, id: None });
        Ok(())
    }

    /// Looks at the size of every disk. Where one has changed, its maps follow; returns these slots with the new size
    /// in bytes, for the engine.
    ///
    /// # Errors
    /// When memory for the maps is short; the disk keeps its old size and is looked at again.
    pub(super) fn follow_sizes(&mut self) -> Result<Vec<(Slot, u64)>, CaptureError> {
        let mut changed = Vec::new();
        for held in &mut self.held {
            let Some(sectors) = held.disk.present_sectors().filter(|now| *now != held.disk.sectors) else {
                continue;
            };
            self.capture.resize_disk(held.slot, sectors)?;
            tracing::info!(disk = %held.disk.path.display(), from = held.disk.sectors, to = sectors, "size in sectors changed");
            held.disk.sectors = sectors;
            changed.push((held.slot, sectors.saturating_mul(512)));
        }
        Ok(changed)
    }

    /// The disks that are not in the machine any more.
    pub(super) fn gone(&self) -> Vec<(Slot, Disk)> {
        let gone = self.held.iter().filter(|held| !held.disk.is_present());
        gone.map(|held| (held.slot, held.disk.clone())).collect()
    }

    /// The place of a disk that is captured.
    pub(super) fn slot_of(&self, identity: &str) -> Option<Slot> {
        self.held.iter().find(|held| held.disk.identity == identity).map(|held| held.slot)
    }

    /// Stops capturing a disk.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) fn remove(
        &mut self,
        identity: &str,
        reads: &mpsc::Sender<Task>,
    ) -> Result<Option<Slot>, CaptureError> {
        let Some(index) = self.held.iter().position(|held| held.disk.identity == identity) else {
            return Ok(None);
        };
        let held = self.held.remove(index);
        let _ = reads.send(Task::Close(held.slot));
        self.capture.remove_disk(held.slot)?;
        Ok(Some(held.slot))
    }

    /// The disks as a hello names them.
    pub(super) fn hello(&self) -> Vec<v1::Disk> {
        self.held
            .iter()
            .map(|held| v1::Disk {
                identity: held.disk.identity.clone(),
                path: held.disk.path.display().to_string(),
                size_bytes: held.disk.sectors.saturating_mul(512),
                disk_id: 0,
            })
            .collect()
    }

    /// The disks as the engine takes them, with the ids of the welcome.
    ///
    /// # Errors
    /// When the welcome lacks one.
    pub(super) fn configs(&mut self, welcome: &Welcome, wanted: &Disks) -> Result<Vec<DiskConfig>, String> {
        let mut configs = Vec::with_capacity(self.held.len());
        for held in &mut self.held {
            let given =
                welcome.disks.iter().find(|disk| disk.identity == held.disk.identity && disk.disk_id > 0);
            let id = given
                .map(|disk| DiskId(disk.disk_id))
                .ok_or_else(|| format!("the appliance gave {} no id", held.disk.path.display()))?;
            held.id = Some(id);
            let copied = wanted.disks.iter().any(|disk| disk.identity == held.disk.identity && disk.copied);
            configs.push(DiskConfig {
                slot: held.slot,
                id,
                size_bytes: held.disk.sectors.saturating_mul(512),
                fresh: held.fresh,
                cause: if copied { GapCause::CaptureRestarted } else { GapCause::InitialCopy },
            });
        }
        Ok(configs)
    }
}
