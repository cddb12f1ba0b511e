//! The dirty maps of every disk, shared with the kernel and with the next process.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tidemark_splitter_core::capture::{BLOCK_SECTORS, BlockRange, DirtyMaps, MapError, Slot};

use super::error::CaptureError;
use super::layout::{DIRTY_PAGE_BLOCKS, DIRTY_PAGE_BYTES, SLOTS};
use super::pinned::Pinned;
use super::sys::{self, Mapping};

/// Blocks in one word of a map.
const WORD_BLOCKS: u64 = 64;

/// Both maps of one disk.
#[derive(Debug)]
struct DiskMaps {
    dirty: Mapping,
    pending: Mapping,
    blocks: u64,
    /// Set bits of `pending`; only this process changes them.
    pending_blocks: u64,
    /// The kernel's count of marks when `dirty` was last taken; `None`: never by this process.
    taken_at: Option<u64>,
}

/// The maps of all slots.
#[derive(Debug)]
pub struct TapMaps {
    pinned: Arc<Pinned>,
    disks: Vec<Option<DiskMaps>>,
}

/// Blocks of a disk, the last one possibly partial.
pub(crate) fn blocks_of(sectors: u64) -> u64 {
    sectors.div_ceil(BLOCK_SECTORS)
}

fn word_count(blocks: u64) -> usize {
    usize::try_from(blocks.div_ceil(WORD_BLOCKS)).unwrap_or(usize::MAX)
}

/// The bits of word `index` that lie in the range.
fn word_mask(index: u64, range: BlockRange) -> u64 {
    let low = index * WORD_BLOCKS;
    let start = range.start.clamp(low, low + WORD_BLOCKS) - low;
    let end = range.end.clamp(low, low + WORD_BLOCKS) - low;
    let below = |bits: u64| if bits == WORD_BLOCKS { u64::MAX } else { (1 << bits) - 1 };
    below(end) & !below(start)
}

impl DiskMaps {
    fn words(map: &Mapping) -> &[AtomicU64] {
        map.all()
    }

    fn each_word(range: BlockRange, map: &Mapping, mut apply: impl FnMut(&AtomicU64, u64)) {
        let words = Self::words(map);
        for index in range.start / WORD_BLOCKS..range.end.div_ceil(WORD_BLOCKS) {
            if let Some(word) = usize::try_from(index).ok().and_then(|index| words.get(index)) {
                apply(word, word_mask(index, range));
            }
        }
    }

    fn mark(&mut self, range: BlockRange) {
        let range = BlockRange { start: range.start, end: range.end.min(self.blocks) };
        let mut added = 0;
        if range.start < range.end {
            Self::each_word(range, &self.pending, |word, mask| {
                added += u64::from((mask & !word.fetch_or(mask, Ordering::AcqRel)).count_ones());
            });
        }
        self.pending_blocks += added;
    }

    fn clear(&mut self, range: BlockRange) {
        let mut removed = 0;
        if range.start < range.end {
            Self::each_word(range, &self.pending, |word, mask| {
                removed += u64::from((mask & word.fetch_and(!mask, Ordering::AcqRel)).count_ones());
            });
        }
        self.pending_blocks = self.pending_blocks.saturating_sub(removed);
    }

    /// Moves every dirty bit to `pending`; there first, so that a kill in between loses none.
    fn take_bits(&mut self, moved: &mut dyn FnMut(BlockRange)) {
        let mut run: Option<BlockRange> = None;
        let mut added = 0;
        let pending = Self::words(&self.pending);
        for (index, (dirty, pending)) in Self::words(&self.dirty).iter().zip(pending).enumerate() {
            let found = dirty.load(Ordering::Acquire);
            if found == 0 {
                continue;
            }
            // A write that ended while the disk shrank may have marked blocks beyond its end.
            let bits = found & word_mask(index as u64, self.all());
            added += u64::from((bits & !pending.fetch_or(bits, Ordering::AcqRel)).count_ones());
            dirty.fetch_and(!found, Ordering::AcqRel);
            push_runs(&mut run, index as u64 * WORD_BLOCKS, bits, self.blocks, moved);
        }
        if let Some(run) = run {
            moved(run);
        }
        self.pending_blocks += added;
    }

    fn all(&self) -> BlockRange {
        BlockRange { start: 0, end: self.blocks }
    }

    fn count(&self) -> u64 {
        Self::words(&self.pending)
            .iter()
            .map(|word| u64::from(word.load(Ordering::Acquire).count_ones()))
            .sum()
    }
}

/// Adds the runs of set bits to the open run, handing out those that ended.
fn push_runs(
    run: &mut Option<BlockRange>,
    base: u64,
    bits: u64,
    blocks: u64,
    moved: &mut dyn FnMut(BlockRange),
) {
    let mut rest = bits;
    while rest != 0 {
        let start = u64::from(rest.trailing_zeros());
        let length = u64::from((rest >> start).trailing_ones());
        let found = BlockRange { start: base + start, end: (base + start + length).min(blocks) };
        rest &= !word_mask(0, BlockRange { start, end: start + length });
        if found.start >= found.end {
            continue;
        }
        match run {
            Some(open) if open.end == found.start => open.end = found.end,
            _ => {
                if let Some(ended) = run.replace(found) {
                    moved(ended);
                }
            }
        }
    }
}

