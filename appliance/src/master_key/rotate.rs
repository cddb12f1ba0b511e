//! Doing the change: from the first check to the last file. Each step is durable before the next and can be done twice.

use std::path::{Path, PathBuf};

use thiserror::Error;
use tidemark_journal::storage::{OsStorage, StorageError};
use tidemark_journal::store::keys::{MasterChange, Rewrapped};
use tidemark_journal::store::{ChunkStore, KdfCost, MasterKey, MasterSecret, StoreError};
use tidemark_journal::{OpenError, encryption};
use tidemark_proto::ids::VmId;

use super::record::{ChangeRecord, RecordError};
use crate::data_dir::{DataDir, FileError, sync_folder};
use crate::images::{Images, MasterKeyError, MasterKeySource};

/// Told what was done; false ends the change there, as a kill would.
pub(crate) type Told<'a> = dyn FnMut(&str) -> bool + Send + 'a;

/// The master key was not changed, or not to the end.
#[derive(Debug, Error)]
pub enum RotateError {
    /// There is nothing whose key could be changed.
    #[error("there is no chunk store in this data folder: start the appliance once, it makes one")]
    NoStore,
    /// The old or the new key cannot be had.
    #[error(transparent)]
    Source(#[from] MasterKeyError),
    /// The store's keys.
    #[error("the keys of the chunk store: {0}")]
    Store(StoreError),
    /// The new key cannot be one.
    #[error("the new master key: {0}")]
    NewKey(StoreError),
    /// A log's keys do not open now, so nothing was begun.
    #[error(
        "{log}: {problem}; nothing was changed: put the copy of its file 'keys' back, or remove the VM or clone"
    )]
    Log {
        /// Whose.
        log: String,
        /// Why.
        problem: OpenError,
    },
    /// The folder of a log or of the store cannot be used.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// What says that a change is under way cannot be used.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// Whoever was told said so.
    #[error("the change was interrupted: the next start of the appliance goes on with it")]
    Interrupted,
}

/// What is to be done about a change that leaves logs unreadable.
pub(crate) const UNFINISHED: &str = "a change of the master key is not finished, as there are logs whose keys open under \
     neither key: put the copies of their files 'keys' back, or remove those VMs or clones, then start the appliance again; \
     keep the old key until then";

/// A change that was done, except for what is unreadable.
#[derive(Debug)]
pub struct Finished {
    /// Where the master key comes from now.
    pub source: MasterKeySource,
    /// It.
    pub secret: MasterSecret,
    /// Logs with keys of their own.
    pub logs: u64,
    /// Logs whose keys neither key opens: they were damaged since the change began. Unless there are none, the change is not
    /// finished: a copy of such keys is under the old one, which stays until they are back or their log is removed.
    pub unreadable: Vec<String>,
}

/// A log: whose, and where.
#[derive(Debug, Clone)]
pub(super) struct Log {
    pub id: VmId,
    pub name: String,
    pub folder: PathBuf,
}

/// The logs of all VMs and clones.
pub(super) fn logs(data: &DataDir) -> Result<Vec<Log>, FileError> {
    let vms = data.vms()?.into_iter().map(|id| (id, "VM", data.journal(id)));
    let clones = data.clones()?.into_iter().map(|id| (id, "clone", data.clone_folder(id).join("journal")));
    let all = vms.chain(clones).map(|(id, kind, folder)| Log { id, name: format!("{kind} {id}"), folder });
    // A VM that was enrolled and never opened has none.
    Ok(all.filter(|log| log.folder.exists()).collect())
}

/// What is said of a change that was begun and not finished; `None` when there is none.
///
/// # Errors
/// When that cannot be told.
pub fn pending(data: &DataDir) -> Result<Option<ChangeRecord>, RotateError> {
    Ok(ChangeRecord::load(&data.store())?)
}

