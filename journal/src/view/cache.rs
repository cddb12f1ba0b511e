//! Decoded parts of leaf indexes, least recently used out first, bounded by bytes.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::index::IndexEntry;
use crate::leaf::Directory;

/// Which part of which leaf.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Part {
    Directory,
    Entries(usize),
    Wide,
    Times(usize),
}

/// A decoded part.
#[derive(Debug, Clone)]
pub(crate) enum Cached {
    Directory(Arc<Directory>),
    Entries(Arc<Vec<IndexEntry>>),
    Times(Arc<Vec<u64>>),
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
            }
    }
}

#[derive(Debug)]
pub(crate) struct Cache {
    most_bytes: usize,
    bytes: usize,
    tick: u64,
    parts: HashMap<(u64, Part), (u64, Cached)>,
    order: BTreeMap<u64, (u64, Part)>,
}

impl Cache {
    pub(crate) fn new(most_bytes: usize) -> Self {
        Self { most_bytes, bytes: 0, tick: 0, parts: HashMap::new(), order: BTreeMap::new() }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn get(&mut self, ordinal: u64, part: Part) -> Option<Cached> {
        self.tick += 1;
        let (tick, cached) = self.parts.get_mut(&(ordinal, part))?;
        self.order.remove(tick);
        *tick = self.tick;
        self.order.insert(self.tick, (ordinal, part));
        Some(cached.clone())
    }

    pub(crate) fn put(&mut self, ordinal: u64, part: Part, cached: Cached) {
        self.tick += 1;
        self.bytes += cached.bytes();
        self.order.insert(self.tick, (ordinal, part));
        if let Some((tick, old)) = self.parts.insert((ordinal, part), (self.tick, cached)) {
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
            cache.put(ordinal, Part::Wide, part());
        }
        assert!(cache.get(0, Part::Wide).is_some());
        cache.put(3, Part::Wide, part());
        cache.put(3, Part::Wide, part());
        assert!(cache.get(1, Part::Wide).is_none(), "1 was used longest ago");
        assert!(cache.get(0, Part::Wide).is_some() && cache.get(3, Part::Wide).is_some());
        assert_eq!(cache.bytes(), 3 * part().bytes());
    }
}
