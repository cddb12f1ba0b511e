//! A journal that is opened again after a failed sync, in the same boot, takes nothing for durable that is not.

use std::io::IoSlice;
use std::sync::Arc;

use crate::support::*;
use tidemark_journal::frame::EntryKind;
use tidemark_journal::storage::{Faults, SimStorage, Storage, StorageError, StorageFile, StorageLock};
use tidemark_journal::{Journal, SyncError};

/// A storage that does not settle: the mistake that the checker must catch.
#[derive(Debug)]
struct Unsettled(SimStorage);

#[derive(Debug)]
struct UnsettledFile(Arc<dyn StorageFile>);

impl StorageFile for UnsettledFile {
    fn write_at(&self, offset: u64, slices: &mut [IoSlice<'_>]) -> Result<(), StorageError> {
        self.0.write_at(offset, slices)
    }
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), StorageError> {
        self.0.read_at(offset, buffer)
    }
    fn sync(&self) -> Result<(), StorageError> {
        self.0.sync()
    }
    fn settle(&self) -> Result<(), StorageError> {
        self.0.sync()
    }
    fn len(&self) -> Result<u64, StorageError> {
        self.0.len()
    }
    fn truncate(&self, bytes: u64) -> Result<(), StorageError> {
        self.0.truncate(bytes)
    }
}

impl Storage for Unsettled {
    fn create(&self, name: &str) -> Result<Arc<dyn StorageFile>, StorageError> {
        Ok(Arc::new(UnsettledFile(self.0.create(name)?)))
    }
    fn open(&self, name: &str) -> Result<Arc<dyn StorageFile>, StorageError> {
        Ok(Arc::new(UnsettledFile(self.0.open(name)?)))
    }
    fn rename(&self, from: &str, to: &str) -> Result<(), StorageError> {
        self.0.rename(from, to)
    }
    fn remove(&self, name: &str) -> Result<(), StorageError> {
        self.0.remove(name)
    }
    fn sync_dir(&self) -> Result<(), StorageError> {
        self.0.sync_dir()
    }
    fn list(&self) -> Result<Vec<String>, StorageError> {
        self.0.list()
    }
    fn lock(&self) -> Result<Box<dyn StorageLock>, StorageError> {
        self.0.lock()
    }
}

/// Fails one sync, opens the journal again, then cuts the power. Whether what the opening reported as durable held.
fn holds(seed: u64, failing: u64, wrap: impl Fn(&SimStorage) -> Arc<dyn Storage>) -> bool {
    let storage = SimStorage::new(seed);
    let journal = journal(&storage, 8 << 10);
    let mut stream = tiny(&journal);
    for round in 0..6 {
        stream.writes(vec![entry(1, EntryKind::Data, 40, 3)], round).append(&journal).unwrap();
    }
    storage.set_faults(Faults { fail_sync_after: Some(failing), ..Faults::default() });
    let failed = journal.sync().and_then(|_| journal.maintain());
    assert!(matches!(failed, Err(SyncError::Failed(_))) || failing > 1);
    storage.set_faults(Faults::default());
    drop(journal);
    let (journal, report) = Journal::open(wrap(&storage), options(8 << 10)).unwrap();
    if report.damage.is_some() {
        return false;
    }
    let reported = journal.durable();
    drop(journal);
    storage.crash();
    let (journal, report) = Journal::open(Arc::new(storage.clone()), options(8 << 10)).unwrap();
    report.damage.is_none() && journal.durable().seq >= reported.seq
}

#[test]
fn what_an_opening_reports_as_durable_survives_a_power_cut_after_a_failed_sync() {
    for seed in 0..200 {
        for failing in 0..3 {
            assert!(holds(seed, failing, |storage| Arc::new(storage.clone())), "seed {seed}, sync {failing}");
        }
    }
}

#[test]
fn the_checker_fails_a_storage_whose_cache_is_believed() {
    let broken = (0..20).filter(|seed| !holds(*seed, 0, |storage| Arc::new(Unsettled(storage.clone()))));
    assert!(broken.count() > 0);
}
