//! The directory of files a journal lives in, as a contract.
//!
//! Callers write a file only at its end (or over an end that was never acknowledged), one writer per file. Implementers
//! may keep anything unsynced in any order or lose it: the journal never relies on the order of unsynced writes.

mod os;
mod sim;

use std::fmt::Debug;
use std::io::IoSlice;
use std::sync::Arc;

use thiserror::Error;

pub use os::OsStorage;
pub use sim::{Faults, SimStorage};

/// A flat directory.
pub trait Storage: Debug + Send + Sync {
    /// A new, empty file. It survives a crash once it and the directory are synced.
    ///
    /// # Errors
    /// [`StorageErrorKind::Exists`] when the name is taken.
    fn create(&self, name: &str) -> Result<Arc<dyn StorageFile>, StorageError>;

    /// An existing file.
    ///
    /// # Errors
    /// [`StorageErrorKind::Missing`] when there is none.
    fn open(&self, name: &str) -> Result<Arc<dyn StorageFile>, StorageError>;

    /// Renames, over an existing file if need be, at once or not at all. Durable after [`Storage::sync_dir`].
    ///
    /// # Errors
    /// When the storage fails.
    fn rename(&self, from: &str, to: &str) -> Result<(), StorageError>;

    /// Removes a file. Durable after [`Storage::sync_dir`].
    ///
    /// # Errors
    /// When the storage fails.
    fn remove(&self, name: &str) -> Result<(), StorageError>;

    /// Makes the set of names durable.
    ///
    /// # Errors
    /// When the storage fails; what is durable is then unknown.
    fn sync_dir(&self) -> Result<(), StorageError>;

    /// All names, sorted.
    ///
    /// # Errors
    /// When the storage fails.
    fn list(&self) -> Result<Vec<String>, StorageError>;

    /// Bytes that may still be written, for those who stop before the last; `None`: nobody knows.
    ///
    /// # Errors
    /// When the storage cannot be asked.
    fn free_bytes(&self) -> Result<Option<u64>, StorageError> {
        Ok(None)
    }

    /// Takes the directory for one writer, until the returned value is dropped or the process dies.
    ///
    /// # Errors
    /// [`StorageErrorKind::Locked`] when another has it.
    fn lock(&self) -> Result<Box<dyn StorageLock>, StorageError>;
}

/// Held by the only writer; dropping it releases the directory.
pub trait StorageLock: Debug + Send + Sync {}

/// An open file. Reads may run beside writes; what a read sees of a write that runs beside it is open.
pub trait StorageFile: Debug + Send + Sync {
    /// Writes all slices, one after another, from `offset`, which is at most the file's length.
    ///
    /// # Errors
    /// Part of the bytes may have been written. [`StorageErrorKind::Full`] when there is no space.
    fn write_at(&self, offset: u64, slices: &mut [IoSlice<'_>]) -> Result<(), StorageError>;

    /// Fills the buffer from `offset`.
    ///
    /// # Errors
    /// [`StorageErrorKind::Short`] when the file ends before the buffer is full.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), StorageError>;

    /// Makes all completed writes durable. May run beside writes and other calls.
    ///
    /// # Errors
    /// Nothing written since the last success may be trusted, and calling again does not help.
    fn sync(&self) -> Result<(), StorageError>;

    /// Makes what later reads return the same as what would survive a power cut: syncs, then drops what is cached, so
    /// that it is read from the disk again. After a failed sync a kernel keeps pages that it could not write, calls
    /// them clean, and lets every later sync succeed; only reading from the disk tells what is there.
    ///
    /// # Errors
    /// When the storage fails; the cache is dropped all the same, so a later call may succeed.
    fn settle(&self) -> Result<(), StorageError>;

    /// Bytes in the file.
    ///
    /// # Errors
    /// When the storage fails.
    fn len(&self) -> Result<u64, StorageError>;

    /// Whether the file has no bytes.
    ///
    /// # Errors
    /// When the storage fails.
    fn is_empty(&self) -> Result<bool, StorageError> {
        Ok(self.len()? == 0)
    }

    /// Cuts the file.
    ///
    /// # Errors
    /// When the storage fails.
    fn truncate(&self, bytes: u64) -> Result<(), StorageError>;
}

/// What went wrong, for those who act on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum StorageErrorKind {
    /// No space, or over quota.
    Full,
    /// No such file.
    Missing,
    /// The name is taken.
    Exists,
    /// The file ends before what was asked for.
    Short,
    /// Another writer has the directory.
    Locked,
    /// The directory is there but not ours to use.
    Denied,
    /// Anything else: the device failed.
    Failed,
}

/// A failed call: which file, what was done, and why.
#[derive(Debug, Error)]
#[error("{operation} {name}: {source}")]
pub struct StorageError {
    kind: StorageErrorKind,
    operation: &'static str,
    name: String,
    source: std::io::Error,
}

impl StorageError {
    /// A failure of `operation` on `name`.
    #[must_use]
    pub fn new(kind: StorageErrorKind, operation: &'static str, name: &str, source: std::io::Error) -> Self {
        Self { kind, operation, name: name.to_owned(), source }
    }

    /// A failure as the operating system reported it.
    #[must_use]
    pub fn os(operation: &'static str, name: &str, source: std::io::Error) -> Self {
        use std::io::ErrorKind;
        let kind = match source.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
                StorageErrorKind::Full
            }
            ErrorKind::NotFound => StorageErrorKind::Missing,
            ErrorKind::AlreadyExists => StorageErrorKind::Exists,
            ErrorKind::UnexpectedEof => StorageErrorKind::Short,
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => StorageErrorKind::Denied,
            _ => StorageErrorKind::Failed,
        };
        Self::new(kind, operation, name, source)
    }

    /// What kind of failure it is.
    #[must_use]
    pub fn kind(&self) -> StorageErrorKind {
        self.kind
    }

    /// Whether space is what is missing.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.kind == StorageErrorKind::Full
    }
}
