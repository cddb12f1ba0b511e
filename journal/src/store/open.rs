//! Creating and opening a store, and bringing its index in line with the packs.

use std::collections::{BTreeMap, BTreeSet};
use std::io::IoSlice;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, RwLock};

use super::crypt::derive;
use super::index::{ChunkIndex, PackInfo, read_directory};
use super::keys::{KeyFile, KeyRing, MasterKey};
use super::lru::Lru;
use super::state::{Compressors, Counters, Keys, PackState, State};
use super::{ChunkStore, MasterSecret, PackFolder, PackId, StoreError, StoreOptions, limits};
use crate::storage::{Storage, StorageErrorKind};
use crate::wire::size;

const KEY_FILE: &str = "chunk-keys";
const KEY_NEW_FILE: &str = "chunk-keys.new";

/// What opening found and did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OpenReport {
    /// Packs that the index did not know.
    pub added: u64,
    /// Packs that the index knew and that are gone.
    pub forgotten: u64,
    /// Packs that cannot be read, with what is wrong: they are left alone.
    pub unreadable: Vec<(PackId, String)>,
}

impl ChunkStore {
    /// A new store: the keys and the index go to `storage`, the packs to `folder`.
    ///
    /// # Errors
    /// When there is one already, or the storage fails.
    pub fn create(
        storage: Arc<dyn Storage>,
        folder: Arc<dyn PackFolder>,
        secret: &MasterSecret,
        options: StoreOptions,
    ) -> Result<Self, StoreError> {
        let lock = storage.lock()?;
        match storage.open(KEY_FILE) {
            Ok(_) => return Err(StoreError::Place("a chunk store is already here: open it instead")),
            Err(error) if error.kind() == StorageErrorKind::Missing => {}
            Err(error) => return Err(error.into()),
        }
        if !folder.list()?.is_empty() {
            return Err(StoreError::Place("packs are here without their keys: put the key file back"));
        }
        let counters = Counters::default();
        let keys = new_keys(KeyRing::default(), secret, &options, &counters)?;
        write_keys(storage.as_ref(), &keys.file)?;
        let index = ChunkIndex::create(storage.as_ref(), options.index_cache_bytes)?;
        Self::assemble(storage, folder, lock, options, keys, index, counters).map(|(store, _)| store)
    }

    /// Opens a store.
    ///
    /// # Errors
    /// [`StoreError::WrongKey`] when the secret is not the store's; when there is no store, its key file is damaged,
    /// another process has it, or the storage fails. Packs that cannot be read are no error but in the report.
    pub fn open(
        storage: Arc<dyn Storage>,
        folder: Arc<dyn PackFolder>,
        secret: &MasterSecret,
        options: StoreOptions,
    ) -> Result<(Self, OpenReport), StoreError> {
        let lock = storage.lock()?;
        let file = read_keys(storage.as_ref())?;
        let master = file.master(secret)?;
        let keys = Keys { ring: file.unwrap_keys(&master)?, master, file };
        let index = ChunkIndex::open(storage.as_ref(), options.index_cache_bytes)?;
        Self::assemble(storage, folder, lock, options, keys, index, Counters::default())
    }

    fn assemble(
        storage: Arc<dyn Storage>,
        folder: Arc<dyn PackFolder>,
        lock: Box<dyn crate::storage::StorageLock>,
        options: StoreOptions,
        keys: Keys,
        index: ChunkIndex,
        counters: Counters,
    ) -> Result<(Self, OpenReport), StoreError> {
        if !(4096..=limits::PACK_MAX_BYTES).contains(&options.pack_bytes) {
            return Err(StoreError::Limit("packs have 4 KiB to 64 MiB"));
        }
        folder.clean()?;
        // A pack that can be seen is whole but may not be durable yet, and the index is about to say that it is there.
        folder.sync()?;
        let mut report = OpenReport::default();
        let packs = in_line(folder.as_ref(), &index, &mut report)?;
        index.sync()?;
        storage.sync_dir()?;
        let state = State { packs, epoch: 1, ..State::default() };
        let store = Self {
            storage,
            folder,
            index,
            keys: RwLock::new(keys),
            state: Mutex::new(state),
            writing: Mutex::new(()),
            cache: Mutex::new(Lru::new(options.cache_bytes)),
            compressors: Compressors::default(),
            poisoned: AtomicBool::new(false),
            counters,
            options,
            _lock: lock,
        };
        Ok((store, report))
    }

