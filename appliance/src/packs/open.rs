//! Choosing the place, and finding out that it may be used.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tidemark_journal::storage::Storage;
use tidemark_journal::store::{LocalFolder, PackFolder};
use tokio::runtime::Handle;

use super::access::Access;
use super::owner::Owner;
use super::self_test::{remove_leftovers, self_test};
use super::{ObjectFolder, PackLocation, PacksError, PieceCache, Remote, WholePacks, limits};
use crate::data_dir::{read_text, write_private};

/// Where packs lie and how they are reached.
#[derive(Debug, Clone, Default)]
pub struct PackSettings {
    /// The place.
    pub location: PackLocation,
    /// A private file with endpoint and credentials; without it the environment is read.
    pub access_file: Option<PathBuf>,
    /// Bytes of the local cache; `None`: [`limits::CACHE_BYTES`].
    pub cache_bytes: Option<u64>,
}

/// The packs' place, ready for a chunk store.
#[derive(Debug, Clone)]
pub struct Packs {
    /// For the store.
    pub folder: Arc<dyn PackFolder>,
    /// For scrubs: what is stored, not what is cached of it.
    pub stored: Arc<dyn PackFolder>,
    /// The same as `folder` where it is in object storage, for its counters.
    pub objects: Option<Arc<ObjectFolder>>,
}

/// Records where the packs are: a store that looks elsewhere would take all of them for lost.
const LOCATION_FILE: &str = "packs-location";

/// Opens the place of the packs. `data` is the folder of the chunk store, whose files `local` gives; `appliance`
/// identifies us to other appliances. Blocks; not from a task of `runtime`.
///
/// # Errors
/// When the place cannot be reached, is not fit, belongs to another appliance, or is not where the packs are.
pub fn open(
    settings: &PackSettings,
    local: Arc<dyn Storage>,
    data: &Path,
    appliance: &str,
    runtime: Handle,
    now_us: u64,
) -> Result<Packs, PacksError> {
    let record = data.join(LOCATION_FILE);
    let wanted = settings.location.to_string();
    let here: Arc<dyn PackFolder> = Arc::new(LocalFolder::new(local));
    let recorded = if record.exists() {
        Some(read_text(&record)?.trim().to_owned())
    } else {
        // Packs that lie here were put here.
        (!here.list()?.is_empty()).then(|| PackLocation::Local.to_string())
    };
    let known = recorded.is_some();
    if let Some(recorded) = recorded.filter(|recorded| *recorded != wanted) {
        return Err(PacksError::Moved { recorded, wanted, file: record.display().to_string() });
    }
    let packs = match &settings.location {
        PackLocation::Local => Packs { folder: Arc::clone(&here), stored: here, objects: None },
        PackLocation::S3(place) => {
            let access = match &settings.access_file {
                Some(file) => Access::from_file(file)?,
                None => Access::from_environment(|name| std::env::var(name).ok())?,
            };
            let remote = Remote::new(Arc::new(access.client(place)?), runtime, place);
            let cache = data.join("pack-cache");
            let bytes = settings.cache_bytes.unwrap_or(limits::CACHE_BYTES);
            let cache = PieceCache::open(&cache, bytes)
                .map_err(|source| PacksError::Cache { path: cache.display().to_string(), source })?;
            let folder = Arc::new(take(remote, Some(cache), appliance, now_us)?);
            tracing::info!(place = %place, endpoint = access.endpoint(), "packs lie in object storage");
            let stored = Arc::new(WholePacks::new(Arc::clone(&folder)));
            Packs { folder: folder.clone(), stored, objects: Some(folder) }
        }
    };
    if !known {
        write_private(&record, format!("{wanted}\n").as_bytes())?;
    }
    Ok(packs)
}

/// Takes a place for an appliance, once its server has shown that it keeps what it is given.
pub(super) fn take(
    remote: Remote,
    cache: Option<PieceCache>,
    appliance: &str,
    now_us: u64,
) -> Result<ObjectFolder, PacksError> {
    self_test(&remote)?;
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let owner = Owner::claim(&remote, appliance, host.trim(), now_us)?;
    remove_leftovers(&remote)?;
    Ok(ObjectFolder::new(remote, owner, cache))
}

impl ObjectFolder {
    /// Takes a place for an appliance, as [`open`] does.
    ///
    /// # Errors
    /// As [`open`].
    pub fn take(
        remote: Remote,
        cache: Option<PieceCache>,
        appliance: &str,
        now_us: u64,
    ) -> Result<Self, PacksError> {
        take(remote, cache, appliance, now_us)
    }
}
