//! Making durable what was appended, and building leaf indexes. One thread at a time each, beside appends.

use std::io::IoSlice;
use std::sync::{Arc, PoisonError};

use super::{Journal, Manifest, MemorySegment, Published, Run, lock};
use crate::Position;
use crate::attest::StatementKind;
use crate::error::{AppendError, SyncError};
use crate::leaf::{self, leaf_name};
use crate::manifest::{Record, Sealed};
use crate::options::limits::SEGMENTS_UNSEALED_MAX;
use crate::storage::{StorageError, StorageErrorKind};

impl Journal {
    /// Makes everything appended before the call durable and returns where that ends. Appends may run meanwhile.
    ///
    /// # Errors
    /// After [`SyncError::Failed`] the journal takes nothing more until it is opened again. [`SyncError::Full`] comes
    /// only when the data is durable but its bookkeeping has no space: [`Journal::durable`] has advanced.
    pub fn sync(&self) -> Result<Position, SyncError> {
        let position = {
            let _syncing = lock(&self.syncing);
            self.sync_log()?
        };
        if self.closed_segments().len() > SEGMENTS_UNSEALED_MAX {
            self.seal_closed()?;
        }
        Ok(position)
    }

    /// Builds the leaf indexes of closed segments and merges those of sealed ones, until nothing is left to do. Commits
    /// go on meanwhile. Call it from a background thread after [`Journal::sync`], and once after opening; without it,
    /// `sync` builds leaves itself from time to time, and views read more of them.
    ///
    /// # Errors
    /// As [`Journal::sync`].
    pub fn maintain(&self) -> Result<(), SyncError> {
        self.sync_writable()?;
        loop {
            self.seal_closed()?;
            if !self.merge_next()? {
                return self.hash_old_segment();
            }
        }
    }

    /// Syncs, seals what is closed, and notes a clean end. A merge in progress is given up. What is appended later makes
    /// the end unclean again.
    ///
    /// # Errors
    /// As [`Journal::sync`]. Nothing that was synced before is lost.
    pub fn close(&self) -> Result<Position, SyncError> {
        let _merging = self.stop_merging();
        {
            let _syncing = lock(&self.syncing);
            self.sync_log()?;
        }
        self.seal_closed()?;
        let _syncing = lock(&self.syncing);
        let position = self.sync_log()?;
        self.attest_locked()?;
        self.put_record(&Record::Closed { seq: position.seq, lsn: position.lsn }).map_err(as_sync_error)?;
        Ok(position)
    }

    pub(super) fn sync_writable(&self) -> Result<(), SyncError> {
        self.writable().map_err(as_sync_error)
    }

    fn sync_log(&self) -> Result<Position, SyncError> {
        self.sync_writable()?;
        let (closed, open, names, heads, published) = {
            let mut log = lock(&self.log);
            let closed = std::mem::take(&mut log.unsynced);
            let open = log.open.as_mut().filter(|open| open.unsynced).map(|open| {
                open.unsynced = false;
                Arc::clone(&open.file)
            });
            let (history, horizon) = (Arc::clone(&log.history), log.horizon);
            let names = std::mem::take(&mut log.names_unsynced);
            let heads = std::mem::take(&mut log.heads);
            let published = Published { position: log.position, history, horizon, head: log.head() };
            (closed, open, names, heads, published)
        };
        let idle = closed.is_empty() && open.is_none() && !names;
        for (file, segment) in closed {
            self.poison_if(file.sync())?;
            segment.set_footer_durable();
        }
        if let Some(file) = open {
            self.poison_if(file.sync())?;
        }
        if names {
            self.poison_if(self.storage.sync_dir())?;
            self.sync_manifest()?;
        }
        let position = published.position;
        *self.published.write().unwrap_or_else(PoisonError::into_inner) = published;
        if !idle {
            // Unsynced, and no loss if it is: it only makes damage to the last frames tell itself from a torn tail.
            if let Manifest::Writer(manifest) = &mut *lock(&self.manifest) {
                let _ = manifest.append(&Record::Durable { seq: position.seq, lsn: position.lsn });
            }
            self.sign_heads(heads);
            self.snapshot_if_due()?;
        }
        Ok(position)
    }

    pub(super) fn poison_if<T>(&self, result: Result<T, StorageError>) -> Result<T, SyncError> {
        result.map_err(|error| {
            self.poison();
            SyncError::Failed(error)
        })
    }

    /// Syncs the manifest without holding its lock.
    fn sync_manifest(&self) -> Result<(), SyncError> {
        let pending = match &*lock(&self.manifest) {
            Manifest::Writer(manifest) => Some(manifest.pending()),
            Manifest::Reader(_) => None,
        };
        let Some((file, seq)) = pending else { return Ok(()) };
        self.poison_if(file.sync())?;
        if let Manifest::Writer(manifest) = &mut *lock(&self.manifest) {
            manifest.synced(seq);
        }
        Ok(())
    }

