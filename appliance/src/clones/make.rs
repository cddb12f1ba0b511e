//! Making a clone.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;
use tidemark_journal::branch::{BranchPoint, BranchStart, ImageStart};
use tidemark_journal::storage::{OsStorage, Storage, StorageError};
use tidemark_journal::{AppendError, DiskRecord, Journal, OpenError, Options, Pin, PinKind, RetentionError};
use tidemark_proto::ids::{DiskId, VmId};

use super::{CREATED_NOTE, PIN_TIME_US, TEMPLATE_NOTE, pin_name};
use crate::catalog::CatalogError;
use crate::clock::now_us;
use crate::core::Core;
use crate::data_dir::{FileError, sync_folder};
use crate::enrolment::check_name;
use crate::fleet::{LogDown, Origin, Vm, VmLog};
use crate::objects::{Object, ObjectError, ObjectKind};
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
    /// No clone can be made of this object.
    #[error("{0}")]
    NoTemplate(String),
    /// There is no such object.
    #[error(transparent)]
    Object(#[from] ObjectError),
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

/// What a clone is made of.
#[derive(Debug)]
pub enum Below {
    /// A VM or clone at a point.
    Point(Box<OpenedView>),
    /// The template of this name.
    Template(String),
}

/// Makes a clone. All of it is durable when this returns.
///
/// # Errors
/// Nothing is left of it then.
pub async fn create(core: &Arc<Core>, name: &str, below: Below) -> Result<Arc<Vm>, CloneError> {
    check_name(name).map_err(|error| CloneError::Name(error.to_string()))?;
    let _changing = core.clones.changing.lock().await;
    if core.fleet.by_name(name).is_some() || core.catalog.vm_by_name(name).await?.is_some() {
        return Err(CloneError::Name(format!("a VM or clone named '{name}' exists: choose another name")));
    }
    if core.fleet.clones().len() >= CLONES_MAX {
        return Err(CloneError::TooMany(format!("there are {CLONES_MAX} clones: remove one first")));
    }
    let (making, named) = (Arc::clone(core), name.to_owned());
    let made = match below {
        Below::Point(view) => {
            let parent = parent(core, &view)?;
            tokio::task::spawn_blocking(move || of_point(&making, &named, &view, &parent))
        }
        Below::Template(object) => {
            let object = core.objects.get(&object)?;
            tokio::task::spawn_blocking(move || of_template(&making, &named, &object))
        }
    };
    let clone = made.await.map_err(|error| CloneError::Journal(error.to_string()))??;
    let id = clone.id;
    core.fleet.add(clone);
    core.fleet.get(id).ok_or_else(|| CloneError::Unknown(name.to_owned()))
}

/// What a view is of, if it can have another clone.
fn parent(core: &Core, view: &OpenedView) -> Result<Arc<Vm>, CloneError> {
    let parent = core
        .fleet
        .get(view.vm)
        .ok_or_else(|| CloneError::InUse(format!("'{}' was removed meanwhile", view.vm_name)))?;
    if depth(core, &parent) >= DEPTH_MAX {
        return Err(CloneError::TooMany(format!(
            "'{}' is a clone of a clone, {DEPTH_MAX} deep: clone one nearer to the VM",
            parent.name
        )));
    }
    Ok(parent)
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

fn of_point(core: &Core, name: &str, view: &OpenedView, parent: &Vm) -> Result<Vm, CloneError> {
    let new = New { id: VmId::random(), name, created_us: now_us(), template: None };
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
    let pin = Pin { name: pin_name(new.id), kind: PinKind::Clone, lsn: view.lsn, until_us: None };
    journal.put_pin(pin, PIN_TIME_US)?;
    let begin = |storage, options| Journal::create_branch(storage, new.id, options, &start);
    let folder = match settle(core, &new, begin) {
        Ok(folder) => folder,
        Err(error) => {
            if undo(core, new.id)
                && let Err(error) = journal.revoke_pin(&pin_name(new.id), PIN_TIME_US)
            {
                tracing::warn!(%error, "cannot revoke the pin of a clone half made");
            }
            return Err(error);
        }
    };
    let log = VmLog::open_clone(new.id, &folder.join("journal"), parent.log.images(), core.log_keys.clone());
    log.continue_from(Arc::clone(&parent.log));
    Ok(new.vm(log, Some(point)))
}

/// The object keeps the chunks until the clone's journal does: who removes one waits for `changing`.
fn of_template(core: &Core, name: &str, object: &Object) -> Result<Vm, CloneError> {
    if object.kind != ObjectKind::Template {
        return Err(CloneError::NoTemplate(format!(
            "'{}' is of kind {}: clones are made of templates, which `tidemark object put --kind template` makes of raw images",
            object.name,
            object.kind.word()
        )));
    }
    if object.size_bytes == 0 {
        return Err(CloneError::NoTemplate(format!("'{}' is empty: no disk can be made of it", object.name)));
    }
    let new = New { id: VmId::random(), name, created_us: now_us(), template: Some(object) };
    let disk = DiskRecord {
        id: DiskId(1),
        identity: format!("template-{}", object.id),
        path: String::new(),
        size_bytes: object.image.size_bytes(),
    };
    let start = ImageStart { time_us: new.created_us, disks: vec![(disk, object.image.clone())] };
    let begin = |storage, options| Journal::create_from_images(storage, new.id, options, &start);
    let folder = settle(core, &new, begin).inspect_err(|_| {
        undo(core, new.id);
    })?;
    let images = core.retention.keeper();
    let log = VmLog::open_clone(new.id, &folder.join("journal"), images, core.log_keys.clone());
    Ok(new.vm(log, None))
}

/// A clone that is being made.
struct New<'a> {
    id: VmId,
    name: &'a str,
    created_us: u64,
    template: Option<&'a Object>,
}

impl New<'_> {
    fn vm(&self, log: Arc<VmLog>, point: Option<BranchPoint>) -> Vm {
        let template = self.template.map(|object| object.id);
        Vm::of_clone(
            self.id,
            self.name.to_owned(),
            log,
            Origin { point, template, created_us: self.created_us },
        )
    }
}

