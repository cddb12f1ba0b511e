//! The runs of a journal as views and timelines see them: its segments, oldest first, and the nodes merged over them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use tidemark_proto::ids::Lsn;

use crate::index::{MemoryIndex, Summary};
use crate::manifest::{Base, NodeRecord, Sealed};
use crate::node::{Child, LEVELS_MAX, Span};
use crate::position::Position;
use crate::records::Kept;
use crate::timeline::Event;

/// Something that has versions of sectors.
#[derive(Debug, Clone)]
pub(crate) enum Run {
    /// A segment with a leaf index on disk.
    Sealed(Arc<Sealed>),
    /// A segment with its index in memory.
    Open(Arc<MemorySegment>),
    /// The last versions of several sealed segments.
    Node(Arc<Node>),
}

impl Run {
    /// Of the segment, or of a node's first.
    pub(crate) fn ordinal(&self) -> u64 {
        match self {
            Self::Sealed(sealed) => sealed.ordinal,
            Self::Open(segment) => segment.ordinal,
            Self::Node(node) => node.record.span.first,
        }
    }

    pub(crate) fn summary(&self) -> Summary {
        match self {
            Self::Sealed(sealed) => sealed.summary,
            Self::Open(segment) => segment.index().summary(),
            Self::Node(node) => node.summary,
        }
    }

    /// The last LSN taken by its end; the highest there is for a segment that may still take some.
    pub(crate) fn end_lsn(&self) -> Lsn {
        match self {
            Self::Sealed(sealed) => sealed.position.lsn,
            Self::Open(segment) => segment.closed().map_or(Lsn(u64::MAX), |closed| closed.position.lsn),
            Self::Node(node) => node.children.last().map_or(Lsn::ZERO, Self::end_lsn),
        }
    }

    /// What a node is merged from, if it is on disk.
    pub(crate) fn child(&self) -> Option<Child> {
        match self {
            Self::Sealed(sealed) => Some(Child::Leaf {
                ordinal: sealed.ordinal,
                bytes: sealed.leaf_bytes,
                hash: sealed.leaf_hash,
            }),
            Self::Open(_) => None,
            Self::Node(node) => {
                let NodeRecord { span, bytes, hash, .. } = node.record;
                Some(Child::Node { span, bytes, hash })
            }
        }
    }
}

/// A merged node, and the runs that say the same when it is damaged.
#[derive(Debug)]
pub(crate) struct Node {
    pub record: NodeRecord,
    /// Oldest first.
    pub children: Vec<Run>,
    summary: Summary,
}

/// All runs.
#[derive(Debug, Clone, Default)]
pub(crate) struct Runs {
    /// Oldest first; no nodes among them.
    pub segments: Vec<Run>,
    pub nodes: BTreeMap<Span, Arc<Node>>,
    /// What lies below them.
    pub base: Option<Arc<Base>>,
    /// Snapshots below it, by LSN.
    pub kept: BTreeMap<Lsn, Snapshot>,
    /// Of no other set of runs in this process.
    pub generation: u64,
}

/// A snapshot, and what a view of it reads from.
#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    pub kept: Arc<Kept>,
    pub base: Arc<Base>,
}

impl Snapshot {
    pub(crate) fn new(kept: Arc<Kept>) -> Self {
        let images = kept.disks.iter().map(|disk| (disk.id, disk.image.clone())).collect();
        let (lsn, time_us) = (kept.lsn, kept.time_us);
        Self { kept, base: Arc::new(Base { lsn, time_us, images, ..Base::default() }) }
    }
}

