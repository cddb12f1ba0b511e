//! A session puts chunks and keeps them from collections until it ends.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::state::SessionState;
use super::{CHUNK_BYTES, ChunkId, ChunkStore, KeyDomain, StoreError, limits};

/// Puts chunks of one domain. No collection frees a chunk that it put, new or not, while it lives: drop it after the
/// store was flushed and the root that reaches its chunks is durable.
#[derive(Debug)]
pub struct Session {
    store: Arc<ChunkStore>,
    domain: KeyDomain,
    number: u64,
    new_bytes: AtomicU64,
}

impl ChunkStore {
    /// A session over a domain that has keys.
    ///
    /// # Errors
    /// [`StoreError::NoDomain`]; at [`limits::SESSIONS_MAX`].
    pub fn session(self: &Arc<Self>, domain: KeyDomain) -> Result<Session, StoreError> {
        if !self.keys().ring.domains.contains_key(&domain) {
            return Err(StoreError::NoDomain(domain));
        }
        let mut state = self.state();
        if state.sessions.len() >= limits::SESSIONS_MAX {
            return Err(StoreError::Limit("sessions"));
        }
        state.epoch += 1;
        state.last_session += 1;
        let (number, start) = (state.last_session, state.epoch);
        state.sessions.insert(number, SessionState { start, relied: BTreeSet::new() });
        drop(state);
        Ok(Session { store: Arc::clone(self), domain, number, new_bytes: AtomicU64::new(0) })
    }
}

impl Session {
    /// The store.
    #[must_use]
    pub fn store(&self) -> &Arc<ChunkStore> {
        &self.store
    }

    /// The domain.
    #[must_use]
    pub fn domain(&self) -> KeyDomain {
        self.domain
    }

    /// Stores a chunk of 1 to 65,536 bytes unless it is there; durable after [`ChunkStore::flush`].
    ///
    /// # Errors
    /// [`StoreError::Full`]: the same chunk may be put again later. Otherwise as the variants say.
    pub fn put(&self, content: &[u8]) -> Result<ChunkId, StoreError> {
        if content.is_empty() || content.len() > CHUNK_BYTES {
            return Err(StoreError::Length(content.len()));
        }
        let store = &self.store;
        store.sound()?;
        let id = {
            let keys = store.keys();
            let domain = keys.ring.domains.get(&self.domain);
            domain.ok_or(StoreError::NoDomain(self.domain))?.id_of(content)
        };
        store.counters.put_bytes.fetch_add(content.len() as u64, Ordering::Relaxed);
        if self.keep(&id)? {
            return Ok(id);
        }
        store.store_chunk(self.domain, id, content)?;
        store.counters.new_bytes.fetch_add(content.len() as u64, Ordering::Relaxed);
        self.new_bytes.fetch_add(content.len() as u64, Ordering::Relaxed);
        Ok(id)
    }

    /// Bytes that it put and that were not there, before compression.
    #[must_use]
    pub fn new_bytes(&self) -> u64 {
        self.new_bytes.load(Ordering::Relaxed)
    }

    /// Protects a chunk that is there, as if it were put; whether it is there, and not known to be damaged.
    ///
    /// # Errors
    /// When the index fails.
    pub fn keep(&self, id: &ChunkId) -> Result<bool, StoreError> {
        if self.store.state().in_memory(id) {
            // Its pack will be younger than this session.
            return Ok(true);
        }
        let places = self.store.index.find(id)?;
        let mut state = self.store.state();
        let mut found = false;
        for (pack, _) in places {
            // A copy that is known to be damaged is none: what is put is stored again.
            if !state.damaged.contains(&(pack, *id)) {
                found |= state.rely(self.number, &pack);
            }
        }
        // Between the two looks it may have moved from memory to a pack.
        Ok(found || state.in_memory(id))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.store.state().sessions.remove(&self.number);
    }
}
