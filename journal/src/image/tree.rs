//! The Merkle tree over the chunks of a disk: lookups, edits, cuts.

use super::ImageError;
use super::node::{Children, FAN_OUT, decode_node, encode};
use crate::store::{ChunkId, ChunkStore, Session};
use crate::wire::size;

/// A node's height at most: 256^6 chunks are 2^64 bytes.
pub(crate) const HEIGHT_MAX: u8 = 5;

/// A tree. The empty one has no root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tree {
    pub root: Option<ChunkId>,
    pub height: u8,
}

/// Chunks that a node of a height covers.
pub(crate) fn span(height: u8) -> u64 {
    FAN_OUT.saturating_pow(u32::from(height) + 1)
}

pub(crate) fn children(store: &ChunkStore, id: Option<&ChunkId>, height: u8) -> Result<Children, ImageError> {
    let Some(id) = id else { return Ok(Children::new()) };
    let broken = |problem| ImageError::Broken { chunk: *id, problem };
    let (found, children) = decode_node(&store.get(id)?).ok_or(broken("it is not a tree node"))?;
    if found == height { Ok(children) } else { Err(broken("it is a tree node of another height")) }
}

fn put(session: &Session, height: u8, children: &Children) -> Result<Option<ChunkId>, ImageError> {
    if children.is_empty() {
        return Ok(None);
    }
    Ok(Some(session.put(&encode(height, children))?))
}

impl Tree {
    pub(crate) fn empty(chunks: u64) -> Self {
        let height = (0..HEIGHT_MAX).find(|height| span(*height) >= chunks).unwrap_or(HEIGHT_MAX);
        Self { root: None, height }
    }

    /// The chunk with a number, `None` for a hole.
    pub(crate) fn get(&self, store: &ChunkStore, chunk: u64) -> Result<Option<ChunkId>, ImageError> {
        if chunk >= span(self.height) {
            return Ok(None);
        }
        let (mut at, mut height, mut rest) = (self.root, self.height, chunk);
        loop {
            let width = span(height) / FAN_OUT;
            let child = u8::try_from(rest / width).unwrap_or(u8::MAX);
            let found = children(store, at.as_ref(), height)?.get(&child).copied();
            if height == 0 || found.is_none() {
                return Ok(found);
            }
            (at, height, rest) = (found, height - 1, rest % width);
        }
    }

    /// The same content under a root that covers so many chunks.
    pub(crate) fn grow(mut self, session: &Session, chunks: u64) -> Result<Self, ImageError> {
        while span(self.height) < chunks && self.height < HEIGHT_MAX {
            self.height += 1;
            self.root = match self.root {
                Some(root) => put(session, self.height, &Children::from([(0, root)]))?,
                None => None,
            };
        }
        Ok(self)
    }

    /// With some chunks replaced or made holes; `edits` ascend.
    pub(crate) fn edit(
        &self,
        session: &Session,
        edits: &[(u64, Option<ChunkId>)],
    ) -> Result<Self, ImageError> {
        let root = edit_node(session, self.root, self.height, 0, edits)?;
        Ok(Self { root, height: self.height })
    }

    /// With chunks `[from, to)` made holes.
    pub(crate) fn clear(&self, session: &Session, from: u64, to: u64) -> Result<Self, ImageError> {
        let root = clear_node(session, self.root, self.height, 0, (from, to))?;
        Ok(Self { root, height: self.height })
    }
}

fn edit_node(
    session: &Session,
    node: Option<ChunkId>,
    height: u8,
    first: u64,
    edits: &[(u64, Option<ChunkId>)],
) -> Result<Option<ChunkId>, ImageError> {
    let before = children(session.store(), node.as_ref(), height)?;
    let mut after = before.clone();
    let width = span(height) / FAN_OUT;
    let mut rest = edits;
    while let Some((chunk, id)) = rest.first() {
        let number = (chunk - first) / width;
        let child = u8::try_from(number).unwrap_or(u8::MAX);
        let changed = if height == 0 {
            rest = rest.get(1..).unwrap_or_default();
            *id
        } else {
            let start = first + number * width;
            let count = rest.partition_point(|(chunk, _)| chunk - start < width);
            let (of_child, next) = rest.split_at_checked(count).unwrap_or_default();
            rest = next;
            edit_node(session, before.get(&child).copied(), height - 1, start, of_child)?
        };
        match changed {
            Some(id) => after.insert(child, id),
            None => after.remove(&child),
        };
    }
    if after == before { Ok(node) } else { put(session, height, &after) }
}

fn clear_node(
    session: &Session,
    node: Option<ChunkId>,
    height: u8,
    first: u64,
    range: (u64, u64),
) -> Result<Option<ChunkId>, ImageError> {
    let before = children(session.store(), node.as_ref(), height)?;
    let mut after = before.clone();
    let width = span(height) / FAN_OUT;
    for (child, id) in &before {
        let start = first + u64::from(*child) * width;
        let end = start.saturating_add(width);
        if end <= range.0 || start >= range.1 {
            continue;
        }
        let kept = if height == 0 || (range.0 <= start && end <= range.1) {
            None
        } else {
            clear_node(session, Some(*id), height - 1, start, range)?
        };
        match kept {
            Some(id) => after.insert(*child, id),
            None => after.remove(child),
        };
    }
    if after == before { Ok(node) } else { put(session, height, &after) }
}

/// Chunks on a disk.
pub(crate) fn chunks_of(size_bytes: u64) -> u64 {
    size_bytes.div_ceil(crate::store::CHUNK_BYTES as u64)
}

const _: () = assert!(crate::store::CHUNK_BYTES == 65_536);

/// An offset in a chunk of so many sectors.
pub(crate) fn sector_bytes(sectors: u64) -> usize {
    size(sectors * tidemark_proto::limits::SECTOR_BYTES)
}