    /// Appends a record, durably, and a second one that says so. The caller holds `syncing`.
    pub(super) fn put_record(&self, record: &Record) -> Result<(), AppendError> {
        self.writable()?;
        match &mut *lock(&self.manifest) {
            Manifest::Writer(manifest) => {
                manifest.append(record)?;
                if matches!(
                    record,
                    Record::Disk(_) | Record::Base(_) | Record::Keeping(_) | Record::Content(..)
                ) {
                    self.state_statement(manifest, StatementKind::Checkpoint, self.published().head);
                }
            }
            Manifest::Reader(_) => return Err(AppendError::ReadOnly("no manifest is open".to_owned())),
        }
        // Appends go on meanwhile; they take the manifest's lock.
        self.sync_manifest().map_err(as_append_error)?;
        if matches!(record, Record::Closed { .. }) {
            return Ok(());
        }
        if let Manifest::Writer(manifest) = &mut *lock(&self.manifest) {
            let state = manifest.state();
            let witness = Record::Durable { seq: state.durable_seq, lsn: state.durable_lsn };
            let _ = manifest.append(&witness);
        }
        // A snapshot that fails poisons the journal for the next call; this record is durable.
        let _ = self.snapshot_if_due();
        Ok(())
    }

    fn snapshot_if_due(&self) -> Result<(), SyncError> {
        let mut manifest = lock(&self.manifest);
        let Manifest::Writer(manifest) = &mut *manifest else { return Ok(()) };
        if manifest.tail_bytes() < self.options.manifest_snapshot_bytes {
            return Ok(());
        }
        match manifest.snapshot(self.storage.as_ref()) {
            // The old manifest is still whole, and is written on.
            Err(error) if error.is_full() => Ok(()),
            result => self.poison_if(result),
        }
    }

    /// Closed segments whose every byte is durable. Only the newest segments are not sealed.
    fn closed_segments(&self) -> Vec<Arc<MemorySegment>> {
        let runs = self.runs();
        let open = runs
            .segments
            .iter()
            .rev()
            .map_while(|run| if let Run::Open(segment) = run { Some(segment) } else { None });
        let mut closed: Vec<_> = open
            .filter(|segment| segment.closed().is_some() && segment.is_footer_durable())
            .cloned()
            .collect();
        closed.reverse();
        closed
    }

    fn seal_closed(&self) -> Result<(), SyncError> {
        let _sealing = lock(&self.sealing);
        for segment in self.closed_segments() {
            self.seal(&segment)?;
        }
        Ok(())
    }

    /// Writes the leaf of a closed, durable segment, makes it durable, and only then names it in the manifest.
    fn seal(&self, segment: &MemorySegment) -> Result<(), SyncError> {
        let Some(closed) = segment.closed() else { return Ok(()) };
        let (leaf, leaf_hash) = leaf::encode(&segment.index(), segment.ordinal, &self.key);
        let name = leaf_name(segment.ordinal);
        match self.storage.remove(&name) {
            Err(error) if error.kind() != StorageErrorKind::Missing => return Err(SyncError::Failed(error)),
            _ => {}
        }
        let written = self.storage.create(&name).and_then(|file| {
            file.write_at(0, &mut [IoSlice::new(&leaf)])?;
            Ok(file)
        });
        let file = match written {
            Ok(file) => file,
            Err(error) if error.is_full() => {
                let _ = self.storage.remove(&name);
                return Err(SyncError::Full);
            }
            Err(error) => return self.poison_if(Err(error)),
        };
        self.poison_if(file.sync())?;
        self.poison_if(self.storage.sync_dir())?;
        self.written(leaf.len() as u64);
        let sealed = Arc::new(Sealed {
            ordinal: segment.ordinal,
            bytes: closed.bytes,
            leaf_bytes: leaf.len() as u64,
            leaf_hash,
            last_hash: closed.last_hash,
            position: closed.position,
            summary: segment.index().summary(),
            events: segment.events(),
        });
        {
            let _syncing = lock(&self.syncing);
            self.put_record(&Record::Sealed(Arc::clone(&sealed))).map_err(as_sync_error)?;
        }
        self.set_runs(|runs| {
            if let Some(run) = runs.segments.iter_mut().rev().find(|run| run.ordinal() == sealed.ordinal) {
                *run = Run::Sealed(sealed);
            }
        });
        Ok(())
    }
}

fn as_append_error(error: SyncError) -> AppendError {
    match error {
        SyncError::Full => AppendError::Full,
        SyncError::Poisoned => AppendError::Poisoned,
        SyncError::Failed(error) => AppendError::Storage(error),
        SyncError::ReadOnly(reason) => AppendError::ReadOnly(reason),
    }
}

pub(super) fn as_sync_error(error: AppendError) -> SyncError {
    match error {
        AppendError::Full => SyncError::Full,
        AppendError::Poisoned => SyncError::Poisoned,
        AppendError::Storage(error) => SyncError::Failed(error),
        AppendError::ReadOnly(reason) | AppendError::Invalid(reason) => SyncError::ReadOnly(reason),
    }
}
