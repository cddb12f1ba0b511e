//! Merging indexes of sealed segments into nodes, in the background.
//!
//! A node is durable before the manifest names it, and what it was merged from stays: whatever stops a merge, nothing is
//! lost but its work. A node that a view found damaged leaves the manifest and is merged again.

use std::io::IoSlice;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard};

use super::sync::as_sync_error;
use super::{Journal, Run, Runs, lock};
use crate::error::SyncError;
use crate::manifest::{NodeRecord, Record};
use crate::node::{self, Child, LEVELS_MAX, MergeError, Sink, Span, Written};
use crate::storage::{StorageError, StorageErrorKind, StorageFile};
use crate::view::FileKey;

/// Bytes of a node that are written at once.
const WRITE_BYTES: usize = 1 << 20;

/// How far merging has come: of each level, the ordinal from which on nodes may still be missing.
#[derive(Debug, Default)]
pub(super) struct Merging {
    done: [u64; LEVELS_MAX as usize],
}

impl Merging {
    /// The lowest node that is due: all its segments are sealed, and it is missing.
    fn due(&mut self, runs: &Runs, last_ordinal: u64) -> Option<Span> {
        let first = runs.segments.first()?.ordinal();
        let folded = runs.base.as_ref().map_or(0, |base| base.first_ordinal);
        let unsealed = runs.segments.iter().rev().take_while(|run| matches!(run, Run::Open(_))).last();
        let end = unsealed.map_or(last_ordinal.saturating_add(1), Run::ordinal);
        for (level, done) in (1..).zip(&mut self.done) {
            loop {
                let span = Span::over(level, (*done).max(first));
                // Some of its segments were folded: it would never be whole.
                if span.first < folded {
                    *done = span.end();
                    continue;
                }
                if span.end() > end {
                    break;
                }
                let from = runs.segments.partition_point(|run| run.ordinal() < span.first);
                let some = runs.segments.get(from).is_some_and(|run| span.contains(run.ordinal()));
                if some && !runs.nodes.contains_key(&span) {
                    return Some(span);
                }
                *done = span.end();
            }
        }
        None
    }

    /// This node was given up, or is there.
    fn passed(&mut self, span: Span) {
        if let Some(done) = self.done.get_mut(usize::from(span.level.saturating_sub(1))) {
            *done = (*done).max(span.end());
        }
    }

    /// This node is missing again.
    fn again(&mut self, span: Span) {
        if let Some(done) = self.done.get_mut(usize::from(span.level.saturating_sub(1))) {
            *done = (*done).min(span.first);
        }
    }
}

impl Journal {
    /// Waits until no merge is in progress, which is not long: it is given up.
    pub(super) fn stop_merging(&self) -> MutexGuard<'_, Merging> {
        self.stop_merging.store(true, Ordering::SeqCst);
        let merging = lock(&self.merging);
        self.stop_merging.store(false, Ordering::SeqCst);
        merging
    }

    /// Merges the next node that is due; whether there may be more to do.
    pub(super) fn merge_next(&self) -> Result<bool, SyncError> {
        let mut merging = lock(&self.merging);
        for span in self.source.broken_nodes() {
            self.drop_node(span)?;
            merging.again(span);
        }
        let last_ordinal = lock(&self.manifest).state().last_ordinal;
        let runs = self.runs();
        let Some(span) = merging.due(&runs, last_ordinal) else { return Ok(false) };
        let children: Vec<Child> = runs.children(span).iter().filter_map(Run::child).collect();
        match self.write_node(span, &children) {
            Ok(written) => {
                self.name_node(span, written)?;
                merging.passed(span);
                Ok(true)
            }
            Err(MergeError::Damaged(Child::Node { span, .. })) => {
                self.source.set_broken(span);
                Ok(true)
            }
            // Views report it when they meet it, and `verify` does; until the next opening this node is done without.
            Err(MergeError::Damaged(Child::Leaf { .. })) => {
                merging.passed(span);
                Ok(true)
            }
            Err(MergeError::Stopped) => Ok(false),
            Err(MergeError::Write(error)) if error.is_full() => Err(SyncError::Full),
            Err(MergeError::Write(error)) => self.poison_if(Err(error)),
            Err(MergeError::Read(error)) => Err(SyncError::Failed(error)),
        }
    }

    /// Writes a node, durably. No manifest names it yet.
    fn write_node(&self, span: Span, children: &[Child]) -> Result<Written, MergeError> {
        let name = span.name();
        self.remove_file(&name).map_err(MergeError::Write)?;
        let file = self.storage.create(&name).map_err(MergeError::Write)?;
        let mut sink = FileSink { file: Arc::clone(&file), offset: 0, buffer: Vec::new() };
        let written =
            node::merge(self.storage.as_ref(), self.key, span, children, &mut sink, &self.stop_merging);
        let written = written.and_then(|written| {
            sink.flush()
                .and_then(|()| file.sync())
                .and_then(|()| self.storage.sync_dir())
                .map_err(MergeError::Write)?;
            Ok(written)
        });
        if written.is_err() {
            let _ = self.storage.remove(&name);
        }
        written
    }

    fn name_node(&self, span: Span, written: Written) -> Result<(), SyncError> {
        self.written(written.bytes);
        let record = NodeRecord { span, bytes: written.bytes, extents: written.extents, hash: written.hash };
        {
            let _syncing = lock(&self.syncing);
            self.put_record(&Record::Node(record)).map_err(as_sync_error)?;
        }
        self.source.forget(FileKey::Node(span));
        self.set_runs(|runs| runs.add_node(record));
        Ok(())
    }

    /// Takes a node out of the journal. Views that have it read what it was merged from.
    fn drop_node(&self, span: Span) -> Result<(), SyncError> {
        if self.runs().nodes.contains_key(&span) {
            let gone = NodeRecord { span, bytes: 0, extents: 0, hash: [0; 32] };
            let _syncing = lock(&self.syncing);
            self.put_record(&Record::Node(gone)).map_err(as_sync_error)?;
            self.set_runs(|runs| {
                runs.nodes.remove(&span);
            });
        }
        let _ = self.remove_file(&span.name());
        Ok(())
    }

    pub(super) fn remove_file(&self, name: &str) -> Result<(), StorageError> {
        match self.storage.remove(name) {
            Err(error) if error.kind() != StorageErrorKind::Missing => Err(error),
            _ => Ok(()),
        }
    }
}

/// A new file, written in large pieces.
struct FileSink {
    file: Arc<dyn StorageFile>,
    offset: u64,
    buffer: Vec<u8>,
}

impl FileSink {
    fn flush(&mut self) -> Result<(), StorageError> {
        self.file.write_at(self.offset, &mut [IoSlice::new(&self.buffer)])?;
        self.offset += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }
}

impl Sink for FileSink {
    fn put(&mut self, bytes: &[u8]) -> Result<(), StorageError> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= WRITE_BYTES { self.flush() } else { Ok(()) }
    }
}
