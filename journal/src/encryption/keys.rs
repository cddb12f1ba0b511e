//! The data keys of one journal, and the file in which they lie wrapped.

use std::collections::BTreeMap;
use std::io::IoSlice;

use tidemark_proto::ids::VmId;

use crate::error::OpenError;
use crate::recovery::Damage;
use crate::storage::{Storage, StorageError, StorageErrorKind};
use crate::store::keys::{
    DomainKeys, KEY_FILE_MAX_BYTES, KeyFile, KeyFileError, KeyRing, MasterChange, Rewrapped,
};
use crate::store::{KeyDomain, MasterKey, Secret, derive};
use crate::wire::size;

/// The wrapped data keys.
pub(crate) const KEY_FILE: &str = "keys";

/// The same before it takes the name.
pub(crate) const KEY_NEW_FILE: &str = "keys.new";

/// What encrypts a journal: given at each opening.
#[derive(Debug, Clone)]
pub struct Encryption {
    /// What the data keys are wrapped under.
    pub master: MasterKey,
    /// 32 random bytes, fresh for each opening: data keys and salts are made from them. They are kept nowhere.
    pub seed: [u8; 32],
}

/// The data keys, unwrapped.
#[derive(Debug, Clone)]
pub(crate) struct DataKeys {
    domain: KeyDomain,
    ring: KeyRing,
}

impl DataKeys {
    /// The keys in `storage`; `None` when there are none.
    pub(crate) fn load(
        storage: &dyn Storage,
        vm: VmId,
        master: &MasterKey,
    ) -> Result<Option<Self>, OpenError> {
        let Some(file) = read_file(storage)? else { return Ok(None) };
        let ring = file.unwrap_keys(master).map_err(|_| {
            OpenError::Keys("the master key is not the one that its data keys are wrapped under")
        })?;
        let domain = KeyDomain(*vm.0.as_bytes());
        if ring.domains.get(&domain).and_then(DomainKeys::newest).is_none() {
            return Err(OpenError::Keys("its key file is that of another VM: put its own back"));
        }
        Ok(Some(Self { domain, ring }))
    }

    /// Whether there are any.
    pub(crate) fn are_in(storage: &dyn Storage) -> Result<bool, OpenError> {
        Ok(read_file(storage)?.is_some())
    }

    /// Makes the first data key and keeps it, durably.
    pub(crate) fn create(
        storage: &dyn Storage,
        vm: VmId,
        encryption: &Encryption,
    ) -> Result<Self, OpenError> {
        let domain = KeyDomain(*vm.0.as_bytes());
        let id_key = derive(&encryption.seed, "tidemark journal id key", &[]);
        let data_keys = BTreeMap::from([(1, new_key(&encryption.seed, 1))]);
        let mut ring = KeyRing::default();
        ring.domains.insert(domain, DomainKeys { id_key, data_keys });
        let keys = Self { domain, ring };
        keys.store(storage, &encryption.master, &encryption.seed)?;
        Ok(keys)
    }

    /// The same with a new data key, kept durably; `seed` is fresh.
    pub(crate) fn rotated(
        &self,
        storage: &dyn Storage,
        master: &MasterKey,
        seed: &[u8; 32],
    ) -> Result<Self, OpenError> {
        let mut keys = self.clone();
        let next = self.newest().0.checked_add(1).ok_or(OpenError::Keys("it has no more data keys"))?;
        if let Some(domain) = keys.ring.domains.get_mut(&self.domain) {
            domain.data_keys.insert(next, new_key(seed, next));
        }
        keys.store(storage, master, seed)?;
        Ok(keys)
    }

    /// Takes the keys in `storage` through a change of the master key; `None` when there are none.
    fn rewrap(
        storage: &dyn Storage,
        vm: VmId,
        change: &MasterChange,
        new_data_key: bool,
        seed: &[u8; 32],
    ) -> Result<Option<Rewrapped>, OpenError> {
        if Self::load(storage, vm, change.new_key()).is_ok_and(|keys| keys.is_some()) {
            // Whoever wrapped them may have been killed before the name was durable.
            storage.sync_dir()?;
            return Ok(Some(Rewrapped::Before));
        }
        let Some(keys) = Self::load(storage, vm, change.old_key())? else { return Ok(None) };
        if new_data_key {
            keys.rotated(storage, change.new_key(), seed)?;
        } else {
            keys.store(storage, change.new_key(), seed)?;
        }
        Ok(Some(Rewrapped::Now))
    }

