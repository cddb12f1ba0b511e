//! Chunks into packs, packs into the folder.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use zstd::bulk::Compressor;

use super::index::PackInfo;
use super::open::derived;
use super::pack::{Encoded, FLAG_ZSTD, PackBuilder, pack_id};
use super::state::{PackState, State, lock};
use super::{ChunkId, ChunkStore, KeyDomain, PackId, StoreError, limits};
use crate::storage::StorageErrorKind;
use crate::wire::length;

/// What noting so many chunks may take of the index.
pub(super) fn index_bytes(chunks: usize) -> u64 {
    (chunks as u64).saturating_mul(limits::INDEX_CHUNK_BYTES)
}

impl State {
    /// Bytes that writing the packs in memory takes at most, into the folder and the index.
    pub(super) fn room_bytes(&self) -> u64 {
        let packs = self.open.values().chain(self.full.values().map(Arc::as_ref));
        let chunks = packs.map(|pack| pack.chunks().len()).sum();
        (self.memory_bytes() as u64).saturating_add(index_bytes(chunks))
    }

    /// Whether a chunk is in a pack that is not in the index yet.
    pub(super) fn in_memory(&self, id: &ChunkId) -> bool {
        self.open.values().chain(self.full.values().map(Arc::as_ref)).any(|pack| pack.find(id).is_some())
    }
}

impl ChunkStore {
    /// Appends a chunk to the open pack of its domain, and writes the packs that are full.
    pub(super) fn store_chunk(
        &self,
        domain: KeyDomain,
        id: ChunkId,
        content: &[u8],
    ) -> Result<(), StoreError> {
        let (flags, bytes) = self.compressed(content)?;
        let encoded = Encoded { id, content: content.len(), flags, bytes };
        let full = {
            // Keys before state, as everywhere.
            let keys = self.keys();
            let mut state = self.state();
            if state.in_memory(&id) {
                return Ok(());
            }
            let most = limits::OPEN_PACKS_MAX * self.options.pack_bytes;
            // Packs that could not be written wait in memory: no more of them than that.
            if !state.full.is_empty() && state.memory_bytes() > most {
                drop(state);
                drop(keys);
                self.write_full()?;
                return self.store_chunk(domain, id, content);
            }
            let pack = match state.open.remove(&domain) {
                Some(pack) => pack,
                None => {
                    let domain_keys = keys.ring.domains.get(&domain).ok_or(StoreError::NoDomain(domain))?;
                    let (ordinal, key) = domain_keys.newest().ok_or(StoreError::NoDomain(domain))?;
                    PackBuilder::new(domain, ordinal, key.clone(), self.salt(&state))
                }
            };
            let mut pack = pack;
            let added = pack.add(encoded);
            let done = pack.bytes_when_sealed() >= self.options.pack_bytes;
            state.open.insert(domain, pack);
            added?;
            if done {
                state.seal(&domain);
            } else if state.memory_bytes() > most {
                let fullest = state.open.iter().max_by_key(|(_, pack)| pack.bytes_when_sealed());
                if let Some(domain) = fullest.map(|(domain, _)| *domain) {
                    state.seal(&domain);
                }
            }
            !state.full.is_empty()
        };
        if full { self.write_full() } else { Ok(()) }
    }

    /// The salt of a new pack: no pack that is known has it.
    fn salt(&self, state: &State) -> [u8; 32] {
        loop {
            let salt = derived(&self.options, &self.counters, "tidemark pack salt");
            let pack = pack_id(&salt);
            if !state.packs.contains_key(&pack) && !state.full.contains_key(&pack) {
                return salt;
            }
        }
    }

    /// The content as it is to be stored: compressed where that saves a sixteenth.
    fn compressed(&self, content: &[u8]) -> Result<(u16, Vec<u8>), StoreError> {
        if self.options.compression != 0 {
            let idle = lock(&self.compressors.0).pop();
            let mut compressor = match idle {
                Some(compressor) => compressor,
                None => Compressor::new(self.options.compression)
                    .map_err(|_| StoreError::Codec("set up compression"))?,
            };
            let compressed = compressor.compress(content).map_err(|_| StoreError::Codec("compress"))?;
            lock(&self.compressors.0).push(compressor);
            if compressed.len() < content.len() - content.len() / 16 {
                return Ok((FLAG_ZSTD, compressed));
            }
        }
        Ok((0, content.to_vec()))
    }

    /// Writes the packs that are full, one after another.
    pub(super) fn write_full(&self) -> Result<(), StoreError> {
        let _writing = lock(&self.writing);
        self.write_full_locked()
    }

    fn write_full_locked(&self) -> Result<(), StoreError> {
        self.sound()?;
        loop {
            let next = self.state().full.first_key_value().map(|(id, pack)| (*id, Arc::clone(pack)));
            let Some((id, pack)) = next else { return Ok(()) };
            self.room((pack.bytes().len() as u64).saturating_add(index_bytes(pack.chunks().len())))?;
            self.put_pack(&id, pack.bytes())?;
            let info = PackInfo {
                salt: pack.salt,
                domain: pack.domain,
                key_ordinal: pack.key_ordinal,
                chunks: length(pack.chunks().len()),
                bytes: pack.bytes().len() as u64,
            };
            self.index.add(&id, &info, pack.chunks()).map_err(|error| self.poison(error))?;
            self.counters.written_bytes.fetch_add(info.bytes, Ordering::Relaxed);
            let mut state = self.state();
            let epoch = state.epoch;
            state.packs.insert(id, PackState { info, epoch });
            state.full.remove(&id);
        }
    }

    fn put_pack(&self, id: &PackId, bytes: &[u8]) -> Result<(), StoreError> {
        let name = id.name();
        match self.folder.put(&name, bytes) {
            // An earlier try whose answer was lost wrote these very bytes; anything else must not pass for them.
            Err(error) if error.kind() == StorageErrorKind::Exists => {
                let mut found = vec![0; bytes.len()];
                let same = self.folder.list()?.get(&name) == Some(&(bytes.len() as u64))
                    && self.folder.read(&name, 0, &mut found).is_ok()
                    && found == bytes;
                if same { Ok(()) } else { Err(error.into()) }
            }
            other => Ok(other?),
        }
    }

    /// Writes all that was put and makes it durable.
    ///
    /// # Errors
    /// [`StoreError::Full`]: nothing is lost, a later flush works once there is space. After [`StoreError::Poisoned`]
    /// the store must be opened again; what was put since the last flush is lost.
    pub fn flush(&self) -> Result<(), StoreError> {
        self.sound()?;
        let _writing = lock(&self.writing);
        {
            let mut state = self.state();
            let domains: Vec<KeyDomain> = state.open.keys().copied().collect();
            for domain in domains {
                state.seal(&domain);
            }
        }
        self.write_full_locked()?;
        self.folder.sync().map_err(|error| self.poison(error))?;
        self.index.sync().map_err(|error| self.poison(error))
    }
}

impl State {
    /// Completes the open pack of a domain.
    fn seal(&mut self, domain: &KeyDomain) {
        if let Some(mut pack) = self.open.remove(domain) {
            pack.seal();
            self.full.insert(pack.id(), Arc::new(pack));
        }
    }
}