/// For [`Runs::generation`].
pub(crate) fn next_generation() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl Runs {
    pub(crate) fn new<'a>(segments: Vec<Run>, nodes: impl IntoIterator<Item = &'a NodeRecord>) -> Self {
        let mut runs = Self { segments, generation: next_generation(), ..Self::default() };
        // Lower levels come first, so that higher ones find them.
        for record in nodes {
            runs.add_node(*record);
        }
        runs
    }

    pub(crate) fn add_node(&mut self, record: NodeRecord) {
        let children = self.children(record.span);
        let mut summary = Summary { min_entry_lsn: u64::MAX, ..Summary::default() };
        for child in children.iter().map(Run::summary) {
            summary.min_entry_lsn = summary.min_entry_lsn.min(child.min_entry_lsn);
            summary.max_entry_lsn = summary.max_entry_lsn.max(child.max_entry_lsn);
        }
        self.nodes.insert(record.span, Arc::new(Node { record, children, summary }));
    }

    /// Takes a new base; what lies wholly below it and was dropped leaves the runs.
    pub(crate) fn set_base(&mut self, base: Arc<Base>) {
        self.segments.retain(|run| run.ordinal() >= base.first_ordinal);
        self.nodes.retain(|span, _| span.first >= base.first_ordinal);
        self.base = Some(base);
    }

    /// What a node would be merged from, oldest first: at most 8 runs when no lower node is missing.
    pub(crate) fn children(&self, span: Span) -> Vec<Run> {
        let from = self.segments.partition_point(|run| run.ordinal() < span.first);
        let to = self.segments.partition_point(|run| run.ordinal() < span.end());
        self.cover(from, to, span.end(), span.level.saturating_sub(1))
    }

    /// The fewest runs for the segments `[from, to)` by place: whole nodes up to a level, and leaves. `end` is the ordinal
    /// of the first segment that must stay out.
    fn cover(&self, from: usize, to: usize, end: u64, most_level: u16) -> Vec<Run> {
        let mut runs = Vec::new();
        let mut before =
            from.checked_sub(1).and_then(|before| self.segments.get(before)).map_or(0, Run::ordinal);
        let mut at = from;
        while let Some(segment) = self.segments.get(at).filter(|_| at < to) {
            let ordinal = segment.ordinal();
            let spans = (1..=most_level).rev().map(|level| Span::over(level, ordinal));
            let mut whole = spans.filter(|span| before < span.first && span.end() <= end);
            if let Some(node) = whole.find_map(|span| self.nodes.get(&span)) {
                let next = node.record.span.end();
                at +=
                    self.segments.get(at..to).unwrap_or_default().partition_point(|run| run.ordinal() < next);
                before = next - 1;
                runs.push(Run::Node(Arc::clone(node)));
            } else {
                at += 1;
                before = ordinal;
                runs.push(segment.clone());
            }
        }
        runs
    }

    /// The runs that a view at an LSN needs, oldest first: at most 7 nodes per level (14 where older segments were
    /// dropped), and the segment in which the LSN was taken.
    ///
    /// Segments that begin at or after the LSN are left out. They may hold base blocks below it, but only of disks with
    /// a gap there: a line that takes base blocks after an LSN is open then, so its gap ends later.
    pub(crate) fn view(&self, lsn: Lsn) -> Vec<Run> {
        let last = self.segments.partition_point(|run| run.end_lsn() < lsn);
        // A segment that ends at the LSN is whole as well.
        let partial = self.segments.get(last).filter(|run| run.end_lsn() > lsn);
        let whole = if partial.is_some() { last } else { last.saturating_add(1).min(self.segments.len()) };
        let end = self.segments.get(whole).map_or(u64::MAX, Run::ordinal);
        let mut runs = self.cover(0, whole, end, LEVELS_MAX);
        runs.extend(partial.cloned());
        runs
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::FAN_OUT;

    /// Sealed segments that take 10 LSNs each, but for some ordinals that are missing, and all nodes over them.
    fn runs(count: u64, missing: &[u64]) -> Runs {
        let sealed = |ordinal: &u64| {
            let position = Position { lsn: Lsn(10 * ordinal), ..Position::default() };
            let summary = Summary {
                min_entry_lsn: 10 * ordinal - 9,
                max_entry_lsn: 10 * ordinal,
                ..Summary::default()
            };
            Run::Sealed(Arc::new(Sealed {
                ordinal: *ordinal,
                bytes: 0,
                leaf_bytes: 0,
                leaf_hash: [0; 32],
                last_hash: [0; 32],
                position,
                summary,
                events: Vec::new(),
            }))
        };
        let segments = (1..=count).filter(|ordinal| !missing.contains(ordinal)).collect::<Vec<_>>();
        let mut nodes = Vec::new();
        for level in 1..=LEVELS_MAX {
            let mut span = Span::over(level, 1);
            while span.end() <= count + 1 {
                nodes.push(NodeRecord { span, bytes: 1, extents: 0, hash: [0; 32] });
                span = Span::over(level, span.end());
            }
        }
        Runs::new(segments.iter().map(sealed).collect(), &nodes)
    }

    #[test]
    fn a_view_takes_at_most_seven_nodes_per_level_and_one_leaf_and_misses_nothing() {
        for missing in [&[][..], &[1, 8, 64, 65, 66, 300]] {
            let runs = runs(700, missing);
            for lsn in (1..=7010).step_by(7) {
                let view = runs.view(Lsn(lsn));
                let mut next = 1;
                for run in &view {
                    let (first, end) = match run {
                        Run::Node(node) => (node.record.span.first, node.record.span.end()),
                        run => (run.ordinal(), run.ordinal() + 1),
                    };
                    assert!(
                        (next..first).all(|ordinal| missing.contains(&ordinal)),
                        "{next}..{first} is left out"
                    );
                    next = end;
                }
                assert!(next > 700 || 10 * (next - 1) >= lsn, "{lsn}: ends at {next}");
                let whole = view.len() - usize::from(lsn % 10 != 0 && lsn < 7000);
                for level in 0..=LEVELS_MAX {
                    let at = |run: &&Run| match run {
                        Run::Node(node) => node.record.span.level == level,
                        _ => level == 0,
                    };
                    let count = view.iter().take(whole).filter(at).count();
                    assert!(count < usize::try_from(FAN_OUT).unwrap(), "{lsn}: {count} of level {level}");
                }
            }
        }
    }

    #[test]
    fn a_missing_node_is_replaced_by_its_children_and_no_more() {
        let mut runs = runs(700, &[]);
        let whole = runs.view(Lsn(6400)).len();
        runs.nodes.remove(&Span { level: 2, first: 65 });
        assert_eq!(runs.view(Lsn(6400)).len(), whole, "the node above it needs it no more");
        runs.nodes.remove(&Span { level: 3, first: 1 });
        assert_eq!(runs.view(Lsn(6400)).len(), whole + 6 + 8);
    }
}
