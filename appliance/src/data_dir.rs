//! The data folder: its layout, its lock, and small files written whole or not at all.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use thiserror::Error;
use tidemark_proto::ids::VmId;

/// Marks the folder of a removed VM or clone.
const DOOMED_PREFIX: &str = ".removed-";

/// Marks the folder of a clone that is being made.
const UNFINISHED_PREFIX: &str = ".making-";

/// A file could not be read or written.
#[derive(Debug, Error)]
#[error("{action} {path}: {source}")]
pub struct FileError {
    action: &'static str,
    path: String,
    source: std::io::Error,
}

impl FileError {
    pub(crate) fn new(action: &'static str, path: &Path, source: std::io::Error) -> Self {
        Self { action, path: path.display().to_string(), source }
    }
}

/// The data folder cannot be used.
#[derive(Debug, Error)]
pub enum DataDirError {
    /// Another process serves it.
    #[error(
        "{0} is in use by another tidemark-appliance: stop that one first, or choose another --data folder"
    )]
    InUse(String),
    /// A file operation failed.
    #[error(transparent)]
    File(#[from] FileError),
}

/// The data folder, locked for this process as long as the value lives.
#[derive(Debug)]
pub struct DataDir {
    root: PathBuf,
    _lock: Flock<File>,
}

impl DataDir {
    /// Creates what is missing (folders 0700) and takes the lock.
    ///
    /// # Errors
    /// [`DataDirError::InUse`] when another appliance has it.
    pub fn open(root: &Path) -> Result<Self, DataDirError> {
        let names = ["ca", "vms", "clones", "exports", "store", "signing", "templates"];
        for dir in std::iter::once(root.to_path_buf()).chain(names.map(|name| root.join(name))) {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&dir)
                .map_err(|error| FileError::new("creating", &dir, error))?;
        }
        let path = root.join("lock");
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(|error| FileError::new("opening", &path, error))?;
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock)
            .map_err(|_| DataDirError::InUse(root.display().to_string()))?;
        Ok(Self { root: root.to_path_buf(), _lock: lock })
    }

    /// The folder itself.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The certificate authority's folder.
    #[must_use]
    pub fn ca(&self) -> PathBuf {
        self.root.join("ca")
    }

    /// The key that signs statements about journals.
    #[must_use]
    pub fn signing(&self) -> PathBuf {
        self.root.join("signing")
    }

    /// Address and credentials for the console.
    #[must_use]
    pub fn admin_context(&self) -> PathBuf {
        self.root.join("admin.context")
    }

    /// The default catalog.
    #[must_use]
    pub fn catalog(&self) -> PathBuf {
        self.root.join("catalog.sqlite")
    }

    /// The copy of sets and tags.
    #[must_use]
    pub fn sets(&self) -> PathBuf {
        self.root.join("sets.json")
    }

    /// Sockets of running exports.
    #[must_use]
    pub fn exports(&self) -> PathBuf {
        self.root.join("exports")
    }

    /// The chunk store.
    #[must_use]
    pub fn store(&self) -> PathBuf {
        self.root.join("store")
    }

    /// Subfolder of the chunk store for packs that lie here.
    #[must_use]
    pub fn packs(&self) -> PathBuf {
        self.store().join("packs")
    }

    /// Records of the files kept in the chunk store.
    #[must_use]
    pub fn objects(&self) -> PathBuf {
        self.root.join("objects")
    }

    /// Indexes of what published templates have.
    #[must_use]
    pub fn templates(&self) -> PathBuf {
        self.root.join("templates")
    }

    /// The default master key of the chunk store: with the authority's key, so that one copy has both.
    #[must_use]
    pub fn store_key(&self) -> PathBuf {
        self.ca().join("store.key")
    }

    /// A new default master key that does not hold yet.
    #[must_use]
    pub fn next_store_key(&self) -> PathBuf {
        self.ca().join("store-next.key")
    }

    /// The clock of retention.
    #[must_use]
    pub fn retention_clock(&self) -> PathBuf {
        self.root.join("retention-clock")
    }

    /// The journal of one VM.
    #[must_use]
    pub fn journal(&self, vm: VmId) -> PathBuf {
        self.root.join("vms").join(vm.to_string()).join("journal")
    }

    /// The folder of one VM.
    #[must_use]
    pub fn vm(&self, vm: VmId) -> PathBuf {
        self.root.join("vms").join(vm.to_string())
    }

    /// Where the folder of a removed VM goes until it is deleted.
    #[must_use]
    pub fn doomed(&self, vm: VmId) -> PathBuf {
        self.root.join("vms").join(format!("{DOOMED_PREFIX}{vm}"))
    }

    /// The folder of one clone; its journal is in it.
    #[must_use]
    pub fn clone_folder(&self, id: VmId) -> PathBuf {
        self.root.join("clones").join(id.to_string())
    }

    /// Where a clone is made, before it takes its place.
    #[must_use]
    pub fn unfinished_clone(&self, id: VmId) -> PathBuf {
        self.root.join("clones").join(format!("{UNFINISHED_PREFIX}{id}"))
    }

    /// Where the folder of a removed clone goes until it is deleted.
    #[must_use]
    pub fn doomed_clone(&self, id: VmId) -> PathBuf {
        self.root.join("clones").join(format!("{DOOMED_PREFIX}{id}"))
    }

    /// Makes renames in the folder of clones durable.
    ///
    /// # Errors
    /// When it cannot be synced.
    pub fn sync_clones(&self) -> Result<(), FileError> {
        sync_folder(&self.root.join("clones"))
    }

    /// Deletes folders of removed VMs and clones, and of clones half made, that a killed process left.
    ///
    /// # Errors
    /// When a folder cannot be listed or deleted.
    pub fn delete_doomed(&self) -> Result<(), FileError> {
        for dir in ["vms", "clones"].map(|name| self.root.join(name)) {
            let entries = fs::read_dir(&dir).map_err(|error| FileError::new("listing", &dir, error))?;
            for entry in entries.flatten() {
                let name = entry.file_name();
                let name = name.to_string_lossy();
                if name.starts_with(DOOMED_PREFIX) || name.starts_with(UNFINISHED_PREFIX) {
                    let path = entry.path();
                    fs::remove_dir_all(&path).map_err(|error| FileError::new("deleting", &path, error))?;
                }
            }
        }
        Ok(())
    }

    /// VMs that have a folder here. Entries that are no VM id are ignored.
    ///
    /// # Errors
    /// When the folder cannot be listed.
    pub fn vms(&self) -> Result<Vec<VmId>, FileError> {
        self.ids("vms")
    }

    /// Clones that have a folder here, as [`DataDir::vms`].
    ///
    /// # Errors
    /// When the folder cannot be listed.
    pub fn clones(&self) -> Result<Vec<VmId>, FileError> {
        self.ids("clones")
    }

    fn ids(&self, folder: &str) -> Result<Vec<VmId>, FileError> {
        let dir = self.root.join(folder);
        let entries = fs::read_dir(&dir).map_err(|error| FileError::new("listing", &dir, error))?;
        Ok(entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
    }
}

