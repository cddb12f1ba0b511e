//! The runs of a journal: its segments as views and timelines see them, oldest first. Indexes merged over time and
//! images below them will be further kinds of runs.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::index::{MemoryIndex, Summary};
use crate::manifest::Sealed;
use crate::position::Position;
use crate::timeline::Event;

/// A segment.
#[derive(Debug, Clone)]
pub(crate) enum Run {
    /// With a leaf index on disk.
    Sealed(Arc<Sealed>),
    /// With its index in memory.
    Open(Arc<MemorySegment>),
}

impl Run {
    pub(crate) fn ordinal(&self) -> u64 {
        match self {
            Self::Sealed(sealed) => sealed.ordinal,
            Self::Open(segment) => segment.ordinal,
        }
    }

    pub(crate) fn summary(&self) -> Summary {
        match self {
            Self::Sealed(sealed) => sealed.summary,
            Self::Open(segment) => segment.index().summary(),
        }
    }
}

/// A segment whose index is in memory.
#[derive(Debug)]
pub(crate) struct MemorySegment {
    pub ordinal: u64,
    content: RwLock<(MemoryIndex, Vec<Event>)>,
    closed: OnceLock<Closed>,
    footer_durable: AtomicBool,
}

/// A segment that has its footer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Closed {
    pub bytes: u64,
    pub last_hash: [u8; 32],
    pub position: Position,
}

/// The index of a segment, for reading.
pub(crate) struct IndexGuard<'a>(RwLockReadGuard<'a, (MemoryIndex, Vec<Event>)>);

impl std::ops::Deref for IndexGuard<'_> {
    type Target = MemoryIndex;
    fn deref(&self) -> &MemoryIndex {
        &self.0.0
    }
}

impl MemorySegment {
    pub(crate) fn new(ordinal: u64, index: MemoryIndex, events: Vec<Event>) -> Self {
        Self {
            ordinal,
            content: RwLock::new((index, events)),
            closed: OnceLock::new(),
            footer_durable: AtomicBool::new(false),
        }
    }

    pub(crate) fn index(&self) -> IndexGuard<'_> {
        IndexGuard(self.content.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn events(&self) -> Vec<Event> {
        self.content.read().unwrap_or_else(PoisonError::into_inner).1.clone()
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, (MemoryIndex, Vec<Event>)> {
        self.content.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn close(&self, bytes: u64, last_hash: [u8; 32], position: Position) {
        let _ = self.closed.set(Closed { bytes, last_hash, position });
    }

    /// The file was synced after it was closed.
    pub(crate) fn set_footer_durable(&self) {
        self.footer_durable.store(true, Ordering::SeqCst);
    }

    /// Whether the whole file is durable: all its frames may be, and its footer not.
    pub(crate) fn is_footer_durable(&self) -> bool {
        self.footer_durable.load(Ordering::SeqCst)
    }

    pub(crate) fn closed(&self) -> Option<Closed> {
        self.closed.get().copied()
    }
}
