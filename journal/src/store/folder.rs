//! Where packs live, as a contract; and the local folder.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io::{self, IoSlice};
use std::sync::{Arc, Mutex, PoisonError};

use super::PackId;
use crate::storage::{Storage, StorageError, StorageErrorKind, StorageFile};

/// A flat set of immutable, named packs: a folder or a bucket. Calls block; they may come from several threads.
pub trait PackFolder: Debug + Send + Sync {
    /// Stores a whole pack under a name that is free. After success it is there whole, and survives a crash once
    /// [`PackFolder::sync`] has returned; after a failure or a crash it is there whole or not at all.
    ///
    /// # Errors
    /// [`StorageErrorKind::Exists`] when the name is taken: what is there is left alone.
    fn put(&self, name: &str, bytes: &[u8]) -> Result<(), StorageError>;

    /// Fills the buffer from `offset`.
    ///
    /// # Errors
    /// [`StorageErrorKind::Missing`] when there is no such pack, [`StorageErrorKind::Short`] when it ends before.
    fn read(&self, name: &str, offset: u64, buffer: &mut [u8]) -> Result<(), StorageError>;

    /// All packs by name, with their bytes.
    ///
    /// # Errors
    /// When the storage fails.
    fn list(&self) -> Result<BTreeMap<String, u64>, StorageError>;

    /// Removes a pack; no error when it is gone already. Durable after [`PackFolder::sync`].
    ///
    /// # Errors
    /// When the storage fails.
    fn delete(&self, name: &str) -> Result<(), StorageError>;

    /// Makes everything before durable.
    ///
    /// # Errors
    /// When the storage fails; what is durable is then unknown.
    fn sync(&self) -> Result<(), StorageError>;

    /// Removes what interrupted puts left behind. Only the owner calls it, before its first put.
    ///
    /// # Errors
    /// When the storage fails.
    fn clean(&self) -> Result<(), StorageError> {
        Ok(())
    }
}

/// Ending of a pack that is being written.
const PART: &str = ".part";

/// Packs kept open for reading at most; beyond it all are closed.
const OPEN_FILES_MAX: usize = 64;

/// Packs as files of a directory, which may hold other files too.
#[derive(Debug)]
pub struct LocalFolder {
    storage: Arc<dyn Storage>,
    open: Mutex<BTreeMap<String, Arc<dyn StorageFile>>>,
}

impl LocalFolder {
    /// The packs in `storage`.
    #[must_use]
    pub fn new(storage: Arc<dyn Storage>) -> Self {
        Self { storage, open: Mutex::new(BTreeMap::new()) }
    }

    fn files(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Arc<dyn StorageFile>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remove_if_there(&self, name: &str) -> Result<(), StorageError> {
        match self.storage.remove(name) {
            Err(error) if error.kind() != StorageErrorKind::Missing => Err(error),
            _ => Ok(()),
        }
    }
}

impl PackFolder for LocalFolder {
    fn put(&self, name: &str, bytes: &[u8]) -> Result<(), StorageError> {
        match self.storage.open(name) {
            Ok(_) => {
                return Err(StorageError::os("put", name, io::Error::from(io::ErrorKind::AlreadyExists)));
            }
            Err(error) if error.kind() == StorageErrorKind::Missing => {}
            Err(error) => return Err(error),
        }
        let part = format!("{name}{PART}");
        self.remove_if_there(&part)?;
        let file = self.storage.create(&part)?;
        // Synced before it has its name: a pack that can be seen is whole.
        let written = file
            .write_at(0, &mut [IoSlice::new(bytes)])
            .and_then(|()| file.sync())
            .and_then(|()| self.storage.rename(&part, name));
        if written.is_err() {
            // It is in no one's way but takes space; the next put or opening removes it if this fails.
            let _ = self.storage.remove(&part);
        }
        written
    }

    fn read(&self, name: &str, offset: u64, buffer: &mut [u8]) -> Result<(), StorageError> {
        let known = self.files().get(name).cloned();
        let file = match known {
            Some(file) => file,
            None => {
                let file = self.storage.open(name)?;
                let mut files = self.files();
                if files.len() >= OPEN_FILES_MAX {
                    files.clear();
                }
                files.insert(name.to_owned(), Arc::clone(&file));
                file
            }
        };
        file.read_at(offset, buffer)
    }

    fn list(&self) -> Result<BTreeMap<String, u64>, StorageError> {
        let names = self.storage.list()?.into_iter().filter(|name| PackId::of_name(name).is_some());
        names
            .map(|name| {
                let bytes = self.storage.open(&name)?.len()?;
                Ok((name, bytes))
            })
            .collect()
    }

    fn delete(&self, name: &str) -> Result<(), StorageError> {
        self.files().remove(name);
        self.remove_if_there(name)
    }

    fn sync(&self) -> Result<(), StorageError> {
        self.storage.sync_dir()
    }

    fn clean(&self) -> Result<(), StorageError> {
        for name in self.storage.list()? {
            if name.strip_suffix(PART).is_some_and(|name| PackId::of_name(name).is_some()) {
                self.storage.remove(&name)?;
            }
        }
        Ok(())
    }
}
