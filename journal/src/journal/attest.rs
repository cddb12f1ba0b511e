//! Signing heads of the log, and hashing what older programs wrote.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tidemark_proto::ids::{DiskId, Lsn};

use super::{Journal, Log, Manifest, Run, lock};
use crate::attest::{CERTIFICATE_SEGMENTS_MAX, Head, Provenance, Statement, StatementKind, state_digest};
use crate::branch::BranchPoint;
use crate::error::SyncError;
use crate::manifest::{ManifestLog, Record};
use crate::segment::sound_content_hash;

impl Log {
    /// Where the log stands.
    pub(super) fn head(&self) -> Head {
        let (segment, frames) = self.place;
        Head {
            segment,
            frames,
            seq: self.position.seq,
            lsn: self.position.lsn,
            time_us: self.floor_us,
            hash: self.last_hash,
        }
    }

    /// This place of the log gets a statement once it is durable.
    pub(super) fn mark(&mut self, kind: StatementKind) {
        self.heads.push((kind, self.head()));
    }
}

impl Journal {
    /// Signs where the durable log stands, if it went on since the last statement, or if that is by another key. The
    /// statement becomes durable with the next commit: call it from time to time, and before a copy is taken.
    ///
    /// # Errors
    /// As [`Journal::sync`]. Without [`crate::Options::signer`] nothing is done.
    pub fn attest(&self) -> Result<(), SyncError> {
        let _syncing = lock(&self.syncing);
        self.attest_locked()
    }

    /// The caller holds `syncing`.
    pub(super) fn attest_locked(&self) -> Result<(), SyncError> {
        self.sync_writable()?;
        let head = self.published().head;
        if let Manifest::Writer(manifest) = &mut *lock(&self.manifest) {
            self.state_statement(manifest, StatementKind::Checkpoint, head);
        }
        Ok(())
    }

    /// What a disk as of an LSN is read from.
    #[must_use]
    pub fn provenance(&self, disk: DiskId, lsn: Lsn) -> Provenance {
        let (runs, head) = (self.runs(), self.published().head);
        let mut segments: Vec<_> = runs
            .segments
            .iter()
            .take_while(|run| run.ordinal() <= head.segment && run.summary().first_lsn <= lsn.0)
            .map(|run| match run {
                Run::Sealed(sealed) => (sealed.ordinal, sealed.last_hash),
                Run::Open(segment) => {
                    (segment.ordinal, segment.closed().map_or(head.hash, |closed| closed.last_hash))
                }
                Run::Node(node) => (node.record.span.first, node.record.hash),
            })
            .collect();
        segments.drain(..segments.len().saturating_sub(CERTIFICATE_SEGMENTS_MAX));
        let base = runs.base.as_deref();
        let kept = runs.kept.get(&lsn).filter(|_| base.is_some_and(|base| lsn < base.lsn));
        let below = kept.map(|snapshot| snapshot.base.as_ref()).or(base);
        if kept.is_some() {
            // A snapshot is read from its images alone.
            segments.clear();
        }
        let root = |image: &[u8]| match BranchPoint::decode(image) {
            Some(_) => None,
            None => image.last_chunk().copied(),
        };
        let image = below.and_then(|base| Some((base.lsn, root(base.image(disk)?)?)));
        Provenance { head, segments, image }
    }

    /// Signs marked heads, which are durable by now, unsynced: losing a statement loses no data, and the next covers it.
    pub(super) fn sign_heads(&self, heads: Vec<(StatementKind, Head)>) {
        let mut manifest = lock(&self.manifest);
        let Manifest::Writer(manifest) = &mut *manifest else { return };
        for (kind, head) in heads {
            self.state_statement(manifest, kind, head);
        }
    }

    /// Appends a statement about a head and the manifest as it is, unless the newest one says the same already.
    pub(super) fn state_statement(&self, manifest: &mut ManifestLog, kind: StatementKind, head: Head) {
        let Some(signer) = &self.options.signer else { return };
        let state = state_digest(manifest.state());
        let newest = manifest.state().statements.last_key_value().map(|(_, newest)| *newest);
        let public_key = signer.public_key();
        let same =
            |newest: &Statement| (newest.state, newest.public_key, newest.head) == (state, public_key, head);
        if newest.as_ref().is_some_and(same) {
            return;
        }
        // A bookmark's statement that is made anew stays one.
        let kind = newest.filter(|newest| newest.head.place() == head.place()).map_or(kind, |n| n.kind);
        let signed = Statement::sign(kind, head, state, (self.vm, &self.key), signer.as_ref());
        if let Ok(statement) = signed {
            let _ = manifest.append(&Record::Statement(statement));
        }
    }

    /// Segments that an older program wrote and that could not be hashed, with the reason: no statement covers their payload.
    /// Each is tried once for each opening.
    #[must_use]
    pub fn unhashed_segments(&self) -> Vec<(u64, String)> {
        lock(&self.unhashed).clone()
    }

    /// Hashes the file of one segment that an older program wrote, so that statements cover its payload too. One for each
    /// call: after an upgrade the history is read once, bit by bit.
    pub(super) fn hash_old_segment(&self) -> Result<(), SyncError> {
        if self.options.signer.is_none() {
            return Ok(());
        }
        let from = self.old_hashed.load(Ordering::Relaxed);
        let due = {
            let manifest = lock(&self.manifest);
            let state = manifest.state();
            let below = state.hashed_from.unwrap_or(u64::MAX).max(from);
            let mut old = state.sealed.range(from..below);
            old.find(|(ordinal, _)| !state.contents.contains_key(*ordinal))
                .map(|(_, sealed)| Arc::clone(sealed))
        };
        let Some(sealed) = due else { return Ok(()) };
        let hash = sound_content_hash(self.storage.as_ref(), &self.key, sealed.ordinal, sealed.last_hash);
        let done = || self.old_hashed.store(sealed.ordinal + 1, Ordering::Relaxed);
        let problem = match hash {
            Ok(Some(hash)) => {
                let _syncing = lock(&self.syncing);
                // Where there is no space for the record, the next call hashes it again.
                let put = self.put_record(&Record::Content(sealed.ordinal, hash));
                return put.map(|()| done()).map_err(super::sync::as_sync_error);
            }
            Ok(None) => "it is damaged".to_owned(),
            Err(error) => error.to_string(),
        };
        // What is damaged or cannot be read stays without a hash until the journal is opened again, `verify` says so, and
        // those behind it get theirs.
        done();
        // One that was folded meanwhile is missed by nobody.
        if lock(&self.manifest).state().sealed.contains_key(&sealed.ordinal) {
            lock(&self.unhashed).push((sealed.ordinal, problem));
        }
        Ok(())
    }
}
