//! Facts about a journal that callers pass in or get out. Types only.

use tidemark_proto::ids::DiskId;

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
