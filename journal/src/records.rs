//! Facts about a journal that callers pass in or get out. Types only.

use tidemark_proto::ids::{DiskId, Lsn};

/// A disk of the VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskRecord {
    /// Dense from 1, never reused.
    pub id: DiskId,
    /// Stable identity: serial, WWN or GPT UUID.
    pub identity: String,
    /// The kernel's name when last seen: for people only.
    pub path: String,
    /// Size when last told; views know the size as of their LSN.
    pub size_bytes: u64,
}

/// Counters, from the creation of the journal on unless said otherwise.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Bytes of payload received.
    pub payload_bytes: u64,
    /// Bytes written to all files: segments, leaf indexes, nodes and manifest.
    pub written_bytes: u64,
    /// Bytes of the live segments now.
    pub segment_bytes: u64,
    /// Bytes of the leaf indexes and merged nodes now.
    pub index_bytes: u64,
    /// Merged nodes now.
    pub nodes: u64,
    /// Live segments now.
    pub segments: u64,
    /// Frames appended since this open.
    pub frames: u64,
    /// Bytes of decoded index pages in memory now.
    pub index_cache_bytes: u64,
}

/// Something that keeps the points from an LSN on from being folded away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pin {
    /// Unique in its journal; a second pin of that name replaces the first.
    pub name: String,
    /// Who holds it.
    pub kind: PinKind,
    /// The first point that is kept; with it all later ones. Of a bookmark or a lock it is this point alone that must
    /// stay: once a snapshot of it is kept, the cutoff may pass, and the pin keeps the snapshot.
    pub lsn: Lsn,
    /// When it ends by itself, microseconds since the epoch; `None`: when it is revoked.
    pub until_us: Option<u64>,
}

/// Who holds a pin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum PinKind {
    /// An open view.
    Lease = 1,
    /// A bookmark that is to be kept.
    Bookmark = 2,
    /// A writable copy.
    Clone = 3,
    /// A retention lock: until its time it can be neither revoked nor weakened, by anybody.
    Lock = 4,
    /// A replica that has not received more.
    Replica = 5,
}

impl PinKind {
    pub(crate) fn from_number(number: u8) -> Option<Self> {
        [Self::Lease, Self::Bookmark, Self::Clone, Self::Lock, Self::Replica]
            .into_iter()
            .find(|kind| *kind as u8 == number)
    }
}

/// A snapshot: a point below the log that is recoverable because its images are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// The point.
    pub lsn: Lsn,
    /// Its time, microseconds since the epoch.
    pub time_us: u64,
    /// The first time, exclusive of which the disks were as at the point: when the next LSN was taken. Later than
    /// `time_us`.
    pub until_us: u64,
    /// Every disk that was known then, by id.
    pub disks: Vec<KeptDisk>,
}

/// A disk of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptDisk {
    /// Which disk.
    pub id: DiskId,
    /// Its size then.
    pub size_bytes: u64,
    /// What its image is to whoever keeps images.
    pub image: Vec<u8>,
}

/// A live segment, as far as retention goes by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogPart {
    /// Bytes of its file and its leaf index.
    pub bytes: u64,
    /// The last LSN taken by its end.
    pub last_lsn: Lsn,
    /// Time of the first LSN taken in it; 0 when none was.
    pub first_time_us: u64,
    /// Whether it has its leaf index, so that it can be dropped.
    pub sealed: bool,
}

/// By disk, what its image is to whoever keeps images: a descriptor, say.
pub type ImageNames = Vec<(DiskId, Vec<u8>)>;
