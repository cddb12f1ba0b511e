//! Blocks of the view that were read or are about to be: the kernel asks in pieces of 128 KiB at most, and a round trip
//! for each would cap sequential reads far below the link.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Result, anyhow};
use bytes::Bytes;

use crate::view::Piece;

/// Unit of caching and of the smallest read: the kernel's read-ahead for FUSE.
pub(crate) const BLOCK_BYTES: u64 = 128 << 10;
/// Blocks kept over all disks: 64 MiB. Beyond it the oldest go; the kernel's page cache holds them as well.
const BLOCKS_MAX: usize = 512;
/// Blocks fetched ahead of a sequential reader: 4 MiB, the bandwidth-delay product of 1 GB/s at 4 ms.
const AHEAD_BLOCKS: u64 = 32;
/// Blocks in one read ahead: several are on the way at once.
const AHEAD_UNIT_BLOCKS: u64 = 8;
/// Ends of reads that are remembered as possible sequential readers.
const STREAMS_MAX: usize = 16;
/// A reader waits this long for somebody else's fetch; the fetch itself ends sooner, so this only guards against a bug.
const WAIT_LIMIT: Duration = Duration::from_secs(180);

/// Where blocks come from. Blocking.
pub(crate) trait Fetch: Send + Sync + 'static {
    /// Reads a range of `disk`; the pieces add up to `length`.
    fn fetch(&self, disk: usize, offset: u64, length: u64) -> Result<Vec<Piece>>;
    /// Runs `work` beside the caller.
    fn spawn(&self, work: Box<dyn FnOnce() + Send>);
    /// Bytes of `disk`.
    fn size(&self, disk: usize) -> u64;
    /// Where changes go, if they are to stay. Nothing is cached then: what is read is what was written last.
    fn keeper(&self) -> Option<&dyn Keep> {
        None
    }
}

/// Takes changes that outlive the mount. Blocking; ranges lie inside the disk.
pub(crate) trait Keep: Send + Sync {
    /// Writes bytes, not durably.
    fn write(&self, disk: usize, offset: u64, data: &[u8]) -> Result<()>;
    /// Makes a range read as zeroes, not durably.
    fn zero(&self, disk: usize, offset: u64, length: u64) -> Result<()>;
    /// Makes durable what was written.
    fn flush(&self) -> Result<()>;
}

#[derive(Debug, Clone)]
enum Slot {
    /// Somebody fetches it.
    Pending,
    /// Content; `None` reads as zeroes.
    Ready(Option<Bytes>),
}

type Key = (usize, u64);

#[derive(Debug, Default)]
struct State {
    slots: HashMap<Key, Slot>,
    /// Ready blocks, oldest first.
    order: VecDeque<Key>,
    /// (disk, block) where a sequential reader would go on.
    streams: VecDeque<Key>,
}

/// A bounded cache with read-ahead, shared by all disks of a mount.
pub(crate) struct Cache<F> {
    source: F,
    state: Mutex<State>,
    changed: Condvar,
}

impl<F> std::fmt::Debug for Cache<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache").finish_non_exhaustive()
    }
}

impl<F: Fetch> Cache<F> {
    pub(crate) fn new(source: F) -> Arc<Self> {
        Arc::new(Self { source, state: Mutex::default(), changed: Condvar::new() })
    }

    pub(crate) fn source(&self) -> &F {
        &self.source
    }

    /// Fills `buffer` from `disk` at `offset`. The range lies inside the disk.
    pub(crate) fn read(self: &Arc<Self>, disk: usize, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let mut at = offset;
        let mut rest = buffer;
        while !rest.is_empty() {
            let block = at / BLOCK_BYTES;
            let skip = usize::try_from(at % BLOCK_BYTES).unwrap_or(0);
            let take = rest.len().min(usize::try_from(BLOCK_BYTES).unwrap_or(usize::MAX) - skip);
            let (now, later) = rest.split_at_mut(take);
            match self.block(disk, block)? {
                None => now.fill(0),
                Some(data) => {
                    let part = data
                        .get(skip..skip + take)
                        .ok_or_else(|| anyhow!("a block is shorter than the disk"))?;
                    now.copy_from_slice(part);
                }
            }
            at += take as u64;
            rest = later;
        }
        Ok(())
    }

