//! Decoded chunks, least recently used out first, bounded by bytes.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::ChunkId;

/// What a chunk costs in memory besides its content.
const OVERHEAD: usize = 160;

#[derive(Debug)]
pub(crate) struct Lru {
    most_bytes: usize,
    bytes: usize,
    tick: u64,
    chunks: HashMap<ChunkId, (u64, Arc<[u8]>)>,
    order: BTreeMap<u64, ChunkId>,
}

impl Lru {
    pub(crate) fn new(most_bytes: usize) -> Self {
        Self { most_bytes, bytes: 0, tick: 0, chunks: HashMap::new(), order: BTreeMap::new() }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn get(&mut self, id: &ChunkId) -> Option<Arc<[u8]>> {
        self.tick += 1;
        let (tick, content) = self.chunks.get_mut(id)?;
        self.order.remove(tick);
        *tick = self.tick;
        self.order.insert(self.tick, *id);
        Some(Arc::clone(content))
    }

    pub(crate) fn put(&mut self, id: ChunkId, content: Arc<[u8]>) {
        self.tick += 1;
        self.bytes += content.len() + OVERHEAD;
        self.order.insert(self.tick, id);
        if let Some((tick, old)) = self.chunks.insert(id, (self.tick, content)) {
            self.order.remove(&tick);
            self.bytes -= old.len() + OVERHEAD;
        }
        while self.bytes > self.most_bytes
            && let Some((_, oldest)) = self.order.pop_first()
        {
            if let Some((_, old)) = self.chunks.remove(&oldest) {
                self.bytes -= old.len() + OVERHEAD;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_used_chunk_goes_first_and_the_bound_holds() {
        let mut lru = Lru::new(3 * (8 + OVERHEAD));
        let id = |number| ChunkId([number; 32]);
        for number in 0..3 {
            lru.put(id(number), Arc::new([number; 8]));
        }
        assert!(lru.get(&id(0)).is_some());
        lru.put(id(3), Arc::new([3; 8]));
        lru.put(id(3), Arc::new([3; 8]));
        assert!(lru.get(&id(1)).is_none(), "1 was used longest ago");
        assert!(lru.get(&id(0)).is_some() && lru.get(&id(3)).is_some());
        assert_eq!(lru.bytes(), 3 * (8 + OVERHEAD));
    }
}
