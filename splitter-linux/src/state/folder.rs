//! The folder itself: durable small files and the lock of the running splitter.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

use super::{Disks, GatesFile, Identity, Quarantine};

/// The state folder where none is named: the one of the packaged service and of the initramfs hooks, by this very text
/// (see [`name_for`](crate::capture::name_for)).
pub const DEFAULT_STATE: &str = "/var/lib/tidemark-splitter";

/// Bytes of a state file at most: 64 disks, certificates and texts are far below. A longer file is refused as damaged.
const FILE_MAX_BYTES: u64 = 1 << 20;

/// The state folder cannot be used.
#[derive(Debug, Error)]
pub enum StateError {
    /// There is no identity in it.
    #[error(
        "{0} holds no enrolled splitter: run 'tidemark-splitter enroll --appliance HOST:PORT --token TOKEN --state {0}' first"
    )]
    NotEnrolled(String),
    /// A splitter is running on it.
    #[error("a splitter is already running on {0}: stop it first, or use another --state folder")]
    Running(String),
    /// The folder is open to others.
    #[error("{0} is not owned by this user: keys are kept only in a folder of one's own")]
    Foreign(String),
    /// A file does not parse.
    #[error("{path} is damaged ({detail}): restore it, or enrol again with a new token")]
    Damaged {
        /// The file.
        path: String,
        /// What is wrong.
        detail: String,
    },
    /// A file operation failed.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StateError {
    let path = path.display().to_string();
    move |source| StateError::Io { action, path, source }
}

/// The lock of the running splitter; ends with the value or the process.
#[derive(Debug)]
pub struct StateLock {
    _file: Flock<File>,
}

/// A state folder. Holds no open file: every call reads or writes whole files.
#[derive(Debug, Clone)]
pub struct StateDir {
    root: PathBuf,
}

