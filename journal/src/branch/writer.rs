//! Writing into a branch. Each write takes an LSN, so each is a recovery point of the branch once it is flushed.

use std::sync::{Mutex, MutexGuard, PoisonError};

use thiserror::Error;
use tidemark_proto::ids::{DiskId, Lsn};
use tidemark_proto::limits::{CHECKSUM_PIECE_BYTES, SECTOR_BYTES};

use crate::error::{AppendError, SyncError, ViewError};
use crate::frame::{Body, Entry, EntryKind, Frame};
use crate::view::{Extent, View, ViewDisk};
use crate::wire::size;
use crate::{Journal, Position};

/// Bytes of one write at most: as a captured write. Longer ones become several, one after another.
const WRITE_BYTES: usize = 1 << 20;

/// Sectors of one range of zeroes at most: what an entry counts, in whole chunks. Longer ones become several.
const ZERO_SECTORS: u64 = (u32::MAX as u64 / 128) * 128;

/// A branch was not read or written. Text for people, with what to do.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BranchError {
    /// What it holds cannot be read, or the range is not on the disk.
    #[error(transparent)]
    View(#[from] ViewError),
    /// The write was not taken; nothing of it can be read.
    #[error(transparent)]
    Append(#[from] AppendError),
    /// What was written is not known to be durable.
    #[error(transparent)]
    Sync(#[from] SyncError),
}

impl BranchError {
    /// There is no space; the same works once there is.
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Append(AppendError::Full) | Self::Sync(SyncError::Full))
    }
}

