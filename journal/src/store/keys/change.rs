//! A change of the master key, which a kill may interrupt anywhere: while it lasts some key files are wrapped under the
//! old key and some under the new one, and whoever has the new secret has both.
//!
//! The file of a change is a key file ([`super`]) under the new master key, with one domain, `tidemark-old-key`, whose id key
//! is the old master key and which has no data keys. It goes when the change is done: until then it lets the new key
//! open what the old one still wraps; the old key opens nothing of it.

use std::collections::BTreeMap;

use super::{DomainKeys, KeyFile, KeyRing, MasterKey, MasterSecret};
use crate::store::crypt::{Secret, derive};
use crate::store::{KdfCost, KeyDomain, StoreError};

/// Under which the old key lies in the file of a change.
const OLD_KEY: KeyDomain = KeyDomain(*b"tidemark-old-key");

/// From which master key to which.
#[derive(Debug, Clone)]
pub struct MasterChange {
    old: MasterKey,
    new: MasterKey,
    file: KeyFile,
}

/// What became of a key file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rewrapped {
    /// It was wrapped under the old key and is under the new one now.
    Now,
    /// It was wrapped under the new key already.
    Before,
}

impl MasterChange {
    /// Begins a change to what `secret` stands for. `cost` is that of a passphrase; `seed` are 32 fresh random bytes.
    ///
    /// # Errors
    /// [`StoreError::BadKey`] when the secret can be no key, or is the old one.
    pub fn begin(
        old: MasterKey,
        secret: &MasterSecret,
        cost: KdfCost,
        seed: &[u8; 32],
    ) -> Result<Self, StoreError> {
        let salt = derive(seed, "tidemark change kdf salt", &[]).0;
        let (new, cost) = match secret {
            MasterSecret::Key(key) => (key.clone(), None),
            MasterSecret::Passphrase(text) => (MasterKey::from_passphrase(text, cost, &salt)?, Some(cost)),
        };
        if new == old {
            return Err(StoreError::BadKey("it is the present one: give another"));
        }
        let mut ring = KeyRing::default();
        let keys = DomainKeys { id_key: Secret(old.0.0), data_keys: BTreeMap::new() };
        ring.domains.insert(OLD_KEY, keys);
        let wrap_salt = derive(seed, "tidemark change wrap salt", &[]).0;
        let file = KeyFile::wrap(&ring, &new, cost, salt, wrap_salt)?;
        Ok(Self { old, new, file })
    }

    /// Goes on with a change whose file this is.
    ///
    /// # Errors
    /// [`StoreError::WrongKey`] when the secret is not the new one; when the file is damaged.
    pub fn resume(bytes: &[u8], secret: &MasterSecret) -> Result<Self, StoreError> {
        let file = KeyFile::decode(bytes)?;
        let new = file.master(secret)?;
        let ring = file.unwrap_keys(&new)?;
        let old = ring.domains.get(&OLD_KEY).map(|keys| MasterKey(Secret(keys.id_key.0)));
        let old = old.ok_or(StoreError::KeyFile("it is not that of a change of the master key"))?;
        Ok(Self { old, new, file })
    }

    /// Its file.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        self.file.encode()
    }

    /// Where it leads.
    #[must_use]
    pub fn new_key(&self) -> &MasterKey {
        &self.new
    }

    /// Where it begins.
    pub(crate) fn old_key(&self) -> &MasterKey {
        &self.old
    }

    /// The store's key file wrapped under the new key, or `None` when it is already. `seed` are 32 fresh random bytes;
    /// `change` may add keys.
    ///
    /// # Errors
    /// [`StoreError::WrongKey`] when neither key opens it; what `change` says.
    pub(crate) fn rewrap(
        &self,
        file: &KeyFile,
        seed: &[u8; 32],
        change: impl FnOnce(&mut KeyRing) -> Result<(), StoreError>,
    ) -> Result<Option<KeyFile>, StoreError> {
        if file.unwrap_keys(&self.new).is_ok() {
            return Ok(None);
        }
        let mut ring = file.unwrap_keys(&self.old)?;
        change(&mut ring)?;
        let salt = derive(seed, "tidemark change salt", &[]).0;
        // The derivation is that of the change: from one passphrase comes one key for all.
        KeyFile::wrap(&ring, &self.new, self.file.cost(), self.file.kdf_salt(), salt).map(Some)
    }
}
