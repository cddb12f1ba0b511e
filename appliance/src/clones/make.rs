//! Making a clone.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;

use thiserror::Error;
use tidemark_journal::branch::{BranchPoint, BranchStart};
use tidemark_journal::storage::{OsStorage, StorageError};
use tidemark_journal::{AppendError, DiskRecord, Journal, OpenError, Options, Pin, PinKind, RetentionError};
use tidemark_proto::ids::VmId;

use super::{CREATED_NOTE, PIN_TIME_US, pin_name};
use crate::catalog::CatalogError;
use crate::clock::now_us;
use crate::core::Core;
use crate::data_dir::{FileError, sync_folder};
use crate::enrolment::check_name;
use crate::fleet::{LogDown, Origin, Vm, VmLog};
use crate::recovery::OpenedView;

/// Clones of an appliance at most: each has an open journal, a few MB. Further ones are refused.
const CLONES_MAX: usize = 1024;

/// Clones of clones at most, one upon another: a read may go through all of them. Deeper ones are refused.
const DEPTH_MAX: usize = 16;

/// A clone was not made, or not removed. Text for people, with what to do.
#[derive(Debug, Error)]
pub enum CloneError {
    /// The name cannot be given.
    #[error("{0}")]
    Name(String),
    /// It is taken, or something still needs it.
    #[error("{0}")]
    InUse(String),
    /// There is none.
    #[error("there is no clone named '{0}'; `tidemark clone list` shows those there are")]
    Unknown(String),
    /// Too many, or too deep.
    #[error("{0}")]
    TooMany(String),
    /// A journal cannot be used now.
    #[error(transparent)]
    Down(#[from] LogDown),
    /// The parent's point cannot be kept.
    #[error("the point cannot be kept for a clone: {0}")]
    Pin(#[from] RetentionError),
    /// Its files cannot be made or removed.
    #[error(transparent)]
    Files(#[from] FileError),
    /// Its journal cannot be made.
    #[error("the clone's journal cannot be made: {0}")]
    Journal(String),
    /// The catalog failed.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}

impl From<OpenError> for CloneError {
    fn from(error: OpenError) -> Self {
        Self::Journal(error.to_string())
    }
}

impl From<StorageError> for CloneError {
    fn from(error: StorageError) -> Self {
        Self::Journal(error.to_string())
    }
}

impl From<AppendError> for CloneError {
    fn from(error: AppendError) -> Self {
        Self::Journal(error.to_string())
    }
}

/// Makes a clone of a view's VM at its point. All of it is durable when this returns.
///
/// # Errors
/// Nothing is left of it then.
pub async fn create(core: &Arc<Core>, name: &str, view: OpenedView) -> Result<Arc<Vm>, CloneError> {
    check_name(name).map_err(|error| CloneError::Name(error.to_string()))?;
    let _changing = core.clones.changing.lock().await;
    if core.fleet.by_name(name).is_some() || core.catalog.vm_by_name(name).await?.is_some() {
        return Err(CloneError::Name(format!("a VM or clone named '{name}' exists: choose another name")));
    }
    let parent = core
        .fleet
        .get(view.vm)
        .ok_or_else(|| CloneError::InUse(format!("'{}' was removed meanwhile", view.vm_name)))?;
    if core.fleet.clones().len() >= CLONES_MAX {
        return Err(CloneError::TooMany(format!("there are {CLONES_MAX} clones: remove one first")));
    }
    if depth(core, &parent) >= DEPTH_MAX {
        return Err(CloneError::TooMany(format!(
            "'{}' is a clone of a clone, {DEPTH_MAX} deep: clone one nearer to the VM",
            parent.name
        )));
    }
    let making = (Arc::clone(core), name.to_owned(), view, Arc::clone(&parent));
    let made = tokio::task::spawn_blocking(move || {
        let (core, name, view, parent) = making;
        make(&core, &name, &view, &parent)
    });
    let clone = made.await.map_err(|error| CloneError::Journal(error.to_string()))??;
    let id = clone.id;
    core.fleet.add(clone);
    core.fleet.get(id).ok_or_else(|| CloneError::Unknown(name.to_owned()))
}

/// How many clones lie one upon another below what would be made of `vm`.
fn depth(core: &Core, vm: &Vm) -> usize {
    let mut depth = 0;
    let mut parent = vm.parent();
    while let Some(vm) = parent.and_then(|parent| core.fleet.get(parent)).filter(|_| depth <= DEPTH_MAX) {
        depth += 1;
        parent = vm.parent();
    }
    depth
}

fn make(core: &Core, name: &str, view: &OpenedView, parent: &Vm) -> Result<Vm, CloneError> {
    let (id, created_us) = (VmId::random(), now_us());
    let point = BranchPoint { parent: view.vm, lsn: view.lsn };
    let journal = parent.log.writable()?;
    let identity = |disk| journal.disks().into_iter().find(|record: &DiskRecord| record.id == disk);
    let disks = view.disks.iter().map(|disk| DiskRecord {
        id: disk.id,
        identity: identity(disk.id).map(|record| record.identity).unwrap_or_default(),
        path: disk.path.clone(),
        size_bytes: disk.size_bytes,
    });
    let start = BranchStart { point, time_us: view.time_us, disks: disks.collect() };
    let pin = Pin { name: pin_name(id), kind: PinKind::Clone, lsn: view.lsn, until_us: None };
    journal.put_pin(pin, PIN_TIME_US)?;
    let unfinished = core.data.unfinished_clone(id);
    let written = write(&unfinished, id, name, created_us, &start, core.log_keys.options()).and_then(|()| {
        let folder = core.data.clone_folder(id);
        std::fs::rename(&unfinished, &folder).map_err(|error| CloneError::Journal(error.to_string()))?;
        core.data.sync_clones()?;
        Ok(folder)
    });
    let folder = match written {
        Ok(folder) => folder,
        Err(error) => {
            undo(core, id, &journal);
            return Err(error);
        }
    };
    let log = VmLog::open_clone(id, &folder.join("journal"), parent.log.images(), core.log_keys.clone());
    log.continue_from(Arc::clone(&parent.log));
    Ok(Vm::of_clone(id, name.to_owned(), log, Origin { point: Some(point), created_us }))
}

/// Makes the folder with the journal, durably.
fn write(
    folder: &Path,
    id: VmId,
    name: &str,
    created_us: u64,
    start: &BranchStart,
    options: Options,
) -> Result<(), CloneError> {
    let made = DirBuilder::new().mode(0o700).create(folder);
    made.map_err(|error| CloneError::Journal(format!("{}: {error}", folder.display())))?;
    let storage = Arc::new(OsStorage::create(folder.join("journal"))?);
    let journal = Journal::create_branch(storage, id, options, start)?;
    journal.put_note(VmLog::NAME_NOTE, name.as_bytes())?;
    journal.put_note(CREATED_NOTE, &created_us.to_le_bytes())?;
    drop(journal);
    Ok(sync_folder(folder)?)
}

/// Removes what was made so far. What cannot be removed now is at the next start.
fn undo(core: &Core, id: VmId, parent: &Journal) {
    let doomed = core.data.doomed_clone(id);
    // It may have its name already, and only the sync after that failed.
    let _ = std::fs::rename(core.data.clone_folder(id), &doomed);
    for folder in [core.data.unfinished_clone(id), doomed] {
        if folder.exists()
            && let Err(error) = std::fs::remove_dir_all(&folder)
        {
            tracing::warn!(%error, folder = %folder.display(), "cannot delete a clone half made");
            return;
        }
    }
    if let Err(error) = parent.revoke_pin(&pin_name(id), PIN_TIME_US) {
        tracing::warn!(%error, "cannot revoke the pin of a clone half made");
    }
}
