//! What an export serves.

use std::io;

use tidemark_journal::view::{ExtentKind, View};
use tidemark_proto::ids::DiskId;

/// A run of bytes that are all data, or all known to read as zeroes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SourceExtent {
    /// Bytes.
    pub length: u64,
    /// Nothing was written here: it reads as zeroes.
    pub zero: bool,
}

/// A volume: read-only and never changing, unless it has a writer. Calls block and may come from many threads at once.
pub trait ExportSource: Send + Sync + 'static {
    /// Size in bytes.
    fn size(&self) -> u64;

    /// Fills `buffer` with the bytes from `offset` on. The range lies inside the volume.
    ///
    /// # Errors
    /// When the bytes cannot be read or do not match their checksums; the client then sees an I/O error.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// Runs that cover `[offset, offset + length)` from its start, in order; fewer than all of it may be covered, but
    /// at least one byte.
    ///
    /// # Errors
    /// As [`ExportSource::read_at`].
    fn extents(&self, offset: u64, length: u64) -> io::Result<Vec<SourceExtent>>;

    /// How it is written, if it may be.
    fn writer(&self) -> Option<&dyn ExportWriter> {
        None
    }
}

/// Changes a volume. Ranges lie inside it and are not empty. What a call has written is seen by every read that begins
/// after it returned, on any connection. Calls block and may come from many threads at once.
pub trait ExportWriter: Send + Sync {
    /// Writes bytes.
    ///
    /// # Errors
    /// [`io::ErrorKind::StorageFull`] when there is no space; any other: the appliance's disk failed.
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()>;

    /// Makes a range read as zeroes; `discard`: because nobody needs its content any more.
    ///
    /// # Errors
    /// As [`ExportWriter::write_at`].
    fn zero(&self, offset: u64, length: u64, discard: bool) -> io::Result<()>;

    /// Makes durable what was written before the call, by anyone.
    ///
    /// # Errors
    /// As [`ExportWriter::write_at`]; what is not durable then is unknown.
    fn flush(&self) -> io::Result<()>;
}

/// Bytes of a view that one question about extents looks at, at most: 256 MiB. A client that asks for more gets the
/// answer for these and asks again, so that no question takes seconds on a fragmented disk.
const EXTENTS_BYTES: u64 = 256 << 20;

/// One disk of a journal's view.
#[derive(Debug)]
pub struct ViewSource {
    view: View,
    disk: DiskId,
    size_bytes: u64,
}

impl ViewSource {
    /// `disk` of `view`, whose size is `size_bytes` there.
    #[must_use]
    pub fn new(view: View, disk: DiskId, size_bytes: u64) -> Self {
        Self { view, disk, size_bytes }
    }
}

impl ExportSource for ViewSource {
    fn size(&self) -> u64 {
        self.size_bytes
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.view.read_at(self.disk, offset, buffer).map_err(io::Error::other)
    }

    fn extents(&self, offset: u64, length: u64) -> io::Result<Vec<SourceExtent>> {
        let runs =
            self.view.extents(self.disk, offset, length.min(EXTENTS_BYTES)).map_err(io::Error::other)?;
        Ok(runs
            .into_iter()
            .map(|run| SourceExtent { length: run.bytes, zero: matches!(run.kind, ExtentKind::Zero) })
            .collect())
    }
}
