//! A directory in RAM that fails the way disks and kernels do. Every choice comes from a seed.
//!
//! Unsynced writes are remembered apart, in 512-byte sectors; a crash keeps any subset of them, in any combination. So
//! does a failed sync, but the whole of them stays readable, and later syncs succeed: the cache lies until it is settled.
//! Names survive a crash up to the last `sync_dir`, and of the later changes a prefix may.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Storage, StorageError, StorageErrorKind, StorageFile, StorageLock};
use crate::wire::size;

const SECTOR: usize = 512;

/// What is to go wrong.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// Bytes of all files at most; beyond it writes are cut short and fail as a full disk.
    pub capacity_bytes: Option<u64>,
    /// The nth next sync of a file (0 = the next) fails and what it should have kept may be lost, readable as it is.
    pub fail_sync_after: Option<u64>,
    /// After that many more changing calls, everything fails: the machine is about to crash.
    pub halt_after: Option<u64>,
}

#[derive(Debug, Clone, Default)]
struct Content {
    /// What reads return.
    now: Vec<u8>,
    /// What is on the disk.
    durable: Vec<u8>,
    /// Writes and cuts since the last sync, whether it succeeded or not, in order.
    unsynced: Vec<Change>,
}

impl Content {
    /// As the kernel does: only what was changed since the last sync is written, also if that one failed.
    fn sync(&mut self) {
        for change in std::mem::take(&mut self.unsynced) {
            match change {
                Change::Write { offset, bytes } => put(&mut self.durable, offset, &bytes),
                Change::Cut { bytes } => self.durable.resize(bytes, 0),
            }
        }
    }
}

#[derive(Debug, Clone)]
enum Change {
    Write { offset: usize, bytes: Vec<u8> },
    Cut { bytes: usize },
}

#[derive(Debug, Clone)]
enum NameChange {
    Put(String, u64),
    Remove(String),
}

#[derive(Debug, Default)]
struct State {
    files: BTreeMap<u64, Content>,
    names: BTreeMap<String, u64>,
    durable_names: BTreeMap<String, u64>,
    name_changes: Vec<NameChange>,
    next_file: u64,
    random: u64,
    faults: Faults,
    locked: bool,
    /// Raised by a crash: handles of before are dead.
    epoch: u64,
}

impl State {
    fn change(&mut self, operation: &'static str, name: &str) -> Result<(), StorageError> {
        match &mut self.faults.halt_after {
            Some(0) => Err(StorageError::os(operation, name, io::Error::other("halted"))),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn rename_now(&mut self, change: NameChange) {
        apply_name(&mut self.names, &change);
        self.name_changes.push(change);
    }
}

/// splitmix64.
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn apply_name(names: &mut BTreeMap<String, u64>, change: &NameChange) {
    match change {
        NameChange::Put(name, file) => {
            names.retain(|_, other| other != file);
            names.insert(name.clone(), *file);
        }
        NameChange::Remove(name) => {
            names.remove(name);
        }
    }
}

/// The directory. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct SimStorage {
    state: Arc<Mutex<State>>,
}

impl SimStorage {
    /// An empty directory; the seed decides what crashes keep.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let storage = Self::default();
        storage.state().random = seed;
        storage
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces the faults to come.
    pub fn set_faults(&self, faults: Faults) {
        self.state().faults = faults;
    }

    /// The machine dies and comes back: unsynced changes survive at random, open files and locks do not.
    pub fn crash(&self) {
        let mut state = self.state();
        let keep = random(&mut state.random) % (state.name_changes.len() as u64 + 1);
        let changes = std::mem::take(&mut state.name_changes);
        let mut names = std::mem::take(&mut state.durable_names);
        for change in changes.iter().take(size(keep)) {
            apply_name(&mut names, change);
        }
        state.durable_names.clone_from(&names);
        let mut files = std::mem::take(&mut state.files);
        files.retain(|file, _| names.values().any(|named| named == file));
        for content in files.values_mut() {
            survive(&mut state.random, content);
            content.now.clone_from(&content.durable);
        }
        state.files = files;
        state.names = names;
        state.faults = Faults::default();
        state.locked = false;
        state.epoch += 1;
    }

    /// A copy of what the files hold now.
    #[must_use]
    pub fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let state = self.state();
        let content = |file| state.files.get(file).map(|content| content.now.clone()).unwrap_or_default();
        state.names.iter().map(|(name, file)| (name.clone(), content(file))).collect()
    }

