//! Chunks back out, verified.

use std::sync::Arc;

use super::crypt;
use super::index::PackInfo;
use super::pack::{FLAG_ZSTD, RECORD_BYTES, Stored, decode_record};
use super::state::lock;
use super::{ChunkId, ChunkStore, PackId, StoreError};
use crate::storage::StorageErrorKind;
use crate::wire::size;

impl ChunkStore {
    /// A chunk's content, verified against its id.
    ///
    /// # Errors
    /// [`StoreError::Missing`], [`StoreError::Damaged`], or when the storage fails.
    pub fn get(&self, id: &ChunkId) -> Result<Arc<[u8]>, StoreError> {
        if let Some(content) = lock(&self.cache).get(id) {
            return Ok(content);
        }
        let content: Arc<[u8]> = self.read_chunk(id)?.into();
        lock(&self.cache).put(*id, Arc::clone(&content));
        Ok(content)
    }

    /// Whether a chunk is in the store. It may be gone the next moment unless a root reaches it or a session keeps it.
    ///
    /// # Errors
    /// When the index fails.
    pub fn contains(&self, id: &ChunkId) -> Result<bool, StoreError> {
        if self.state().in_memory(id) {
            return Ok(true);
        }
        let places = self.index.find(id)?;
        let state = self.state();
        Ok(places.iter().any(|(pack, _)| state.packs.contains_key(pack)) || state.in_memory(id))
    }

    fn read_chunk(&self, id: &ChunkId) -> Result<Vec<u8>, StoreError> {
        let mut last = StoreError::Missing(*id);
        // A collection may move the chunk between the look into the index and the read: then it is elsewhere.
        for _ in 0..3 {
            if let Some(found) = self.read_memory(id)? {
                return Ok(found);
            }
            for (pack, stored) in self.index.find(id)? {
                let info = self.state().packs.get(&pack).map(|pack| pack.info);
                let Some(info) = info else { continue };
                match self.read_stored(&pack, &info, &stored) {
                    Ok(content) => return Ok(content),
                    Err(StoreError::Storage(error)) if error.kind() == StorageErrorKind::Missing => {}
                    // Another copy may be intact.
                    Err(error) => {
                        if matches!(error, StoreError::Damaged { .. }) {
                            self.state().note_damaged(pack, *id);
                        }
                        last = error;
                    }
                }
            }
            if !matches!(last, StoreError::Missing(_)) {
                break;
            }
        }
        Err(last)
    }

    /// Puts a copy that reads as it should before the others.
    pub(super) fn sound_first(&self, places: &mut [(PackId, Stored)]) {
        let sound = places.iter().position(|(pack, stored)| {
            let info = self.state().packs.get(pack).map(|pack| pack.info);
            info.is_some_and(|info| self.read_stored(pack, &info, stored).is_ok())
        });
        if let Some(sound) = sound {
            places.swap(0, sound);
        }
    }

    fn read_memory(&self, id: &ChunkId) -> Result<Option<Vec<u8>>, StoreError> {
        let (info, pack_id, stored, bytes) = {
            let state = self.state();
            let packs = state.open.values().chain(state.full.values().map(Arc::as_ref));
            let found = packs.filter_map(|pack| Some((pack, *pack.find(id)?))).next();
            let Some((pack, stored)) = found else { return Ok(None) };
            let bytes = pack.stored(&stored).ok_or(StoreError::Missing(*id))?.to_vec();
            let info = PackInfo {
                salt: pack.salt,
                domain: pack.domain,
                key_ordinal: pack.key_ordinal,
                chunks: 0,
                bytes: 0,
            };
            (info, pack.id(), stored, bytes)
        };
        self.decode(&pack_id, &info, &stored, bytes).map(Some)
    }

    /// Reads and verifies a chunk of a pack.
    pub(super) fn read_stored(
        &self,
        pack: &PackId,
        info: &PackInfo,
        stored: &Stored,
    ) -> Result<Vec<u8>, StoreError> {
        let mut record = vec![0; stored.record_bytes()];
        self.folder.read(&pack.name(), stored.offset.into(), &mut record)?;
        let damaged = |problem| StoreError::Damaged { chunk: stored.id, pack: *pack, problem };
        let header = super::pack::PackHeader {
            domain: info.domain,
            key_ordinal: info.key_ordinal,
            salt: info.salt,
            hash: [0; 32],
        };
        let (found, _) = decode_record(&header, &record, stored.offset.into(), stored.number)
            .map_err(|error| damaged(error.problem))?;
        if found != *stored {
            return Err(damaged("the record is of another chunk"));
        }
        self.decode(pack, info, stored, record.split_off(RECORD_BYTES))
    }

    fn decode(
        &self,
        pack: &PackId,
        info: &PackInfo,
        stored: &Stored,
        mut bytes: Vec<u8>,
    ) -> Result<Vec<u8>, StoreError> {
        let damaged = |problem| StoreError::Damaged { chunk: stored.id, pack: *pack, problem };
        let keys = self.keys();
        let domain = keys.ring.domains.get(&info.domain).ok_or(StoreError::NoDomain(info.domain))?;
        let data_key = keys.ring.data_key(&info.domain, info.key_ordinal);
        let key = stored.key(data_key.ok_or(StoreError::NoDomain(info.domain))?, &info.salt);
        crypt::open(&key, stored.number, &stored.head(), &mut bytes).ok_or(damaged("it does not decrypt"))?;
        let content = if stored.flags & FLAG_ZSTD == 0 {
            bytes
        } else {
            zstd::bulk::decompress(&bytes, size(stored.content.into()))
                .map_err(|_| damaged("it does not decompress"))?
        };
        if domain.id_of(&content) != stored.id {
            return Err(damaged("its content is not what its id says"));
        }
        Ok(content)
    }
}
