//! The real directory. Files are created 0600 in a directory of 0700: a journal holds whole disks.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::{Flock, FlockArg, PosixFadviseAdvice, posix_fadvise};
use nix::sys::uio::pwritev;

use super::{Storage, StorageError, StorageErrorKind, StorageFile, StorageLock};

/// Name of the file that the writer locks. It stays empty.
pub(super) const LOCK_FILE: &str = "lock";

/// A directory of the file system.
#[derive(Debug, Clone)]
pub struct OsStorage {
    path: PathBuf,
}

impl OsStorage {
    /// The directory at `path`, made if it is missing (its parent is not).
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn create(path: impl Into<PathBuf>) -> Result<Self, StorageError> {
        let path = path.into();
        match DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(StorageError::os("create folder", &path.display().to_string(), error))
            }
            _ => Self::open(path),
        }
    }

    /// The existing directory at `path`.
    ///
    /// # Errors
    /// When it is missing or no directory.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, StorageError> {
        let path = path.into();
        let fail = |error| StorageError::os("open folder", &path.display().to_string(), error);
        if !std::fs::metadata(&path).map_err(fail)?.is_dir() {
            return Err(fail(io::Error::from(io::ErrorKind::NotADirectory)));
        }
        Ok(Self { path })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn wrap(file: File, name: &str) -> Arc<dyn StorageFile> {
        Arc::new(OsFile { file, name: name.to_owned() })
    }
}

impl Storage for OsStorage {
    fn create(&self, name: &str) -> Result<Arc<dyn StorageFile>, StorageError> {
        OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(self.path.join(name))
            .map(|file| Self::wrap(file, name))
            .map_err(|error| StorageError::os("create", name, error))
    }

    fn open(&self, name: &str) -> Result<Arc<dyn StorageFile>, StorageError> {
        let path = self.path.join(name);
        // Offline tools may have no right to write; a writer finds out at its first write.
        OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .or_else(|error| match error.kind() {
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => File::open(&path),
                _ => Err(error),
            })
            .map(|file| Self::wrap(file, name))
            .map_err(|error| StorageError::os("open", name, error))
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), StorageError> {
        std::fs::rename(self.path.join(from), self.path.join(to))
            .map_err(|error| StorageError::os("rename", from, error))
    }

    fn remove(&self, name: &str) -> Result<(), StorageError> {
        std::fs::remove_file(self.path.join(name)).map_err(|error| StorageError::os("remove", name, error))
    }

    fn sync_dir(&self) -> Result<(), StorageError> {
        File::open(&self.path)
            .and_then(|directory| directory.sync_all())
            .map_err(|error| StorageError::os("sync folder", &self.path.display().to_string(), error))
    }

    fn list(&self) -> Result<Vec<String>, StorageError> {
        let fail = |error| StorageError::os("list", &self.path.display().to_string(), error);
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.path).map_err(fail)? {
            let name = entry.map_err(fail)?.file_name().to_string_lossy().into_owned();
            if name != LOCK_FILE {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    fn free_bytes(&self) -> Result<Option<u64>, StorageError> {
        let stat = nix::sys::statvfs::statvfs(&self.path)
            .map_err(|error| StorageError::os("measure", &self.path.display().to_string(), error.into()))?;
        Ok(Some(stat.blocks_available().saturating_mul(stat.fragment_size())))
    }

    fn lock(&self) -> Result<Box<dyn StorageLock>, StorageError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(self.path.join(LOCK_FILE))
            .map_err(|error| StorageError::os("open", LOCK_FILE, error))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => Ok(Box::new(OsLock { _lock: lock })),
            Err((_, nix::Error::EWOULDBLOCK)) => Err(StorageError::new(
                StorageErrorKind::Locked,
                "lock",
                LOCK_FILE,
                io::Error::from(io::ErrorKind::WouldBlock),
            )),
            Err((_, error)) => Err(StorageError::os("lock", LOCK_FILE, error.into())),
        }
    }
}

#[derive(Debug)]
struct OsLock {
    _lock: Flock<File>,
}

impl StorageLock for OsLock {}

#[derive(Debug)]
struct OsFile {
    file: File,
    name: String,
}

impl OsFile {
    fn fail(&self, operation: &'static str, error: io::Error) -> StorageError {
        StorageError::os(operation, &self.name, error)
    }
}

impl StorageFile for OsFile {
    fn write_at(&self, offset: u64, slices: &mut [IoSlice<'_>]) -> Result<(), StorageError> {
        let mut rest = slices;
        let mut offset = offset;
        IoSlice::advance_slices(&mut rest, 0);
        while !rest.is_empty() {
            let at = i64::try_from(offset)
                .map_err(|_| self.fail("write", io::Error::from(io::ErrorKind::FileTooLarge)))?;
            match pwritev(&self.file, rest, at) {
                Ok(0) => return Err(self.fail("write", io::Error::from(io::ErrorKind::WriteZero))),
                Ok(written) => {
                    offset = offset.saturating_add(written as u64);
                    IoSlice::advance_slices(&mut rest, written);
                }
                Err(nix::Error::EINTR) => {}
                Err(error) => return Err(self.fail("write", error.into())),
            }
        }
        Ok(())
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), StorageError> {
        self.file.read_exact_at(buffer, offset).map_err(|error| self.fail("read", error))
    }

    fn sync(&self) -> Result<(), StorageError> {
        self.file.sync_data().map_err(|error| self.fail("sync", error))
    }

    fn settle(&self) -> Result<(), StorageError> {
        // Only clean pages can be dropped, so the sync comes first; a failed one leaves its pages clean as well.
        let synced = self.sync();
        posix_fadvise(&self.file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)
            .map_err(|error| self.fail("drop the cache of", error.into()))?;
        synced
    }

    fn len(&self) -> Result<u64, StorageError> {
        Ok(self.file.metadata().map_err(|error| self.fail("stat", error))?.len())
    }

    fn truncate(&self, bytes: u64) -> Result<(), StorageError> {
        self.file.set_len(bytes).map_err(|error| self.fail("truncate", error))
    }
}
