//! AES-256-GCM with keys that cannot meet a nonce twice.
//!
//! Each chunk has a key of its own: BLAKE3 keyed with the data key, over the pack's salt, the chunk's id and the flags.
//! The salt comes from the seed of this opening and a counter, and a pack is never put over another. Should a caller
//! give one seed twice nevertheless, a key is used again only for the same content in the same encoding, under the
//! same nonce (the chunk's number in the pack): the same bytes come out and nothing is learned but that.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

use super::StoreError;

/// Bytes that encryption adds.
pub(crate) const TAG_BYTES: usize = 16;

/// 32 secret bytes. Never shown; wiped when dropped, as far as safe Rust goes.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(pub [u8; 32]);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0 = [0; 32];
        // Keeps the store above from being removed as dead.
        std::hint::black_box(&self.0);
    }
}

/// A key for one purpose: BLAKE3 keyed with `key` over the purpose and the parts, each with its length.
pub(crate) fn derive(key: &[u8; 32], purpose: &'static str, parts: &[&[u8]]) -> Secret {
    let mut hasher = blake3::Hasher::new_keyed(key);
    for part in std::iter::once(&purpose.as_bytes()).chain(parts) {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    Secret(*hasher.finalize().as_bytes())
}

fn key(secret: &Secret) -> Result<LessSafeKey, StoreError> {
    let key = UnboundKey::new(&AES_256_GCM, &secret.0);
    Ok(LessSafeKey::new(key.map_err(|_| StoreError::Codec("use a key"))?))
}

fn nonce(number: u32) -> Nonce {
    let mut bytes = [0; NONCE_LEN];
    if let Some(place) = bytes.first_chunk_mut() {
        *place = number.to_le_bytes();
    }
    Nonce::assume_unique_for_key(bytes)
}

/// Encrypts in place; the tag follows.
pub(crate) fn seal(secret: &Secret, number: u32, aad: &[u8], bytes: &mut Vec<u8>) -> Result<(), StoreError> {
    let sealed = key(secret)?.seal_in_place_append_tag(nonce(number), Aad::from(aad), bytes);
    sealed.map_err(|_| StoreError::Codec("encrypt"))
}

/// Decrypts in place and cuts the tag; `None` when the bytes are not what was sealed.
pub(crate) fn open(secret: &Secret, number: u32, aad: &[u8], bytes: &mut Vec<u8>) -> Option<()> {
    let length = key(secret).ok()?.open_in_place(nonce(number), Aad::from(aad), bytes).ok()?.len();
    bytes.truncate(length);
    Some(())
}