impl StateDir {
    /// The folder as named; it need not exist.
    #[must_use]
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_path_buf() }
    }

    /// The folder's path.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The folder of the spool, unless another one is named.
    #[must_use]
    pub fn spool(&self) -> PathBuf {
        self.root.join("spool")
    }

    /// The running splitter's socket for local commands.
    #[must_use]
    pub fn control_socket(&self) -> PathBuf {
        self.root.join("control.sock")
    }

    /// Creates the folder (0700) where it is missing and refuses one of another user.
    ///
    /// # Errors
    /// [`StateError::Foreign`], [`StateError::Io`].
    pub fn create(&self) -> Result<(), StateError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.root)
            .map_err(failed("create", &self.root))?;
        let owner = fs::metadata(&self.root).map_err(failed("inspect", &self.root))?.uid();
        if owner != nix::unistd::geteuid().as_raw() {
            return Err(StateError::Foreign(self.root.display().to_string()));
        }
        Ok(())
    }

    /// Takes the lock of the running splitter.
    ///
    /// # Errors
    /// [`StateError::Running`] when another process has it.
    pub fn lock(&self) -> Result<StateLock, StateError> {
        let path = self.root.join("lock");
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(failed("open", &path))?;
        let file = Flock::lock(file, FlockArg::LockExclusiveNonblock)
            .map_err(|_| StateError::Running(self.root.display().to_string()))?;
        Ok(StateLock { _file: file })
    }

    /// What enrolment established.
    ///
    /// # Errors
    /// [`StateError::NotEnrolled`] when there is nothing, [`StateError::Damaged`].
    pub fn identity(&self) -> Result<Identity, StateError> {
        self.read_toml("identity.toml")?
            .ok_or_else(|| StateError::NotEnrolled(self.root.display().to_string()))
    }

    /// Stores a new enrolment: credentials first, the identity that makes them count last. The nonce and quarantine
    /// of an earlier enrolment end with it.
    ///
    /// # Errors
    /// [`StateError::Io`].
    pub fn store_enrolment(
        &self,
        identity: &Identity,
        certificate_pem: &str,
        key_pem: &str,
    ) -> Result<(), StateError> {
        self.create()?;
        self.remove("identity.toml")?;
        self.store_credentials(certificate_pem, key_pem)?;
        self.remove("nonce")?;
        self.remove("quarantine.toml")?;
        self.write_toml("identity.toml", identity)
    }

    /// Certificate and private key, PEM.
    ///
    /// # Errors
    /// [`StateError::NotEnrolled`] when they are missing.
    pub fn credentials(&self) -> Result<(String, String), StateError> {
        let missing = || StateError::NotEnrolled(self.root.display().to_string());
        let both = self.read_text("credentials.pem")?.ok_or_else(missing)?;
        let key_at = both.find("-----BEGIN PRIVATE KEY-----").ok_or_else(|| StateError::Damaged {
            path: self.root.join("credentials.pem").display().to_string(),
            detail: "it holds no private key".into(),
        })?;
        let (certificate, key) = both.split_at(key_at);
        Ok((certificate.to_owned(), key.to_owned()))
    }

    /// Replaces certificate and key, both or none: they are one file.
    ///
    /// # Errors
    /// [`StateError::Io`].
    pub fn store_credentials(&self, certificate_pem: &str, key_pem: &str) -> Result<(), StateError> {
        self.write("credentials.pem", format!("{}\n{key_pem}", certificate_pem.trim_end()).as_bytes())
    }

    /// The nonce of the last session; empty after enrolment.
    ///
    /// # Errors
    /// [`StateError::Io`].
    pub fn nonce(&self) -> Result<Vec<u8>, StateError> {
        Ok(self.read("nonce")?.unwrap_or_default())
    }

    /// Makes the nonce of this session durable.
    ///
    /// # Errors
    /// [`StateError::Io`].
    pub fn store_nonce(&self, nonce: &[u8]) -> Result<(), StateError> {
        self.write("nonce", nonce)
    }

    /// The disks to protect.
    ///
    /// # Errors
    /// [`StateError::Damaged`], [`StateError::Io`].
    pub fn disks(&self) -> Result<Disks, StateError> {
        Ok(self.read_toml("disks.toml")?.unwrap_or_default())
    }

    /// Stores the disks to protect.
    ///
    /// # Errors
    /// [`StateError::Io`].
    pub fn store_disks(&self, disks: &Disks) -> Result<(), StateError> {
        self.write_toml("disks.toml", disks)
    }

    /// The volumes that are to be in synchronous mode; none when nothing was noted yet.
    ///
    /// # Errors
    /// [`StateError::Damaged`], [`StateError::Io`].
    pub fn gates(&self) -> Result<GatesFile, StateError> {
        Ok(self.read_toml("gates.toml")?.unwrap_or_default())
    }

    /// Remembers the volumes that are to be in synchronous mode.
    ///
    /// # Errors
    /// [`StateError::Io`].
    pub fn store_gates(&self, gates: &GatesFile) -> Result<(), StateError> {
        self.write_toml("gates.toml", gates)
    }

    /// Why the appliance takes nothing from this splitter, if so.
    ///
    /// # Errors
    /// [`StateError::Damaged`], [`StateError::Io`].
    pub fn quarantine(&self) -> Result<Option<Quarantine>, StateError> {
        self.read_toml("quarantine.toml")
    }

    /// Remembers that the appliance quarantined this splitter.
    ///
    /// # Errors
    /// [`StateError::Io`].
    pub fn store_quarantine(&self, quarantine: &Quarantine) -> Result<(), StateError> {
        self.write_toml("quarantine.toml", quarantine)
    }

    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, StateError> {
        let path = self.root.join(name);
        match fs::metadata(&path) {
            Ok(metadata) if metadata.len() > FILE_MAX_BYTES => Err(StateError::Damaged {
                path: path.display().to_string(),
                detail: format!("more than {FILE_MAX_BYTES} bytes"),
            }),
            Ok(_) => fs::read(&path).map(Some).map_err(failed("read", &path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("inspect", &path)(error)),
        }
    }

    fn read_text(&self, name: &str) -> Result<Option<String>, StateError> {
        let Some(bytes) = self.read(name)? else { return Ok(None) };
        String::from_utf8(bytes).map(Some).map_err(|error| StateError::Damaged {
            path: self.root.join(name).display().to_string(),
            detail: error.to_string(),
        })
    }

    fn read_toml<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, StateError> {
        let Some(text) = self.read_text(name)? else { return Ok(None) };
        toml::from_str(&text).map(Some).map_err(|error| StateError::Damaged {
            path: self.root.join(name).display().to_string(),
            detail: error.message().to_owned(),
        })
    }

    fn write_toml<T: Serialize>(&self, name: &str, value: &T) -> Result<(), StateError> {
        let text = toml::to_string(value).map_err(|error| StateError::Damaged {
            path: self.root.join(name).display().to_string(),
            detail: error.to_string(),
        })?;
        self.write(name, text.as_bytes())
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), StateError> {
        let path = self.root.join(name);
        let fresh = self.root.join(format!("{name}.new"));
        self.remove(&format!("{name}.new"))?;
        let mut file = OpenOptions::new()
            .create_new(true)
            .write(true)
            .mode(0o600)
            .open(&fresh)
            .map_err(failed("create", &fresh))?;
        file.write_all(bytes).and_then(|()| file.sync_all()).map_err(failed("write", &fresh))?;
        fs::rename(&fresh, &path).map_err(failed("rename", &fresh))?;
        self.sync()
    }

    fn remove(&self, name: &str) -> Result<(), StateError> {
        let path = self.root.join(name);
        match fs::remove_file(&path) {
            Ok(()) => self.sync(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(failed("remove", &path)(error)),
        }
    }

    fn sync(&self) -> Result<(), StateError> {
        File::open(&self.root).and_then(|folder| folder.sync_all()).map_err(failed("sync", &self.root))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::state::{All, ProtectedDisk};

    fn identity() -> Identity {
        Identity {
            appliance: "127.0.0.1:7440".into(),
            vm_id: "id".into(),
            vm_name: "web-1".into(),
            ca_pem: "-----BEGIN CERTIFICATE-----\n".into(),
        }
    }

    #[test]
    fn what_was_stored_reads_back_and_is_private() {
        let root = tempfile::tempdir().unwrap();
        let state = StateDir::new(&root.path().join("state"));
        assert!(matches!(state.identity(), Err(StateError::NotEnrolled(_))));
        let key = "-----BEGIN PRIVATE KEY-----\nkey\n";
        state.store_enrolment(&identity(), "certificate\n", key).unwrap();
        assert_eq!(state.identity().unwrap(), identity());
        assert_eq!(state.credentials().unwrap(), ("certificate\n".into(), key.into()));
        assert_eq!(state.disks().unwrap(), Disks::default());
        let disk = ProtectedDisk {
            identity: "serial:1".into(),
            path: "/dev/vdb".into(),
            copied: true,
            size_bytes: 512,
        };
        for all in [None, Some(All { except: vec!["sd*".into()] })] {
            let disks = Disks { all, disks: vec![disk.clone()] };
            state.store_disks(&disks).unwrap();
            assert_eq!(state.disks().unwrap(), disks);
        }
        for entry in fs::read_dir(state.root()).unwrap() {
            let mode = entry.unwrap().metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o077, 0);
        }
    }

    #[test]
    fn enrolling_again_ends_the_nonce_and_the_quarantine() {
        let root = tempfile::tempdir().unwrap();
        let state = StateDir::new(root.path());
        state.store_enrolment(&identity(), "c", "-----BEGIN PRIVATE KEY-----").unwrap();
        state.store_nonce(&[7; 16]).unwrap();
        state.store_quarantine(&Quarantine { reason: "cloned".into() }).unwrap();
        assert!(state.quarantine().unwrap().is_some());
        state.store_enrolment(&identity(), "c", "-----BEGIN PRIVATE KEY-----").unwrap();
        assert!(state.nonce().unwrap().is_empty() && state.quarantine().unwrap().is_none());
    }

    #[test]
    fn a_damaged_file_is_named_and_a_second_splitter_refused() {
        let root = tempfile::tempdir().unwrap();
        let state = StateDir::new(root.path());
        fs::write(root.path().join("disks.toml"), "what = 1").unwrap();
        let error = state.disks().unwrap_err().to_string();
        assert!(error.contains("disks.toml") && error.contains("what"), "{error}");
        let _lock = state.lock().unwrap();
        assert!(matches!(state.lock(), Err(StateError::Running(_))));
    }
}
