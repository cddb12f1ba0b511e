//! What a disk should hold at an LSN: with it a verify compares the disk itself.

use std::sync::Arc;

use tidemark_proto::ids::{DiskId, Lsn};

use super::{Journal, lock};
use crate::error::ViewError;
use crate::view::{View, ViewDisk};

impl Journal {
    /// The content of a disk at an LSN, of all that was appended, durable or not.
    ///
    /// Nothing says that it is a recovery point: the LSN may lie above the horizon. It is right for a place of which no base
    /// block arrives after this call with a line at or below the LSN, so where no gap of the disk was open at the LSN.
    ///
    /// # Errors
    /// [`ViewError::NoDisk`] when the LSN was not taken yet or was folded, or the disk is not known.
    pub fn content_at(&self, disk: DiskId, lsn: Lsn) -> Result<View, ViewError> {
        let history = Arc::clone(&lock(&self.log).history);
        let runs = self.runs();
        let folded = runs.base.as_ref().is_some_and(|base| lsn < base.lsn);
        let known = history.disks.get(&disk).filter(|_| !folded && lsn <= self.appended().lsn);
        let Some(known) = known else { return Err(ViewError::NoDisk { disk, lsn }) };
        let disks = vec![ViewDisk { id: disk, size_bytes: known.size_at(lsn) }];
        Ok(View::new(Arc::clone(&self.source), &runs, lsn, disks))
    }
}