type Begin<'a> = dyn Fn(Arc<dyn Storage>, Options) -> Result<Journal, OpenError> + 'a;

/// Makes the folder and gives it its name, durably; the folder.
fn settle(
    core: &Core,
    new: &New<'_>,
    begin: impl Fn(Arc<dyn Storage>, Options) -> Result<Journal, OpenError>,
) -> Result<PathBuf, CloneError> {
    let unfinished = core.data.unfinished_clone(new.id);
    write(&unfinished, new, &begin, core.log_keys.options())?;
    let folder = core.data.clone_folder(new.id);
    std::fs::rename(&unfinished, &folder).map_err(|error| CloneError::Journal(error.to_string()))?;
    core.data.sync_clones()?;
    Ok(folder)
}

/// Makes the folder with the journal, durably.
fn write(folder: &Path, new: &New<'_>, begin: &Begin<'_>, options: Options) -> Result<(), CloneError> {
    let made = DirBuilder::new().mode(0o700).create(folder);
    made.map_err(|error| CloneError::Journal(format!("{}: {error}", folder.display())))?;
    let storage = Arc::new(OsStorage::create(folder.join("journal"))?);
    let journal = begin(storage, options)?;
    journal.put_note(VmLog::NAME_NOTE, new.name.as_bytes())?;
    journal.put_note(CREATED_NOTE, &new.created_us.to_le_bytes())?;
    if let Some(object) = new.template {
        journal.put_note(TEMPLATE_NOTE, object.id.as_bytes())?;
    }
    drop(journal);
    Ok(sync_folder(folder)?)
}

/// Removes what was made so far. What cannot be removed now is at the next start: false.
fn undo(core: &Core, id: VmId) -> bool {
    let doomed = core.data.doomed_clone(id);
    // It may have its name already, and only the sync after that failed.
    let _ = std::fs::rename(core.data.clone_folder(id), &doomed);
    for folder in [core.data.unfinished_clone(id), doomed] {
        if folder.exists()
            && let Err(error) = std::fs::remove_dir_all(&folder)
        {
            tracing::warn!(%error, folder = %folder.display(), "cannot delete a clone half made");
            return false;
        }
    }
    true
}
