//! What objects keep in the chunk store, for collections.

use std::sync::Arc;

use tidemark_journal::image::mark;
use tidemark_journal::store::{ChunkStore, Collection};

use super::Objects;
use crate::images::{Roots, RootsError};

/// The content of all objects.
#[derive(Debug)]
pub struct ObjectRoots {
    store: Arc<ChunkStore>,
    objects: Arc<Objects>,
}

impl ObjectRoots {
    /// The content of `objects`, which lies in `store`.
    #[must_use]
    pub fn new(store: Arc<ChunkStore>, objects: Arc<Objects>) -> Self {
        Self { store, objects }
    }
}

impl Roots for ObjectRoots {
    fn mark(&self, collection: &Collection) -> Result<(), RootsError> {
        let failed = |problem| RootsError { owner: "objects".to_owned(), problem };
        for image in self.objects.roots().map_err(failed)? {
            // What is missing is counted by the collection, which then frees nothing.
            mark(&self.store, &image, collection).map_err(|error| failed(error.to_string()))?;
        }
        Ok(())
    }
}
