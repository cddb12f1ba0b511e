//! The hash of a whole segment file, for those whose frames do not cover their payload.

use std::sync::Arc;

use super::{Scanner, Stop, segment_name};
use crate::storage::{Storage, StorageError, StorageErrorKind, StorageFile};
use crate::wire::size;

/// Bytes of a file that are hashed at once.
const PIECE_BYTES: u64 = 1 << 20;

/// BLAKE3 keyed with the journal's key, over the bytes of a file.
pub(crate) fn content_hash(file: &dyn StorageFile, key: &[u8; 32]) -> Result<[u8; 32], StorageError> {
    let length = file.len()?;
    let mut hasher = blake3::Hasher::new_keyed(key);
    let mut piece = vec![0; size(PIECE_BYTES.min(length))];
    let mut at = 0;
    while at < length {
        let bytes = piece.get_mut(..size(PIECE_BYTES.min(length - at))).unwrap_or_default();
        file.read_at(at, bytes)?;
        hasher.update(bytes);
        at += PIECE_BYTES;
    }
    Ok(*hasher.finalize().as_bytes())
}

/// The same of a sealed segment, once all its frames have proved to be as written: a hash must not vouch for damage.
/// `None`: they are not, or the file is missing.
pub(crate) fn sound_content_hash(
    storage: &dyn Storage,
    key: &[u8; 32],
    ordinal: u64,
    last_hash: [u8; 32],
) -> Result<Option<[u8; 32]>, StorageError> {
    let file = match storage.open(&segment_name(ordinal)) {
        Ok(file) => file,
        Err(error) if error.kind() == StorageErrorKind::Missing => return Ok(None),
        Err(error) => return Err(error),
    };
    let Some(mut scanner) = Scanner::open(Arc::clone(&file), ordinal, key, None)? else { return Ok(None) };
    let stop = loop {
        if let Err(stop) = scanner.next()? {
            break stop;
        }
    };
    if stop != Stop::Footer || scanner.tail().1 != last_hash {
        return Ok(None);
    }
    content_hash(file.as_ref(), key).map(Some)
}