    /// Compares the index with the directories of all packs, row by row; what differs, for people.
    ///
    /// # Errors
    /// When a pack or the index cannot be read.
    pub fn check_index(&self) -> Result<Vec<String>, StoreError> {
        let mut expected = BTreeMap::new();
        for (name, bytes) in self.folder.list()? {
            let Some(pack) = PackId::of_name(&name) else { continue };
            for chunk in read_directory(self.folder.as_ref(), &pack, bytes)?.1 {
                expected.insert((chunk.id, pack), chunk);
            }
        }
        let mut differs = Vec::new();
        for (pack, chunk) in self.index.rows()? {
            if expected.remove(&(chunk.id, pack)) != Some(chunk) {
                differs
                    .push(format!("the index has chunk {} in pack {pack}, which the pack has not", chunk.id));
            }
        }
        let missing = expected.keys();
        differs.extend(missing.map(|(chunk, pack)| format!("the index lacks chunk {chunk} in pack {pack}")));
        Ok(differs)
    }
}

/// Adds packs that the index does not know, and forgets those that are gone.
fn in_line(
    folder: &dyn PackFolder,
    index: &ChunkIndex,
    report: &mut OpenReport,
) -> Result<BTreeMap<PackId, PackState>, StoreError> {
    let listed = folder.list()?;
    let there: BTreeMap<PackId, u64> =
        listed.iter().filter_map(|(name, bytes)| Some((PackId::of_name(name)?, *bytes))).collect();
    let mut packs = BTreeMap::new();
    let mut gone = BTreeSet::new();
    for (pack, info) in index.packs()? {
        // A pack of another length is not the pack that was indexed: it is read again.
        if there.get(&pack) == Some(&info.bytes) {
            packs.insert(pack, PackState { info, epoch: 0 });
        } else {
            gone.insert(pack);
        }
    }
    if !gone.is_empty() {
        index.forget(|pack| gone.contains(pack))?;
    }
    report.forgotten = gone.len() as u64;
    for (pack, bytes) in there {
        if packs.contains_key(&pack) {
            continue;
        }
        match read_directory(folder, &pack, bytes) {
            Ok((header, chunks)) => {
                let info = PackInfo::of(&header, chunks.len(), bytes);
                index.add(&pack, &info, &chunks)?;
                packs.insert(pack, PackState { info, epoch: 0 });
                report.added += 1;
            }
            Err(StoreError::Pack { problem, .. }) => report.unreadable.push((pack, problem.to_owned())),
            Err(error) => return Err(error),
        }
    }
    Ok(packs)
}

/// 32 bytes that the seed gives once.
pub(super) fn derived(options: &StoreOptions, counters: &Counters, purpose: &'static str) -> [u8; 32] {
    let number = counters.derived.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
    derive(&options.seed, purpose, &[&number.to_le_bytes()]).0
}

/// Wraps a ring under a secret, with fresh salts.
pub(super) fn new_keys(
    ring: KeyRing,
    secret: &MasterSecret,
    options: &StoreOptions,
    counters: &Counters,
) -> Result<Keys, StoreError> {
    let salt = derived(options, counters, "tidemark kdf salt");
    let (master, cost) = match secret {
        MasterSecret::Key(key) => (key.clone(), None),
        MasterSecret::Passphrase(passphrase) => {
            (MasterKey::from_passphrase(passphrase, options.kdf, &salt)?, Some(options.kdf))
        }
    };
    let wrap_salt = derived(options, counters, "tidemark wrap salt");
    let file = KeyFile::wrap(&ring, &master, cost, salt, wrap_salt)?;
    Ok(Keys { ring, master, file })
}

/// The key file as it is.
pub(super) fn read_keys(storage: &dyn Storage) -> Result<KeyFile, StoreError> {
    let file = match storage.open(KEY_FILE) {
        Ok(file) => file,
        Err(error) if error.kind() == StorageErrorKind::Missing => {
            return Err(StoreError::Place("no chunk store is here: there is no key file"));
        }
        Err(error) => return Err(error.into()),
    };
    let bytes = file.len()?;
    if bytes > super::keys::KEY_FILE_MAX_BYTES {
        return Err(StoreError::KeyFile("it is too long"));
    }
    let mut content = vec![0; size(bytes)];
    file.read_at(0, &mut content)?;
    Ok(KeyFile::decode(&content)?)
}

/// Replaces the key file, durably.
pub(super) fn write_keys(storage: &dyn Storage, file: &KeyFile) -> Result<(), StoreError> {
    match storage.remove(KEY_NEW_FILE) {
        Err(error) if error.kind() != StorageErrorKind::Missing => return Err(error.into()),
        _ => {}
    }
    let new = storage.create(KEY_NEW_FILE)?;
    new.write_at(0, &mut [IoSlice::new(&file.encode())])?;
    new.sync()?;
    storage.rename(KEY_NEW_FILE, KEY_FILE)?;
    storage.sync_dir()?;
    Ok(())
}
