//! Memory shared with the eBPF programs and between processes: the mirror of `src/bpf/{tables,records,dirty}.h`.
//!
//! Everything is little-endian, naturally aligned, and lives in pinned maps until they are unpinned or the machine
//! restarts. [`LAYOUT_VERSION`] changes with any of it; a capture pinned with another version is replaced.
//!
//! Ring record (behind the ring buffer's own 8 bytes: length with busy and discard bits, page offset):
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 1 | type: 1 issue, 2 completion, 3 requeue |
//! | 1 | 1 | kind: 1 data, 2 zeroes, 3 discard, 4 flush (as `WriteKind`) |
//! | 2 | 2 | slot |
//! | 4 | 4 | generation |
//! | 8 | 8 | request address, its upper 16 bits changed by the number of a discard's range |
//! | 16 | 8 | first sector |
//! | 24 | 4 | sectors |
//! | 28 | 4 | flags (as `WriteEntry.flags`) |
//! | 32 | 8 | issue: boot time in ns; completion: bytes completed (4), status (4) |
//! | 40 | | data: `sectors * 512` bytes of content, then perhaps slack |

use std::sync::atomic::AtomicU64;

/// Version of everything in this file.
pub(crate) const LAYOUT_VERSION: u64 = 1;
/// "TIDETAP\0", first word of the pinned metadata.
pub(crate) const META_MAGIC: u64 = u64::from_le_bytes(*b"TIDETAP\0");

/// Disks in one capture, so in one order. More than any guest has; bounds the maps.
pub const SLOTS: u16 = 64;
/// Kept for the self-test; never given to a protected disk.
pub(crate) const SELF_TEST_SLOT: u16 = SLOTS - 1;
/// `GapCause` numbers that are counted.
pub(crate) const CAUSES: usize = 16;

/// Bytes of a record before the content.
pub(crate) const RECORD_BYTES: usize = 40;
/// Bytes of the ring buffer's own header.
pub(crate) const RING_HEADER_BYTES: u64 = 8;
/// Header bits (include/uapi/linux/bpf.h).
pub(crate) const RING_BUSY: u32 = 1 << 31;
pub(crate) const RING_DISCARD: u32 = 1 << 30;

pub(crate) const RECORD_ISSUE: u8 = 1;
pub(crate) const RECORD_COMPLETE: u8 = 2;
pub(crate) const RECORD_REQUEUE: u8 = 3;

/// Lowest bit of [`ControlPage::state`]: capture everything. The generation is above it.
pub(crate) const STATE_FULL: u64 = 1;

/// The map `control`.
#[repr(C)]
pub(crate) struct ControlPage {
    pub(crate) state: AtomicU64,
    pub(crate) cause: AtomicU64,
    pub(crate) generation_start: AtomicU64,
    /// How often a CPU ran out of notes about completions: the counters of completions are in doubt.
    pub(crate) doubts: AtomicU64,
    pub(crate) misses: [AtomicU64; CAUSES],
}

/// One value of the map `slots`.
#[repr(C)]
pub(crate) struct SlotCounters {
    pub(crate) completed_write_sectors: AtomicU64,
    pub(crate) completed_discard_sectors: AtomicU64,
    pub(crate) marks: AtomicU64,
    pub(crate) whole: AtomicU64,
    pub(crate) reserved: [AtomicU64; 4],
}

/// Bytes of one value of a dirty map: one bit per 4 KiB, so 128 MiB of disk.
pub(crate) const DIRTY_PAGE_BYTES: u64 = 4096;
/// Blocks in one value of a dirty map.
pub(crate) const DIRTY_PAGE_BLOCKS: u64 = DIRTY_PAGE_BYTES * 8;

/// The map `meta`: written by user space, kept with the capture.
#[repr(C)]
pub(crate) struct MetaPage {
    pub(crate) magic: AtomicU64,
    pub(crate) layout_version: AtomicU64,
    pub(crate) capture_id: [AtomicU64; 2],
    pub(crate) ring_bytes: AtomicU64,
    pub(crate) page_constant: AtomicU64,
    /// Recursion misses of the two completion programs that are accounted for.
    pub(crate) accepted_recursion: [AtomicU64; 2],
    pub(crate) slots: [SlotMeta; SLOTS as usize],
}

/// The part of [`MetaPage`] for one slot.
#[repr(C)]
pub(crate) struct SlotMeta {
    /// 0 free, 1 holds a disk, 2 freed: usable again when the ring was consumed up to `retired_at`.
    pub(crate) state: AtomicU64,
    pub(crate) device: AtomicU64,
    pub(crate) disk_sequence: AtomicU64,
    pub(crate) sectors: AtomicU64,
    pub(crate) retired_at: AtomicU64,
    /// What `/sys/block/DISK/stat` showed when the counters here were 0.
    pub(crate) witness_writes: AtomicU64,
    pub(crate) witness_discards: AtomicU64,
    /// 1: the two above are exact, not upper bounds.
    pub(crate) witness_exact: AtomicU64,
    pub(crate) identity_length: AtomicU64,
    /// UTF-8, eight bytes per word.
    pub(crate) identity: [AtomicU64; IDENTITY_WORDS],
}

/// Room for a disk's identity: 55 words, 440 bytes, which makes a slot 512 bytes. Longer ones are refused.
pub(crate) const IDENTITY_WORDS: usize = 55;

pub(crate) const SLOT_FREE: u64 = 0;
pub(crate) const SLOT_USED: u64 = 1;
pub(crate) const SLOT_RETIRED: u64 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_of_the_programs() {
        assert_eq!(size_of::<ControlPage>(), 160);
        assert_eq!(size_of::<SlotCounters>(), 64);
        assert_eq!(size_of::<SlotMeta>(), 512);
        assert_eq!(size_of::<MetaPage>(), 64 + 64 * 512);
    }
}
