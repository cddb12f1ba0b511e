//! What a file system from a guest can be wrong in.

use thiserror::Error;

/// The image contradicts itself. The kernel would refuse it, or mark it for a check.
#[derive(Debug, Error)]
#[error(
    "the file system is damaged at this point ({0}): name another point, or recover the disk and run e2fsck on it"
)]
pub(crate) struct Damaged(pub(crate) String);

/// A feature that is not read here.
#[derive(Debug, Error)]
#[error(
    "the file system uses {0}, which cannot be read here: use `tidemark mount` and mount the disk's image"
)]
pub(crate) struct Unsupported(pub(crate) String);

pub(super) fn damaged(what: impl Into<String>) -> anyhow::Error {
    Damaged(what.into()).into()
}

pub(super) fn unsupported(what: impl Into<String>) -> anyhow::Error {
    Unsupported(what.into()).into()
}
