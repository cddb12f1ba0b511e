//! What must be kept in the chunk store, as those who keep things there say.

use std::fmt::Debug;

use thiserror::Error;
use tidemark_journal::store::Collection;

/// Roots could not be told, so nothing may be freed.
#[derive(Debug, Error)]
#[error("{owner}: {problem}")]
pub struct RootsError {
    /// Whose roots they are: a VM's name, say.
    pub owner: String,
    /// Why they cannot be told.
    pub problem: String,
}

/// Someone who keeps chunks in the store. A collection asks everybody, and frees only what nobody marked.
pub trait Roots: Debug + Send + Sync {
    /// Marks everything that must stay. It is called after the collection began, so that what becomes durable
    /// meanwhile is protected by the session that put it. Blocks.
    ///
    /// # Errors
    /// When the roots cannot be told completely: the collection then frees nothing.
    fn mark(&self, collection: &Collection) -> Result<(), RootsError>;
}
