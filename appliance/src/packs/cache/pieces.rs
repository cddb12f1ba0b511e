//! The cache's folder: which pieces are there, and which goes next.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tidemark_journal::store::PackId;

use super::file::{Found, PieceKey, encode_head, read};

/// Ending of a file that is being written.
const PART: &str = ".part";

/// Counters since the opening, and what is there now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CacheStatistics {
    /// Reads answered.
    pub hits: u64,
    /// Reads not answered.
    pub misses: u64,
    /// Pieces that were not as written and were dropped.
    pub damaged: u64,
    /// Pieces that could not be written: the cache works on without them.
    pub failed_writes: u64,
    /// Bytes of files now.
    pub bytes: u64,
    /// Files now.
    pub pieces: u64,
}

/// Pieces of packs on the local disk, of bounded size. Calls may come from several threads.
#[derive(Debug)]
pub struct PieceCache {
    folder: PathBuf,
    most_bytes: u64,
    state: Mutex<State>,
    hits: AtomicU64,
    misses: AtomicU64,
    damaged: AtomicU64,
    failed_writes: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    pieces: HashMap<PieceKey, Piece>,
    /// By last use.
    order: BTreeMap<u64, PieceKey>,
    next: u64,
    bytes: u64,
}

#[derive(Debug, Clone, Copy)]
struct Piece {
    used: u64,
    bytes: u64,
}

impl State {
    fn touch(&mut self, key: &PieceKey) -> bool {
        let Some(piece) = self.pieces.get_mut(key) else { return false };
        self.order.remove(&piece.used);
        piece.used = self.next;
        self.order.insert(self.next, *key);
        self.next += 1;
        true
    }

    fn add(&mut self, key: PieceKey, bytes: u64) {
        self.remove(&key);
        self.pieces.insert(key, Piece { used: self.next, bytes });
        self.order.insert(self.next, key);
        self.next += 1;
        self.bytes += bytes;
    }

    fn remove(&mut self, key: &PieceKey) {
        if let Some(piece) = self.pieces.remove(key) {
            self.order.remove(&piece.used);
            self.bytes -= piece.bytes;
        }
    }
}