    /// One block, from the cache or fetched; starts read-ahead behind a sequential reader.
    fn block(self: &Arc<Self>, disk: usize, block: u64) -> Result<Option<Bytes>> {
        let key = (disk, block);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let ahead = self.claim_ahead(&mut state, key);
        let found = loop {
            match state.slots.get(&key) {
                Some(Slot::Ready(data)) => break Some(data.clone()),
                Some(Slot::Pending) => {
                    let (next, waited) =
                        self.changed.wait_timeout(state, WAIT_LIMIT).unwrap_or_else(PoisonError::into_inner);
                    if waited.timed_out() {
                        return Err(anyhow!("a fetch never ended"));
                    }
                    state = next;
                }
                None => {
                    state.slots.insert(key, Slot::Pending);
                    break None;
                }
            }
        };
        drop(state);
        for (first, count) in ahead {
            let cache = Arc::clone(self);
            // A failed fetch ahead is no error: whoever needs the block tries again.
            self.source.spawn(Box::new(move || drop(cache.fill(disk, first, count))));
        }
        match found {
            Some(data) => Ok(data),
            None => self.fill(disk, block, 1),
        }
    }

    /// Claims the blocks to fetch ahead, when `key` continues an earlier read.
    fn claim_ahead(&self, state: &mut State, (disk, block): Key) -> Vec<(u64, u64)> {
        if state.streams.contains(&(disk, block + 1)) {
            // The same block again, in smaller pieces.
            return Vec::new();
        }
        let continues = state.streams.iter().position(|stream| *stream == (disk, block));
        if let Some(stream) = continues {
            state.streams.remove(stream);
        } else if state.streams.len() >= STREAMS_MAX {
            state.streams.pop_front();
        }
        state.streams.push_back((disk, block + 1));
        if continues.is_none() && block != 0 {
            return Vec::new();
        }
        let blocks = self.source.size(disk).div_ceil(BLOCK_BYTES);
        let end = (block + 1 + AHEAD_BLOCKS).min(blocks);
        // Whole units, so that reads ahead stay large while the reader advances block by block.
        let units = (block + 1).div_ceil(AHEAD_UNIT_BLOCKS)..=end / AHEAD_UNIT_BLOCKS;
        let mut claimed = Vec::new();
        for unit in units {
            let first = unit * AHEAD_UNIT_BLOCKS;
            let unit_end = (first + AHEAD_UNIT_BLOCKS).min(blocks);
            let free = (first..unit_end).all(|block| !state.slots.contains_key(&(disk, block)));
            if free && first < unit_end {
                (first..unit_end).for_each(|block| drop(state.slots.insert((disk, block), Slot::Pending)));
                claimed.push((first, unit_end - first));
            }
        }
        claimed
    }

    /// Fetches claimed blocks and publishes them, or gives the claim up. Returns the first block.
    fn fill(&self, disk: usize, first: u64, count: u64) -> Result<Option<Bytes>> {
        let offset = first * BLOCK_BYTES;
        let length = (count * BLOCK_BYTES).min(self.source.size(disk).saturating_sub(offset));
        let fetched = self.source.fetch(disk, offset, length).map(|pieces| split(&pieces, length));
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = match fetched {
            Ok(blocks) => {
                let answer = blocks.first().cloned().ok_or_else(|| anyhow!("an empty read"));
                for (block, data) in (first..).zip(blocks) {
                    state.slots.insert((disk, block), Slot::Ready(data));
                    state.order.push_back((disk, block));
                }
                while state.order.len() > BLOCKS_MAX {
                    if let Some(oldest) = state.order.pop_front() {
                        state.slots.remove(&oldest);
                    }
                }
                answer
            }
            Err(error) => {
                (first..first + count).for_each(|block| drop(state.slots.remove(&(disk, block))));
                Err(error)
            }
        };
        drop(state);
        self.changed.notify_all();
        answer
    }
}

