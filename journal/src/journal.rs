//! The journal of one VM, open.

use std::sync::Arc;

use tidemark_proto::ids::{Lsn, VmId};

use crate::error::{AppendError, OpenError, SyncError, ViewError};
use crate::frame::Frame;
use crate::recovery::RecoveryReport;
use crate::storage::Storage;
use crate::timeline::Timeline;
use crate::view::View;
use crate::{DiskRecord, Options, Position, Statistics};

/// The journal of one VM. All methods take `&self`; it may be shared between threads.
#[derive(Debug)]
pub struct Journal {
    storage: Arc<dyn Storage>,
    vm: VmId,
}

impl Journal {
    /// A new journal in an empty directory.
    pub fn create(storage: Arc<dyn Storage>, vm: VmId, options: Options) -> Result<Self, OpenError> {
        let _ = (storage, vm, options);
        Err(OpenError::Option("not built yet"))
    }
    /// Opens for writing, exclusively, after recovery. With damage in acknowledged content it opens read-only.
    pub fn open(storage: Arc<dyn Storage>, options: Options) -> Result<(Self, RecoveryReport), OpenError> {
        let _ = (storage, options);
        Err(OpenError::Option("not built yet"))
    }
    /// Opens for reading, changing nothing, beside a writer if need be.
    pub fn open_read_only(
        storage: Arc<dyn Storage>,
        options: Options,
    ) -> Result<(Self, RecoveryReport), OpenError> {
        let _ = (storage, options);
        Err(OpenError::Option("not built yet"))
    }
    /// Whose journal it is.
    #[must_use]
    pub fn vm(&self) -> VmId {
        self.vm
    }
    /// Appends to the operating system, not durably. The payload's checksums are stored, not computed.
    pub fn append(&self, frame: &Frame<'_>) -> Result<(), AppendError> {
        let _ = (frame, &self.storage);
        Err(AppendError::ReadOnly("not built yet".to_owned()))
    }
    /// Makes everything appended before the call durable and returns where that ends. Appends may run meanwhile.
    pub fn sync(&self) -> Result<Position, SyncError> {
        Err(SyncError::Poisoned)
    }
    /// Builds the leaf indexes of closed segments. Call it from a background thread after `sync`; without it, `sync`
    /// does the work itself from time to time.
    pub fn maintain(&self) -> Result<(), SyncError> {
        Err(SyncError::Poisoned)
    }
    /// Syncs, seals what is closed and notes a clean end. Dropping without it is safe, the next open only reads more.
    pub fn close(self) -> Result<Position, SyncError> {
        Err(SyncError::Poisoned)
    }
    /// End of what was appended.
    #[must_use]
    pub fn appended(&self) -> Position {
        Position::default()
    }
    /// End of what is durable.
    #[must_use]
    pub fn durable(&self) -> Position {
        Position::default()
    }
    /// Adds or changes a disk, durably.
    pub fn put_disk(&self, disk: DiskRecord) -> Result<(), AppendError> {
        let _ = disk;
        Err(AppendError::Full)
    }
    /// All disks ever protected, by id.
    #[must_use]
    pub fn disks(&self) -> Vec<DiskRecord> {
        Vec::new()
    }
    /// Keeps a small fact, durably; the last value of a key wins, an empty one removes it.
    pub fn put_note(&self, key: &str, value: &[u8]) -> Result<(), AppendError> {
        let _ = (key, value);
        Err(AppendError::Full)
    }
    /// The value of a note.
    #[must_use]
    pub fn note(&self, key: &str) -> Option<Vec<u8>> {
        let _ = key;
        None
    }
    /// All notes, by key.
    #[must_use]
    pub fn notes(&self) -> Vec<(String, Vec<u8>)> {
        Vec::new()
    }
    /// A snapshot of what can be recovered, of what is durable only.
    #[must_use]
    pub fn timeline(&self) -> Timeline {
        Timeline::default()
    }
    /// The disks as of an LSN. Disks that are in a gap there, or not yet copied, are left out; it is refused when no
    /// disk remains, and beyond the horizon.
    pub fn view(&self, lsn: Lsn) -> Result<View, ViewError> {
        Err(ViewError::NoDisk { disk: tidemark_proto::ids::DiskId(1), lsn })
    }
    /// Counters.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        Statistics::default()
    }
}
