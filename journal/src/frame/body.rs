//! A frame's content in memory. Types only.

use tidemark_proto::ids::{DiskId, Lsn};

use crate::Position;

/// One frame to append, or one that was decoded: the unit of transfer, journaling and acknowledgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Where the stream stands after this frame: `seq` is the frame's own, `lsn` the last one it takes.
    pub position: Position,
    /// Appliance time of the content, microseconds since the epoch: the time of the first entry of [`Body::Writes`],
    /// and of the event itself for the others. Times are made non-decreasing by LSN when they are read back.
    pub appliance_time_us: u64,
    /// Measured bound on the error of that time against the guest's clock, microseconds.
    pub clock_error_us: u64,
    /// What happened.
    pub body: Body<'a>,
}

/// The kinds of content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body<'a> {
    /// Captured writes; entry i has LSN `first_lsn + i`.
    Writes {
        /// LSN of the first entry.
        first_lsn: Lsn,
        /// At least one entry.
        entries: &'a [Entry],
        /// The data entries' bytes, in order, nothing between.
        payload: &'a [u8],
        /// CRC-32C of each 4 KiB of the payload; the last piece may be shorter.
        crc32c: &'a [u32],
    },
    /// Blocks read by initial copy or resync: directly above the open line at `line_lsn`. They take no LSN.
    Base {
        /// The LSN of the line's `LineStart`. The line must be open for the disks of all entries.
        line_lsn: Lsn,
        /// At least one entry; none is a flush.
        entries: &'a [Entry],
        /// As for writes.
        payload: &'a [u8],
        /// As for writes.
        crc32c: &'a [u32],
    },
    /// Takes an LSN: a gap in the history of `disks` begins.
    LineStart {
        /// Its own LSN.
        lsn: Lsn,
        /// The first LSN that is no recovery point of these disks, at most `lsn`.
        gap_from_lsn: Lsn,
        /// The protocol's `GapCause`.
        cause: u32,
        /// For people.
        detail: &'a str,
        /// At least one.
        disks: &'a [DiskId],
        /// Bytes to read again, as known at the start.
        dirty_bytes: u64,
    },
    /// Takes an LSN: all open gaps of `disks` end, its LSN is a recovery point again.
    LineEnd {
        /// Its own LSN.
        lsn: Lsn,
        /// At least one.
        disks: &'a [DiskId],
    },
    /// Takes an LSN: a bookmark's place in the stream.
    Marker {
        /// Its own LSN.
        lsn: Lsn,
        /// Identity of the bookmark.
        bookmark_id: &'a str,
        /// Its name when it was placed.
        name: &'a str,
        /// The appliance's request it answers; 0 when it was placed in the guest.
        request_id: u64,
    },
    /// Every write issued before the frame's time has an LSN of at most `lsn`. Takes no LSN.
    Heartbeat {
        /// The last LSN taken.
        lsn: Lsn,
        /// Appliance time of the sample, microseconds since the epoch.
        time_us: u64,
        /// No miss is known to any counter: points up to `lsn` may be offered.
        clean: bool,
    },
    /// Takes an LSN: the disk has another size from here on.
    Resize {
        /// Its own LSN.
        lsn: Lsn,
        /// Which disk.
        disk: DiskId,
        /// The new size.
        size_bytes: u64,
    },
}

impl<'a> Body<'a> {
    /// The payload and its checksums; empty for events.
    pub(crate) fn payload(&self) -> (&'a [u8], &'a [u32]) {
        match *self {
            Self::Writes { payload, crc32c, .. } | Self::Base { payload, crc32c, .. } => (payload, crc32c),
            _ => (&[], &[]),
        }
    }
}

/// One write of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Which disk; ignored for a flush.
    pub disk: DiskId,
    /// What was done.
    pub kind: EntryKind,
    /// First 512-byte sector.
    pub start_sector: u64,
    /// Sectors; 0 for a flush only.
    pub sectors: u32,
    /// The protocol's flags (bit 0 FUA, bit 1 preceded by a flush, bit 2 secure erase).
    pub flags: u16,
    /// Microseconds since the frame's time.
    pub time_delta_us: u32,
}

impl Entry {
    /// Bytes of payload this entry takes.
    #[must_use]
    pub fn payload_bytes(&self) -> u64 {
        match self.kind {
            EntryKind::Data => u64::from(self.sectors) * tidemark_proto::limits::SECTOR_BYTES,
            _ => 0,
        }
    }
}

/// What a write did. The numbers are those of the protocol and of the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum EntryKind {
    /// Bytes that are in the payload.
    Data = 1,
    /// Reads back as zeroes.
    Zeroes = 2,
    /// Reads back as zeroes here; the guest does not care.
    Discard = 3,
    /// A flush: no sectors.
    Flush = 4,
}

impl EntryKind {
    /// The kind with that number.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Data),
            2 => Some(Self::Zeroes),
            3 => Some(Self::Discard),
            4 => Some(Self::Flush),
            _ => None,
        }
    }
}