impl TapMaps {
    pub(crate) fn new(pinned: Arc<Pinned>) -> Self {
        Self { pinned, disks: (0..SLOTS).map(|_| None).collect() }
    }

    /// Makes and pins the maps of a new disk and tells the kernel. All bits are clear.
    pub(crate) fn create(&mut self, slot: u16, sectors: u64) -> Result<(), CaptureError> {
        let pages = blocks_of(sectors).div_ceil(DIRTY_PAGE_BLOCKS).max(1);
        let entries = u32::try_from(pages).map_err(|_| too_large())?;
        let value_bytes = u32::try_from(DIRTY_PAGE_BYTES).unwrap_or(u32::MAX);
        for (path, name, inner) in [
            (self.pinned.dirty_path(slot), "tide_dirty", true),
            (self.pinned.pending_path(slot), "tide_pending", false),
        ] {
            let map = sys::create_array(name, value_bytes, entries, inner)
                .map_err(CaptureError::io(format!("allocate a dirty map of {pages} pages")))?;
            // What a killed start left belongs to no disk.
            let _ = std::fs::remove_file(&path);
            sys::pin(map.as_fd(), &path).map_err(|source| CaptureError::Bpffs { path, source })?;
        }
        self.attach(slot, sectors)
    }

    /// Maps the pinned maps of a disk, and sets the kernel's.
    pub(crate) fn attach(&mut self, slot: u16, sectors: u64) -> Result<(), CaptureError> {
        let blocks = blocks_of(sectors);
        let bytes = blocks.div_ceil(DIRTY_PAGE_BLOCKS).max(1) * DIRTY_PAGE_BYTES;
        let bytes = usize::try_from(bytes).map_err(|_| too_large())?;
        let open = |path: std::path::PathBuf| {
            sys::open_pinned(&path).map_err(|source| CaptureError::Bpffs { path, source })
        };
        let dirty = open(self.pinned.dirty_path(slot))?;
        let pending = open(self.pinned.pending_path(slot))?;
        let mapped = CaptureError::io("map a dirty map");
        let maps = (|| -> io::Result<DiskMaps> {
            sys::map_set(
                self.pinned.objects.dirty.as_fd(),
                u32::from(slot),
                dirty.as_raw_fd().cast_unsigned(),
            )?;
            let mut maps = DiskMaps {
                dirty: Mapping::new(dirty.as_fd(), bytes, 0, true)?,
                pending: Mapping::new(pending.as_fd(), bytes, 0, true)?,
                blocks,
                pending_blocks: 0,
                taken_at: None,
            };
            maps.pending_blocks = maps.count();
            Ok(maps)
        })()
        .map_err(mapped)?;
        if let Some(place) = self.disks.get_mut(usize::from(slot)) {
            *place = Some(maps);
        }
        Ok(())
    }

    /// Every block of a disk is pending.
    pub(crate) fn mark_all(&mut self, slot: Slot) {
        if let Ok(maps) = self.disk_mut(slot) {
            maps.mark(BlockRange { start: 0, end: maps.blocks });
        }
    }

