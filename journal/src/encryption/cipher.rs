//! Payloads, to ciphertext and back.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use tidemark_proto::limits::CHECKSUM_PIECE_BYTES;

use crate::error::AppendError;
use crate::frame::{SALT_BYTES, Seal};
use crate::store::{Secret, TAG_BYTES, derive};

/// What makes a frame's place one that never came before, together with the seed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attempt {
    pub writer_generation: u64,
    pub segment: u64,
    pub frame: u64,
    /// Counts on for as long as the journal is open.
    pub number: u64,
}

/// Encrypts frames with one data key.
#[derive(Debug)]
pub(crate) struct SegmentCipher<'a>(&'a Secret);

impl<'a> SegmentCipher<'a> {
    pub(crate) fn new(data_key: &'a Secret) -> Self {
        Self(data_key)
    }

    /// Replaces `out` by the payload as it is stored, `crc32c` by its checksums, and returns what opens it.
    pub(crate) fn seal(
        &self,
        payload: &[u8],
        seed: &[u8; 32],
        attempt: &Attempt,
        out: &mut Vec<u8>,
        crc32c: &mut Vec<u32>,
    ) -> Result<Seal, AppendError> {
        let refused = || AppendError::Invalid("the cryptographic library refuses to encrypt it".to_owned());
        let salt = salt(seed, attempt);
        let key = frame_key(self.0, &salt, attempt.segment).ok_or_else(refused)?;
        out.clear();
        out.extend_from_slice(payload);
        crc32c.clear();
        let mut tags = Vec::with_capacity(payload.len().div_ceil(CHECKSUM_PIECE_BYTES));
        for (number, block) in (0..).zip(out.chunks_mut(CHECKSUM_PIECE_BYTES)) {
            let tag = key.seal_in_place_separate_tag(nonce(number), Aad::empty(), block);
            let tag = tag.map_err(|_| refused())?;
            tags.push(tag.as_ref().try_into().map_err(|_| refused())?);
            crc32c.push(crc32c::crc32c(block));
        }
        Ok(Seal { salt, tags })
    }
}

fn salt(seed: &[u8; 32], attempt: &Attempt) -> [u8; SALT_BYTES] {
    let parts =
        [attempt.writer_generation, attempt.segment, attempt.frame, attempt.number].map(u64::to_le_bytes);
    derive(seed, "tidemark journal salt", &parts.each_ref().map(<[u8; 8]>::as_slice)).0
}

fn frame_key(data_key: &Secret, salt: &[u8; SALT_BYTES], segment: u64) -> Option<LessSafeKey> {
    let key = derive(&data_key.0, "tidemark journal frame", &[salt, &segment.to_le_bytes()]);
    UnboundKey::new(&AES_256_GCM, &key.0).ok().map(LessSafeKey::new)
}

fn nonce(block: u32) -> Nonce {
    let mut bytes = [0; NONCE_LEN];
    if let Some(place) = bytes.first_chunk_mut() {
        *place = block.to_le_bytes();
    }
    Nonce::assume_unique_for_key(bytes)
}

/// Decrypts the blocks of one frame.
#[derive(Debug)]
pub(crate) struct FrameCipher(LessSafeKey);

impl FrameCipher {
    /// `None`: the cryptographic library refuses.
    pub(crate) fn new(data_key: &Secret, seal: &Seal, segment: u64) -> Option<Self> {
        frame_key(data_key, &seal.salt, segment).map(Self)
    }

    /// Decrypts one block; `None` when it is not what was encrypted.
    pub(crate) fn open(
        &self,
        number: u32,
        tag: &[u8; TAG_BYTES],
        stored: &[u8],
        out: &mut [u8],
    ) -> Option<()> {
        self.0.open_separate_gather(nonce(number), Aad::empty(), stored, tag, out).ok()
    }
}
