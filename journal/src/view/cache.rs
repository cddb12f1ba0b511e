//! Decoded parts of leaf indexes and nodes, and checksums of frames, least recently used out first, bounded by bytes.

use std::collections::HashMap;
use std::sync::Arc;

use super::files::FileKey;
use super::payload::Cover;
use crate::index::IndexEntry;
use crate::leaf::Directory;
use crate::node::{Extent, NodeDirectory};

/// Which part of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Part {
    Directory,
    Entries(usize),
    Wide,
    Times(usize),
    /// Of the frame whose payload begins at this byte.
    Checksums(u64),
    /// Of a segment: which data key it has.
    DataKey,
}

/// A decoded part.
#[derive(Debug, Clone)]
pub(crate) enum Cached {
    Directory(Arc<Directory>),
    Entries(Arc<Vec<IndexEntry>>),
    Times(Arc<Vec<u64>>),
    Node(Arc<NodeDirectory>),
    Extents(Arc<Vec<Extent>>),
    Checksums(Arc<Cover>),
    DataKey(u32),
}

impl Cached {
    fn bytes(&self) -> usize {
        /// What a cached part costs besides its content.
        const OVERHEAD: usize = 128;
        OVERHEAD
            + match self {
                Self::Directory(directory) => 64 * (directory.pages.len() + directory.times.len() + 1),
                Self::Entries(entries) => size_of::<IndexEntry>() * entries.len(),
                Self::Times(times) => 8 * times.len(),
                Self::Node(directory) => 64 * directory.pages.len(),
                Self::Extents(extents) => size_of::<Extent>() * extents.len(),
                Self::Checksums(cover) => {
                    let tags = cover.seal.as_ref().map_or(0, |(_, seal)| seal.tags.len());
                    4 * cover.crc32c.len() + 16 * tags + 64
                }
                Self::DataKey(_) => 0,
            }
    }
}

#[derive(Debug)]
pub(crate) struct Cache {
    most_bytes: usize,
    bytes: usize,
    uses: u64,
    /// With the number of their last use.
    parts: HashMap<(FileKey, Part), (u64, Cached)>,
}

impl Cache {
    pub(crate) fn new(most_bytes: usize) -> Self {
        Self { most_bytes, bytes: 0, uses: 0, parts: HashMap::new() }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn get(&mut self, file: FileKey, part: Part) -> Option<Cached> {
        self.uses += 1;
        let (used, cached) = self.parts.get_mut(&(file, part))?;
        *used = self.uses;
        Some(cached.clone())
    }

    pub(crate) fn put(&mut self, file: FileKey, part: Part, cached: Cached) {
        self.uses += 1;
        self.bytes += cached.bytes();
        if let Some((_, old)) = self.parts.insert((file, part), (self.uses, cached)) {
            self.bytes -= old.bytes();
        }
        if self.bytes > self.most_bytes {
            self.make_room();
        }
    }

    /// Drops those that were used longest ago until a quarter is free: rare and in one go, so that a use is only a number.
    fn make_room(&mut self) {
        let mut oldest: Vec<_> = self.parts.iter().map(|(key, (used, _))| (*used, *key)).collect();
        oldest.sort_unstable();
        for (_, key) in oldest {
            if self.bytes <= self.most_bytes / 4 * 3 {
                return;
            }
            if let Some((_, old)) = self.parts.remove(&key) {
                self.bytes -= old.bytes();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_part_goes_first_and_the_bound_holds() {
        let part = || Cached::Times(Arc::new(vec![0; 16]));
        let mut cache = Cache::new(4 * part().bytes());
        for ordinal in 0..4 {
            cache.put(FileKey::Leaf(ordinal), Part::Wide, part());
        }
        assert!(cache.get(FileKey::Leaf(0), Part::Wide).is_some());
        cache.put(FileKey::Leaf(3), Part::Wide, part());
        assert_eq!(cache.bytes(), 4 * part().bytes());
        cache.put(FileKey::Leaf(4), Part::Wide, part());
        assert!(cache.get(FileKey::Leaf(1), Part::Wide).is_none(), "1 was used longest ago");
        assert!(
            cache.get(FileKey::Leaf(0), Part::Wide).is_some()
                && cache.get(FileKey::Leaf(3), Part::Wide).is_some()
        );
        assert_eq!(cache.bytes(), 3 * part().bytes());
    }
}
