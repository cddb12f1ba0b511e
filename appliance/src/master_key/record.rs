//! The file that says that a change of the master key is under way.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use tidemark_journal::store::keys::MasterChange;

use crate::data_dir::{FileError, read_text, sync_folder, write_private};
use crate::images::MasterKeySource;

/// The version that is written.
const VERSION: u32 = 1;

/// The file cannot be used.
#[derive(Debug, Error)]
pub enum RecordError {
    /// It cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// It is not as written.
    #[error(
        "{path} is damaged ({problem}): put its copy back, or the copies of all key files from before the change"
    )]
    Damaged {
        /// Which.
        path: String,
        /// What is wrong.
        problem: String,
    },
}

/// A change of the master key that was begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChangeRecord {
    version: u32,
    to: String,
    /// The old key was the one of the data folder.
    pub from_default: bool,
    /// New data keys are made as well.
    pub data_keys: bool,
    change: String,
}

/// Where it is, in the chunk store's folder.
fn path(store: &Path) -> PathBuf {
    store.join("master-change")
}

impl ChangeRecord {
    /// Of a change to the key that comes from `to`.
    #[must_use]
    pub fn new(to: &MasterKeySource, from_default: bool, data_keys: bool, change: &MasterChange) -> Self {
        let change = change.encode().iter().map(|byte| format!("{byte:02x}")).collect();
        Self { version: VERSION, to: to.to_string(), from_default, data_keys, change }
    }

    /// What there is in a store's folder.
    ///
    /// # Errors
    /// When it is damaged, newer, or cannot be read.
    pub fn load(store: &Path) -> Result<Option<Self>, RecordError> {
        let path = path(store);
        if !path.exists() {
            return Ok(None);
        }
        let damaged = |problem: String| RecordError::Damaged { path: path.display().to_string(), problem };
        let record: Self =
            toml::from_str(&read_text(&path)?).map_err(|error| damaged(error.message().to_owned()))?;
        if record.version != VERSION {
            return Err(damaged(format!("version {} is unknown here", record.version)));
        }
        if record.bytes().is_none() || record.to().is_none() {
            return Err(damaged("a field is cut off".to_owned()));
        }
        Ok(Some(record))
    }

    /// Keeps it, durably.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save(&self, store: &Path) -> Result<(), FileError> {
        // Texts and numbers: it cannot fail.
        write_private(&path(store), toml::to_string(self).unwrap_or_default().as_bytes())
    }

    /// Removes it, durably: the change is done.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove(store: &Path) -> Result<(), FileError> {
        let path = path(store);
        std::fs::remove_file(&path).map_err(|error| FileError::new("removing", &path, error))?;
        sync_folder(store)
    }

    /// Where the new key comes from.
    #[must_use]
    pub fn to(&self) -> Option<MasterKeySource> {
        MasterKeySource::of_text(&self.to)
    }

    /// The file of the change.
    #[must_use]
    pub fn bytes(&self) -> Option<Vec<u8>> {
        let digits = self.change.as_bytes();
        let pair = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
        (digits.len().is_multiple_of(2)).then(|| digits.chunks(2).map(pair).collect::<Option<Vec<u8>>>())?
    }
}