/// Reads and writes a branch's present content: the one place through which everything is written, from any number of
/// threads. It keeps no journal; every call names the same one.
#[derive(Debug, Default)]
pub struct BranchWriter {
    /// One write at a time takes the next LSN.
    writing: Mutex<()>,
    /// As long as no segment comes or goes, one view shows everything.
    view: Mutex<Option<View>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl BranchWriter {
    fn view(&self, journal: &Journal) -> View {
        let mut kept = lock(&self.view);
        let view = journal.live(kept.take());
        *kept = Some(view.clone());
        view
    }

    /// Lets go of the view that reads are served from, and so of files that nothing else needs, and of what lay below the
    /// branch before it was folded. The next read looks again: without one it would be kept for ever.
    pub fn let_go(&self) {
        *lock(&self.view) = None;
    }

    /// The disks, by id.
    #[must_use]
    pub fn disks(&self, journal: &Journal) -> Vec<ViewDisk> {
        self.view(journal).disks().to_vec()
    }

    /// Fills the buffer with what was written last, flushed or not, or is below.
    ///
    /// # Errors
    /// As [`View::read_at`].
    pub fn read_at(
        &self,
        journal: &Journal,
        disk: DiskId,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<(), ViewError> {
        self.view(journal).read_at(disk, offset, buffer)
    }

    /// Runs of data and zeroes, as [`View::extents`].
    ///
    /// # Errors
    /// As [`View::read_at`].
    pub fn extents(
        &self,
        journal: &Journal,
        disk: DiskId,
        offset: u64,
        bytes: u64,
    ) -> Result<Vec<Extent>, ViewError> {
        self.view(journal).extents(disk, offset, bytes)
    }

    /// Writes bytes at any offset; of sectors that they cover in part the rest stays. Not durable before
    /// [`BranchWriter::flush`]. Reads that begin after it returned see it.
    ///
    /// # Errors
    /// After an error some of the bytes may have been written, and the others not: the sectors hold either.
    pub fn write_at(
        &self,
        journal: &Journal,
        disk: DiskId,
        offset: u64,
        data: &[u8],
        now_us: u64,
    ) -> Result<(), BranchError> {
        self.view(journal).check_range(disk, offset, data.len() as u64)?;
        let _writing = lock(&self.writing);
        let (head, tail) = edges(offset, data.len());
        let (first, data) = data.split_at_checked(head).unwrap_or((data, &[]));
        let (middle, last) = data.split_at_checked(data.len().saturating_sub(tail)).unwrap_or((data, &[]));
        let mut at = offset;
        for part in [first].into_iter().chain(middle.chunks(WRITE_BYTES)).chain([last]) {
            if !part.is_empty() {
                self.write_part(journal, disk, at, part, now_us)?;
                at += part.len() as u64;
            }
        }
        Ok(())
    }

    /// Writes whole sectors, or a part of one sector.
    fn write_part(
        &self,
        journal: &Journal,
        disk: DiskId,
        offset: u64,
        part: &[u8],
        now_us: u64,
    ) -> Result<(), BranchError> {
        let (start, skip) = (offset / SECTOR_BYTES, size(offset % SECTOR_BYTES));
        if skip == 0 && (part.len() as u64).is_multiple_of(SECTOR_BYTES) {
            return append(journal, (disk, EntryKind::Data), (start, sectors_of(part.len())), part, now_us);
        }
        let mut sector = vec![0; size(SECTOR_BYTES)];
        let view = self.view(journal);
        // The disk may end within its last sector.
        let end = view.disks().iter().find(|found| found.id == disk).map_or(0, |found| found.size_bytes);
        let has = size(end.saturating_sub(start * SECTOR_BYTES)).min(sector.len());
        view.read_at(disk, start * SECTOR_BYTES, sector.get_mut(..has).unwrap_or_default())?;
        if let Some(place) = sector.get_mut(skip..skip.saturating_add(part.len())) {
            place.copy_from_slice(part);
        }
        append(journal, (disk, EntryKind::Data), (start, 1), &sector, now_us)
    }

    /// Makes a range read as zeroes; `kind` says whether it was zeroed or discarded.
    ///
    /// # Errors
    /// As [`BranchWriter::write_at`].
    pub fn zero(
        &self,
        journal: &Journal,
        disk: DiskId,
        (offset, bytes): (u64, u64),
        kind: EntryKind,
        now_us: u64,
    ) -> Result<(), BranchError> {
        self.view(journal).check_range(disk, offset, bytes)?;
        let end = offset.saturating_add(bytes);
        let (first, last) = (offset.next_multiple_of(SECTOR_BYTES).min(end), end - end % SECTOR_BYTES);
        let _writing = lock(&self.writing);
        if last <= first {
            // Within one sector, or across the border of two.
            let border = first.min(end);
            let zeroes = vec![0; size(bytes)];
            let (head, tail) = zeroes.split_at_checked(size(border - offset)).unwrap_or((&zeroes, &[]));
            for (at, part) in [(offset, head), (border, tail)] {
                if !part.is_empty() {
                    self.write_part(journal, disk, at, part, now_us)?;
                }
            }
            return Ok(());
        }
        let edge = vec![0; size(SECTOR_BYTES)];
        for (at, to) in [(offset, first), (last, end)] {
            let part = edge.get(..size(to - at)).unwrap_or_default();
            if !part.is_empty() {
                self.write_part(journal, disk, at, part, now_us)?;
            }
        }
        let (mut start, end) = (first / SECTOR_BYTES, last / SECTOR_BYTES);
        while start < end {
            let sectors = (end - start).min(ZERO_SECTORS);
            append(journal, (disk, kind), (start, u32::try_from(sectors).unwrap_or(0)), &[], now_us)?;
            start += sectors;
        }
        Ok(())
    }

    /// Makes everything written before the call durable, and its points offered. Returns where that ends.
    ///
    /// # Errors
    /// As [`Journal::sync`].
    pub fn flush(&self, journal: &Journal, now_us: u64) -> Result<Position, BranchError> {
        {
            let _writing = lock(&self.writing);
            let before = journal.appended();
            if journal.appended_horizon().is_none_or(|horizon| horizon.lsn < before.lsn) {
                let position = Position { seq: before.seq.saturating_add(1), ..before };
                let body = Body::Heartbeat { lsn: before.lsn, time_us: now_us, clean: true };
                journal.append(&Frame { position, appliance_time_us: now_us, clock_error_us: 0, body })?;
            }
        }
        Ok(journal.sync()?)
    }
}

/// Bytes before the first whole sector and after the last one. A range within one sector is all head.
fn edges(offset: u64, bytes: usize) -> (usize, usize) {
    let sector = size(SECTOR_BYTES);
    let skip = size(offset % SECTOR_BYTES);
    let head = if skip == 0 { 0 } else { (sector - skip).min(bytes) };
    (head, (bytes - head) % sector)
}

fn sectors_of(bytes: usize) -> u32 {
    // At most WRITE_BYTES.
    u32::try_from(bytes as u64 / SECTOR_BYTES).unwrap_or(0)
}

/// Appends one write with the next LSN. The caller lets nobody else append meanwhile.
fn append(
    journal: &Journal,
    (disk, kind): (DiskId, EntryKind),
    (start_sector, sectors): (u64, u32),
    payload: &[u8],
    now_us: u64,
) -> Result<(), BranchError> {
    let before = journal.appended();
    let first_lsn: Lsn = before.lsn.next();
    let position = Position { seq: before.seq.saturating_add(1), lsn: first_lsn, ..before };
    let crc32c: Vec<u32> = payload.chunks(CHECKSUM_PIECE_BYTES).map(crc32c::crc32c).collect();
    let entries = [Entry { disk, kind, start_sector, sectors, flags: 0, time_delta_us: 0 }];
    let body = Body::Writes { first_lsn, entries: &entries, payload, crc32c: &crc32c };
    Ok(journal.append(&Frame { position, appliance_time_us: now_us, clock_error_us: 0, body })?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edges_leave_whole_sectors_between() {
        for (offset, bytes, expected) in [
            (0, 512, (0, 0)),
            (0, 1, (0, 1)),
            (1, 1, (1, 0)),
            (511, 2, (1, 1)),
            (511, 513, (1, 0)),
            (100, 2000, (412, 52)),
            (512, 0, (0, 0)),
        ] {
            assert_eq!(edges(offset, bytes), expected, "{offset} {bytes}");
        }
    }
}