    /// A directory with these files, durable.
    #[must_use]
    pub fn with_files(seed: u64, files: &BTreeMap<String, Vec<u8>>) -> Self {
        let storage = Self::new(seed);
        let mut state = storage.state();
        for (name, bytes) in files {
            let file = state.next_file;
            state.next_file += 1;
            let content = Content { now: bytes.clone(), durable: bytes.clone(), ..Content::default() };
            state.files.insert(file, content);
            state.names.insert(name.clone(), file);
            state.durable_names.insert(name.clone(), file);
        }
        drop(state);
        storage
    }

    /// Flips one bit of a file, durably. Does nothing beyond its end.
    pub fn flip(&self, name: &str, offset: u64, bit: u8) {
        let mut state = self.state();
        let Some(file) = state.names.get(name).copied() else { return };
        let Some(content) = state.files.get_mut(&file) else { return };
        for bytes in [&mut content.now, &mut content.durable] {
            if let Some(byte) = bytes.get_mut(size(offset)) {
                *byte ^= 1 << (bit & 7);
            }
        }
    }

    fn handle(&self, state: &State, file: u64, name: &str) -> Arc<dyn StorageFile> {
        Arc::new(SimFile { storage: self.clone(), file, name: name.to_owned(), epoch: state.epoch })
    }
}

/// Of the unsynced changes any part reaches the disk.
fn survive(seed: &mut u64, content: &mut Content) {
    for change in std::mem::take(&mut content.unsynced) {
        match change {
            Change::Cut { bytes } => {
                if random(seed).is_multiple_of(2) {
                    content.durable.truncate(bytes);
                }
            }
            Change::Write { offset, bytes } => {
                let mut at = offset;
                let mut rest = bytes.as_slice();
                while !rest.is_empty() {
                    let (piece, next) = rest.split_at((SECTOR - at % SECTOR).min(rest.len()));
                    if random(seed).is_multiple_of(2) {
                        put(&mut content.durable, at, piece);
                    }
                    at += piece.len();
                    rest = next;
                }
            }
        }
    }
}

fn put(content: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    if content.len() < offset + bytes.len() {
        content.resize(offset + bytes.len(), 0);
    }
    if let Some(place) = content.get_mut(offset..offset + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}

fn missing(operation: &'static str, name: &str) -> StorageError {
    StorageError::os(operation, name, io::Error::from(io::ErrorKind::NotFound))
}

impl Storage for SimStorage {
    fn create(&self, name: &str) -> Result<Arc<dyn StorageFile>, StorageError> {
        let mut state = self.state();
        state.change("create", name)?;
        if state.names.contains_key(name) {
            return Err(StorageError::os("create", name, io::Error::from(io::ErrorKind::AlreadyExists)));
        }
        let file = state.next_file;
        state.next_file += 1;
        state.files.insert(file, Content::default());
        state.rename_now(NameChange::Put(name.to_owned(), file));
        Ok(self.handle(&state, file, name))
    }

    fn open(&self, name: &str) -> Result<Arc<dyn StorageFile>, StorageError> {
        let state = self.state();
        let file = *state.names.get(name).ok_or_else(|| missing("open", name))?;
        Ok(self.handle(&state, file, name))
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), StorageError> {
        let mut state = self.state();
        state.change("rename", from)?;
        let file = *state.names.get(from).ok_or_else(|| missing("rename", from))?;
        state.rename_now(NameChange::Put(to.to_owned(), file));
        Ok(())
    }

    fn remove(&self, name: &str) -> Result<(), StorageError> {
        let mut state = self.state();
        state.change("remove", name)?;
        if !state.names.contains_key(name) {
            return Err(missing("remove", name));
        }
        state.rename_now(NameChange::Remove(name.to_owned()));
        Ok(())
    }

    fn sync_dir(&self) -> Result<(), StorageError> {
        let mut state = self.state();
        state.change("sync folder", "")?;
        state.durable_names = state.names.clone();
        state.name_changes.clear();
        Ok(())
    }

    fn list(&self) -> Result<Vec<String>, StorageError> {
        Ok(self.state().names.keys().cloned().collect())
    }

    fn free_bytes(&self) -> Result<Option<u64>, StorageError> {
        let state = self.state();
        let used: u64 = state.files.values().map(|content| content.now.len() as u64).sum();
        Ok(state.faults.capacity_bytes.map(|most| most.saturating_sub(used)))
    }

    fn lock(&self) -> Result<Box<dyn StorageLock>, StorageError> {
        let mut state = self.state();
        if state.locked {
            let source = io::Error::from(io::ErrorKind::WouldBlock);
            return Err(StorageError::new(StorageErrorKind::Locked, "lock", "lock", source));
        }
        state.locked = true;
        Ok(Box::new(SimLock { storage: self.clone(), epoch: state.epoch }))
    }
}

#[derive(Debug)]
struct SimLock {
    storage: SimStorage,
    epoch: u64,
}

impl StorageLock for SimLock {}

impl Drop for SimLock {
    fn drop(&mut self) {
        let mut state = self.storage.state();
        if state.epoch == self.epoch {
            state.locked = false;
        }
    }
}

#[derive(Debug)]
struct SimFile {
    storage: SimStorage,
    file: u64,
    name: String,
    epoch: u64,
}

/// What a call on a file may need of the rest.
struct Disk<'a> {
    faults: &'a mut Faults,
    random: &'a mut u64,
    /// Bytes of all files.
    used: u64,
}

