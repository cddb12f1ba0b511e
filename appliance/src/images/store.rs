//! Opening the store, and the one handle on it.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use thiserror::Error;
use tidemark_journal::storage::{OsStorage, StorageError};
use tidemark_journal::store::{
    ChunkStore, KeyDomain, LocalFolder, MasterSecret, PackFolder, StoreError, StoreOptions, limits,
};

use super::Roots;

/// The domain whose keys all VMs of this appliance share, so that equal chunks of two VMs are stored once.
pub const SHARED_DOMAIN: KeyDomain = KeyDomain(*b"tidemark-shared\0");

/// Subfolder of the packs; keys and index lie beside it.
const PACKS: &str = "packs";

/// The file by which a store is known to be there.
const KEY_FILE: &str = "chunk-keys";

/// The store cannot be opened.
#[derive(Debug, Error)]
pub enum ImagesError {
    /// The folder cannot be used.
    #[error("the folder of the chunk store: {0}")]
    Folder(#[from] StorageError),
    /// The store says why.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The appliance's chunk store and those who keep something in it.
#[derive(Debug)]
pub struct Images {
    store: Arc<ChunkStore>,
    roots: Mutex<Vec<Arc<dyn Roots>>>,
}

impl Images {
    /// Whether there is a store in `dir`.
    #[must_use]
    pub fn exist(dir: &Path) -> bool {
        dir.join(KEY_FILE).exists()
    }

    /// Opens the store in `dir`, creating it when there is none, with its packs in a folder below. Blocks.
    ///
    /// # Errors
    /// When the secret is not the store's, its key file is damaged or missing, or the disk fails.
    pub fn open(dir: &Path, secret: &MasterSecret) -> Result<Self, ImagesError> {
        // Both private: the names of packs say when something was stored.
        OsStorage::create(dir)?;
        let packs = LocalFolder::new(Arc::new(OsStorage::create(dir.join(PACKS))?));
        Self::open_with(dir, Arc::new(packs), secret, limits::FLOOR_BYTES)
    }

    /// As [`Images::open`], with the packs in any folder or bucket; so many bytes of the disk are left free. Blocks.
    ///
    /// # Errors
    /// As [`Images::open`].
    pub fn open_with(
        dir: &Path,
        packs: Arc<dyn PackFolder>,
        secret: &MasterSecret,
        floor_bytes: u64,
    ) -> Result<Self, ImagesError> {
        let storage = Arc::new(OsStorage::create(dir)?);
        let options = StoreOptions { seed: rand::random(), floor_bytes, ..StoreOptions::default() };
        let store = if Self::exist(dir) {
            let (store, report) = ChunkStore::open(storage, packs, secret, options)?;
            if report.added > 0 || report.forgotten > 0 {
                let (added, forgotten) = (report.added, report.forgotten);
                tracing::info!(added, forgotten, "the chunk index was brought in line with the packs");
            }
            for (pack, problem) in report.unreadable {
                tracing::error!(%pack, problem, "a pack of the chunk store is damaged: its chunks cannot be read");
            }
            store
        } else {
            ChunkStore::create(storage, packs, secret, options)?
        };
        store.add_domain(SHARED_DOMAIN)?;
        Ok(Self { store: Arc::new(store), roots: Mutex::default() })
    }

    /// The store.
    #[must_use]
    pub fn store(&self) -> &Arc<ChunkStore> {
        &self.store
    }

    /// Whoever keeps chunks in the store says so here, before the first collection.
    pub fn add_roots(&self, roots: Arc<dyn Roots>) {
        self.roots.lock().unwrap_or_else(PoisonError::into_inner).push(roots);
    }

    /// Everybody who keeps chunks in the store.
    #[must_use]
    pub fn roots(&self) -> Vec<Arc<dyn Roots>> {
        self.roots.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
mod tests {
    use tidemark_journal::store::MasterKey;

    use super::*;

    fn secret(byte: u8) -> MasterSecret {
        MasterSecret::Key(MasterKey::from_bytes(&[byte; 32]).unwrap())
    }

    #[test]
    fn what_was_put_is_there_at_the_next_opening_and_only_under_its_key() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("store");
        let content = b"a line that would be seen in a stolen folder".repeat(40);
        let id = {
            let images = Images::open(&dir, &secret(1)).unwrap();
            let id = images.store().session(SHARED_DOMAIN).unwrap().put(&content).unwrap();
            images.store().flush().unwrap();
            id
        };
        assert!(matches!(
            Images::open(&dir, &secret(2)).unwrap_err(),
            ImagesError::Store(StoreError::WrongKey)
        ));
        let images = Images::open(&dir, &secret(1)).unwrap();
        assert_eq!(images.store().get(&id).unwrap().as_ref(), content);
        assert!(Images::open(&dir, &secret(1)).is_err(), "the store is locked");
        let packs: Vec<_> = std::fs::read_dir(dir.join(PACKS)).unwrap().flatten().collect();
        assert!(!packs.is_empty());
        for pack in packs {
            let bytes = std::fs::read(pack.path()).unwrap();
            assert!(!bytes.windows(16).any(|window| window == &content[..16]), "{:?}", pack.path());
        }
    }
}
