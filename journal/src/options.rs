//! Settings and limits of a journal.

use std::sync::Arc;

use crate::attest::Signer;
use crate::encryption::Encryption;

/// Limits of the formats and of memory. Each says its unit, its reason and what happens beyond it.
pub mod limits {
    /// Bytes of a segment at which it is closed and the next one begun. Large enough that a leaf index and its syncs
    /// vanish beside the payload, small enough to be read again in a tenth of a second after a crash.
    pub const SEGMENT_BYTES: u64 = 64 << 20;

    /// Bytes of a segment at most, whatever the options say: index entries hold 32-bit offsets. A frame that would end
    /// beyond goes to the next segment.
    pub const SEGMENT_MAX_BYTES: u64 = 1 << 30;

    /// Closed segments that wait for their leaf index at most. Beyond it `sync` builds the leaves itself before it returns.
    pub const SEGMENTS_UNSEALED_MAX: usize = 3;

    /// Bytes of decoded index pages kept for views by default: the pages of some 2,000 leaves at one spot of a disk.
    /// Least recently used pages go first.
    pub const INDEX_CACHE_BYTES: usize = 32 << 20;

    /// Segment files kept open for reading at most. The least recently used is closed.
    pub const OPEN_FILES_MAX: usize = 64;

    /// Bytes of a note's key or of a disk's identity or path at most. Longer ones are refused.
    pub const NOTE_KEY_MAX_BYTES: usize = 1024;

    /// Bytes of a note's value at most: notes are small facts. Longer ones are refused.
    pub const NOTE_VALUE_MAX_BYTES: usize = 64 << 10;

    /// Bytes of text in a frame (a marker's name, a gap's detail) at most. Longer ones are refused.
    pub const TEXT_MAX_BYTES: usize = 1024;

    /// Pins of a journal at most: each is in every snapshot of the manifest. More are refused.
    pub const PINS_MAX: usize = 4096;

    /// Snapshots of a journal at most: each is in every snapshot of the manifest. Thinning keeps their number far below;
    /// more are refused.
    pub const KEPT_MAX: usize = 2048;

    /// Bytes that all images of a base may be described with: a manifest record holds them. More are refused.
    pub const IMAGES_MAX_BYTES: usize = 192 << 10;

    /// Bytes of manifest records after a snapshot before the next snapshot is written.
    pub const MANIFEST_SNAPSHOT_BYTES: u64 = 1 << 20;

    /// Bytes of one manifest record's body at most: a segment of nothing but markers. Longer records do not decode.
    pub const MANIFEST_RECORD_MAX_BYTES: usize = 256 << 20;
}

/// Settings of one journal. `Options::default()` is right for production, but for `key`.
#[derive(Debug, Clone)]
pub struct Options {
    /// Bytes at which a segment is closed; at most [`limits::SEGMENT_MAX_BYTES`].
    pub segment_bytes: u64,
    /// Bytes of decoded index pages to keep.
    pub index_cache_bytes: usize,
    /// Bytes of manifest records after a snapshot before the next snapshot.
    pub manifest_snapshot_bytes: u64,
    /// Used by [`crate::Journal::create`] alone: 32 random bytes that key the hashes of this journal, so that no
    /// guest can write sectors that pass for frames. They are stored in the journal.
    pub key: [u8; 32],
    /// Who signs what the journal says of itself; without, nothing is signed.
    pub signer: Option<Arc<dyn Signer>>,
    /// Encrypts what is written from now on; a journal that is encrypted does not open for writing without.
    pub encryption: Option<Encryption>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            segment_bytes: limits::SEGMENT_BYTES,
            index_cache_bytes: limits::INDEX_CACHE_BYTES,
            manifest_snapshot_bytes: limits::MANIFEST_SNAPSHOT_BYTES,
            key: [0; 32],
            signer: None,
            encryption: None,
        }
    }
}