impl SimFile {
    fn with<T>(
        &self,
        operation: &'static str,
        changes: bool,
        act: impl FnOnce(&mut Content, Disk<'_>) -> Result<T, StorageError>,
    ) -> Result<T, StorageError> {
        let mut state = self.storage.state();
        if state.epoch != self.epoch {
            return Err(StorageError::os(operation, &self.name, io::Error::other("opened before the crash")));
        }
        if changes {
            state.change(operation, &self.name)?;
        }
        let used: u64 = state.files.values().map(|content| content.now.len() as u64).sum();
        let State { files, faults, random, .. } = &mut *state;
        let content = files.get_mut(&self.file).ok_or_else(|| missing(operation, &self.name))?;
        act(content, Disk { faults, random, used })
    }
}

impl StorageFile for SimFile {
    fn write_at(&self, offset: u64, slices: &mut [IoSlice<'_>]) -> Result<(), StorageError> {
        let mut bytes: Vec<u8> = Vec::new();
        for slice in slices.iter() {
            bytes.extend_from_slice(slice);
        }
        let offset = size(offset);
        self.with("write", true, |content, disk| {
            let free = disk.faults.capacity_bytes;
            let free = free.map_or(usize::MAX, |most| size(most.saturating_sub(disk.used)));
            let grows = (offset + bytes.len()).saturating_sub(content.now.len());
            let full = grows > free;
            if full {
                bytes.truncate(bytes.len() - (grows - free).min(bytes.len()));
            }
            put(&mut content.now, offset, &bytes);
            content.unsynced.push(Change::Write { offset, bytes });
            if full {
                return Err(StorageError::os(
                    "write",
                    &self.name,
                    io::Error::from(io::ErrorKind::StorageFull),
                ));
            }
            Ok(())
        })
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), StorageError> {
        self.with("read", false, |content, _| {
            let from = size(offset);
            let found = content.now.get(from..from.saturating_add(buffer.len())).ok_or_else(|| {
                StorageError::os("read", &self.name, io::Error::from(io::ErrorKind::UnexpectedEof))
            })?;
            buffer.copy_from_slice(found);
            Ok(())
        })
    }

    fn sync(&self) -> Result<(), StorageError> {
        self.with("sync", true, |content, disk| {
            if let Some(left) = &mut disk.faults.fail_sync_after {
                if *left == 0 {
                    disk.faults.fail_sync_after = None;
                    survive(disk.random, content);
                    return Err(StorageError::os("sync", &self.name, io::Error::other("the disk failed")));
                }
                *left -= 1;
            }
            content.sync();
            Ok(())
        })
    }

    fn settle(&self) -> Result<(), StorageError> {
        let synced = self.sync();
        self.with("settle", false, |content, _| {
            // The length is the kernel's and stays; what never reached the disk reads as zeroes.
            let bytes = content.now.len();
            content.now.clone_from(&content.durable);
            content.now.resize(bytes, 0);
            Ok(())
        })?;
        synced
    }

    fn len(&self) -> Result<u64, StorageError> {
        self.with("stat", false, |content, _| Ok(content.now.len() as u64))
    }

    fn truncate(&self, bytes: u64) -> Result<(), StorageError> {
        let bytes = size(bytes);
        self.with("truncate", true, |content, _| {
            content.now.resize(bytes, 0);
            content.unsynced.push(Change::Cut { bytes });
            Ok(())
        })
    }
}