/// Cuts pieces of `length` bytes together into blocks. Zeroes stay unstored.
fn split(pieces: &[Piece], length: u64) -> Vec<Option<Bytes>> {
    let mut blocks = Vec::new();
    let mut block: Vec<u8> = Vec::new();
    let mut filled = 0;
    let mut has_data = false;
    let mut left = length;
    let mut finish = |block: &mut Vec<u8>, filled: u64, has_data: &mut bool| {
        let data = std::mem::take(block);
        blocks.push(std::mem::take(has_data).then(|| {
            let mut data = data;
            data.resize(usize::try_from(filled).unwrap_or(0), 0);
            Bytes::from(data)
        }));
    };
    for piece in pieces {
        let mut done = 0;
        while done < piece.length() {
            let take = (piece.length() - done).min(BLOCK_BYTES.min(filled + left) - filled);
            if take == 0 {
                break;
            }
            if let Piece::Data(data) = piece {
                let whole = take == BLOCK_BYTES && filled == 0;
                let range = usize::try_from(done).unwrap_or(0)..usize::try_from(done + take).unwrap_or(0);
                if !whole {
                    block
                        .reserve_exact(usize::try_from(BLOCK_BYTES).unwrap_or(0).saturating_sub(block.len()));
                }
                block.resize(usize::try_from(filled).unwrap_or(0), 0);
                block.extend_from_slice(data.get(range).unwrap_or_default());
                has_data = true;
            }
            done += take;
            filled += take;
            left -= take;
            if filled == BLOCK_BYTES || left == 0 {
                finish(&mut block, filled, &mut has_data);
                filled = 0;
            }
        }
    }
    blocks
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use super::*;

    /// A disk whose byte at n is a hash of n, with zeroes in every third 40,000 bytes.
    #[derive(Default)]
    struct Disk {
        fetches: AtomicUsize,
        broken: AtomicBool,
    }

    const SIZE: u64 = 10 * BLOCK_BYTES * AHEAD_UNIT_BLOCKS + 1536;

    fn byte(at: u64) -> u8 {
        if (at / 40_000).is_multiple_of(3) { 0 } else { (at.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8 }
    }

    impl Fetch for Disk {
        fn fetch(&self, _disk: usize, offset: u64, length: u64) -> Result<Vec<Piece>> {
            assert!(offset + length <= SIZE);
            self.fetches.fetch_add(1, Ordering::Relaxed);
            if self.broken.load(Ordering::Relaxed) {
                return Err(anyhow!("the link is down"));
            }
            let mut pieces = Vec::new();
            let mut at = offset;
            while at < offset + length {
                let end = ((at / 40_000 + 1) * 40_000).min(offset + length);
                pieces.push(if (at / 40_000).is_multiple_of(3) {
                    Piece::Zeroes(end - at)
                } else {
                    Piece::Data((at..end).map(byte).collect::<Vec<_>>().into())
                });
                at = end;
            }
            Ok(pieces)
        }
        fn spawn(&self, work: Box<dyn FnOnce() + Send>) {
            std::thread::spawn(work);
        }
        fn size(&self, _disk: usize) -> u64 {
            SIZE
        }
    }

    fn check(cache: &Arc<Cache<Disk>>, offset: u64, length: usize) {
        let mut buffer = vec![0xAA; length];
        cache.read(0, offset, &mut buffer).unwrap();
        let expected: Vec<u8> = (offset..offset + length as u64).map(byte).collect();
        assert!(buffer == expected, "{offset}+{length}");
    }

    #[test]
    fn any_range_reads_as_the_source() {
        let cache = Cache::new(Disk::default());
        for (offset, length) in [
            (0, 1),
            (BLOCK_BYTES - 1, 2),
            (12_345, 400_000),
            (SIZE - 1536, 1536),
            (SIZE - 1, 1),
            (3 * BLOCK_BYTES, 512),
        ] {
            check(&cache, offset, length);
            check(&cache, offset, length);
        }
    }

    #[test]
    fn a_sequential_reader_causes_few_large_fetches_and_bounded_memory() {
        let cache = Cache::new(Disk::default());
        for offset in (0..SIZE - 4096).step_by(4096) {
            check(&cache, offset, 4096);
        }
        let fetches = cache.source.fetches.load(Ordering::Relaxed);
        assert!(fetches <= 30, "{fetches} fetches of {} blocks", SIZE / BLOCK_BYTES);
        assert!(cache.state.lock().unwrap().order.len() <= BLOCKS_MAX);
    }

    #[test]
    fn random_reads_do_not_fetch_ahead() {
        let cache = Cache::new(Disk::default());
        for block in [5, 70, 33, 12, 60] {
            check(&cache, block * BLOCK_BYTES + 512, 512);
        }
        assert_eq!(cache.source.fetches.load(Ordering::Relaxed), 5);
    }

    #[test]
    fn a_failed_fetch_is_an_error_for_now_and_not_for_ever() {
        let cache = Cache::new(Disk::default());
        cache.source.broken.store(true, Ordering::Relaxed);
        assert!(cache.read(0, 0, &mut [0; 512]).is_err());
        cache.source.broken.store(false, Ordering::Relaxed);
        check(&cache, 0, 512);
    }

    #[test]
    fn many_readers_at_once_see_the_same() {
        let cache = Cache::new(Disk::default());
        std::thread::scope(|scope| {
            for reader in 0..8u64 {
                let cache = &cache;
                scope.spawn(move || {
                    (0..200u64).for_each(|step| {
                        check(cache, (step * 7919 + reader * 104_729) * 512 % (SIZE - 70_000), 70_000)
                    });
                });
            }
        });
    }
}
