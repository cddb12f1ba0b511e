//! How the keys stand, without changing anything.

use tidemark_journal::encryption;
use tidemark_journal::storage::OsStorage;
use tidemark_journal::store::{ChunkStore, MasterSecret};

use super::rotate::{RotateError, logs, pending};
use crate::data_dir::DataDir;
use crate::images::{Images, MasterKeySource};

/// Which keys open with the present master key.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct KeyState {
    /// Where the master key comes from.
    pub source: String,
    /// What it is: `key` or `passphrase`.
    pub kind: &'static str,
    /// Logs of VMs and clones whose data keys open.
    pub logs: u64,
    /// Logs without keys of their own: from before logs were encrypted.
    pub logs_without_keys: u64,
    /// Logs whose data keys do not open, each with the reason.
    pub unreadable: Vec<String>,
    /// Where the new master key of a change that is under way comes from.
    pub changing_to: Option<String>,
}

/// Looks at all keys.
///
/// # Errors
/// When the master key does not open the store's.
pub async fn look(data: &DataDir, source: &MasterKeySource) -> Result<KeyState, RotateError> {
    if !Images::exist(&data.store()) {
        return Err(RotateError::NoStore);
    }
    let changing_to = pending(data)?.and_then(|record| record.to()).map(|to| to.to_string());
    let secret = source.load(&data.store_key(), true).await?;
    let storage = OsStorage::open(data.store())?;
    let master = ChunkStore::master_of(&storage, &secret).map_err(RotateError::Store)?;
    let kind = if matches!(secret, MasterSecret::Passphrase(_)) { "passphrase" } else { "key" };
    let mut state = KeyState {
        source: source.to_string(),
        kind,
        logs: 0,
        logs_without_keys: 0,
        unreadable: Vec::new(),
        changing_to,
    };
    for log in logs(data)? {
        let storage = OsStorage::open(&log.folder)?;
        match encryption::check(&storage, log.id, &master) {
            Ok(Some(())) => state.logs += 1,
            Ok(None) => state.logs_without_keys += 1,
            Err(error) => state.unreadable.push(format!("{}: {error}", log.name)),
        }
    }
    Ok(state)
}
