//! A clone's present content, as exports and mounts read and write it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tidemark_journal::branch::{BranchError, BranchWriter};
use tidemark_journal::frame::EntryKind;
use tidemark_journal::view::{Extent, ExtentKind, ViewDisk};
use tidemark_journal::{Journal, ViewError};
use tidemark_proto::ids::DiskId;
use tokio::sync::watch;

use crate::clock::now_us;
use crate::export::{ExportSource, ExportWriter, SourceExtent};
use crate::fleet::VmLog;
use crate::space::Space;

/// Bytes that one question about extents looks at, at most: as for views.
const EXTENTS_BYTES: u64 = 256 << 20;

/// All disks of one clone. One value per clone and process, so that all who write see each other. Calls block.
#[derive(Debug)]
pub struct Volume {
    log: Arc<VmLog>,
    writer: BranchWriter,
    space: watch::Receiver<Space>,
    /// Something was written since the last flush began.
    dirty: AtomicBool,
}

fn failed(error: &BranchError) -> io::Error {
    if error.is_full() {
        return io::Error::new(io::ErrorKind::StorageFull, error.to_string());
    }
    io::Error::other(error.to_string())
}

impl Volume {
    /// The volume of the clone whose journal this is.
    #[must_use]
    pub fn new(log: Arc<VmLog>, space: watch::Receiver<Space>) -> Self {
        Self { log, writer: BranchWriter::default(), space, dirty: AtomicBool::new(false) }
    }

    fn journal(&self) -> io::Result<Arc<Journal>> {
        self.log.journal().map_err(io::Error::other)
    }

    /// The journal, when it may grow.
    fn writable(&self) -> io::Result<Arc<Journal>> {
        if self.space.borrow().full {
            return Err(io::Error::new(io::ErrorKind::StorageFull, "the appliance's disk is full"));
        }
        let journal = self.log.writable().map_err(io::Error::other)?;
        self.dirty.store(true, Ordering::SeqCst);
        Ok(journal)
    }

    /// Said again after the write: a flush may have begun since [`Volume::writable`], before the write was there.
    fn written(&self) {
        self.dirty.store(true, Ordering::SeqCst);
    }

    /// The disks, by id.
    ///
    /// # Errors
    /// When the journal is down.
    pub fn disks(&self) -> io::Result<Vec<ViewDisk>> {
        Ok(self.writer.disks(self.journal()?.as_ref()))
    }

    /// Fills the buffer with what was written last.
    ///
    /// # Errors
    /// As [`tidemark_journal::view::View::read_at`], and when the journal is down.
    pub fn read_at(&self, disk: DiskId, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.writer.read_at(self.journal()?.as_ref(), disk, offset, buffer).map_err(io::Error::other)
    }

    /// Runs of data and zeroes from `offset` on, of the first 256 MiB of the range at most.
    ///
    /// # Errors
    /// As [`Volume::read_at`].
    pub fn extents(&self, disk: DiskId, offset: u64, bytes: u64) -> io::Result<Vec<Extent>> {
        let extents: Result<_, ViewError> =
            self.writer.extents(self.journal()?.as_ref(), disk, offset, bytes.min(EXTENTS_BYTES));
        extents.map_err(io::Error::other)
    }

    /// Writes bytes, not durably.
    ///
    /// # Errors
    /// [`io::ErrorKind::StorageFull`] without space; any other when the disk failed or the range is not on it.
    pub fn write_at(&self, disk: DiskId, offset: u64, data: &[u8]) -> io::Result<()> {
        let journal = self.writable()?;
        let written = self.writer.write_at(journal.as_ref(), disk, offset, data, now_us());
        self.written();
        written.map_err(|error| failed(&error))
    }

    /// Makes a range read as zeroes, not durably.
    ///
    /// # Errors
    /// As [`Volume::write_at`].
    pub fn zero(&self, disk: DiskId, offset: u64, bytes: u64, discard: bool) -> io::Result<()> {
        let journal = self.writable()?;
        let kind = if discard { EntryKind::Discard } else { EntryKind::Zeroes };
        let zeroed = self.writer.zero(journal.as_ref(), disk, (offset, bytes), kind, now_us());
        self.written();
        zeroed.map_err(|error| failed(&error))
    }

    /// Makes everything written before the call durable, and its points offered.
    ///
    /// # Errors
    /// As [`Volume::write_at`].
    pub fn flush(&self) -> io::Result<()> {
        self.dirty.store(false, Ordering::SeqCst);
        let journal = self.log.writable().map_err(io::Error::other)?;
        self.writer.flush(journal.as_ref(), now_us()).map(drop).map_err(|error| {
            self.dirty.store(true, Ordering::SeqCst);
            failed(&error)
        })
    }

    /// See [`BranchWriter::let_go`].
    pub(super) fn let_go(&self) {
        self.writer.let_go();
    }

    /// Flushes what nobody has flushed, and looks after the journal's indexes.
    pub(super) fn settle(&self) {
        if !self.dirty.load(Ordering::SeqCst) {
            return;
        }
        match self.flush() {
            Ok(()) => self.log.maintain(),
            // Whoever writes is told at once; here it would be said every second.
            Err(error) => tracing::debug!(%error, "cannot flush a clone"),
        }
    }
}

/// One disk of a clone as an export serves it.
#[derive(Debug)]
pub struct CloneSource {
    volume: Arc<Volume>,
    disk: DiskId,
    size_bytes: u64,
}

impl CloneSource {
    /// `disk`, whose size is `size_bytes`.
    #[must_use]
    pub fn new(volume: Arc<Volume>, disk: DiskId, size_bytes: u64) -> Self {
        Self { volume, disk, size_bytes }
    }
}

impl ExportSource for CloneSource {
    fn size(&self) -> u64 {
        self.size_bytes
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.volume.read_at(self.disk, offset, buffer)
    }

    fn extents(&self, offset: u64, length: u64) -> io::Result<Vec<SourceExtent>> {
        let runs = self.volume.extents(self.disk, offset, length)?;
        let extent =
            |run: Extent| SourceExtent { length: run.bytes, zero: matches!(run.kind, ExtentKind::Zero) };
        Ok(runs.into_iter().map(extent).collect())
    }

    fn writer(&self) -> Option<&dyn ExportWriter> {
        Some(self)
    }
}

impl ExportWriter for CloneSource {
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.volume.write_at(self.disk, offset, data)
    }

    fn zero(&self, offset: u64, length: u64, discard: bool) -> io::Result<()> {
        self.volume.zero(self.disk, offset, length, discard)
    }

    fn flush(&self) -> io::Result<()> {
        self.volume.flush()
    }
}
