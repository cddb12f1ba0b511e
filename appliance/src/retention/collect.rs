//! Collections of the chunk store: what no VM and nobody else keeps is freed.

use thiserror::Error;
use tidemark_journal::image::ImageError;
use tidemark_journal::retention::{mark_all, mark_images};
use tidemark_journal::store::{CollectionReport, StoreError, SweepOptions};

use crate::core::Core;
use crate::images::RootsError;

/// Nothing was freed, or not all.
#[derive(Debug, Error)]
pub enum CollectError {
    /// Someone cannot say what must stay, so everything does.
    #[error("no space is freed while it is unknown what must stay: {0}")]
    Roots(#[from] RootsError),
    /// The store says why.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Frees what nobody keeps. Blocks.
///
/// # Errors
/// When a root cannot be told or read, nothing is freed.
pub fn collect(core: &Core) -> Result<CollectionReport, CollectError> {
    let store = core.images.store();
    let collection = store.begin_gc()?;
    // After the beginning: what becomes a root later is protected by the session that made it.
    // Clones too: one of a template reads that template's image.
    for vm in core.fleet.with_clones() {
        let fail = |problem: String| RootsError { owner: vm.name.clone(), problem };
        let read = |error: ImageError| fail(error.to_string());
        // Views of a journal that was opened again live on.
        for live in vm.log.past_images() {
            mark_all(store, &live, &collection).map_err(read)?;
        }
        let journal = vm.log.journal().map_err(|down| fail(down.to_string()))?;
        mark_images(store, &journal, &collection).map_err(read)?;
    }
    for roots in core.images.roots() {
        roots.mark(&collection)?;
    }
    Ok(collection.sweep(SweepOptions::default())?)
}
