//! A protected disk: its line and its gap.

use tidemark_proto::ids::DiskId;
use tidemark_proto::v1::{DiskState, GapCause};

use super::asking::Asking;
use crate::capture::Slot;

/// A disk as the driver introduces it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskConfig {
    /// Its place in the kernel's tables.
    pub slot: Slot,
    /// As assigned by the appliance.
    pub id: DiskId,
    /// Bytes it has now; where the welcome names another size, a resize follows in the stream.
    pub size_bytes: u64,
    /// Capture of this disk began anew: every block is to be copied.
    pub fresh: bool,
    /// Cause of the gap when `fresh`: initial copy, or a restarted capture of a disk with a history.
    pub cause: GapCause,
}

/// What `status` shows of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskReport {
    /// Its id.
    pub id: DiskId,
    /// Its place in the kernel's tables.
    pub slot: Slot,
    /// Its state.
    pub state: DiskState,
    /// Bytes that still have to be read or acknowledged.
    pub dirty_bytes: u64,
    /// Bytes copied under the present gap.
    pub copied_bytes: u64,
    /// Of them, bytes that travelled: the rest was known to the appliance or read as zeroes.
    pub sent_bytes: u64,
    /// Reads that failed since the gap opened.
    pub read_errors: u64,
}

/// State of one disk.
#[derive(Debug)]
pub(super) struct Disk {
    pub(super) id: DiskId,
    pub(super) size_bytes: u64,
    /// Base blocks read now carry this LSN. Meaningful while a gap is open.
    pub(super) line: u64,
    pub(super) line_at_us: u64,
    /// First LSN of the open gap.
    pub(super) gap_from: Option<u64>,
    /// The gap is that of an initial copy.
    pub(super) initial: bool,
    /// The gap began with every block in doubt.
    pub(super) whole: bool,
    /// The journal has content of this disk to compare with.
    pub(super) comparable: bool,
    pub(super) asking: Asking,
    /// Something became pending that must lie above writes newer than `line`.
    pub(super) stale_line: bool,
    /// The next line must not begin before the ring is read up to here: the miss was found by other means than the
    /// ring, so writes that are older than it may still wait there.
    pub(super) line_after: u64,
    /// Everything was copied; the gap ends once the ring is read up to here.
    pub(super) end_at: Option<u64>,
    /// Where the search for pending blocks goes on.
    pub(super) cursor: u64,
    pub(super) retry_at_us: u64,
    pub(super) copied_bytes: u64,
    pub(super) sent_bytes: u64,
    pub(super) read_errors: u64,
}

impl Disk {
    pub(super) fn new(id: DiskId, size_bytes: u64) -> Self {
        Self {
            id,
            size_bytes,
            line: 0,
            line_at_us: 0,
            gap_from: None,
            initial: false,
            whole: false,
            comparable: false,
            asking: Asking::default(),
            stale_line: false,
            line_after: 0,
            end_at: None,
            cursor: 0,
            retry_at_us: 0,
            copied_bytes: 0,
            sent_bytes: 0,
            read_errors: 0,
        }
    }

    /// Its state; `hashes_first` when the appliance answers questions.
    pub(super) fn state(&self, dirty_only: bool, hashes_first: bool) -> DiskState {
        match (self.gap_from, dirty_only) {
            (_, true) => DiskState::DirtyOnly,
            (None, false) => DiskState::Protected,
            (Some(_), false) if self.initial => DiskState::InitialSync,
            (Some(_), false) if self.whole && self.comparable && hashes_first => DiskState::Verify,
            (Some(_), false) => DiskState::Resync,
        }
    }
}
