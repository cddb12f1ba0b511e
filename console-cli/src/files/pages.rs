//! Pieces of a disk of a view, kept while they are of use. When the point moves, what differs there is dropped and the
//! rest stays: a search through history reads what changed.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use tokio::runtime::Handle;

use super::ranges::Ranges;
use crate::ext4::Source;
use crate::view::{Piece, RemoteView};

/// Unit of keeping and of the smallest read: a round trip costs more than this many bytes.
const PAGE_BYTES: u64 = 16 << 10;
/// Pages kept: 96 MiB, room for a journal's descriptors and the tables of a file system of average size. Beyond it the
/// oldest go and are read again at need.
const PAGES_MAX: usize = 6144;
/// Pages of one read at most, 1 MiB: content is asked for in such pieces.
const SPAN_PAGES: u64 = 64;
/// Pages that a reader of small pieces, one behind the other, gets at once: 128 KiB. Tables and folders are read so, and
/// what lies behind them is often not wanted.
const AHEAD_PAGES: u64 = 8;

/// What was read from the appliance.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct ReadCount {
    pub(crate) reads: u64,
    pub(crate) bytes: u64,
}

/// One disk as of a point that can be moved. Blocking: for threads that may wait.
pub(crate) struct Pages {
    handle: Handle,
    disk: String,
    state: Mutex<State>,
}

struct State {
    view: Arc<RemoteView>,
    size_bytes: u64,
    /// By number; `None` reads as zeroes.
    pages: HashMap<u64, Option<Bytes>>,
    /// The pages, oldest first; numbers without a page were dropped already.
    order: VecDeque<u64>,
    /// Where a sequential reader would go on, and how many pages it gets then.
    next: u64,
    ahead: u64,
    count: ReadCount,
}

impl std::fmt::Debug for Pages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pages").field("disk", &self.disk).finish_non_exhaustive()
    }
}

impl Pages {
    pub(crate) fn new(view: Arc<RemoteView>, disk: &str, size_bytes: u64, handle: Handle) -> Self {
        let state = State {
            view,
            size_bytes,
            pages: HashMap::new(),
            order: VecDeque::new(),
            next: 0,
            ahead: 1,
            count: ReadCount::default(),
        };
        Self { handle, disk: disk.to_owned(), state: Mutex::new(state) }
    }

    pub(crate) fn count(&self) -> ReadCount {
        self.lock().count
    }

    /// Reads from `view` from now on; `changed` are the bytes that may differ from what the last one had.
    pub(crate) fn move_to(&self, view: Arc<RemoteView>, size_bytes: u64, changed: &Ranges) {
        let mut state = self.lock();
        state.view = view;
        if state.size_bytes != size_bytes {
            state.size_bytes = size_bytes;
            state.pages.clear();
        }
        state
            .pages
            .retain(|page, _| !changed.intersects(page * PAGE_BYTES, page.saturating_add(1) * PAGE_BYTES));
        let State { pages, order, .. } = &mut *state;
        order.retain(|page| pages.contains_key(page));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes sure that `wanted` pages are there, fetching those that are not in as few reads as their places allow.
    fn fetch(&self, state: &mut State, wanted: Range<u64>) -> Result<()> {
        let pages = state.size_bytes.div_ceil(PAGE_BYTES);
        let mut page = wanted.start;
        while page < wanted.end {
            if state.pages.contains_key(&page) {
                page += 1;
                continue;
            }
            let missing =
                (page..wanted.end).take_while(|page| !state.pages.contains_key(page)).count() as u64;
            state.ahead = if page == state.next { (state.ahead * 2).min(AHEAD_PAGES) } else { 1 };
            let count = missing.max(state.ahead).min(SPAN_PAGES).min(pages.saturating_sub(page));
            let offset = page * PAGE_BYTES;
            let length = (count * PAGE_BYTES).min(state.size_bytes.saturating_sub(offset));
            let pieces = self.handle.block_on(state.view.read(&self.disk, offset, length))?;
            state.count.reads += 1;
            state.count.bytes += length;
            for (number, content) in (page..).zip(split(&pieces, length)) {
                if state.pages.insert(number, content).is_none() {
                    state.order.push_back(number);
                }
            }
            state.next = page + count;
            page += count.max(1);
        }
        Ok(())
    }
}

impl Source for Pages {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let mut state = self.lock();
        let mut at = offset;
        let mut rest = buffer;
        while !rest.is_empty() {
            let page = at / PAGE_BYTES;
            let skip = usize::try_from(at % PAGE_BYTES).unwrap_or(0);
            // No more than what is certain to stay while it is copied.
            let span = (skip as u64 + rest.len() as u64).div_ceil(PAGE_BYTES).min(SPAN_PAGES);
            if !state.pages.contains_key(&page) {
                self.fetch(&mut state, page..page + span)?;
            }
            let take = rest.len().min(usize::try_from(PAGE_BYTES).unwrap_or(usize::MAX) - skip);
            let (now, later) = rest.split_at_mut(take);
            match state.pages.get(&page).context("a page went away while it was read")? {
                None => now.fill(0),
                Some(content) => {
                    let part = content.get(skip..skip + take).context("a read past the disk's end")?;
                    now.copy_from_slice(part);
                }
            }
            at += take as u64;
            rest = later;
        }
        while state.order.len() > PAGES_MAX {
            if let Some(oldest) = state.order.pop_front() {
                state.pages.remove(&oldest);
            }
        }
        Ok(())
    }

    fn size_bytes(&self) -> u64 {
        self.lock().size_bytes
    }
}

/// Cuts `length` bytes into pages; the last may be shorter.
fn split(pieces: &[Piece], length: u64) -> Vec<Option<Bytes>> {
    let mut pages = Vec::new();
    let mut page: Vec<u8> = Vec::new();
    let (mut filled, mut left, mut has_data) = (0_u64, length, false);
    for piece in pieces {
        let mut done = 0;
        while done < piece.length() && left > 0 {
            let take = (piece.length() - done).min(PAGE_BYTES - filled).min(left);
            let end = usize::try_from(filled + take).unwrap_or(0);
            match piece {
                Piece::Data(data) => {
                    let from = usize::try_from(done).unwrap_or(0);
                    let to = usize::try_from(done + take).unwrap_or(0);
                    page.extend_from_slice(data.get(from..to).unwrap_or_default());
                    has_data = true;
                }
                Piece::Zeroes(_) => page.resize(end, 0),
            }
            done += take;
            filled += take;
            left -= take;
            if filled == PAGE_BYTES || left == 0 {
                let content = std::mem::take(&mut page);
                pages.push(std::mem::take(&mut has_data).then(|| Bytes::from(content)));
                filled = 0;
            }
        }
    }
    pages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_become_pages_whatever_their_lengths() {
        let page = usize::try_from(PAGE_BYTES).unwrap();
        let pieces = [
            Piece::Zeroes(PAGE_BYTES + 100),
            Piece::Data(vec![1; page].into()),
            Piece::Zeroes(PAGE_BYTES),
            Piece::Data(vec![2; 7].into()),
        ];
        let pages = split(&pieces, 3 * PAGE_BYTES + 107);
        assert_eq!(pages.len(), 4);
        assert_eq!(pages[0], None);
        let mut flat: Vec<u8> = Vec::new();
        for content in &pages[1..] {
            flat.extend_from_slice(content.as_ref().unwrap());
        }
        let mut expected = vec![0; 100];
        expected.extend(vec![1; page]);
        expected.extend(vec![0; page]);
        expected.extend([2; 7]);
        assert!(flat == expected);
    }
}
