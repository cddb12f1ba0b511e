//! What a node is merged from, as streams of disjoint extents in order, a page in memory at a time.

use std::collections::{BinaryHeap, VecDeque};
use std::sync::Arc;

use super::decode::{NodeDirectory, NodeError, decode_page, decode_trailer, parse_directory};
use super::extent::Extent;
use super::{Span, TRAILER_BYTES};
use crate::index::{CHUNK_SECTORS, IndexEntry};
use crate::leaf::{self, Directory, LeafError, leaf_name};
use crate::recovery::Damage;
use crate::storage::{Storage, StorageError, StorageErrorKind, StorageFile};
use crate::wire::size;

/// A leaf or node as the manifest names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Child {
    Leaf { ordinal: u64, bytes: u64, hash: [u8; 32] },
    Node { span: Span, bytes: u64, hash: [u8; 32] },
}

/// Why a child gives no more.
#[derive(Debug)]
pub(crate) enum ReadFailure {
    Damaged(Damage),
    Storage(StorageError),
}

impl Child {
    fn name(&self) -> String {
        match self {
            Self::Leaf { ordinal, .. } => leaf_name(*ordinal),
            Self::Node { span, .. } => span.name(),
        }
    }

    fn damaged(&self, offset: u64, bytes: u64, problem: &str) -> ReadFailure {
        ReadFailure::Damaged(Damage { file: self.name(), offset, bytes, problem: problem.to_owned() })
    }

    fn leaf_error(&self, error: &LeafError) -> ReadFailure {
        self.damaged(error.offset, error.bytes, error.problem)
    }

    fn node_error(&self, error: &NodeError) -> ReadFailure {
        self.damaged(error.offset, error.bytes, error.problem)
    }

    fn failed(&self, error: StorageError) -> ReadFailure {
        match error.kind() {
            StorageErrorKind::Missing | StorageErrorKind::Short => {
                self.damaged(0, 0, "the file is missing or cut")
            }
            _ => ReadFailure::Storage(error),
        }
    }

    /// Reads all of it; what is damaged first, if anything is.
    pub(crate) fn damage(
        &self,
        storage: &dyn Storage,
        key: [u8; 32],
    ) -> Result<Option<Damage>, StorageError> {
        let read = || {
            for mut stream in self.open(storage, key)? {
                while stream.next()?.is_some() {}
            }
            Ok(())
        };
        match read() {
            Ok(()) => Ok(None),
            Err(ReadFailure::Damaged(damage)) => Ok(Some(damage)),
            Err(ReadFailure::Storage(error)) => Err(error),
        }
    }

    /// Its streams: each in order and disjoint, the two of a leaf above each other.
    pub(crate) fn open(&self, storage: &dyn Storage, key: [u8; 32]) -> Result<Vec<Stream>, ReadFailure> {
        let file = storage.open(&self.name()).map_err(|error| self.failed(error))?;
        let reading = Reading { child: *self, file, key };
        match self {
            Self::Leaf { bytes, hash, .. } => reading.leaf(*bytes, hash),
            Self::Node { span, bytes, hash } => {
                let pages = reading.node(*span, *bytes, hash)?;
                Ok(vec![Stream { queue: VecDeque::new(), more: More::Node(pages) }])
            }
        }
    }
}

/// A child's file.
#[derive(Debug)]
struct Reading {
    child: Child,
    file: Arc<dyn StorageFile>,
    key: [u8; 32],
}

impl Reading {
    fn part(&self, offset: u64, bytes: usize) -> Result<Vec<u8>, ReadFailure> {
        let mut buffer = vec![0; bytes];
        self.file.read_at(offset, &mut buffer).map_err(|error| self.child.failed(error))?;
        Ok(buffer)
    }

    fn leaf(self, file_bytes: u64, expected: &[u8; 32]) -> Result<Vec<Stream>, ReadFailure> {
        let Child::Leaf { ordinal, .. } = self.child else { return Ok(Vec::new()) };
        let other =
            self.child.damaged(0, leaf::HEADER_BYTES as u64, "it is not the leaf that the manifest names");
        let head = self.part(0, leaf::HEADER_BYTES)?;
        let total = leaf::directory_bytes(&head).map(|more| more.saturating_add(leaf::HEADER_BYTES));
        let Some(total) = total.filter(|total| *total as u64 <= file_bytes) else { return Err(other) };
        let head = self.part(0, total)?;
        let (directory, hash) =
            leaf::decode_directory(&head, &self.key).map_err(|error| self.child.leaf_error(&error))?;
        if hash != *expected || directory.file_bytes != file_bytes {
            return Err(other);
        }
        let wide = self.part(directory.wide.offset, directory.wide.bytes)?;
        let wide = leaf::decode_entries(&directory.wide, &wide, &self.key)
            .map_err(|error| self.child.leaf_error(&error))?;
        let wide = Stream { queue: skyline(wide, ordinal).into(), more: More::Nothing };
        let pages = LeafPages { reading: self, directory, next_page: 0, entries: VecDeque::new() };
        Ok(vec![Stream { queue: VecDeque::new(), more: More::Leaf(pages) }, wide])
    }

    fn node(self, span: Span, file_bytes: u64, expected: &[u8; 32]) -> Result<Pages, ReadFailure> {
        let at = file_bytes.saturating_sub(TRAILER_BYTES as u64);
        let trailer = decode_trailer(&self.part(at, TRAILER_BYTES)?, file_bytes)
            .map_err(|error| self.child.node_error(&error))?;
        if trailer.hash != *expected || trailer.span != span {
            return Err(self.child.damaged(
                at,
                TRAILER_BYTES as u64,
                "it is not the node that the manifest names",
            ));
        }
        let directory = self.part(trailer.directory_offset(), trailer.directory_bytes())?;
        let directory = parse_directory(&trailer, &directory, &self.key)
            .map_err(|error| self.child.node_error(&error))?;
        Ok(Pages { reading: self, span, directory, next_page: 0 })
    }
}