/// Changes the master key from the one that comes from `from` to what `to` gives, or to a new one in `DIR/ca/store.key`.
/// With `data_keys` every domain of the store and every log gets a new data key too.
///
/// # Errors
/// Before anything is changed, or [`RotateError::Interrupted`] and what the disk says afterwards: then the next start, or
/// another call, goes on.
pub async fn rotate(
    data: &DataDir,
    from: &MasterKeySource,
    to: Option<MasterKeySource>,
    data_keys: bool,
    told: &mut Told<'_>,
) -> Result<Finished, RotateError> {
    if !Images::exist(&data.store()) {
        return Err(RotateError::NoStore);
    }
    data.delete_doomed()?;
    let storage = OsStorage::open(data.store())?;
    let secret = from.load(&data.store_key(), true).await?;
    let old = ChunkStore::master_of(&storage, &secret).map_err(RotateError::Store)?;
    check_logs(data, &old)?;
    let to = to.unwrap_or(MasterKeySource::Default);
    let new = match &to {
        MasterKeySource::Default => MasterKeySource::make(&data.next_store_key())?,
        given => given.load(&data.store_key(), true).await?,
    };
    let seed: [u8; 32] = rand::random();
    let change = MasterChange::begin(old, &new, KdfCost::default(), &seed).map_err(RotateError::NewKey)?;
    go_on(told, "the present key opens everything")?;
    let record = ChangeRecord::new(&to, *from == MasterKeySource::Default, data_keys, &change);
    record.save(&data.store())?;
    go_on(told, "the change is begun")?;
    finish(data, &record, told).await
}

fn go_on(told: &mut Told<'_>, done: &str) -> Result<(), RotateError> {
    if told(done) { Ok(()) } else { Err(RotateError::Interrupted) }
}

fn check_logs(data: &DataDir, master: &MasterKey) -> Result<(), RotateError> {
    for log in logs(data)? {
        let checked = OsStorage::open(&log.folder)
            .map_err(OpenError::Storage)
            .and_then(|storage| encryption::check(&storage, log.id, master));
        checked.map_err(|problem| RotateError::Log { log: log.name, problem })?;
    }
    Ok(())
}

/// Does what is left of a change that was begun.
///
/// # Errors
/// As [`rotate`].
pub async fn finish(
    data: &DataDir,
    record: &ChangeRecord,
    told: &mut Told<'_>,
) -> Result<Finished, RotateError> {
    let source = record.to().unwrap_or(MasterKeySource::Default);
    let next = data.next_store_key();
    // The new key may have its name already.
    let default_file = if next.exists() { next.clone() } else { data.store_key() };
    let secret = source.load(&default_file, true).await?;
    let bytes = record.bytes().unwrap_or_default();
    let change = MasterChange::resume(&bytes, &secret).map_err(RotateError::NewKey)?;
    let mut finished = Finished { source, secret, logs: 0, unreadable: Vec::new() };
    for log in logs(data)? {
        let storage = OsStorage::open(&log.folder)?;
        match encryption::rewrap(&storage, log.id, &change, record.data_keys, &rand::random()) {
            Ok(Some(Rewrapped::Now | Rewrapped::Before)) => finished.logs += 1,
            Ok(None) => {}
            // The others go on: every log was opened before the change began.
            Err(error @ (OpenError::Keys(_) | OpenError::Damaged(_))) => {
                tracing::error!(log = log.name, %error, "the keys of a log open under neither master key");
                finished.unreadable.push(log.name.clone());
            }
            Err(OpenError::Storage(error)) => return Err(error.into()),
            Err(problem) => return Err(RotateError::Log { log: log.name, problem }),
        }
        go_on(told, &format!("the keys of {} are under the new key", log.name))?;
    }
    let store = OsStorage::open(data.store())?;
    ChunkStore::rewrap(&store, &change, record.data_keys, &rand::random()).map_err(RotateError::Store)?;
    go_on(told, "the keys of the chunk store are under the new key")?;
    // Nothing but this says that the new secret, as it is read, opens what was wrapped.
    ChunkStore::master_of(&store, &finished.secret).map_err(RotateError::Store)?;
    if !finished.unreadable.is_empty() {
        return Ok(finished);
    }
    settle_files(data, record, &finished.source, &next)?;
    go_on(told, "the old key opens nothing any more")?;
    ChangeRecord::remove(&data.store())?;
    Ok(finished)
}

/// Gives the new key of the data folder its name, or takes the old one away.
fn settle_files(
    data: &DataDir,
    record: &ChangeRecord,
    source: &MasterKeySource,
    next: &Path,
) -> Result<(), FileError> {
    let path = data.store_key();
    if *source == MasterKeySource::Default {
        if next.exists() {
            std::fs::rename(next, &path).map_err(|error| FileError::new("renaming", next, error))?;
        }
    } else if record.from_default && path.exists() {
        std::fs::remove_file(&path).map_err(|error| FileError::new("removing", &path, error))?;
    }
    sync_folder(&data.ca())
}