impl PieceCache {
    /// The cache in `folder`, made when missing, of `most_bytes` at most. What an earlier process left is used on.
    ///
    /// # Errors
    /// When the folder cannot be made or read.
    pub fn open(folder: &Path, most_bytes: u64) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let mut found = Vec::new();
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let name = entry.file_name();
            let Some(name) = name.to_str().filter(|name| name.starts_with("piece-")) else { continue };
            match PieceKey::of_name(name) {
                Some(key) => {
                    let metadata = entry.metadata()?;
                    found.push((metadata.modified()?, key, metadata.len()));
                }
                // A write that a crash cut off.
                None => remove(&entry.path())?,
            }
        }
        found.sort_unstable();
        let mut state = State::default();
        for (_, key, bytes) in found {
            state.add(key, bytes);
        }
        let cache = Self {
            folder: folder.to_path_buf(),
            most_bytes,
            state: Mutex::new(state),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            damaged: AtomicU64::new(0),
            failed_writes: AtomicU64::new(0),
        };
        cache.evict(0);
        Ok(cache)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, key: &PieceKey) -> PathBuf {
        self.folder.join(key.name())
    }

    /// Whether a piece is there, without a look at its content.
    pub(crate) fn has(&self, pack: PackId, piece: u32) -> bool {
        self.state().pieces.contains_key(&PieceKey { pack, piece })
    }

    /// Fills `out` from `offset` of a piece, if it is there and as written.
    pub(crate) fn read(&self, pack: PackId, piece: u32, offset: usize, out: &mut [u8]) -> bool {
        let key = PieceKey { pack, piece };
        let found = self.state().touch(&key) && self.read_file(&key, offset, out);
        let counter = if found { &self.hits } else { &self.misses };
        counter.fetch_add(1, Ordering::Relaxed);
        found
    }

    fn read_file(&self, key: &PieceKey, offset: usize, out: &mut [u8]) -> bool {
        let path = self.path(key);
        // Evicted by another thread meanwhile: a miss like any other.
        let Ok(file) = File::open(&path) else { return false };
        match read(&file, key, offset, out) {
            Ok(Found::Read) => return true,
            Ok(Found::Ends) => return false,
            Ok(Found::Damaged) => {
                tracing::warn!(path = %path.display(), "a cached piece of a pack is damaged: it is fetched again");
            }
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "a cached piece cannot be read: it is fetched again");
            }
        }
        self.damaged.fetch_add(1, Ordering::Relaxed);
        self.drop_piece(key);
        false
    }

    fn drop_piece(&self, key: &PieceKey) {
        self.state().remove(key);
        if let Err(error) = remove(&self.path(key)) {
            tracing::warn!(path = %self.path(key).display(), %error, "a cached piece cannot be removed");
        }
    }

    /// Keeps a piece. A failure is counted and changes nothing else: the cache is no one's only copy.
    pub(crate) fn keep(&self, pack: PackId, piece: u32, bytes: &[u8]) {
        let key = PieceKey { pack, piece };
        let head = encode_head(&key, bytes);
        let total = u64::try_from(head.len() + bytes.len()).unwrap_or(u64::MAX);
        if total > self.most_bytes {
            return;
        }
        self.evict(total);
        match self.write(&key, &head, bytes) {
            Ok(()) => self.state().add(key, total),
            Err(error) => {
                if self.failed_writes.fetch_add(1, Ordering::Relaxed) == 0 {
                    tracing::warn!(folder = %self.folder.display(), %error, "cannot write the cache of packs: reads go to the object storage");
                }
            }
        }
    }

    fn write(&self, key: &PieceKey, head: &[u8], bytes: &[u8]) -> io::Result<()> {
        // Two threads may fetch the same piece: each has a file of its own until it is whole.
        let part = self.folder.join(format!("{}-{}{PART}", key.name(), uuid::Uuid::new_v4().simple()));
        let written = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&part)
            .and_then(|mut file| file.write_all(head).and_then(|()| file.write_all(bytes)))
            .and_then(|()| fs::rename(&part, self.path(key)));
        if written.is_err() {
            // The next opening removes it if this fails.
            let _ = fs::remove_file(&part);
        }
        written
    }

    /// Makes room for `coming` bytes.
    fn evict(&self, coming: u64) {
        loop {
            let oldest = {
                let mut state = self.state();
                if state.bytes.saturating_add(coming) <= self.most_bytes {
                    return;
                }
                let Some(oldest) = state.order.first_key_value().map(|(_, key)| *key) else { return };
                state.remove(&oldest);
                oldest
            };
            if let Err(error) = remove(&self.path(&oldest)) {
                tracing::warn!(path = %self.path(&oldest).display(), %error, "a cached piece cannot be removed");
            }
        }
    }

    /// Drops what is kept of a pack that is gone.
    pub(crate) fn forget(&self, pack: PackId) {
        let keys: Vec<PieceKey> =
            self.state().pieces.keys().filter(|key| key.pack == pack).copied().collect();
        for key in keys {
            self.drop_piece(&key);
        }
    }

    /// Counters.
    #[must_use]
    pub fn statistics(&self) -> CacheStatistics {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let state = self.state();
        CacheStatistics {
            hits: load(&self.hits),
            misses: load(&self.misses),
            damaged: load(&self.damaged),
            failed_writes: load(&self.failed_writes),
            bytes: state.bytes,
            pieces: u64::try_from(state.pieces.len()).unwrap_or(u64::MAX),
        }
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACK: PackId = PackId([1; 16]);
    const OTHER: PackId = PackId([2; 16]);

    fn has(cache: &PieceCache, pack: PackId, piece: u32, byte: u8) -> bool {
        let mut out = [0; 10];
        cache.read(pack, piece, 100, &mut out) && out == [byte; 10]
    }

    #[test]
    fn the_cache_is_bounded_survives_restarts_and_drops_what_is_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("cache");
        // Room for three pieces with their heads.
        let cache = PieceCache::open(&folder, 3 * 1200).unwrap();
        for piece in 0..3 {
            cache.keep(PACK, piece, &[u8::try_from(piece).unwrap(); 1000]);
        }
        assert!(has(&cache, PACK, 0, 0), "used again: it is not the next to go");
        cache.keep(OTHER, 7, &[7; 1000]);
        assert!(!has(&cache, PACK, 1, 1) && has(&cache, PACK, 0, 0) && has(&cache, OTHER, 7, 7));
        assert!(cache.statistics().bytes <= 3 * 1200);
        let on_disk: u64 =
            fs::read_dir(&folder).unwrap().map(|file| file.unwrap().metadata().unwrap().len()).sum();
        assert_eq!(on_disk, cache.statistics().bytes);
        drop(cache);
        // A cut-off write, damage, and a file of somebody else.
        fs::write(folder.join("piece-x.part"), "torn").unwrap();
        fs::write(folder.join("README"), "mine").unwrap();
        let path = folder.join(PieceKey { pack: PACK, piece: 0 }.name());
        let mut bytes = fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&path, bytes).unwrap();
        let cache = PieceCache::open(&folder, 3 * 1200).unwrap();
        assert!(!folder.join("piece-x.part").exists() && folder.join("README").exists());
        assert!(has(&cache, OTHER, 7, 7) && !has(&cache, PACK, 0, 0) && !path.exists());
        assert_eq!(cache.statistics().damaged, 1);
        cache.forget(OTHER);
        assert!(!has(&cache, OTHER, 7, 7));
        // Less room than there is.
        drop(cache);
        let cache = PieceCache::open(&folder, 1).unwrap();
        assert_eq!((cache.statistics().bytes, cache.statistics().pieces), (0, 0));
        cache.keep(PACK, 9, &[9; 1000]);
        assert!(!has(&cache, PACK, 9, 9), "larger than the cache");
    }
}
