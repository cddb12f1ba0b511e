//! The master key, from a file, a command's output or a passphrase. Whoever calls reads the file or runs the command.

use argon2::{Algorithm, Argon2, Params, Version};

use crate::store::StoreError;
use crate::store::crypt::Secret;
use crate::store::id::from_hex;

/// What deriving a key from a passphrase costs whoever guesses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KdfCost {
    /// Memory, KiB: 8 per lane to [`KdfCost::MEMORY_MAX_KIB`].
    pub memory_kib: u32,
    /// Passes over it: 1 to [`KdfCost::PASSES_MAX`].
    pub passes: u32,
    /// Lanes: 1 to [`KdfCost::LANES_MAX`].
    pub lanes: u32,
}

impl KdfCost {
    /// KiB at most: a key file must not make an opening take all memory. Beyond it the file is refused.
    pub const MEMORY_MAX_KIB: u32 = 1 << 20;
    /// Passes at most, so that an opening ends. Beyond it the file is refused.
    pub const PASSES_MAX: u32 = 64;
    /// Lanes at most. Beyond it the file is refused.
    pub const LANES_MAX: u32 = 16;

    pub(crate) fn is_sound(&self) -> bool {
        (1..=Self::LANES_MAX).contains(&self.lanes)
            && (1..=Self::PASSES_MAX).contains(&self.passes)
            && (8 * self.lanes..=Self::MEMORY_MAX_KIB).contains(&self.memory_kib)
    }
}

impl Default for KdfCost {
    /// 64 MiB, three passes: the second choice of RFC 9106, a quarter of a second or so.
    fn default() -> Self {
        Self { memory_kib: 64 << 10, passes: 3, lanes: 4 }
    }
}

/// 32 secret bytes that every other key is wrapped under.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MasterKey(pub(crate) Secret);

impl MasterKey {
    /// From the content of a key file or the output of a command: 32 bytes, or 64 lower-case hexadecimal digits with
    /// white space around them.
    ///
    /// # Errors
    /// [`StoreError::BadKey`] for anything else: a key that is cut off must not pass for a weaker one.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, StoreError> {
        let binary = <[u8; 32]>::try_from(bytes).ok();
        let digits = || from_hex(std::str::from_utf8(bytes).ok()?.trim());
        let key = binary.or_else(digits);
        key.map(|key| Self(Secret(key)))
            .ok_or(StoreError::BadKey("32 bytes or 64 lower-case hexadecimal digits are wanted"))
    }

    /// Argon2id: it costs memory, which is what guessing hardware lacks; PBKDF2 would not.
    pub(crate) fn from_passphrase(
        passphrase: &str,
        cost: KdfCost,
        salt: &[u8; 32],
    ) -> Result<Self, StoreError> {
        const REFUSED: StoreError = StoreError::BadKey("the cost of the derivation is out of its range");
        if passphrase.is_empty() {
            return Err(StoreError::BadKey("the passphrase is empty"));
        }
        if !cost.is_sound() {
            return Err(REFUSED);
        }
        let params = Params::new(cost.memory_kib, cost.passes, cost.lanes, Some(32)).map_err(|_| REFUSED)?;
        let mut key = Secret([0; 32]);
        Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
            .hash_password_into(passphrase.as_bytes(), salt, &mut key.0)
            .map_err(|_| StoreError::Codec("derive a key"))?;
        Ok(Self(key))
    }
}

/// What opens a store.
#[derive(Clone)]
pub enum MasterSecret {
    /// A key.
    Key(MasterKey),
    /// A passphrase.
    Passphrase(String),
}

impl std::fmt::Debug for MasterSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Key(_) => "Key",
            Self::Passphrase(_) => "Passphrase",
        })
    }
}
