//! Delta tables: immutable, sorted by chunk, written from the bottom up, merged eight to one.

use std::collections::VecDeque;

use super::page::{Found, INNER_MAX, Inner, Leaf, Page, decode, find};
use super::pending::{Entry, Slots};
use super::{ImageError, TABLES_PER_LEVEL};
use crate::store::{ChunkId, ChunkStore, Session};

/// A table as an image lists it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Table {
    /// How often its entries were merged.
    pub level: u8,
    /// Of its root page; 0 for a leaf.
    pub height: u8,
    pub root: ChunkId,
}

/// A page's height at most: 1638^4 leaves.
pub(crate) const HEIGHT_MAX: u8 = 4;

pub(crate) fn page(store: &ChunkStore, id: &ChunkId, height: u8) -> Result<Page, ImageError> {
    let broken = |problem| ImageError::Broken { chunk: *id, problem };
    let page = decode(&store.get(id)?).ok_or(broken("it is not a page of a delta table"))?;
    let found = match &page {
        Page::Leaf(_) => 0,
        Page::Inner(inner) => inner.height,
    };
    if found == height { Ok(page) } else { Err(broken("it is a page of another height")) }
}

impl Table {
    pub(crate) fn find(&self, store: &ChunkStore, chunk: u64) -> Result<Option<Entry>, ImageError> {
        let (mut id, mut height) = (self.root, self.height);
        loop {
            let problem = "it is not the page of a delta table that it should be";
            let found = find(&store.get(&id)?, height, chunk);
            match found.ok_or(ImageError::Broken { chunk: id, problem })? {
                Found::Entry(entry) => return Ok(Some(entry)),
                Found::Nothing => return Ok(None),
                Found::Below(child) => (id, height) = (child, height - 1),
            }
        }
    }
}

/// What tables, newest first, say about a chunk.
pub(crate) fn pending(store: &ChunkStore, tables: &[Table], chunk: u64) -> Result<Slots, ImageError> {
    let mut slots = Slots::new();
    for table in tables {
        if slots.reset || slots.is_full() {
            break;
        }
        if let Some(entry) = table.find(store, chunk)? {
            slots.add_older(&entry);
        }
    }
    Ok(slots)
}

/// The entries of a table from a chunk on, in order; it holds one leaf and the way to it.
pub(crate) struct Cursor<'a> {
    store: &'a ChunkStore,
    /// Pages still to be read, the next one last.
    stack: Vec<(ChunkId, u8)>,
    leaf: VecDeque<Entry>,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(store: &'a ChunkStore, table: &Table, from: u64) -> Result<Self, ImageError> {
        let mut cursor = Self { store, stack: vec![(table.root, table.height)], leaf: VecDeque::new() };
        cursor.fill(from)?;
        Ok(cursor)
    }

    /// The next entry, if any; not taken.
    pub(crate) fn peek(&self) -> Option<&Entry> {
        self.leaf.front()
    }

    pub(crate) fn take(&mut self) -> Result<Option<Entry>, ImageError> {
        let entry = self.leaf.pop_front();
        self.fill(0)?;
        Ok(entry)
    }

    fn fill(&mut self, from: u64) -> Result<(), ImageError> {
        while self.leaf.is_empty()
            && let Some((id, height)) = self.stack.pop()
        {
            match page(self.store, &id, height)? {
                Page::Leaf(leaf) => {
                    self.leaf = leaf.entries.into_iter().filter(|entry| entry.chunk >= from).collect();
                }
                Page::Inner(inner) => {
                    let skip = inner.children.partition_point(|(first, _)| *first <= from).saturating_sub(1);
                    let below = inner.children.iter().skip(skip).rev();
                    self.stack.extend(below.map(|(_, id)| (*id, height - 1)));
                }
            }
        }
        Ok(())
    }
}

/// Writes a table, entry by entry in order.
pub(crate) struct TableWriter<'a> {
    session: &'a Session,
    leaf: Leaf,
    /// By height from 1: pages whose parent is not written yet.
    levels: Vec<Inner>,
}

