//! The data keys of an open journal.

use std::sync::Arc;

use super::{Journal, lock};
use crate::encryption::{Attempt, DataKeys, Encryption, SegmentCipher};
use crate::error::{AppendError, OpenError};
use crate::frame::Seal;

impl Journal {
    /// Which data key new segments have; 0: none.
    pub(super) fn data_key(&self) -> u32 {
        self.source.keys().map_or(0, |keys| keys.newest().0)
    }

    /// Encrypts a payload into `out`, with its checksums.
    pub(super) fn encrypt(
        &self,
        data_key: u32,
        payload: &[u8],
        attempt: &Attempt,
        out: &mut (Vec<u8>, Vec<u32>),
    ) -> Result<Seal, AppendError> {
        let keys = self.source.keys();
        let key = keys.as_ref().and_then(|keys| keys.get(data_key));
        match (key, &self.options.encryption) {
            (Some(key), Some(encryption)) => {
                SegmentCipher::new(key).seal(payload, &encryption.seed, attempt, &mut out.0, &mut out.1)
            }
            _ => Err(AppendError::ReadOnly("the data key of the open segment is missing".to_owned())),
        }
    }

    /// Whether payload is encrypted from now on.
    #[must_use]
    pub fn is_encrypted(&self) -> bool {
        self.data_key() > 0
    }

    /// Makes a new data key, durably; the next frame begins a new segment with it. Older segments keep theirs. `fresh`
    /// is as [`Encryption`] wants it: another master key wraps all data keys from now on, and other seeds are used for
    /// keys only.
    ///
    /// # Errors
    /// [`OpenError::Keys`] when the journal is not encrypted or read-only.
    pub fn rotate_data_key(&self, fresh: &Encryption) -> Result<(), OpenError> {
        self.change_keys(|keys| keys.rotated(self.storage.as_ref(), &fresh.master, &fresh.seed))
    }

    /// Wraps the data keys under another master key, durably. Nothing else changes.
    ///
    /// # Errors
    /// As [`Journal::rotate_data_key`].
    pub fn rewrap_data_keys(&self, fresh: &Encryption) -> Result<(), OpenError> {
        self.change_keys(|keys| {
            keys.store(self.storage.as_ref(), &fresh.master, &fresh.seed)?;
            Ok(keys.clone())
        })
    }

    fn change_keys(
        &self,
        change: impl FnOnce(&DataKeys) -> Result<DataKeys, OpenError>,
    ) -> Result<(), OpenError> {
        let _syncing = lock(&self.syncing);
        if self.writable().is_err() {
            return Err(OpenError::Keys("it is open for reading only"));
        }
        let keys = self.source.keys().ok_or(OpenError::Keys("it has no data keys yet"))?;
        self.source.set_keys(Some(Arc::new(change(&keys)?)));
        Ok(())
    }
}
