//! Packs as objects.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tidemark_journal::storage::{StorageError, StorageErrorKind};
use tidemark_journal::store::{PackFolder, PackId};

use super::error::refused;
use super::owner::Owner;
use super::{CacheStatistics, PieceCache, Remote, limits};

/// Folder of the packs below the prefix.
const PACKS: &str = "packs";

/// Bytes at the start of a pack that only an opening reads, alone.
const PACK_HEAD_BYTES: u64 = 4096;

/// Tries of one put: the client itself does not repeat one that timed out, as it may have been done.
const PUT_TRIES: u32 = 5;

/// Before the next try, longer each time: connections that a dead server left break one after the other.
const PUT_PAUSE: Duration = Duration::from_millis(50);

/// Packs below a prefix of a bucket. A pack is one object, written with one conditional request: it is there whole or
/// not at all, and never overwritten. Its largest size is far below what one request may carry.
#[derive(Debug)]
pub struct ObjectFolder {
    remote: Remote,
    owner: Owner,
    cache: Option<PieceCache>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Bytes of packs as last listed or put.
    lengths: BTreeMap<String, u64>,
    /// Deletions that the server has not confirmed.
    doomed: BTreeSet<String>,
}

impl ObjectFolder {
    pub(super) fn new(remote: Remote, owner: Owner, cache: Option<PieceCache>) -> Self {
        Self { remote, owner, cache, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn object(name: &str) -> Result<(String, PackId), StorageError> {
        let unnamed =
            || refused(StorageErrorKind::Failed, "name", name, "this is no name of a pack".to_owned());
        Ok((format!("{PACKS}/{name}"), PackId::of_name(name).ok_or_else(unnamed)?))
    }

    /// What the cache has done; `None` without one.
    #[must_use]
    pub fn cache(&self) -> Option<CacheStatistics> {
        self.cache.as_ref().map(PieceCache::statistics)
    }

    /// Deletions that wait for the server.
    #[must_use]
    pub fn waiting_deletions(&self) -> usize {
        self.state().doomed.len()
    }

    /// A whole pack, from the server.
    pub(super) fn whole(&self, name: &str) -> Result<Bytes, StorageError> {
        self.remote.get(&Self::object(name)?.0)
    }

    /// Whether a read is one that only an opening or a collection makes: of the header, or of the directory, which ends
    /// the pack. Such reads touch each pack once, so a piece around them would only push out what is read again.
    fn alone(&self, name: &str, offset: u64, bytes: u64) -> bool {
        let ends = || self.state().lengths.get(name).is_some_and(|length| offset + bytes == *length);
        (offset == 0 && bytes <= PACK_HEAD_BYTES) || ends()
    }

    fn read_remote(&self, name: &str, offset: u64, buffer: &mut [u8]) -> Result<(), StorageError> {
        let wanted = u64::try_from(buffer.len()).unwrap_or(u64::MAX);
        let found = self.remote.get_range(&Self::object(name)?.0, offset..offset.saturating_add(wanted))?;
        if found.len() != buffer.len() {
            return Err(short(name));
        }
        buffer.copy_from_slice(&found);
        Ok(())
    }

    /// Fetches the piece that begins at `piece`, more behind it for a sequential reader, and fills `out` from it.
    fn fetch(
        &self,
        cache: &PieceCache,
        name: &str,
        piece: u32,
        offset: usize,
        out: &mut [u8],
    ) -> Result<(), StorageError> {
        let (object, pack) = Self::object(name)?;
        let sequential = piece.checked_sub(1).is_some_and(|before| cache.has(pack, before));
        let pieces = if sequential { limits::AHEAD_PIECES } else { 1 };
        let piece_bytes = u64::try_from(limits::PIECE_BYTES).unwrap_or(u64::MAX);
        let from = u64::from(piece) * piece_bytes;
        let found = self.remote.get_range(&object, from..from + u64::from(pieces) * piece_bytes)?;
        for (number, bytes) in (piece..).zip(found.chunks(limits::PIECE_BYTES)) {
            cache.keep(pack, number, bytes);
        }
        let wanted = offset.checked_add(out.len()).and_then(|end| found.get(offset..end));
        out.copy_from_slice(wanted.ok_or_else(|| short(name))?);
        Ok(())
    }

    /// Deletes what waits; what cannot be deleted now waits on.
    fn delete_waiting(&self) {
        let doomed: Vec<String> = self.state().doomed.iter().cloned().collect();
        for name in doomed {
            let deleted = self.owner.check(&self.remote).and_then(|()| {
                let (object, _) = Self::object(&name)?;
                self.remote.delete(&object)
            });
            if let Err(error) = deleted {
                tracing::warn!(%error, waiting = self.waiting_deletions(), "packs could not be deleted; tried again later");
                return;
            }
            self.state().doomed.remove(&name);
        }
    }
}

fn short(name: &str) -> StorageError {
    StorageError::os("read", name, io::Error::from(io::ErrorKind::UnexpectedEof))
}

impl PackFolder for ObjectFolder {
    fn put(&self, name: &str, bytes: &[u8]) -> Result<(), StorageError> {
        let (object, _) = Self::object(name)?;
        self.owner.check(&self.remote)?;
        let content = Bytes::copy_from_slice(bytes);
        let mut tried = 1;
        loop {
            match self.remote.put_new(&object, content.clone()) {
                Ok(()) => break,
                // Whatever the failure, a try that was done after all shows as a name that is taken: the caller compares.
                Err(error) if error.kind() != StorageErrorKind::Failed || tried == PUT_TRIES => {
                    return Err(error);
                }
                Err(error) => tracing::warn!(%error, tried, "a pack could not be written; tried again"),
            }
            std::thread::sleep(PUT_PAUSE * tried);
            tried += 1;
        }
        self.state().lengths.insert(name.to_owned(), u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        Ok(())
    }

    fn read(&self, name: &str, offset: u64, buffer: &mut [u8]) -> Result<(), StorageError> {
        if self.state().doomed.contains(name) {
            return Err(StorageError::os("read", name, io::Error::from(io::ErrorKind::NotFound)));
        }
        let wanted = u64::try_from(buffer.len()).unwrap_or(u64::MAX);
        let large = buffer.len() > limits::PIECE_BYTES * usize::try_from(limits::AHEAD_PIECES).unwrap_or(1);
        let cache = match &self.cache {
            Some(cache) if !large && !self.alone(name, offset, wanted) => cache,
            _ => return self.read_remote(name, offset, buffer),
        };
        let (_, pack) = Self::object(name)?;
        let (mut at, mut rest) = (offset, buffer);
        while !rest.is_empty() {
            let piece_bytes = u64::try_from(limits::PIECE_BYTES).unwrap_or(u64::MAX);
            let piece = u32::try_from(at / piece_bytes).map_err(|_| short(name))?;
            let within = usize::try_from(at % piece_bytes).unwrap_or(0);
            let take = rest.len().min(limits::PIECE_BYTES - within);
            let (out, next) = rest.split_at_mut_checked(take).unwrap_or_default();
            if !cache.read(pack, piece, within, out) {
                self.fetch(cache, name, piece, within, out)?;
            }
            at += u64::try_from(take).unwrap_or(0);
            rest = next;
        }
        Ok(())
    }

    fn list(&self) -> Result<BTreeMap<String, u64>, StorageError> {
        let mut listed = self.remote.list(PACKS)?;
        listed.retain(|name, _| PackId::of_name(name).is_some());
        let mut state = self.state();
        state.lengths.clone_from(&listed);
        listed.retain(|name, _| !state.doomed.contains(name));
        Ok(listed)
    }

    /// The pack is gone for readers at once. While the server does not answer, the object waits for a later
    /// [`PackFolder::sync`]; if the appliance ends before, it is there again at the next start and no root reaches it.
    fn delete(&self, name: &str) -> Result<(), StorageError> {
        let (object, pack) = Self::object(name)?;
        let owned = self.owner.check(&self.remote);
        if let Err(error) = &owned
            && error.kind() == StorageErrorKind::Locked
        {
            return owned;
        }
        if let Some(cache) = &self.cache {
            cache.forget(pack);
        }
        self.state().lengths.remove(name);
        // A server that cannot say whose the place is cannot delete either.
        match owned.and_then(|()| self.remote.delete(&object)) {
            Ok(()) => Ok(()),
            Err(error) => {
                let mut state = self.state();
                if state.doomed.len() >= limits::DELETIONS_MAX {
                    return Err(error);
                }
                tracing::warn!(%error, "a pack could not be deleted; tried again later");
                state.doomed.insert(name.to_owned());
                Ok(())
            }
        }
    }

    /// A put is durable when the server has confirmed it; what is left to do is what it refused to delete.
    fn sync(&self) -> Result<(), StorageError> {
        self.delete_waiting();
        Ok(())
    }
}
