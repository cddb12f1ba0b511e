//! Merging children into a node: a sweep over the disks in which the highest version wins.

use std::sync::atomic::{AtomicBool, Ordering};

use super::encode::{Encoder, Sink, Written};
use super::extent::Extent;
use super::stream::{Child, ReadFailure, Stream};
use super::{FAN_OUT, Span};
use crate::storage::{Storage, StorageError};

/// Why no node came of it.
#[derive(Debug)]
pub(crate) enum MergeError {
    /// One of the children is damaged.
    Damaged(Child),
    /// A child cannot be read.
    Read(StorageError),
    /// The node cannot be written.
    Write(StorageError),
    /// It was told to stop.
    Stopped,
}

struct Head {
    child: Child,
    stream: Stream,
    extent: Extent,
}

impl Head {
    fn place(&self) -> (u32, u64) {
        (self.extent.disk.0, self.extent.start)
    }
}

fn failed(child: Child, failure: ReadFailure) -> MergeError {
    match failure {
        ReadFailure::Damaged(_) => MergeError::Damaged(child),
        ReadFailure::Storage(error) => MergeError::Read(error),
    }
}

/// What decides between versions: the highest stays.
type Order = fn(&Extent) -> (u64, u64, u32);

/// Writes the node that covers `span` from all its children.
pub(crate) fn merge(
    storage: &dyn Storage,
    key: [u8; 32],
    span: Span,
    children: &[Child],
    sink: &mut dyn Sink,
    stop: &AtomicBool,
) -> Result<Written, MergeError> {
    let mut encoder = Encoder::new(span, key, sink);
    sweep(storage, key, children, Extent::order, &mut |extent| {
        if stop.load(Ordering::Relaxed) {
            return Err(MergeError::Stopped);
        }
        encoder.push(extent).map_err(MergeError::Write)
    })?;
    encoder.finish().map_err(MergeError::Write)
}

/// Gives the last version of each sector, by disk and start.
fn sweep(
    storage: &dyn Storage,
    key: [u8; 32],
    children: &[Child],
    order: Order,
    take: &mut dyn FnMut(Extent) -> Result<(), MergeError>,
) -> Result<(), MergeError> {
    let mut heads: Vec<Head> = Vec::with_capacity(2 * usize::try_from(FAN_OUT).unwrap_or_default());
    for child in children {
        for mut stream in child.open(storage, key).map_err(|failure| failed(*child, failure))? {
            if let Some(extent) = stream.next().map_err(|failure| failed(*child, failure))? {
                heads.push(Head { child: *child, stream, extent });
            }
        }
    }
    while let Some(extent) = step(&heads, order) {
        take(extent)?;
        advance(&mut heads, &extent)?;
    }
    Ok(())
}

/// The next sectors that have one last version, and that version. They end where any other head begins or ends: what a
/// stream has behind its head may be newer. Extents that are cut for nothing join again.
fn step(heads: &[Head], order: Order) -> Option<Extent> {
    let at = heads.iter().map(Head::place).min()?;
    let mut newest =
        heads.iter().filter(|head| head.place() == at).max_by_key(|head| order(&head.extent))?.extent;
    for head in heads.iter().filter(|head| head.extent.disk == newest.disk) {
        let edge = if head.extent.start > at.1 { head.extent.start } else { head.extent.end };
        newest.end = newest.end.min(edge);
    }
    Some(newest)
}

/// Takes these sectors off all heads.
fn advance(heads: &mut Vec<Head>, done: &Extent) -> Result<(), MergeError> {
    let mut ended = false;
    for head in heads.iter_mut() {
        while head.extent.disk == done.disk && head.extent.start < done.end && !ended_at(&head.extent) {
            if head.extent.end > done.end {
                head.extent = head.extent.from(done.end);
                continue;
            }
            match head.stream.next().map_err(|failure| failed(head.child, failure))? {
                Some(extent) => head.extent = extent,
                None => {
                    head.extent.start = u64::MAX;
                    ended = true;
                }
            }
        }
    }
    if ended {
        heads.retain(|head| !ended_at(&head.extent));
    }
    Ok(())
}