/// Makes the entries of a folder durable.
///
/// # Errors
/// When it cannot be synced.
pub(crate) fn sync_folder(path: &Path) -> Result<(), FileError> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(|error| FileError::new("syncing", path, error))
}

/// Writes a file of mode 0600 so that it is seen whole or not at all, and survives power loss.
///
/// # Errors
/// When any step fails; the old file is then still there.
pub fn write_private(path: &Path, content: &[u8]) -> Result<(), FileError> {
    let fail = |error| FileError::new("writing", path, error);
    let temporary = path.with_extension("new");
    // A leftover of a killed process may have other permissions.
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(fail(error)),
        _ => {}
    }
    let mut file =
        OpenOptions::new().create_new(true).write(true).mode(0o600).open(&temporary).map_err(fail)?;
    file.write_all(content).map_err(fail)?;
    file.sync_all().map_err(fail)?;
    fs::rename(&temporary, path).map_err(fail)?;
    let parent = path.parent().unwrap_or_else(|| Path::new("."));
    File::open(parent).and_then(|dir| dir.sync_all()).map_err(fail)
}

/// Reads a text file.
///
/// # Errors
/// With the path in the message.
pub fn read_text(path: &Path) -> Result<String, FileError> {
    fs::read_to_string(path).map_err(|error| FileError::new("reading", path, error))
}

/// Reads a small file.
///
/// # Errors
/// With the path in the message.
pub fn read_bytes(path: &Path) -> Result<Vec<u8>, FileError> {
    fs::read(path).map_err(|error| FileError::new("reading", path, error))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_second_user_of_the_folder_is_refused_and_the_lock_ends_with_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let first = DataDir::open(dir.path()).unwrap();
        let error = DataDir::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains("in use by another"), "{error}");
        drop(first);
        DataDir::open(dir.path()).unwrap();
    }

    #[test]
    fn private_files_are_private_even_over_a_leftover() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.context");
        fs::write(path.with_extension("new"), "old").unwrap();
        write_private(&path, b"x").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(read_text(&path).unwrap(), "x");
    }
}
