//! Files of a journal open for reading, a bounded number of them.

use std::sync::{Arc, Mutex, PoisonError};

use crate::leaf::leaf_name;
use crate::node::Span;
use crate::options::limits::OPEN_FILES_MAX;
use crate::segment::segment_name;
use crate::storage::{Storage, StorageError, StorageFile};

/// Which file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum FileKey {
    Segment(u64),
    Leaf(u64),
    Node(Span),
}

impl FileKey {
    pub(crate) fn name(self) -> String {
        match self {
            Self::Segment(ordinal) => segment_name(ordinal),
            Self::Leaf(ordinal) => leaf_name(ordinal),
            Self::Node(span) => span.name(),
        }
    }
}

#[derive(Debug)]
pub(super) struct Files {
    storage: Arc<dyn Storage>,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    uses: u64,
    files: Vec<(FileKey, u64, Arc<dyn StorageFile>)>,
}

impl Files {
    pub(super) fn new(storage: Arc<dyn Storage>) -> Self {
        Self { storage, open: Mutex::default() }
    }

    pub(super) fn get(&self, key: FileKey) -> Result<Arc<dyn StorageFile>, StorageError> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.uses += 1;
        let now = open.uses;
        if let Some((_, used, file)) = open.files.iter_mut().find(|(known, _, _)| *known == key) {
            *used = now;
            return Ok(Arc::clone(file));
        }
        let file = self.storage.open(&key.name())?;
        if open.files.len() >= OPEN_FILES_MAX
            && let Some(oldest) =
                (0..).zip(&open.files).min_by_key(|(_, (_, used, _))| *used).map(|(at, _)| at)
        {
            open.files.swap_remove(oldest);
        }
        open.files.push((key, now, Arc::clone(&file)));
        Ok(file)
    }

    /// The file of that name is about to be another.
    pub(super) fn forget(&self, key: FileKey) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.files.retain(|(known, _, _)| *known != key);
    }
}
