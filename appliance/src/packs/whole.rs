//! Packs as the object storage has them, for scrubs: no cache in between, and one request for each pack.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tidemark_journal::storage::{StorageError, StorageErrorKind};
use tidemark_journal::store::PackFolder;

use super::ObjectFolder;
use super::error::refused;

/// Reads whole packs and keeps the last one, for whoever reads a pack from its start to its end. Changes nothing.
#[derive(Debug)]
pub struct WholePacks {
    folder: Arc<ObjectFolder>,
    last: Mutex<Option<(String, Bytes)>>,
}

impl WholePacks {
    /// The packs of a folder.
    #[must_use]
    pub fn new(folder: Arc<ObjectFolder>) -> Self {
        Self { folder, last: Mutex::new(None) }
    }

    fn whole(&self, name: &str) -> Result<Bytes, StorageError> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, bytes)) = last.as_ref()
            && known == name
        {
            return Ok(bytes.clone());
        }
        *last = None;
        let bytes = self.folder.whole(name)?;
        *last = Some((name.to_owned(), bytes.clone()));
        Ok(bytes)
    }
}

impl PackFolder for WholePacks {
    fn put(&self, name: &str, _: &[u8]) -> Result<(), StorageError> {
        let text = "this view of the packs is for reading".to_owned();
        Err(refused(StorageErrorKind::Denied, "put", name, text))
    }

    fn read(&self, name: &str, offset: u64, buffer: &mut [u8]) -> Result<(), StorageError> {
        let bytes = self.whole(name)?;
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let found = from.checked_add(buffer.len()).and_then(|to| bytes.get(from..to));
        let short = || StorageError::os("read", name, io::Error::from(io::ErrorKind::UnexpectedEof));
        buffer.copy_from_slice(found.ok_or_else(short)?);
        Ok(())
    }

    fn list(&self) -> Result<BTreeMap<String, u64>, StorageError> {
        self.folder.list()
    }

    fn delete(&self, name: &str) -> Result<(), StorageError> {
        let text = "this view of the packs is for reading".to_owned();
        Err(refused(StorageErrorKind::Denied, "delete", name, text))
    }

    fn sync(&self) -> Result<(), StorageError> {
        Ok(())
    }
}