/// No extent begins at the last address: sectors are 512 bytes.
fn ended_at(extent: &Extent) -> bool {
    extent.start == u64::MAX
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests state what must hold")]
mod tests {
    use std::collections::BTreeMap;
    use std::io::IoSlice;

    use proptest::prelude::*;
    use tidemark_proto::ids::{DiskId, Lsn};

    use super::*;
    use crate::frame::{Entry, EntryKind, FrameHeader, FrameKind};
    use crate::index::MemoryIndex;
    use crate::leaf;
    use crate::storage::SimStorage;

    const KEY: [u8; 32] = [5; 32];

    /// A write or base block: disk, start, sectors, zeroes, and the line if it is a base block.
    type Version = (u32, u64, u32, bool, Option<u64>);

    /// Of each sector of each disk, what decided for its last version.
    type Orders = BTreeMap<(u32, u64), (u64, u64, u32)>;

    #[derive(Debug)]
    struct Bytes(Vec<u8>);

    impl Sink for Bytes {
        fn put(&mut self, bytes: &[u8]) -> Result<(), StorageError> {
            self.0.extend_from_slice(bytes);
            Ok(())
        }
    }

    fn put(storage: &SimStorage, name: &str, bytes: &[u8]) {
        storage.create(name).unwrap().write_at(0, &mut [IoSlice::new(bytes)]).unwrap();
    }

    /// Leaves of these segments, and of each sector the order of its last version.
    fn leaves(storage: &SimStorage, segments: &[Vec<Version>]) -> (Vec<Child>, Orders) {
        let mut last = BTreeMap::new();
        let mut lsn = 0;
        let mut children = Vec::new();
        for (ordinal, versions) in (1..).zip(segments) {
            let mut index = MemoryIndex::new(0);
            for (arrival, (disk, start, sectors, zero, line)) in (0..).zip(versions) {
                let kind = if *zero { EntryKind::Zeroes } else { EntryKind::Data };
                let entry = Entry {
                    disk: DiskId(*disk),
                    kind,
                    start_sector: *start,
                    sectors: *sectors,
                    flags: 0,
                    time_delta_us: 0,
                };
                let at = line.map_or(lsn + 1, |line| line.min(lsn));
                lsn = lsn.max(at);
                let header = FrameHeader {
                    kind: if line.is_some() { FrameKind::Base } else { FrameKind::Writes },
                    cover: crate::frame::Cover::Hashed,
                    table_bytes: 24,
                    payload_bytes: u32::try_from(entry.payload_bytes()).unwrap(),
                    segment: ordinal,
                    ordinal: 0,
                    position: crate::Position::default(),
                    appliance_time_us: 0,
                    clock_error_us: 0,
                    writer_generation: 1,
                    durable_seq: 0,
                    durable_lsn: Lsn::ZERO,
                    first_lsn: Lsn(at),
                    previous: [0; 32],
                };
                index.add_entries(&header, &[entry], 1000 * u64::from(arrival));
                for sector in *start..*start + u64::from(*sectors) {
                    let order = (at, ordinal, arrival);
                    let known = last.entry((*disk, sector)).or_insert(order);
                    *known = order.max(*known);
                }
            }
            let (bytes, hash) = leaf::encode(&index, ordinal, &KEY);
            put(storage, &leaf::leaf_name(ordinal), &bytes);
            children.push(Child::Leaf { ordinal, bytes: bytes.len() as u64, hash });
        }
        (children, last)
    }

    fn sectors(storage: &SimStorage, children: &[Child], order: Order) -> BTreeMap<(u32, u64), (u64, u64)> {
        let mut found = BTreeMap::new();
        sweep(storage, KEY, children, order, &mut |extent| {
            for sector in extent.start..extent.end {
                let twice = found.insert((extent.disk.0, sector), (extent.lsn.0, extent.segment));
                assert!(twice.is_none(), "two versions of one sector");
            }
            Ok(())
        })
        .unwrap();
        found
    }

    fn node(storage: &SimStorage, span: Span, children: &[Child]) -> Child {
        let mut bytes = Bytes(Vec::new());
        let written = merge(storage, KEY, span, children, &mut bytes, &AtomicBool::new(false)).unwrap();
        assert_eq!(bytes.0.len() as u64, written.bytes);
        super::super::decode(&bytes.0, &KEY).unwrap();
        put(storage, &span.name(), &bytes.0);
        Child::Node { span, bytes: written.bytes, hash: written.hash }
    }

    fn version() -> impl Strategy<Value = Version> {
        let sectors = prop_oneof![4 => 1..20_u32, 1 => 100..400_u32];
        (1..3_u32, 0..500_u64, sectors, any::<bool>(), proptest::option::of(0..40_u64))
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn merged_in_one_or_two_steps_each_sector_keeps_its_last_version(
            segments in proptest::collection::vec(proptest::collection::vec(version(), 0..12), 1..20),
        ) {
            let storage = SimStorage::new(1);
            let (leaves, last) = leaves(&storage, &segments);
            let expected: BTreeMap<_, _> = last.iter().map(|(at, (lsn, segment, _))| (*at, (*lsn, *segment))).collect();
            prop_assert_eq!(&sectors(&storage, &leaves, Extent::order), &expected);
            let nodes: Vec<Child> = (1..).step_by(8).zip(leaves.chunks(8))
                .map(|(first, leaves)| node(&storage, Span { level: 1, first }, leaves)).collect();
            prop_assert_eq!(&sectors(&storage, &nodes, Extent::order), &expected);
            let root = Span { level: 2, first: 1 };
            let mut direct = Bytes(Vec::new());
            merge(&storage, KEY, root, &leaves, &mut direct, &AtomicBool::new(false)).unwrap();
            node(&storage, root, &nodes);
            let file = &storage.files()[&root.name()];
            prop_assert!(&direct.0 == file, "a node does not depend on what it was merged from");
        }
    }

    #[test]
    fn the_model_fails_a_merge_that_keeps_what_arrived_last() {
        let storage = SimStorage::new(1);
        let write = |start, line| (1, start, 8, false, line);
        let (leaves, last) = leaves(
            &storage,
            &[vec![write(0, None), write(0, None)], vec![write(0, Some(1)), write(20, Some(1))]],
        );
        let expected: BTreeMap<_, _> =
            last.iter().map(|(at, (lsn, segment, _))| (*at, (*lsn, *segment))).collect();
        assert_eq!(sectors(&storage, &leaves, Extent::order), expected);
        assert_ne!(
            sectors(&storage, &leaves, |extent| (extent.segment, extent.lsn.0, extent.arrival)),
            expected
        );
    }
}
