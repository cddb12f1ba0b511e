//! NBD exports of views. The console service calls these three functions.

use std::path::PathBuf;

use thiserror::Error;
use tidemark_proto::ids::DiskId;
use tidemark_proto::v1::ExportInfo;

use crate::recovery::OpenedView;

/// An export could not be started or found.
#[derive(Debug, Error)]
pub enum ExportError {
    /// The caller asked for something that is not there; the text says what.
    #[error("{0}")]
    NotFound(String),
    /// The caller asked for something that cannot be; the text says what to do.
    #[error("{0}")]
    Invalid(String),
    /// This side failed.
    #[error("{0}")]
    Failed(String),
}

/// The exports of this process.
#[derive(Debug)]
pub struct Exports {
    dir: PathBuf,
}

impl Exports {
    /// Exports whose sockets live in `dir` (0700). Leftovers of a killed process are removed.
    #[must_use]
    pub fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// Serves one disk of the view, or each of them, until stopped. `tls_addr` empty: a Unix socket of mode 0600.
    ///
    /// # Errors
    /// [`ExportError::NotFound`] for a disk the view has not, [`ExportError::Failed`] when the socket cannot be bound.
    pub async fn start(
        &self,
        view: OpenedView,
        disk: Option<DiskId>,
        tls_addr: &str,
    ) -> Result<Vec<ExportInfo>, ExportError> {
        let _ = (view, disk, tls_addr);
        Err(ExportError::Failed(format!("no export server in this build ({})", self.dir.display())))
    }

    /// All running exports, without their credentials.
    pub async fn list(&self) -> Vec<ExportInfo> {
        Vec::new()
    }

    /// Ends an export and its connections.
    ///
    /// # Errors
    /// [`ExportError::NotFound`] when there is none of that id.
    pub async fn stop(&self, id: &str) -> Result<(), ExportError> {
        Err(ExportError::NotFound(format!(
            "there is no export '{id}'; `tidemark export list` shows those there are"
        )))
    }

    /// Ends all exports, at shutdown.
    pub async fn stop_all(&self) {}
}
