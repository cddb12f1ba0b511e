//! What can go wrong with the place of the packs, and how failures of the object storage reach the chunk store.

use std::error::Error as _;
use std::io;

use object_store::Error;
use thiserror::Error as ThisError;
use tidemark_journal::storage::{StorageError, StorageErrorKind};

use super::access::AccessError;

/// The place of the packs cannot be used. Every text says what to do.
#[derive(Debug, ThisError)]
pub enum PacksError {
    /// The settings make no sense.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// The server lacks what the packs need.
    #[error("the object storage at {place} cannot hold packs: {problem}")]
    Unfit {
        /// Bucket and prefix.
        place: String,
        /// What it lacks, and what to do.
        problem: String,
    },
    /// Another appliance has the place.
    #[error(
        "{place} belongs to another appliance (on host '{host}', CA {appliance}): choose another prefix; \
         if that appliance is gone for good and its packs with it, delete the object '{object}'"
    )]
    Owned {
        /// Bucket and prefix.
        place: String,
        /// Where the owner runs.
        host: String,
        /// Start of the hash of its CA.
        appliance: String,
        /// The owner object.
        object: String,
    },
    /// The owner object is not readable.
    #[error(
        "the object '{0}' is not as an appliance writes it: another program uses this place; choose another prefix"
    )]
    Foreign(String),
    /// Packs were left elsewhere.
    #[error(
        "the packs of this appliance lie at '{recorded}', not at '{wanted}': start it with --packs {recorded}, or, \
         with it stopped, copy all packs to the new place and delete {file}"
    )]
    Moved {
        /// Where the packs are.
        recorded: String,
        /// What the settings say.
        wanted: String,
        /// The file that records it.
        file: String,
    },
    /// The storage failed.
    #[error("the place of the packs: {0}")]
    Storage(#[from] StorageError),
    /// A file in the data folder failed.
    #[error(transparent)]
    File(#[from] crate::data_dir::FileError),
    /// The cache's folder cannot be used.
    #[error("the cache of packs in {path}: {source}")]
    Cache {
        /// The folder.
        path: String,
        /// Why.
        source: io::Error,
    },
}

/// Characters of a server's answer that are shown at most: some are whole pages.
const SHOWN_MAX_CHARS: usize = 300;

/// A failed call as the chunk store understands it, with words for the operator.
pub(super) fn failed(operation: &'static str, name: &str, place: &str, error: &Error) -> StorageError {
    let (kind, advice) = match error {
        Error::NotFound { .. } if says(error, "NoSuchBucket") => {
            (StorageErrorKind::Failed, Some("there is no such bucket: create it, or correct the URL"))
        }
        Error::NotFound { .. } => (StorageErrorKind::Missing, None),
        Error::AlreadyExists { .. } => (StorageErrorKind::Exists, None),
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => (
            StorageErrorKind::Denied,
            Some(
                "the object storage refused the credentials: check the keys, the region, the clock and the bucket's policy",
            ),
        ),
        _ if says(error, "507 ") || says(error, "QuotaExceeded") || says(error, "XMinioStorageFull") => {
            (StorageErrorKind::Full, Some("the object storage is full, or the quota is used up"))
        }
        _ if says(error, "416 ") || says(error, "InvalidRange") => (StorageErrorKind::Short, None),
        _ => (StorageErrorKind::Failed, None),
    };
    let text = match advice {
        Some(advice) => format!("{advice} ({place}: {})", shown(error)),
        None => format!("{place}: {}", shown(error)),
    };
    StorageError::new(kind, operation, name, io::Error::other(text))
}

/// A failure that is our own finding.
pub(super) fn refused(
    kind: StorageErrorKind,
    operation: &'static str,
    name: &str,
    text: String,
) -> StorageError {
    StorageError::new(kind, operation, name, io::Error::other(text))
}

/// Whether the chain of causes has these words. The client keeps the server's status and answer as text only.
fn says(error: &Error, words: &str) -> bool {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(present) = cause {
        if present.to_string().contains(words) {
            return true;
        }
        cause = present.source();
    }
    false
}

/// The innermost cause says most ("connection refused"); the client's own line says what was asked.
fn shown(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(present) = cause {
        let said = present.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = present.source();
    }
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ").chars().take(SHOWN_MAX_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_one_line_that_says_what_to_do() {
        let source = || Box::new(io::Error::other("status 403:\n<xml>\n".repeat(90)));
        let denied = Error::PermissionDenied { path: "p".to_owned(), source: source() };
        let error = failed("put", "pack-1", "s3://b/p", &denied);
        let text = error.to_string();
        assert_eq!(error.kind(), StorageErrorKind::Denied);
        assert!(!text.contains('\n') && text.len() < 600 && text.contains("check the keys"), "{text}");
        let gone =
            Error::NotFound { path: "p".to_owned(), source: Box::new(io::Error::other("NoSuchBucket")) };
        assert!(failed("put", "x", "s3://b", &gone).to_string().contains("create it"));
        let gone = Error::NotFound { path: "p".to_owned(), source: Box::new(io::Error::other("NoSuchKey")) };
        assert_eq!(failed("get", "x", "s3://b", &gone).kind(), StorageErrorKind::Missing);
    }
}
