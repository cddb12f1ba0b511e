//! All that an image reaches: for collections, for checks, and for saying what a damaged chunk affects.

use std::collections::BTreeSet;
use std::ops::Range;

use super::node::FAN_OUT;
use super::page::Page;
use super::table::page;
use super::tree::{children, span};
use super::{Image, ImageError, ImageId, tree::chunks_of};
use crate::store::{CHUNK_BYTES, ChunkId, ChunkStore, Collection, Mark};

/// What a chunk of the store is to an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// It leads to others.
    Inner,
    /// Content of the disk, or a delta.
    Content,
}

/// Called with each chunk that an image reaches and the chunks of the disk that depend on it; whether to go on below.
type Visit<'a> = dyn FnMut(&ChunkId, Part, Range<u64>) -> Result<bool, ImageError> + 'a;

fn walk(store: &ChunkStore, image: &Image, visit: &mut Visit<'_>) -> Result<(), ImageError> {
    if let Some(root) = image.tree.root {
        walk_node(store, &root, image.tree.height, 0, visit)?;
    }
    for table in &image.tables {
        walk_page(store, &table.root, table.height, 0..chunks_of(image.size_bytes), visit)?;
    }
    Ok(())
}

fn walk_node(
    store: &ChunkStore,
    id: &ChunkId,
    height: u8,
    first: u64,
    visit: &mut Visit<'_>,
) -> Result<(), ImageError> {
    if !visit(id, Part::Inner, first..first.saturating_add(span(height)))? {
        return Ok(());
    }
    let width = span(height) / FAN_OUT;
    for (child, id) in children(store, Some(id), height)? {
        let start = first + u64::from(child) * width;
        if height == 0 {
            visit(&id, Part::Content, start..start + 1)?;
        } else {
            walk_node(store, &id, height - 1, start, visit)?;
        }
    }
    Ok(())
}

fn walk_page(
    store: &ChunkStore,
    id: &ChunkId,
    height: u8,
    range: Range<u64>,
    visit: &mut Visit<'_>,
) -> Result<(), ImageError> {
    if !visit(id, Part::Inner, range.clone())? {
        return Ok(());
    }
    match page(store, id, height)? {
        Page::Inner(inner) => {
            let ends = inner.children.iter().skip(1).map(|(first, _)| *first).chain([range.end]);
            for ((first, id), end) in inner.children.iter().zip(ends) {
                walk_page(store, id, height - 1, *first..end.max(*first), visit)?;
            }
        }
        Page::Leaf(leaf) => {
            for id in &leaf.sources {
                let mut of = leaf.entries.iter().filter(|entry| entry.sources().any(|source| source == *id));
                let first = of.next().map_or(range.start, |entry| entry.chunk);
                let last = of.next_back().map_or(first, |entry| entry.chunk);
                visit(id, Part::Content, first..last + 1)?;
            }
        }
    }
    Ok(())
}

/// Marks all that an image reaches, skipping what another image of the same collection has marked. How many chunks are
/// missing.
///
/// # Errors
/// When the store fails: the collection must not be swept then.
pub fn mark(store: &ChunkStore, image: &Image, gc: &Collection) -> Result<u64, ImageError> {
    let mut missing = 0;
    walk(store, image, &mut |id, _, _| {
        let mark = gc.mark(id)?;
        missing += u64::from(mark == Mark::Missing);
        Ok(mark == Mark::New)
    })?;
    Ok(missing)
}

/// Part of an image that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageDamage {
    /// The chunk of the store at fault.
    pub chunk: ChunkId,
    /// Bytes of the disk that depend on it, no more than that.
    pub bytes: Range<u64>,
    /// What is wrong.
    pub problem: String,
}

/// Reads all that an image reaches; what cannot be read.
///
/// # Errors
/// When the index of the store fails. Damage is no error but a finding.
pub fn verify(store: &ChunkStore, image: &Image) -> Result<Vec<ImageDamage>, ImageError> {
    let mut damage = Vec::new();
    walk(store, image, &mut |id, part, chunks| {
        let problem = match store.get(id) {
            Ok(content) => {
                let inner = super::decode_node(&content).is_some() || super::decode_page(&content);
                if part == Part::Content || inner {
                    return Ok(true);
                }
                "it is no part of an image".to_owned()
            }
            Err(error) => error.to_string(),
        };
        damage.push(ImageDamage { chunk: *id, bytes: disk_bytes(&chunks, image), problem });
        Ok(false)
    })?;
    Ok(damage)
}

fn disk_bytes(chunks: &Range<u64>, image: &Image) -> Range<u64> {
    let byte = |chunk: u64| chunk.saturating_mul(CHUNK_BYTES as u64).min(image.size_bytes);
    byte(chunks.start)..byte(chunks.end)
}

/// Bytes of an image that depend on a damaged chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Affected {
    /// The image.
    pub image: ImageId,
    /// The damaged chunk.
    pub chunk: ChunkId,
    /// Bytes of the disk, no more than that.
    pub bytes: Range<u64>,
}

/// What damaged chunks, as a scrub names them, affect of an image. Content is not read.
///
/// # Errors
/// When a chunk that is not named damaged cannot be read.
pub fn affected(
    store: &ChunkStore,
    image: &Image,
    damaged: &BTreeSet<ChunkId>,
) -> Result<Vec<Affected>, ImageError> {
    let mut found = Vec::new();
    let image_id = image.id();
    walk(store, image, &mut |id, _, chunks| {
        if damaged.contains(id) {
            found.push(Affected { image: image_id, chunk: *id, bytes: disk_bytes(&chunks, image) });
            return Ok(false);
        }
        Ok(true)
    })?;
    Ok(found)
}
