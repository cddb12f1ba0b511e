//! Errors, one type per class of operation. Every text says what happened and, where someone can act, what to do.

use thiserror::Error;
use tidemark_proto::ids::{DiskId, Lsn};

use crate::recovery::Damage;
use crate::storage::StorageError;
use crate::timeline::Refused;

/// A journal cannot be created or opened.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The folder already holds a journal.
    #[error("a journal is already here: open it instead")]
    Exists,
    /// The folder holds no journal.
    #[error("no journal is here: there is no manifest")]
    Missing,
    /// Another process has it open for writing.
    #[error("the journal is in use by another process")]
    Locked,
    /// Written by a newer version.
    #[error("the journal needs a newer version of tidemark: {0}")]
    Newer(String),
    /// The manifest is damaged at its very start, so that nothing can be trusted.
    #[error("the manifest is damaged: {0}")]
    Damaged(Damage),
    /// It is encrypted, and what was given does not open it.
    #[error("the journal is encrypted: {0}")]
    Keys(&'static str),
    /// An option is out of its range.
    #[error("option out of range: {0}")]
    Option(&'static str),
    /// The storage failed.
    #[error("the journal cannot be opened: {0}")]
    Storage(#[from] StorageError),
}

/// A frame, disk or note was not taken. Nothing of it is in the journal.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AppendError {
    /// The frame breaks a rule of the stream: the sender is at fault.
    #[error("the frame is refused: {0}")]
    Invalid(String),
    /// No space. Later appends work once there is space again.
    #[error("the disk of the journal is full: free space or add some")]
    Full,
    /// An earlier sync failed: what reached the disk is unknown until the journal is opened again.
    #[error("an earlier write to the journal's disk failed: check the disk, then restart the appliance")]
    Poisoned,
    /// Opened read-only, or damaged.
    #[error("the journal is read-only: {0}")]
    ReadOnly(String),
    /// The storage failed.
    #[error("the journal cannot be written: {0}")]
    Storage(StorageError),
}

impl From<StorageError> for AppendError {
    fn from(error: StorageError) -> Self {
        if error.is_full() { Self::Full } else { Self::Storage(error) }
    }
}

/// What was appended is not known to be durable.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SyncError {
    /// The storage refused. The journal takes nothing more until it is opened again: after a failed sync the kernel
    /// may have dropped the data, and a second sync would lie.
    #[error(
        "the journal's disk failed to make data durable ({0}): check the disk, then restart the appliance"
    )]
    Failed(StorageError),
    /// An earlier sync failed.
    #[error("an earlier write to the journal's disk failed: check the disk, then restart the appliance")]
    Poisoned,
    /// No space for the manifest or a leaf index. A later sync works once there is space again.
    #[error("the disk of the journal is full: free space or add some")]
    Full,
    /// Opened read-only, or damaged.
    #[error("the journal is read-only: {0}")]
    ReadOnly(String),
}

/// A place of the journal cannot be read, or what is there is not what was written.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ReadError {
    /// A checksum does not match.
    #[error("{0}")]
    Damaged(Damage),
    /// The storage failed.
    #[error("the journal cannot be read: {0}")]
    Storage(#[from] StorageError),
    /// It is encrypted, and its keys were not given.
    #[error("{file} is encrypted: open the journal with its master key")]
    NoKey {
        /// The file.
        file: String,
    },
    /// The image below the journal cannot be read.
    #[error("the image of {disk} cannot be read: {source}")]
    Image {
        /// Whose image.
        disk: DiskId,
        /// What its keeper says.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// A view cannot be opened or read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ViewError {
    /// The LSN is no recovery point.
    #[error("{0}")]
    Refused(Box<Refused>),
    /// The VM has no such disk at that LSN.
    #[error("{disk} does not exist at LSN {lsn}")]
    NoDisk {
        /// The disk asked for.
        disk: DiskId,
        /// The view's LSN.
        lsn: Lsn,
    },
    /// The range ends beyond the disk.
    #[error("bytes {offset} to {end} lie beyond the end of the disk at {size}")]
    Range {
        /// First byte asked for.
        offset: u64,
        /// Byte after the last one asked for.
        end: u64,
        /// Size of the disk as of the view, bytes.
        size: u64,
    },
    /// The journal cannot be read there.
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// A pin, the cutoff or the base did not change.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RetentionError {
    /// A retention lock stands against it.
    #[error("{name} is locked until {until_us} us since the epoch: nobody can release it before")]
    Locked {
        /// The lock's name.
        name: String,
        /// When it ends.
        until_us: u64,
    },
    /// The point was given up already.
    #[error("points before LSN {cutoff} are given up: choose a later one")]
    Gone {
        /// The oldest LSN that is kept.
        cutoff: Lsn,
    },
    /// A bookmark keeps the snapshot.
    #[error("{name} keeps the snapshot: release it first")]
    Held {
        /// The pin's name.
        name: String,
    },
    /// The caller is at fault.
    #[error("{0}")]
    Invalid(String),
    /// The manifest cannot be written.
    #[error(transparent)]
    Write(#[from] AppendError),
    /// The journal cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
}
