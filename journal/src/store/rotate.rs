//! New keys: of domains, of data, and the master key over all.

use std::collections::BTreeMap;

use super::crypt::Secret;
use super::keys::{KeyFile, KeyRing};
use super::keys::{MasterChange, Rewrapped};
use super::open::{derived, new_keys, read_keys, write_keys};
use super::state::{Keys, lock};
use super::{ChunkStore, KeyDomain, MasterKey, MasterSecret, StoreError, derive, limits};
use crate::storage::Storage;

impl ChunkStore {
    /// Domains that have keys.
    #[must_use]
    pub fn domains(&self) -> Vec<KeyDomain> {
        self.keys().ring.domains.keys().copied().collect()
    }

    /// The key over all others, for whoever keeps keys of their own beside the store: the logs' data keys are wrapped under it.
    /// It changes with [`ChunkStore::rotate_master`].
    #[must_use]
    pub fn master(&self) -> MasterKey {
        self.keys().master.clone()
    }

    /// Makes keys for a domain, durably, if it has none.
    ///
    /// # Errors
    /// At [`limits::DOMAINS_MAX`], or when the storage fails.
    pub fn add_domain(&self, domain: KeyDomain) -> Result<(), StoreError> {
        if self.keys().ring.domains.contains_key(&domain) {
            return Ok(());
        }
        let id_key = Secret(derived(&self.options, &self.counters, "tidemark id key"));
        let data_key = Secret(derived(&self.options, &self.counters, "tidemark data key"));
        self.change_keys(|ring| {
            if ring.domains.len() >= limits::DOMAINS_MAX {
                return Err(StoreError::Limit("key domains"));
            }
            let data_keys = BTreeMap::from([(1, data_key)]);
            ring.domains.entry(domain).or_insert(super::keys::DomainKeys { id_key, data_keys });
            Ok(())
        })
    }

    /// Gives a domain a new data key, durably. New packs use it; old packs keep theirs until they are repacked.
    ///
    /// # Errors
    /// [`StoreError::NoDomain`], or when the storage fails.
    pub fn rotate_data_key(&self, domain: KeyDomain) -> Result<(), StoreError> {
        let key = Secret(derived(&self.options, &self.counters, "tidemark data key"));
        self.change_keys(|ring| {
            let keys = ring.domains.get_mut(&domain).ok_or(StoreError::NoDomain(domain))?;
            let last = keys.newest().map_or(0, |(ordinal, _)| ordinal);
            keys.data_keys.insert(last.checked_add(1).ok_or(StoreError::Limit("data keys"))?, key);
            Ok(())
        })
    }

    /// The master key of the store in `storage`, which nobody has open: that its keys open under the secret is checked.
    ///
    /// # Errors
    /// [`StoreError::WrongKey`]; when there is no store, or its key file is damaged.
    pub fn master_of(storage: &dyn Storage, secret: &MasterSecret) -> Result<MasterKey, StoreError> {
        let file = read_keys(storage)?;
        let master = file.master(secret)?;
        file.unwrap_keys(&master)?;
        Ok(master)
    }

    /// Takes the keys of the store in `storage`, which nobody has open, through a change of the master key, durably; with
    /// `new_data_keys` each domain gets a new data key as well. Packs stay as they are. `seed` are 32 fresh random bytes.
    ///
    /// # Errors
    /// [`StoreError::WrongKey`] when neither key of the change opens them; [`StoreError::Locked`]; when the storage fails:
    /// then try again.
    pub fn rewrap(
        storage: &dyn Storage,
        change: &MasterChange,
        new_data_keys: bool,
        seed: &[u8; 32],
    ) -> Result<Rewrapped, StoreError> {
        let _lock = storage.lock()?;
        let file = read_keys(storage)?;
        let changed = change.rewrap(&file, seed, |ring| {
            for (domain, keys) in ring.domains.iter_mut().filter(|_| new_data_keys) {
                let last = keys.newest().map_or(0, |(ordinal, _)| ordinal);
                let next = last.checked_add(1).ok_or(StoreError::Limit("data keys"))?;
                keys.data_keys.insert(next, derive(seed, "tidemark data key", &[&domain.0]));
            }
            Ok(())
        })?;
        match changed {
            Some(file) => write_keys(storage, &file).map(|()| Rewrapped::Now),
            None => {
                // Whoever wrapped them may have been killed before the name was durable.
                storage.sync_dir()?;
                Ok(Rewrapped::Before)
            }
        }
    }

    /// Wraps all keys under another master key or passphrase, durably. Packs stay as they are.
    ///
    /// # Errors
    /// When the secret can be none, or the storage fails.
    pub fn rotate_master(&self, secret: &MasterSecret) -> Result<(), StoreError> {
        self.sound()?;
        let _writing = lock(&self.writing);
        let mut keys = self.keys.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        let changed = new_keys(keys.ring.clone(), secret, &self.options, &self.counters)?;
        self.replace(&mut keys, changed)
    }

    fn change_keys(
        &self,
        change: impl FnOnce(&mut KeyRing) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        self.sound()?;
        let _writing = lock(&self.writing);
        let mut keys = self.keys.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut ring = keys.ring.clone();
        change(&mut ring)?;
        let salt = derived(&self.options, &self.counters, "tidemark wrap salt");
        let master = keys.master.clone();
        let file = KeyFile::wrap(&ring, &master, keys.file.cost(), keys.file.kdf_salt(), salt)?;
        self.replace(&mut keys, Keys { ring, master, file })
    }

    fn replace(&self, keys: &mut Keys, changed: Keys) -> Result<(), StoreError> {
        // Which of the two files a crash would leave is open after a failure, so nothing may rely on either.
        write_keys(self.storage.as_ref(), &changed.file).map_err(|error| self.poison(error))?;
        *keys = changed;
        Ok(())
    }
}