    /// Wraps the keys and keeps the file, durably.
    pub(crate) fn store(
        &self,
        storage: &dyn Storage,
        master: &MasterKey,
        seed: &[u8; 32],
    ) -> Result<(), OpenError> {
        let salt = derive(seed, "tidemark journal wrap salt", &[]).0;
        let file = KeyFile::wrap(&self.ring, master, None, [0; 32], salt)
            .map_err(|_| OpenError::Keys("the cryptographic library refuses to wrap its data keys"))?;
        Ok(write_file(storage, &file.encode())?)
    }

    /// The key for new segments.
    pub(crate) fn newest(&self) -> (u32, Option<&Secret>) {
        let newest = self.ring.domains.get(&self.domain).and_then(DomainKeys::newest);
        newest.map_or((0, None), |(ordinal, key)| (ordinal, Some(key)))
    }

    pub(crate) fn get(&self, ordinal: u32) -> Option<&Secret> {
        self.ring.data_key(&self.domain, ordinal)
    }
}

/// Takes the data keys of the journal in `storage`, which nobody has open, through a change of the master key, durably;
/// with `new_data_key` it gets a new one as well, for its next segments. `seed` are 32 fresh random bytes. `None`: it has no
/// data keys.
///
/// # Errors
/// [`OpenError::Keys`] when neither key of the change opens them, or they are another VM's; when the key file is damaged,
/// the journal is open, or the storage fails: then try again.
pub fn rewrap(
    storage: &dyn Storage,
    vm: VmId,
    change: &MasterChange,
    new_data_key: bool,
    seed: &[u8; 32],
) -> Result<Option<Rewrapped>, OpenError> {
    let _lock = storage.lock()?;
    DataKeys::rewrap(storage, vm, change, new_data_key, seed)
}

/// Whether the data keys of the journal in `storage` open under a master key; `None`: it has none.
///
/// # Errors
/// [`OpenError::Keys`] when they do not, or are another VM's; when the key file is damaged, or the storage fails.
pub fn check(storage: &dyn Storage, vm: VmId, master: &MasterKey) -> Result<Option<()>, OpenError> {
    Ok(DataKeys::load(storage, vm, master)?.map(drop))
}

fn new_key(seed: &[u8; 32], ordinal: u32) -> Secret {
    derive(seed, "tidemark journal data key", &[&ordinal.to_le_bytes()])
}

fn read_file(storage: &dyn Storage) -> Result<Option<KeyFile>, OpenError> {
    let file = match storage.open(KEY_FILE) {
        Ok(file) => file,
        Err(error) if error.kind() == StorageErrorKind::Missing => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let bytes = file.len()?;
    let damaged = |problem: &str| {
        let file = KEY_FILE.to_owned();
        OpenError::Damaged(Damage { file, offset: 0, bytes: bytes.max(1), problem: problem.to_owned() })
    };
    if bytes > KEY_FILE_MAX_BYTES {
        return Err(damaged("it is too long for a key file"));
    }
    let mut content = vec![0; size(bytes)];
    file.read_at(0, &mut content)?;
    match KeyFile::decode(&content) {
        Ok(file) => Ok(Some(file)),
        Err(KeyFileError::Newer) => Err(OpenError::Newer("its key file is of a newer version".to_owned())),
        Err(KeyFileError::Damaged(problem)) => Err(damaged(problem)),
    }
}

/// Bytes of the key file; `None` when there is none.
pub(crate) fn key_file_bytes(storage: &dyn Storage) -> Result<Option<u64>, StorageError> {
    match storage.open(KEY_FILE) {
        Ok(file) => file.len().map(Some),
        Err(error) if error.kind() == StorageErrorKind::Missing => Ok(None),
        Err(error) => Err(error),
    }
}

/// What is wrong with the key file, found without any key; `None` when it is as written, or there is none.
pub(crate) fn key_file_damage(storage: &dyn Storage) -> Result<Option<Damage>, OpenError> {
    match read_file(storage) {
        Ok(_) => Ok(None),
        Err(OpenError::Damaged(damage)) => Ok(Some(damage)),
        Err(error) => Err(error),
    }
}

fn write_file(storage: &dyn Storage, bytes: &[u8]) -> Result<(), StorageError> {
    match storage.remove(KEY_NEW_FILE) {
        Err(error) if error.kind() != StorageErrorKind::Missing => return Err(error),
        _ => {}
    }
    let file = storage.create(KEY_NEW_FILE)?;
    file.write_at(0, &mut [IoSlice::new(bytes)])?;
    file.sync()?;
    storage.rename(KEY_NEW_FILE, KEY_FILE)?;
    storage.sync_dir()
}
