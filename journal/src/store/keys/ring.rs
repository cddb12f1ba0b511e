//! The keys of all domains, unwrapped.

use std::collections::BTreeMap;

use crate::store::crypt::Secret;
use crate::store::{ChunkId, KeyDomain};
use crate::wire::{Put, Reader, length};

/// The keys of one domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DomainKeys {
    /// Never changes: ids of the same content must stay the same.
    pub id_key: Secret,
    /// By ordinal; new packs use the last.
    pub data_keys: BTreeMap<u32, Secret>,
}

impl DomainKeys {
    pub(crate) fn id_of(&self, content: &[u8]) -> ChunkId {
        ChunkId(*blake3::keyed_hash(&self.id_key.0, content).as_bytes())
    }

    pub(crate) fn newest(&self) -> Option<(u32, &Secret)> {
        self.data_keys.last_key_value().map(|(ordinal, key)| (*ordinal, key))
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct KeyRing {
    pub domains: BTreeMap<KeyDomain, DomainKeys>,
}

impl KeyRing {
    pub(crate) fn data_key(&self, domain: &KeyDomain, ordinal: u32) -> Option<&Secret> {
        self.domains.get(domain)?.data_keys.get(&ordinal)
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.u32(length(self.domains.len()));
        for (domain, keys) in &self.domains {
            out.put(&domain.0);
            out.put(&keys.id_key.0);
            out.u32(length(keys.data_keys.len()));
            for (ordinal, key) in &keys.data_keys {
                out.u32(*ordinal);
                out.put(&key.0);
            }
        }
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(bytes);
        let mut domains = BTreeMap::new();
        for _ in 0..reader.count(52)? {
            let domain = KeyDomain(reader.array()?);
            let id_key = Secret(reader.array()?);
            let mut data_keys = BTreeMap::new();
            for _ in 0..reader.count(36)? {
                data_keys.insert(reader.u32()?, Secret(reader.array()?));
            }
            domains.insert(domain, DomainKeys { id_key, data_keys });
        }
        reader.end()?;
        Some(Self { domains })
    }
}
