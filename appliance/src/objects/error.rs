//! What can go wrong with objects. Every text says what to do.

use thiserror::Error;
use tidemark_journal::image::ImageError;
use tidemark_journal::store::StoreError;

use crate::data_dir::FileError;

/// A call on objects failed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ObjectError {
    /// A name, tag, kind or size that cannot be.
    #[error("{0}")]
    Invalid(String),
    /// The name is taken.
    #[error("an object named '{0}' exists: choose another name, or remove that one first")]
    Taken(String),
    /// Nothing has the name.
    #[error("there is no object named '{0}'; `tidemark object list` shows those there are")]
    Missing(String),
    /// A hold or a lock is in force.
    #[error("{0}")]
    Kept(String),
    /// A limit is reached.
    #[error("{0}")]
    Limit(String),
    /// What arrived is not what was sent.
    #[error(
        "what arrived is not what was announced ({0}): the file changed while it was read, or an interrupted upload was \
         of another content; nothing is kept, run the command again"
    )]
    Mismatch(String),
    /// An upload of the name is under way elsewhere.
    #[error("another upload of '{0}' is under way: wait for its end, or choose another name")]
    Busy(String),
    /// The appliance is ending, or the upload was given up.
    #[error("the upload has ended: run the command again")]
    Ended,
    /// The chunk store failed.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A record's file failed.
    #[error(transparent)]
    File(#[from] FileError),
}

impl From<StoreError> for ObjectError {
    fn from(error: StoreError) -> Self {
        Self::Image(error.into())
    }
}

impl ObjectError {
    /// Whether the store is what is full.
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Image(ImageError::Store(StoreError::Full)))
    }
}
