//! Why capture cannot start or go on.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use crate::disks::Refusal;

/// Capture cannot start, or a disk cannot be added. Every text is one line that says what to do.
#[derive(Debug, Error)]
pub enum CaptureError {
    /// This machine cannot run the tap.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// bpffs is missing and cannot be mounted.
    #[error("cannot use the BPF file system at {path}: {source}; mount it with `mount -t bpf bpf {path}`")]
    Bpffs {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another process consumes this capture.
    #[error("another splitter uses the capture pinned at {0}; stop it first")]
    Locked(PathBuf),
    /// The kernel refused the programs.
    #[error("the kernel refused the eBPF program {program}: {detail}")]
    Load {
        /// Which.
        program: &'static str,
        /// The loader's or verifier's last words.
        detail: String,
    },
    /// A system call failed.
    #[error("cannot {action}: {source}")]
    Io {
        /// What was tried, as "verb object".
        action: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The page-address constant could not be found.
    #[error(
        "cannot find where this kernel keeps page memory: {0}; capture would copy wrong memory, so it is refused"
    )]
    Calibration(String),
    /// What the tap saw is not what was written.
    #[error("the self-test of the tap failed: {0}; capture is refused on this kernel")]
    SelfTest(String),
    /// No room for another disk.
    #[error("{limit} disks are protected already; remove one first")]
    TooManyDisks {
        /// How many there may be.
        limit: u16,
    },
    /// The slot holds no disk.
    #[error("slot {0} holds no disk")]
    NoDisk(u16),
}

impl CaptureError {
    pub(crate) fn io(action: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let action = action.into();
        move |source| Self::Io { action, source }
    }
}