    /// Forgets the maps of a disk. Waits until no program uses them.
    pub(crate) fn remove(&mut self, slot: u16) -> Result<(), CaptureError> {
        if let Some(place) = self.disks.get_mut(usize::from(slot)) {
            *place = None;
        }
        sys::map_delete(self.pinned.objects.dirty.as_fd(), u32::from(slot))
            .map_err(CaptureError::io("remove a dirty map"))?;
        for path in [self.pinned.dirty_path(slot), self.pinned.pending_path(slot)] {
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(CaptureError::Bpffs { path, source: error });
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Replaces the maps by larger (or smaller) ones with the same bits.
    pub(crate) fn resize(&mut self, slot: u16, sectors: u64) -> Result<(), CaptureError> {
        let old =
            self.disks.get_mut(usize::from(slot)).and_then(Option::take).ok_or(CaptureError::NoDisk(slot))?;
        // Killed before the end, the next process takes the whole disk as dirty.
        let counters = self.pinned.counters(slot).ok_or(CaptureError::NoDisk(slot))?;
        let was_whole = counters.whole.swap(1, Ordering::AcqRel);
        // The old mapping stays readable; after `create` has replaced the map, and programs that still had the old
        // one have ended, its bits are copied.
        self.create(slot, sectors)?;
        self.pinned.wait_for_programs().map_err(CaptureError::io("wait for running programs"))?;
        let new = self
            .disks
            .get_mut(usize::from(slot))
            .and_then(Option::as_mut)
            .ok_or(CaptureError::NoDisk(slot))?;
        for (from, to) in [(&old.dirty, &new.dirty), (&old.pending, &new.pending)] {
            for (index, (from, to)) in DiskMaps::words(from).iter().zip(DiskMaps::words(to)).enumerate() {
                let kept = from.load(Ordering::Acquire) & word_mask(index as u64, new.all());
                to.fetch_or(kept, Ordering::AcqRel);
            }
        }
        new.pending_blocks = new.count();
        if new.blocks > old.blocks {
            // Here, where the bits of what was cut off went, too: a process that ends before it has said the new size leaves
            // nobody who would know. The last block may have grown.
            new.mark(BlockRange { start: old.blocks.saturating_sub(1), end: new.blocks });
        }
        if let Some(counters) = self.pinned.counters(slot).filter(|_| was_whole == 0) {
            counters.whole.store(0, Ordering::Release);
        }
        Ok(())
    }

    fn disk(&self, slot: Slot) -> Option<&DiskMaps> {
        self.disks.get(usize::from(slot.0))?.as_ref()
    }

    fn disk_mut(&mut self, slot: Slot) -> Result<&mut DiskMaps, MapError> {
        self.disks.get_mut(usize::from(slot.0)).and_then(Option::as_mut).ok_or(MapError::NoDisk(slot))
    }
}

fn too_large() -> CaptureError {
    let source = io::Error::other("the disk is too large for a dirty map");
    CaptureError::Io { action: "allocate a dirty map".to_owned(), source }
}

impl DirtyMaps for TapMaps {
    fn take(&mut self, slot: Slot, moved: &mut dyn FnMut(BlockRange)) -> Result<(), MapError> {
        let pinned = Arc::clone(&self.pinned);
        let maps = self.disk_mut(slot)?;
        let counters = pinned.counters(slot.0).ok_or(MapError::NoDisk(slot))?;
        // The programs count a mark after setting its bits, so what is counted here is in the map.
        let marks = counters.marks.load(Ordering::Acquire);
        if maps.taken_at == Some(marks) {
            return Ok(());
        }
        if counters.whole.load(Ordering::Acquire) != 0 {
            let all = BlockRange { start: 0, end: maps.blocks };
            maps.mark(all);
            counters.whole.store(0, Ordering::Release);
            maps.take_bits(&mut |_| {});
            moved(all);
        } else {
            maps.take_bits(moved);
        }
        maps.taken_at = Some(marks);
        Ok(())
    }

    fn mark(&mut self, slot: Slot, range: BlockRange) -> Result<(), MapError> {
        self.disk_mut(slot)?.mark(range);
        Ok(())
    }

    fn clear(&mut self, slot: Slot, range: BlockRange) -> Result<(), MapError> {
        self.disk_mut(slot)?.clear(range);
        Ok(())
    }

    fn next_pending(&self, slot: Slot, from: u64, limit: u64) -> Option<BlockRange> {
        let maps = self.disk(slot)?;
        let words = DiskMaps::words(&maps.pending).get(..word_count(maps.blocks))?;
        let set = |block: u64| {
            let index = usize::try_from(block / WORD_BLOCKS).ok()?;
            Some(words.get(index)?.load(Ordering::Acquire) >> (block % WORD_BLOCKS))
        };
        let mut start = from;
        loop {
            let bits = set(start)?;
            if bits != 0 {
                start += u64::from(bits.trailing_zeros());
                break;
            }
            start = (start / WORD_BLOCKS + 1) * WORD_BLOCKS;
        }
        let mut end = start;
        while let Some(bits) = set(end) {
            let run = u64::from(bits.trailing_ones());
            end += run;
            if run == 0 || !end.is_multiple_of(WORD_BLOCKS) || end - start >= limit {
                break;
            }
        }
        let end = end.min(start.saturating_add(limit)).min(maps.blocks);
        (start < end).then_some(BlockRange { start, end })
    }

    fn pending_blocks(&self, slot: Slot) -> u64 {
        self.disk(slot).map_or(0, |maps| maps.pending_blocks)
    }

    fn blocks(&self, slot: Slot) -> u64 {
        self.disk(slot).map_or(0, |maps| maps.blocks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_select_the_bits_of_a_range() {
        assert_eq!(word_mask(0, BlockRange { start: 0, end: 64 }), u64::MAX);
        assert_eq!(word_mask(0, BlockRange { start: 3, end: 5 }), 0b11000);
        assert_eq!(word_mask(1, BlockRange { start: 3, end: 66 }), 0b11);
        assert_eq!(word_mask(2, BlockRange { start: 3, end: 66 }), 0);
    }

    #[test]
    fn runs_join_over_words_and_end_with_the_disk() {
        let (mut run, mut seen) = (None, Vec::new());
        push_runs(&mut run, 0, 1 << 63 | 0b110, 200, &mut |range| seen.push(range));
        push_runs(&mut run, 64, 0b1011, 67, &mut |range| seen.push(range));
        seen.extend(run);
        assert_eq!(seen, [BlockRange { start: 1, end: 3 }, BlockRange { start: 63, end: 66 }]);
    }
}
