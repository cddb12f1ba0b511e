//! What can go wrong with the chunk store. Every text says what happened and, where someone can act, what to do.

use thiserror::Error;

use super::{ChunkId, KeyDomain, PackId};
use crate::storage::{StorageError, StorageErrorKind};

/// A call of the chunk store failed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StoreError {
    /// No pack has the chunk.
    #[error("chunk {0} is not in the store")]
    Missing(ChunkId),
    /// What is stored is not what was put.
    #[error("chunk {chunk} in pack {pack} is damaged: {problem}")]
    Damaged {
        /// The chunk.
        chunk: ChunkId,
        /// Where it lies.
        pack: PackId,
        /// What is wrong.
        problem: &'static str,
    },
    /// The key file is not as written.
    #[error(
        "the key file of the chunk store is damaged ({0}): put the copy back that was made with the last key change"
    )]
    KeyFile(&'static str),
    /// The master key or passphrase is not the one that the data keys are wrapped under.
    #[error("the master key or passphrase does not open the chunk store's keys")]
    WrongKey,
    /// What was given can be no master key.
    #[error("not a master key: {0}")]
    BadKey(&'static str),
    /// No such domain.
    #[error("the chunk store has no keys of domain {0}")]
    NoDomain(KeyDomain),
    /// Written by a newer version.
    #[error("the chunk store needs a newer version of tidemark: {0}")]
    Newer(&'static str),
    /// There is a store already, or none.
    #[error("{0}")]
    Place(&'static str),
    /// A chunk is longer than [`super::CHUNK_BYTES`] or empty.
    #[error("a chunk has 1 to 65536 bytes, not {0}")]
    Length(usize),
    /// A limit of [`super::limits`] is reached.
    #[error("the chunk store's limit is reached: {0}")]
    Limit(&'static str),
    /// Another process has the store open.
    #[error("the chunk store is in use by another process")]
    Locked,
    /// Another collection is under way.
    #[error("a garbage collection is under way: wait for its end")]
    Collecting,
    /// Roots name chunks that are missing, so what is live is not known.
    #[error("{0} live chunks are missing: scrub the store before space is freed")]
    MissingLive(u64),
    /// No space. Later calls work once there is space again.
    #[error("the disk of the chunk store is full: free space or add some")]
    Full,
    /// An earlier failure left open what is durable.
    #[error("an earlier write to the chunk store failed: check its disk, then restart the appliance")]
    Poisoned,
    /// The index failed; it is rebuilt from the packs at the next opening.
    #[error("the chunk index failed ({0}): restart the appliance, which rebuilds it")]
    Index(String),
    /// A pack is not as the index says.
    #[error("pack {pack} is not as written: {problem}")]
    Pack {
        /// The pack.
        pack: PackId,
        /// What is wrong.
        problem: &'static str,
    },
    /// The storage failed.
    #[error("the chunk store's storage failed: {0}")]
    Storage(StorageError),
    /// Cryptography or compression refused: never on intact content.
    #[error("the chunk store cannot {0}")]
    Codec(&'static str),
}

impl From<StorageError> for StoreError {
    fn from(error: StorageError) -> Self {
        match error.kind() {
            StorageErrorKind::Full => Self::Full,
            StorageErrorKind::Locked => Self::Locked,
            _ => Self::Storage(error),
        }
    }
}
