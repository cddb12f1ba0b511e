//! Why there is no gate.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// One line that says what to do.
#[derive(Debug, Error)]
pub enum GateError {
    /// No ublk driver.
    #[error(
        "this kernel has no ublk driver, which synchronous mode needs (CONFIG_BLK_DEV_UBLK; Debian's kernels from 6.12 on have it): load it with 'modprobe ublk_drv', or use a newer kernel; mode async needs neither"
    )]
    NoUblk,
    /// The driver cannot hand requests of a dead server to the next.
    #[error(
        "this kernel's ublk driver cannot recover from the death of its server, so synchronous mode could fail I/O: use Linux 6.6 or newer; mode async does not need it"
    )]
    NoRecovery,
    /// io_uring is disabled.
    #[error(
        "io_uring is switched off on this machine (sysctl kernel.io_uring_disabled): synchronous mode needs it, allow it for root"
    )]
    NoIoUring,
    /// A ublk command failed.
    #[error("cannot {action}: {source}")]
    Ublk {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A device-mapper command failed.
    #[error("device-mapper cannot {action} {name}: {source}")]
    Mapper {
        /// What was tried.
        action: &'static str,
        /// On which device.
        name: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// Not a mapped device.
    #[error(
        "{0} is no LVM or device-mapper volume: synchronous mode works on volumes such as /dev/vg/lv, protect the disks below with 'tidemark-splitter protect'"
    )]
    NotMapped(PathBuf),
    /// The volume is of a kind that cannot be gated.
    #[error("{path} cannot be in synchronous mode: {reason}")]
    Unsuitable {
        /// The volume.
        path: PathBuf,
        /// Why, and what to do.
        reason: String,
    },
    /// Something of the operating system.
    #[error("cannot {action}: {source}")]
    Os {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The gate's process did not start.
    #[error("the gate did not start: {0}")]
    NotStarted(String),
}

impl GateError {
    pub(super) fn os(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Os { action, source }
    }
}
