//! What lies directly below an open line: with it a resync is compared, not recovered.

use std::sync::Arc;

use tidemark_proto::ids::{DiskId, Lsn};

use super::{Journal, lock};
use crate::error::ViewError;
use crate::view::{View, ViewDisk};

impl Journal {
    /// The content of a disk up to the LSN of a line that is open for it, of all that was appended, durable or not.
    ///
    /// It is no recovery point: the disk is in a gap there. A base block of the line with the same content as this view
    /// changes no view at all, so it need not be appended: what lies above the line hides both alike, elsewhere both
    /// show the same bytes. That holds while no other base block of the same place is on its way. Blocks of the line
    /// that came in later segments than the line itself may be missing from the view.
    ///
    /// The view ends where the disk ended at its smallest since the present base: the log still has what a shrink cut off,
    /// and a fold to between the shrink and a later growth loses it.
    ///
    /// # Errors
    /// [`ViewError::NoDisk`] when no such line is open for the disk.
    pub fn below_line(&self, disk: DiskId, line: Lsn) -> Result<View, ViewError> {
        let history = Arc::clone(&lock(&self.log).history);
        let runs = self.runs();
        let folded = runs.base.as_ref().is_some_and(|base| line < base.lsn);
        if folded || !history.line_open(line, disk) {
            return Err(ViewError::NoDisk { disk, lsn: line });
        }
        let floor = runs.base.as_ref().map_or(Lsn::ZERO, |base| base.lsn);
        let size_bytes = history.disks.get(&disk).map_or(0, |known| known.smallest_between(floor, line));
        Ok(View::new(Arc::clone(&self.source), &runs, line, vec![ViewDisk { id: disk, size_bytes }]))
    }
}
