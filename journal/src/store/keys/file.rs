//! The key file, to bytes and back. Takes anything, panics at nothing.

use thiserror::Error;

use super::{KdfCost, KeyRing, MasterKey, MasterSecret};
use crate::store::StoreError;
use crate::store::crypt::{self, TAG_BYTES};
use crate::wire::{Put, Reader, length, same_hash, size};

const MAGIC: [u8; 8] = *b"TMKEYS01";
const AUTHENTICATED_BYTES: usize = 128;
const HEADER_BYTES: usize = 160;

/// Bytes of a key file at most: some 100,000 domains. Longer ones are refused.
pub(crate) const KEY_FILE_MAX_BYTES: u64 = 16 << 20;

/// Bytes are no key file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum KeyFileError {
    /// Of a newer version.
    #[error("the key file is of a newer version")]
    Newer,
    /// Damaged.
    #[error("{0}")]
    Damaged(&'static str),
}

impl From<KeyFileError> for StoreError {
    fn from(error: KeyFileError) -> Self {
        match error {
            KeyFileError::Newer => Self::Newer("the key file is of a newer version"),
            KeyFileError::Damaged(problem) => Self::KeyFile(problem),
        }
    }
}

/// A key file whose keys are still wrapped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyFile {
    cost: Option<KdfCost>,
    kdf_salt: [u8; 32],
    wrap_salt: [u8; 32],
    body_hash: [u8; 32],
    sealed: Vec<u8>,
}

impl KeyFile {
    /// Decodes a whole file.
    ///
    /// # Errors
    /// When it is damaged or of a newer version.
    pub fn decode(bytes: &[u8]) -> Result<Self, KeyFileError> {
        let damaged = KeyFileError::Damaged;
        let short = damaged("it is cut off");
        let head = bytes.get(..AUTHENTICATED_BYTES).ok_or(short)?;
        let hash: &[u8; 32] =
            bytes.get(AUTHENTICATED_BYTES..).and_then(|rest| rest.first_chunk()).ok_or(short)?;
        let body = bytes.get(HEADER_BYTES..).ok_or(short)?;
        let mut reader = Reader::new(head);
        if reader.array() != Some(MAGIC) {
            return Err(damaged("it does not begin as a key file"));
        }
        let mut hasher = blake3::Hasher::new();
        if !same_hash(hash, hasher.update(head).update(body).finalize().as_bytes()) {
            return Err(damaged("its hash does not match"));
        }
        if reader.u16() != Some(1) {
            return Err(KeyFileError::Newer);
        }
        let mut parse = || {
            let kind = reader.u16()?;
            let cost = KdfCost { memory_kib: reader.u32()?, passes: reader.u32()?, lanes: reader.u32()? };
            let cost = match kind {
                0 => None,
                1 if cost.is_sound() => Some(cost),
                _ => return None,
            };
            let stored = size(reader.u32()?.into());
            reader.u32().filter(|reserved| *reserved == 0)?;
            let (kdf_salt, wrap_salt, body_hash) = (reader.array()?, reader.array()?, reader.array()?);
            (stored == body.len()).then(|| Self {
                cost,
                kdf_salt,
                wrap_salt,
                body_hash,
                sealed: body.to_vec(),
            })
        };
        parse().ok_or(damaged("it breaks the format"))
    }

    fn head(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_BYTES + self.sealed.len());
        out.put(&MAGIC);
        out.u16(1);
        out.u16(u16::from(self.cost.is_some()));
        let cost = self.cost.unwrap_or(KdfCost { memory_kib: 0, passes: 0, lanes: 0 });
        out.u32(cost.memory_kib);
        out.u32(cost.passes);
        out.u32(cost.lanes);
        out.u32(length(self.sealed.len()));
        out.u32(0);
        out.put(&self.kdf_salt);
        out.put(&self.wrap_salt);
        out.put(&self.body_hash);
        out
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = self.head();
        let mut hasher = blake3::Hasher::new();
        let hash = hasher.update(&out).update(&self.sealed).finalize();
        out.put(hash.as_bytes());
        out.put(&self.sealed);
        out
    }

    /// The master key that this file's secret stands for.
    pub(crate) fn master(&self, secret: &MasterSecret) -> Result<MasterKey, StoreError> {
        match (secret, self.cost) {
            (MasterSecret::Key(key), None) => Ok(key.clone()),
            (MasterSecret::Passphrase(passphrase), Some(cost)) => {
                MasterKey::from_passphrase(passphrase, cost, &self.kdf_salt)
            }
            (MasterSecret::Key(_), Some(_)) => {
                Err(StoreError::BadKey("the store's keys are wrapped under a passphrase"))
            }
            (MasterSecret::Passphrase(_), None) => {
                Err(StoreError::BadKey("the store's keys are wrapped under a key, not a passphrase"))
            }
        }
    }

    /// Wraps keys under a secret whose derivation is settled by `self`'s salt and cost.
    pub(crate) fn wrap(
        ring: &KeyRing,
        master: &MasterKey,
        cost: Option<KdfCost>,
        kdf_salt: [u8; 32],
        wrap_salt: [u8; 32],
    ) -> Result<Self, StoreError> {
        let mut body = ring.encode();
        let body_hash = crypt::derive(&master.0.0, "tidemark key file body", &[&body]).0;
        let mut file = Self { cost, kdf_salt, wrap_salt, body_hash, sealed: vec![0; body.len() + TAG_BYTES] };
        crypt::seal(&file.wrapping_key(master), 0, &file.head(), &mut body)?;
        file.sealed = body;
        Ok(file)
    }

    fn wrapping_key(&self, master: &MasterKey) -> crypt::Secret {
        crypt::derive(&master.0.0, "tidemark key file", &[&self.wrap_salt, &self.body_hash])
    }

    pub(crate) fn unwrap_keys(&self, master: &MasterKey) -> Result<KeyRing, StoreError> {
        let mut body = self.sealed.clone();
        crypt::open(&self.wrapping_key(master), 0, &self.head(), &mut body).ok_or(StoreError::WrongKey)?;
        KeyRing::decode(&body).ok_or(StoreError::KeyFile("its keys break the format"))
    }

    pub(crate) fn cost(&self) -> Option<KdfCost> {
        self.cost
    }

    pub(crate) fn kdf_salt(&self) -> [u8; 32] {
        self.kdf_salt
    }
}
