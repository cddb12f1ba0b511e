//! The store while it is open. Locks, in the order in which they may be taken: `writing`, `keys`, `state`, the rest.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use zstd::bulk::Compressor;

use super::gc::Marks;
use super::index::{ChunkIndex, PackInfo};
use super::keys::{KdfCost, KeyFile, KeyRing, MasterKey};
use super::lru::Lru;
use super::pack::PackBuilder;
use super::{ChunkId, KeyDomain, PackFolder, PackId, StoreError, limits};
use crate::storage::{Storage, StorageLock};

/// Settings of a store. The default is right for production, but for `seed`.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// 32 random bytes, fresh for every opening and secret: new keys and the salts of packs come from it.
    pub seed: [u8; 32],
    /// Bytes at which a pack is written; at most [`limits::PACK_MAX_BYTES`].
    pub pack_bytes: usize,
    /// Level of zstd; 0 leaves chunks uncompressed.
    pub compression: i32,
    /// Bytes of decoded chunks to keep.
    pub cache_bytes: usize,
    /// Bytes of the index to keep.
    pub index_cache_bytes: usize,
    /// Cost of passphrases that are set from now on.
    pub kdf: KdfCost,
    /// Bytes of the index's disk that packs leave free; see [`limits::FLOOR_BYTES`].
    pub floor_bytes: u64,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            seed: [0; 32],
            pack_bytes: limits::PACK_BYTES,
            compression: 3,
            cache_bytes: limits::CACHE_BYTES,
            index_cache_bytes: limits::INDEX_CACHE_BYTES,
            kdf: KdfCost::default(),
            floor_bytes: limits::FLOOR_BYTES,
        }
    }
}

/// Counters, since the opening unless said otherwise.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StoreStatistics {
    /// Bytes of content put.
    pub put_bytes: u64,
    /// Bytes of it that were not there yet: what was stored, before compression.
    pub new_bytes: u64,
    /// Bytes of packs written, repacking included.
    pub written_bytes: u64,
    /// Packs now.
    pub packs: u64,
    /// Bytes of packs now, those in memory left out.
    pub pack_bytes: u64,
    /// Bytes of packs in memory now.
    pub open_bytes: u64,
    /// Bytes of decoded chunks in memory now.
    pub cache_bytes: u64,
}

/// A store of chunks, open. All methods take `&self`; it may be shared between threads. Dropping it without
/// [`ChunkStore::flush`] loses what was put since the last.
#[derive(Debug)]
pub struct ChunkStore {
    pub(super) storage: Arc<dyn Storage>,
    pub(super) folder: Arc<dyn PackFolder>,
    pub(super) options: StoreOptions,
    pub(super) index: ChunkIndex,
    pub(super) keys: RwLock<Keys>,
    pub(super) state: Mutex<State>,
    /// Held while packs are written: one at a time, and never twice.
    pub(super) writing: Mutex<()>,
    pub(super) cache: Mutex<Lru>,
    pub(super) compressors: Compressors,
    pub(super) poisoned: AtomicBool,
    pub(super) counters: Counters,
    pub(super) _lock: Box<dyn StorageLock>,
}

/// Compression contexts that are idle: as many as threads ever compressed at once.
#[derive(Default)]
pub(super) struct Compressors(pub Mutex<Vec<Compressor<'static>>>);

impl std::fmt::Debug for Compressors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Compressors")
    }
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub put_bytes: AtomicU64,
    pub new_bytes: AtomicU64,
    pub written_bytes: AtomicU64,
    /// Numbers what is derived from the seed.
    pub derived: AtomicU64,
}

/// The unwrapped keys, and what is needed to wrap them again.
#[derive(Debug)]
pub(super) struct Keys {
    pub ring: KeyRing,
    pub master: MasterKey,
    pub file: KeyFile,
}

#[derive(Debug, Default)]
pub(super) struct State {
    /// Packs being filled.
    pub open: BTreeMap<KeyDomain, PackBuilder>,
    /// Packs that are full and not yet in the index.
    pub full: BTreeMap<PackId, Arc<PackBuilder>>,
    /// Packs in the index that may be relied on.
    pub packs: BTreeMap<PackId, PackState>,
    /// Grows with every session and collection: orders packs against them.
    pub epoch: u64,
    pub sessions: BTreeMap<u64, SessionState>,
    pub last_session: u64,
    pub marks: Option<Marks>,
    /// Copies that were read and found damaged; at most [`DAMAGED_MAX`].
    pub damaged: BTreeSet<(PackId, ChunkId)>,
}

/// Damaged copies that are remembered: some 5 MB. Of further ones a chunk that is put again is not stored anew.
const DAMAGED_MAX: usize = 65_536;

#[derive(Debug, Clone, Copy)]
pub(super) struct PackState {
    pub info: PackInfo,
    /// Epoch in which it was written; 0 for packs of earlier openings.
    pub epoch: u64,
}

#[derive(Debug)]
pub(super) struct SessionState {
    /// Packs written from here on may hold what it put.
    pub start: u64,
    /// Older packs that it relies on.
    pub relied: BTreeSet<PackId>,
}

impl State {
    /// Remembers a damaged copy: what is put again is stored again instead of relying on it.
    pub(super) fn note_damaged(&mut self, pack: PackId, chunk: ChunkId) {
        if self.damaged.len() < DAMAGED_MAX {
            self.damaged.insert((pack, chunk));
        }
    }

    pub(super) fn memory_bytes(&self) -> usize {
        let full = self.full.values().map(|pack| pack.bytes_when_sealed());
        self.open.values().map(PackBuilder::bytes_when_sealed).chain(full).sum()
    }

    /// A session found its chunk in a pack: whether the pack may be relied on, and is kept.
    pub(super) fn rely(&mut self, session: u64, pack: &PackId) -> bool {
        if !self.packs.contains_key(pack) {
            return false;
        }
        if let Some(session) = self.sessions.get_mut(&session) {
            session.relied.insert(*pack);
        }
        if let Some(marks) = &mut self.marks {
            marks.protected.insert(*pack);
        }
        true
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // State is updated last, after everything that can fail.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ChunkStore {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    pub(super) fn keys(&self) -> std::sync::RwLockReadGuard<'_, Keys> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn sound(&self) -> Result<(), StoreError> {
        if self.poisoned.load(Ordering::SeqCst) { Err(StoreError::Poisoned) } else { Ok(()) }
    }

    /// Whether so many bytes may be written and the floor stays free. Without a floor nobody looks.
    pub(super) fn room(&self, bytes: u64) -> Result<(), StoreError> {
        if self.options.floor_bytes == 0 {
            return Ok(());
        }
        match self.storage.free_bytes()? {
            Some(free) if free < bytes.saturating_add(self.options.floor_bytes) => Err(StoreError::Full),
            _ => Ok(()),
        }
    }

    /// After this error nobody knows what is durable, or what the index holds.
    pub(super) fn poison<E>(&self, error: E) -> E {
        self.poisoned.store(true, Ordering::SeqCst);
        error
    }

    /// Counters.
    #[must_use]
    pub fn statistics(&self) -> StoreStatistics {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let state = self.state();
        StoreStatistics {
            put_bytes: load(&self.counters.put_bytes),
            new_bytes: load(&self.counters.new_bytes),
            written_bytes: load(&self.counters.written_bytes),
            packs: state.packs.len() as u64,
            pack_bytes: state.packs.values().map(|pack| pack.info.bytes).sum(),
            open_bytes: state.memory_bytes() as u64,
            cache_bytes: lock(&self.cache).bytes() as u64,
        }
    }
}
