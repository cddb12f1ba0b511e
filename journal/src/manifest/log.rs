//! The manifest while it is open for writing.

use std::io::IoSlice;
use std::sync::Arc;

use tidemark_proto::ids::VmId;

use super::read::record_hash;
use super::{HEADER_BYTES, MAGIC, MANIFEST_FILE, MANIFEST_NEW_FILE, RECORD_MAGIC, Read, Record, State};
use crate::storage::{Storage, StorageError, StorageErrorKind, StorageFile};
use crate::wire::{Put, length};

/// Appends records; one owner.
#[derive(Debug)]
pub(crate) struct ManifestLog {
    file: Arc<dyn StorageFile>,
    vm: VmId,
    key: [u8; 32],
    state: State,
    end: u64,
    seq: u64,
    hash: [u8; 32],
    durable_seq: u64,
    snapshot_end: u64,
    written_bytes: u64,
}

impl ManifestLog {
    /// A new manifest, durable.
    pub(crate) fn create(storage: &dyn Storage, vm: VmId, key: [u8; 32]) -> Result<Self, StorageError> {
        write_snapshot(storage, vm, key, State::default(), 1, 0)
    }

    /// Goes on after `read`; what is torn behind it is cut.
    pub(crate) fn resume(file: Arc<dyn StorageFile>, read: Read) -> Result<Self, StorageError> {
        if read.torn.is_some() {
            file.truncate(read.end)?;
        }
        file.sync()?;
        Ok(Self {
            file,
            vm: read.vm,
            key: read.key,
            state: read.state,
            end: read.end,
            seq: read.seq,
            hash: read.hash,
            durable_seq: read.seq,
            snapshot_end: read.snapshot_end,
            written_bytes: 0,
        })
    }

    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    pub(crate) fn written_bytes(&self) -> u64 {
        self.written_bytes
    }

    /// Bytes of records since the last snapshot.
    pub(crate) fn tail_bytes(&self) -> u64 {
        self.end - self.snapshot_end
    }

    /// Appends a record, not durably. After an error the manifest is as before.
    pub(crate) fn append(&mut self, record: &Record) -> Result<(), StorageError> {
        let mut out = Vec::new();
        let hash = encode(record, self.seq + 1, self.durable_seq, &self.key, &self.hash, &mut out);
        if let Err(error) = self.file.write_at(self.end, &mut [IoSlice::new(&out)]) {
            // What was written of it is overwritten by the next record, or cut at the next opening.
            let _ = self.file.truncate(self.end);
            return Err(error);
        }
        self.state.apply(record);
        self.seq += 1;
        self.hash = hash;
        self.end += out.len() as u64;
        self.written_bytes += out.len() as u64;
        Ok(())
    }

    /// What to sync, outside any lock, and what is durable then.
    pub(crate) fn pending(&self) -> (Arc<dyn StorageFile>, u64) {
        (Arc::clone(&self.file), self.seq)
    }

    /// Records up to `seq` are durable.
    pub(crate) fn synced(&mut self, seq: u64) {
        self.durable_seq = self.durable_seq.max(seq);
    }

    /// Whether records wait for a sync that says more than how far the log is durable.
    pub(crate) fn sync(&mut self) -> Result<(), StorageError> {
        self.file.sync()?;
        self.durable_seq = self.seq;
        Ok(())
    }

    /// Replaces the file by a snapshot of its state.
    pub(crate) fn snapshot(&mut self, storage: &dyn Storage) -> Result<(), StorageError> {
        let written = self.written_bytes;
        *self = write_snapshot(storage, self.vm, self.key, self.state.clone(), self.seq + 1, written)?;
        Ok(())
    }
}

fn write_snapshot(
    storage: &dyn Storage,
    vm: VmId,
    key: [u8; 32],
    state: State,
    first_seq: u64,
    written_bytes: u64,
) -> Result<ManifestLog, StorageError> {
    let mut out = Vec::new();
    out.put(&MAGIC);
    out.u16(super::VERSION);
    out.u16(104);
    out.u32(0);
    out.put(vm.0.as_bytes());
    out.put(&key);
    out.u64(first_seq);
    let mut hash = *blake3::keyed_hash(&key, &out).as_bytes();
    out.put(&hash);
    debug_assert_eq!(out.len(), HEADER_BYTES);
    let mut seq = first_seq;
    for record in state.snapshot() {
        hash = encode(&record, seq, 0, &key, &hash, &mut out);
        seq += 1;
    }
    match storage.remove(MANIFEST_NEW_FILE) {
        Err(error) if error.kind() != StorageErrorKind::Missing => return Err(error),
        _ => {}
    }
    let file = storage.create(MANIFEST_NEW_FILE)?;
    file.write_at(0, &mut [IoSlice::new(&out)])?;
    file.sync()?;
    storage.rename(MANIFEST_NEW_FILE, MANIFEST_FILE)?;
    storage.sync_dir()?;
    let end = out.len() as u64;
    Ok(ManifestLog {
        file,
        vm,
        key,
        state,
        end,
        seq: seq - 1,
        hash,
        durable_seq: seq - 1,
        snapshot_end: end,
        written_bytes: written_bytes + end,
    })
}

fn encode(
    record: &Record,
    seq: u64,
    durable_seq: u64,
    key: &[u8; 32],
    previous: &[u8; 32],
    out: &mut Vec<u8>,
) -> [u8; 32] {
    let mut body = Vec::new();
    record.encode(&mut body);
    let mut fixed = Vec::with_capacity(super::RECORD_HEADER_BYTES);
    fixed.put(&RECORD_MAGIC);
    fixed.u16(record.kind());
    fixed.u16(0);
    fixed.u32(length(body.len()));
    fixed.u64(seq);
    fixed.u64(durable_seq);
    let hash = record_hash(key, previous, &fixed, &body);
    out.put(&fixed);
    out.put(&hash);
    out.put(&body);
    hash
}
