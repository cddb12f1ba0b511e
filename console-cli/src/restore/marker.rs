//! `FILE.tidemark-incomplete`: what a restore that has not finished was about.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Which bytes a restore writes. Only the same ones may be continued.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub(crate) vm: String,
    pub(crate) disk: String,
    pub(crate) lsn: u64,
    pub(crate) size_bytes: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Content {
    note: String,
    #[serde(flatten)]
    identity: Identity,
    done_bytes: u64,
    missing_bytes: u64,
}

/// The marker beside one file.
#[derive(Debug)]
pub(crate) struct Marker {
    path: PathBuf,
    identity: Identity,
}

impl Marker {
    pub(crate) fn beside(file: &Path, identity: Identity) -> Self {
        let mut path = OsString::from(file);
        path.push(".tidemark-incomplete");
        Self { path: path.into(), identity }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn identity(&self) -> &Identity {
        &self.identity
    }

    pub(crate) fn exists(&self) -> bool {
        self.path.symlink_metadata().is_ok()
    }

    /// How far an earlier run of the same restore came; `None` when there was none, or of other bytes.
    pub(crate) fn done_bytes(&self) -> Option<u64> {
        let text = fs::read(&self.path).ok()?;
        let content: Content = serde_json::from_slice(&text).ok()?;
        (content.identity == self.identity && content.done_bytes <= self.identity.size_bytes)
            .then_some(content.done_bytes)
    }

    /// Replaces the marker durably.
    pub(crate) fn write(&self, done_bytes: u64) -> io::Result<()> {
        let content = Content {
            note: "This restore is incomplete. Run the same command again to continue, or delete both files."
                .to_owned(),
            identity: self.identity.clone(),
            done_bytes,
            missing_bytes: self.identity.size_bytes.saturating_sub(done_bytes),
        };
        let text = serde_json::to_vec_pretty(&content).map_err(io::Error::other)?;
        let mut new = self.path.clone().into_os_string();
        new.push(".new");
        let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&new, &self.path)?;
        self.sync_folder()
    }

    /// The restore is complete.
    pub(crate) fn remove(&self) -> io::Result<()> {
        fs::remove_file(&self.path)?;
        self.sync_folder()
    }

    fn sync_folder(&self) -> io::Result<()> {
        let folder =
            self.path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder)?.sync_all()
    }
}