/// Extents, by disk and start, disjoint.
#[derive(Debug)]
pub(crate) struct Stream {
    queue: VecDeque<Extent>,
    more: More,
}

#[derive(Debug)]
enum More {
    Nothing,
    Leaf(LeafPages),
    Node(Pages),
}

impl Stream {
    pub(crate) fn next(&mut self) -> Result<Option<Extent>, ReadFailure> {
        loop {
            if let Some(extent) = self.queue.pop_front() {
                return Ok(Some(extent));
            }
            let more = match &mut self.more {
                More::Nothing => None,
                More::Leaf(pages) => pages.next_chunk()?,
                More::Node(pages) => pages.next_page()?.map(VecDeque::from),
            };
            let Some(more) = more else { return Ok(None) };
            self.queue = more;
        }
    }
}

/// The pages of a node, in order.
#[derive(Debug)]
pub(crate) struct Pages {
    reading: Reading,
    span: Span,
    directory: NodeDirectory,
    next_page: usize,
}

impl Pages {
    fn next_page(&mut self) -> Result<Option<Vec<Extent>>, ReadFailure> {
        let Some(page) = self.directory.pages.get(self.next_page) else { return Ok(None) };
        let bytes = self.reading.part(page.offset, page.bytes)?;
        let extents = decode_page(page, self.span, &bytes, &self.reading.key)
            .map_err(|error| self.reading.child.node_error(&error))?;
        self.next_page += 1;
        Ok(Some(extents))
    }
}

/// The entries of a leaf, chunk by chunk.
#[derive(Debug)]
struct LeafPages {
    reading: Reading,
    directory: Directory,
    next_page: usize,
    entries: VecDeque<IndexEntry>,
}

impl LeafPages {
    fn fill(&mut self) -> Result<(), ReadFailure> {
        if let Some(page) = self.directory.pages.get(self.next_page).filter(|_| self.entries.is_empty()) {
            let bytes = self.reading.part(page.offset, page.bytes)?;
            let entries = leaf::decode_entries(page, &bytes, &self.reading.key)
                .map_err(|error| self.reading.child.leaf_error(&error))?;
            self.entries = entries.into();
            self.next_page += 1;
        }
        Ok(())
    }

    /// The last versions of the sectors of the next chunk. Its entries come newest first.
    fn next_chunk(&mut self) -> Result<Option<VecDeque<Extent>>, ReadFailure> {
        self.fill()?;
        let Some(first) = self.entries.front().copied() else { return Ok(None) };
        let base = first.chunk().saturating_mul(CHUNK_SECTORS);
        let mut winners: Vec<IndexEntry> = Vec::new();
        let mut won = [None; 128];
        while let Some(entry) = self.entries.front().copied()
            && (entry.disk, entry.chunk()) == (first.disk, first.chunk())
        {
            let (from, to) = (size(entry.start - base), size(entry.end() - base));
            let mut wins = false;
            for sector in won.iter_mut().take(to).skip(from).filter(|sector| sector.is_none()) {
                *sector = Some(winners.len());
                wins = true;
            }
            if wins {
                winners.push(entry);
            }
            self.entries.pop_front();
            self.fill()?;
        }
        let Child::Leaf { ordinal, .. } = self.reading.child else { return Ok(None) };
        let mut extents: VecDeque<Extent> = VecDeque::new();
        for (sector, winner) in (base..).zip(won) {
            let Some(entry) = winner.and_then(|winner: usize| winners.get(winner)) else { continue };
            let mut extent = Extent::of(entry, ordinal).from(sector);
            extent.end = sector + 1;
            if !extents.back_mut().is_some_and(|last| last.join(&extent)) {
                extents.push_back(extent);
            }
        }
        Ok(Some(extents))
    }
}

/// Of ranges that may overlap, the last version of each sector.
fn skyline(mut entries: Vec<IndexEntry>, ordinal: u64) -> Vec<Extent> {
    entries.sort_by_key(|entry| (entry.disk, entry.start));
    let mut extents: Vec<Extent> = Vec::new();
    let mut open: BinaryHeap<(u64, u32, usize)> = BinaryHeap::new();
    let mut next = 0;
    let mut at = (0, 0);
    loop {
        let newest = open.peek().and_then(|(_, _, index)| entries.get(*index));
        let coming = entries.get(next);
        match (newest, coming) {
            (None, None) => return extents,
            (None, Some(coming)) if at < (coming.disk.0, coming.start) => at = (coming.disk.0, coming.start),
            (_, Some(coming)) if at >= (coming.disk.0, coming.start) => {
                open.push((coming.lsn.0, coming.arrival, next));
                next += 1;
            }
            (Some(newest), _) if (newest.disk.0, newest.end()) <= at => {
                open.pop();
            }
            (Some(newest), coming) => {
                let until = coming.filter(|coming| coming.disk == newest.disk).map(|coming| coming.start);
                let until = until.map_or(newest.end(), |until| until.min(newest.end()));
                let mut extent = Extent::of(newest, ordinal).from(at.1);
                extent.end = until;
                at.1 = until;
                if !extents.last_mut().is_some_and(|last| last.join(&extent)) {
                    extents.push(extent);
                }
            }
            (None, Some(_)) => return extents,
        }
    }
}