impl<'a> TableWriter<'a> {
    pub(crate) fn new(session: &'a Session) -> Self {
        Self { session, leaf: Leaf::default(), levels: Vec::new() }
    }

    pub(crate) fn add(&mut self, entry: &Entry) -> Result<(), ImageError> {
        if !self.leaf.add(entry) {
            self.close_leaf()?;
            self.leaf.add(entry);
        }
        Ok(())
    }

    fn close_leaf(&mut self) -> Result<(), ImageError> {
        let leaf = std::mem::take(&mut self.leaf);
        if let Some(first) = leaf.entries.first() {
            let id = self.session.put(&leaf.encode())?;
            self.push(0, first.chunk, id)?;
        }
        Ok(())
    }

    fn push(&mut self, below: usize, first: u64, id: ChunkId) -> Result<(), ImageError> {
        if self.levels.len() == below {
            let height = u8::try_from(below + 1).unwrap_or(u8::MAX);
            self.levels.push(Inner { height, children: Vec::new() });
        }
        let Some(inner) = self.levels.get_mut(below) else { return Ok(()) };
        if inner.children.len() == INNER_MAX {
            let full = std::mem::replace(inner, Inner { height: inner.height, children: vec![(first, id)] });
            let first = full.children.first().map_or(0, |child| child.0);
            let id = self.session.put(&full.encode())?;
            return self.push(below + 1, first, id);
        }
        inner.children.push((first, id));
        Ok(())
    }

    /// `None` when no entry was added.
    pub(crate) fn finish(mut self, level: u8) -> Result<Option<Table>, ImageError> {
        self.close_leaf()?;
        let mut at = 0;
        while let Some(inner) = self.levels.get_mut(at) {
            let inner = std::mem::take(inner);
            let top = at + 1 == self.levels.len();
            if let (true, [(_, id)]) = (top, inner.children.as_slice()) {
                let height = u8::try_from(at).unwrap_or(u8::MAX);
                return Ok(Some(Table { level, height, root: *id }));
            }
            if let Some((first, _)) = inner.children.first() {
                let id = self.session.put(&inner.encode())?;
                self.push(at + 1, *first, id)?;
            }
            at += 1;
        }
        Ok(None)
    }
}

/// Merges levels that are full; `tables` are newest first.
pub(crate) fn merge_levels(session: &Session, tables: &mut Vec<Table>) -> Result<(), ImageError> {
    loop {
        let full = tables
            .iter()
            .map(|table| table.level)
            .find(|level| tables.iter().filter(|table| table.level == *level).count() >= TABLES_PER_LEVEL);
        let Some(level) = full else { return Ok(()) };
        let from = tables.partition_point(|table| table.level < level);
        let to = tables.partition_point(|table| table.level <= level);
        let bottom = to == tables.len();
        let inputs: Vec<Table> = tables.drain(from..to).collect();
        if let Some(merged) = merge(session, &inputs, level.saturating_add(1), bottom)? {
            tables.insert(from, merged);
        }
    }
}

fn merge(session: &Session, inputs: &[Table], level: u8, bottom: bool) -> Result<Option<Table>, ImageError> {
    let cursors: Result<Vec<_>, _> =
        inputs.iter().map(|table| Cursor::new(session.store(), table, 0)).collect();
    let mut cursors = cursors?;
    let mut writer = TableWriter::new(session);
    while let Some(chunk) = cursors.iter().filter_map(|cursor| cursor.peek().map(|entry| entry.chunk)).min() {
        let mut slots = Slots::new();
        for cursor in &mut cursors {
            if cursor.peek().is_some_and(|entry| entry.chunk == chunk)
                && let Some(entry) = cursor.take()?
            {
                slots.add_older(&entry);
            }
        }
        // Below the oldest table there is nothing to be reset.
        let entry = Entry { chunk, reset: slots.reset && !bottom, runs: slots.runs() };
        if entry.reset || !entry.runs.is_empty() {
            writer.add(&entry)?;
        }
    }
    writer.finish(level)
}
