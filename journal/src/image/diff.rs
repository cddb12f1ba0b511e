//! Where two images differ. Costs what differs in the trees, plus the delta tables that they do not share; content is
//! read only of chunks whose places differ.

use std::collections::BTreeSet;
use std::ops::Range;

use super::node::FAN_OUT;
use super::reader::chunk_content;
use super::table::{Cursor, pending};
use super::tree::{Tree, children, span};
use super::{Image, ImageError};
use crate::store::{CHUNK_BYTES, ChunkId, ChunkStore};

/// Ranges of chunk numbers (64 KiB each) whose content differs, ascending and apart. Beyond its end a disk counts as
/// zeroes.
///
/// # Errors
/// When a chunk is missing or damaged, or the store fails.
pub fn diff(store: &ChunkStore, a: &Image, b: &Image) -> Result<Vec<Range<u64>>, ImageError> {
    let mut candidates = BTreeSet::new();
    let top = a.tree.height.max(b.tree.height);
    let side = |tree: &Tree| Side { node: tree.root, height: tree.height };
    diff_nodes(store, &side(&a.tree), &side(&b.tree), top, 0, &mut candidates)?;
    for (these, those) in [(a, b), (b, a)] {
        for table in these.tables.iter().filter(|table| !those.tables.contains(table)) {
            let mut cursor = Cursor::new(store, table, 0)?;
            while let Some(entry) = cursor.take()? {
                candidates.insert(entry.chunk);
            }
        }
    }
    let mut ranges: Vec<Range<u64>> = Vec::new();
    let (mut left, mut right) = (vec![0; CHUNK_BYTES], vec![0; CHUNK_BYTES]);
    for chunk in candidates {
        if same_places(store, a, b, chunk)? {
            continue;
        }
        chunk_content(store, a, chunk, &mut left)?;
        chunk_content(store, b, chunk, &mut right)?;
        if left == right {
            continue;
        }
        match ranges.last_mut() {
            Some(last) if last.end == chunk => last.end += 1,
            _ => ranges.push(chunk..chunk + 1),
        }
    }
    Ok(ranges)
}

fn same_places(store: &ChunkStore, a: &Image, b: &Image, chunk: u64) -> Result<bool, ImageError> {
    Ok(a.tree.get(store, chunk)? == b.tree.get(store, chunk)?
        && pending(store, &a.tables, chunk)?.runs() == pending(store, &b.tables, chunk)?.runs())
}

/// A node of a tree that may be lower than the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Side {
    node: Option<ChunkId>,
    height: u8,
}

impl Side {
    fn child(&self, store: &ChunkStore, at: u8) -> Result<Vec<(u8, Self)>, ImageError> {
        // A lower tree is the first child of what it would be in a higher one.
        if self.height < at {
            return Ok(vec![(0, *self)]);
        }
        let found = children(store, self.node.as_ref(), at)?;
        let below = |node| Self { node: Some(node), height: at.saturating_sub(1) };
        Ok(found.into_iter().map(|(child, node)| (child, below(node))).collect())
    }
}

fn diff_nodes(
    store: &ChunkStore,
    a: &Side,
    b: &Side,
    height: u8,
    first: u64,
    out: &mut BTreeSet<u64>,
) -> Result<(), ImageError> {
    if a.node == b.node && (a.height == b.height || a.node.is_none()) {
        return Ok(());
    }
    let (left, right) = (a.child(store, height)?, b.child(store, height)?);
    let width = span(height) / FAN_OUT;
    let hole = Side { node: None, height: height.saturating_sub(1) };
    let numbers: BTreeSet<u8> = left.iter().chain(&right).map(|(child, _)| *child).collect();
    for number in numbers {
        let of = |side: &[(u8, Side)]| {
            side.iter().find(|(child, _)| *child == number).map_or(hole, |(_, side)| *side)
        };
        let (left, right) = (of(&left), of(&right));
        let start = first + u64::from(number) * width;
        if height > 0 {
            diff_nodes(store, &left, &right, height - 1, start, out)?;
        } else if left.node != right.node {
            out.insert(start);
        }
    }
    Ok(())
}
