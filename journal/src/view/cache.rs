//! Decoded parts of leaf indexes and nodes, and checksums of frames, least recently used out first, bounded by bytes.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::files::FileKey;
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
}

/// A decoded part.
#[derive(Debug, Clone)]
pub(crate) enum Cached {
    Directory(Arc<Directory>),
    Entries(Arc<Vec<IndexEntry>>),
    Times(Arc<Vec<u64>>),
    Node(Arc<NodeDirectory>),
    Extents(Arc<Vec<Extent>>),
    Checksums(Arc<Vec<u32>>),
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
                Self::Checksums(checksums) => 4 * checksums.len(),
            }
    }
}

#[derive(Debug)]
pub(crate) struct Cache {
    most_bytes: usize,
    bytes: usize,
    tick: u64,
    parts: HashMap<(FileKey, Part), (u64, Cached)>,
    order: BTreeMap<u64, (FileKey, Part)>,
}

impl Cache {
    pub(crate) fn new(most_bytes: usize) -> Self {
        Self { most_bytes, bytes: 0, tick: 0, parts: HashMap::new(), order: BTreeMap::new() }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn get(&mut self, file: FileKey, part: Part) -> Option<Cached> {
        self.tick += 1;
        let (tick, cached) = self.parts.get_mut(&(file, part))?;
        self.order.remove(tick);
        *tick = self.tick;
        self.order.insert(self.tick, (file, part));
        Some(cached.clone())
    }

    pub(crate) fn put(&mut self, file: FileKey, part: Part, cached: Cached) {
        self.tick += 1;
        self.bytes += cached.bytes();
        self.order.insert(self.tick, (file, part));
        if let Some((tick, old)) = self.parts.insert((file, part), (self.tick, cached)) {
            self.order.remove(&tick);
            self.bytes -= old.bytes();
        }
        while self.bytes > self.most_bytes
            && let Some((_, oldest)) = self.order.pop_first()
        {
            if let Some((_, old)) = self.parts.remove(&oldest) {
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
        let mut cache = Cache::new(3 * part().bytes());
        for ordinal in 0..3 {
            cache.put(FileKey::Leaf(ordinal), Part::Wide, part());
        }
        assert!(cache.get(FileKey::Leaf(0), Part::Wide).is_some());
        cache.put(FileKey::Leaf(3), Part::Wide, part());
        cache.put(FileKey::Leaf(3), Part::Wide, part());
        assert!(cache.get(FileKey::Leaf(1), Part::Wide).is_none(), "1 was used longest ago");
        assert!(
            cache.get(FileKey::Leaf(0), Part::Wide).is_some()
                && cache.get(FileKey::Leaf(3), Part::Wide).is_some()
        );
        assert_eq!(cache.bytes(), 3 * part().bytes());
    }
}
