//! Restoring a disk of this machine from a rescue system, by a grant.
//!
//! The appliance is told by hashes what the disk has and sends what differs, so a disk that is nearly right costs nearly
//! nothing, and a restore that was interrupted goes on. Afterwards the disk is read again, past every cache, and
//! compared: only then is it restored.

mod exchange;
mod passes;
mod target;

use std::path::Path;
use std::time::{Duration, Instant};

use thiserror::Error;
use tidemark_proto::token::Token;

use crate::transport::{TransportError, pinned};
use exchange::Exchange;
pub use passes::Phase;
use passes::{compare, fetch};
use target::DeviceTarget;
pub use target::TargetError;

/// The disk was not restored.
#[derive(Debug, Error)]
pub enum RestoreError {
    /// No connection.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The appliance refused, in its own words.
    #[error("{0}")]
    Refused(String),
    /// The connection ended.
    #[error(
        "the restore was interrupted ({0}): run it again; what is on the disk already is not fetched again"
    )]
    Interrupted(String),
    /// The appliance's answers make no sense.
    #[error(
        "the appliance answers {0}: it is of another version, or something between is broken; upgrade and run it again"
    )]
    Answer(&'static str),
    /// The disk cannot be used, or failed.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// The disk does not return what was written to it.
    #[error(
        "{disk} does not return what was written to it: {bytes} bytes differ, the first at byte {first}; \
         do not use it: replace the disk and run the restore again"
    )]
    Differs {
        /// Path of the disk.
        disk: String,
        /// In pieces of 64 KiB.
        bytes: u64,
        /// Where the first such piece begins.
        first: u64,
    },
}

/// A disk that was restored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// Whose.
    pub vm: String,
    /// Which, as shown to people.
    pub disk: String,
    /// The point.
    pub lsn: u64,
    /// Its time, microseconds since 1970.
    pub time_us: u64,
    /// Size of the disk at the point, bytes.
    pub size_bytes: u64,
    /// Bytes that differed and came over the wire.
    pub fetched_bytes: u64,
    /// Bytes that differed and became zeroes.
    pub zeroed_bytes: u64,
    /// Bytes of the target beyond the disk's size, left as they were.
    pub untouched_bytes: u64,
    /// What a person should know of the point.
    pub warnings: Vec<String>,
    /// How long it took.
    pub took: Duration,
}

/// Writes the disk that `grant` is for onto the block device `path` and verifies it. `progress` is told the phase, bytes
/// done and bytes in all. Blocks the thread for disk work: call it on a multi-thread runtime.
///
/// # Errors
/// [`RestoreError`]. Until the end the device's first sector says that the restore is incomplete.
pub async fn restore(
    appliance: &str,
    grant: &Token,
    path: &Path,
    progress: &(dyn Fn(Phase, u64, u64) + Sync),
) -> Result<Restored, RestoreError> {
    let begun = Instant::now();
    // First, so that a wrong name costs no use of the grant.
    let mut target = DeviceTarget::open(path)?;
    let channel = pinned(appliance, grant.ca_sha256).await?;
    let (mut exchange, opened) = Exchange::begin(channel, grant).await?;
    let untouched_bytes = target.check_room(opened.size_bytes)?;
    let fetched = fetch(&mut exchange, &mut target, &opened, progress).await?;
    tokio::task::block_in_place(|| target.forget_caches())?;
    let differing = compare(&mut exchange, &target, &opened, progress).await?;
    if let Some((first, bytes)) = differing {
        return Err(RestoreError::Differs { disk: path.display().to_string(), bytes, first });
    }
    tokio::task::block_in_place(|| target.announce());
    Ok(Restored {
        vm: opened.vm,
        disk: opened.disk,
        lsn: opened.lsn,
        time_us: opened.time_us,
        size_bytes: opened.size_bytes,
        fetched_bytes: fetched.fetched_bytes,
        zeroed_bytes: fetched.zeroed_bytes,
        untouched_bytes,
        warnings: opened.warnings,
        took: begun.elapsed(),
    })
}
