//! What differs between two points, against the slow model: every pair of points of random streams.

use std::collections::BTreeSet;

use crate::support::*;
use proptest::prelude::*;
use tidemark_journal::Journal;
use tidemark_journal::changed::{Changed, Changes};
use tidemark_journal::frame::EntryKind;
use tidemark_journal::storage::SimStorage;
use tidemark_journal::view::View;
use tidemark_proto::ids::{DiskId, Lsn};

fn size(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap()
}

/// Sectors that differ, as the model sees it.
fn expected(model: &Model, disk: u32, from: u64, to: u64) -> BTreeSet<usize> {
    let before =
        if model.exact(disk, from) { model.image(disk, from) } else { vec![0; DISK_SECTORS * SECTOR] };
    let after = model.image(disk, to);
    let pairs = before.chunks(SECTOR).zip(after.chunks(SECTOR)).enumerate();
    pairs.filter(|(_, (before, after))| before != after).map(|(sector, _)| sector).collect()
}

/// Sectors that the journal calls changed; checks the form of the answer.
fn found(journal: &Journal, disk: u32, from: u64, to: u64) -> BTreeSet<usize> {
    let mut sectors = BTreeSet::new();
    let mut end = None;
    for range in journal.changed(DiskId(disk), Lsn(from), Lsn(to)).unwrap() {
        let range = range.unwrap();
        let (start, next) = (size(range.offset) / SECTOR, size(range.offset + range.bytes) / SECTOR);
        assert!(start < next && end.is_none_or(|end| end < start), "{range:?} after {end:?}");
        end = Some(next);
        sectors.extend(start..next);
    }
    sectors
}

/// The first pair of points whose difference the journal and the model see differently.
fn disagreement(journal: &Journal, model: &Model) -> Option<String> {
    let last = journal.durable().lsn.0;
    for disk in [1, 2] {
        for to in (1..=last).filter(|lsn| model.exact(disk, *lsn)) {
            let known = |lsn: u64| model.first_line.get(&disk).is_some_and(|line| *line <= lsn);
            for from in (1..=to).filter(|lsn| model.exact(disk, *lsn) || !known(*lsn)) {
                if journal.view(Lsn(from)).is_err() {
                    continue;
                }
                let (expected, found) = (expected(model, disk, from, to), found(journal, disk, from, to));
                if expected != found {
                    return Some(format!(
                        "disk-{disk} from {from} to {to}: {expected:?} but found {found:?}"
                    ));
                }
            }
        }
    }
    None
}

#[derive(Debug, Clone)]
struct Step {
    kind: EntryKind,
    disk: u32,
    start: usize,
    sectors: usize,
    /// Small, so that ranges are rewritten with what they held.
    seed: u64,
    /// In a gap, as a block of its resync.
    base: bool,
}

fn step() -> impl Strategy<Value = Step> {
    let kind =
        prop_oneof![4 => Just(EntryKind::Data), 1 => Just(EntryKind::Zeroes), 1 => Just(EntryKind::Discard)];
    let range = prop_oneof![
        4 => (0..DISK_SECTORS - 12, 1..12_usize),
        1 => (0..100_usize, 12..200_usize),
        1 => (0..2_usize, 1..2_usize)
    ];
    (kind, 1..=2_u32, range, 0..3_u64, any::<bool>()).prop_map(
        |(kind, disk, (start, sectors), seed, base)| Step { kind, disk, start, sectors, seed, base },
    )
}

/// Runs of steps; every other run lies in a gap, whose line ends with it.
fn fill(journal: &Journal, runs: &[Vec<Step>]) -> Stream {
    let mut stream = Stream::default();
    for (number, run) in runs.iter().enumerate() {
        let disks: &[u32] = if number % 4 == 0 { &[1, 2] } else { &[2] };
        let gap = number % 2 == 0;
        if gap {
            stream.line_start(disks, 0).append(journal).unwrap();
        }
        let line = stream.position.lsn.0;
        for step in run {
            let entry = entry(step.disk, step.kind, step.start, step.sectors);
            let frame = if gap && step.base && disks.contains(&step.disk) {
                stream.base(line, vec![entry], step.seed)
            } else {
                stream.writes(vec![entry], step.seed)
            };
            frame.append(journal).unwrap();
        }
        if gap {
            stream.line_end(disks).append(journal).unwrap();
        }
        stream.heartbeat(true).append(journal).unwrap();
        journal.sync().unwrap();
        if number % 3 == 1 {
            journal.maintain().unwrap();
        }
    }
    stream
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_pair_of_points_differs_as_the_model_says(
        runs in proptest::collection::vec(proptest::collection::vec(step(), 0..7), 1..6),
        segment_bytes in prop_oneof![Just(2_u64 << 10), Just(12 << 10), Just(1 << 20)],
    ) {
        let storage = SimStorage::new(1);
        let journal = journal(&storage, segment_bytes);
        let stream = fill(&journal, &runs);
        let model = Model::of(&stream.frames, BaseRule::AtLine);
        prop_assert_eq!(disagreement(&journal, &model), None);
    }
}

fn one(kind: EntryKind, disk: u32, start: usize, sectors: usize, seed: u64, base: bool) -> Step {
    Step { kind, disk, start, sectors, seed, base }
}

/// A gap whose resync brings what the tap missed, then a rewrite with the same content.
fn with_a_gap() -> (Journal, Stream) {
    let journal = journal(&SimStorage::new(1), 1 << 20);
    let data = EntryKind::Data;
    let runs = [
        vec![one(data, 1, 0, 40, 1, true), one(data, 2, 0, 40, 1, true)],
        vec![one(data, 2, 100, 8, 1, false)],
        vec![one(data, 2, 200, 4, 2, true)],
        vec![one(data, 2, 100, 8, 1, false), one(data, 2, 0, 1, 2, false)],
    ];
    let stream = fill(&journal, &runs);
    (journal, stream)
}

#[test]
fn a_gap_is_no_obstacle_and_a_rewrite_with_the_same_content_is_no_change() {
    let (journal, stream) = with_a_gap();
    let model = Model::of(&stream.frames, BaseRule::AtLine);
    let last = journal.durable().lsn.0;
    let before_gap = model.gaps[2].0 - 1;
    assert_eq!(found(&journal, 2, before_gap, last), (200..204).chain([0]).collect());
    assert!(found(&journal, 1, before_gap, last).is_empty());
    let refused = journal.changed(DiskId(2), Lsn(before_gap + 1), Lsn(last));
    assert!(refused.is_err(), "a point inside the gap is none");
}

#[test]
fn the_checker_fails_what_is_broken() {
    let (journal, stream) = with_a_gap();
    // Blocks of the resync taken for older than the gap.
    let wrong = Model::of(&stream.frames, BaseRule::BelowEverything);
    assert!(disagreement(&journal, &wrong).is_some());
    // A list of what was written, without comparing: the rewrite at 100 is in it.
    let model = Model::of(&stream.frames, BaseRule::AtLine);
    let from = model.gaps[2].1.unwrap();
    let written: BTreeSet<usize> = stream
        .frames
        .iter()
        .filter_map(|frame| match &frame.content {
            Content::Writes { first, entries, .. } if *first > from => Some(entries),
            _ => None,
        })
        .flatten()
        .flat_map(|entry| {
            let start = size(entry.start_sector);
            start..start + entry.sectors as usize
        })
        .collect();
    let last = journal.durable().lsn.0;
    assert_ne!(written, expected(&model, 2, from, last));
    assert_eq!(found(&journal, 2, from, last), expected(&model, 2, from, last));
}

#[test]
fn contents_of_two_journals_are_compared_whole() {
    let data = EntryKind::Data;
    let runs = |seed| {
        vec![
            vec![one(data, 1, 0, 40, 1, true), one(data, 2, 0, 40, 1, true)],
            vec![one(data, 1, 100, 8, seed, false), one(data, 1, 290, 10, 1, false)],
        ]
    };
    let journals = [1, 2].map(|seed| {
        let journal = journal(&SimStorage::new(1), 1 << 20);
        fill(&journal, &runs(seed));
        journal
    });
    let views = journals.each_ref().map(|journal| journal.view(journal.durable().lsn).unwrap());
    let [one, other] = views;
    let ranges = |disk, from: &View, to: &View| {
        let changes = Changes::of_contents(DiskId(disk), from.clone(), to.clone());
        changes.map(|range| range.unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(ranges(1, &one, &other), [Changed { offset: 100 * 512, bytes: 8 * 512 }]);
    assert_eq!(ranges(1, &one, &one), []);
    assert_eq!(ranges(2, &one, &other), []);
}

#[test]
fn the_price_is_that_of_what_was_written_between() {
    let storage = SimStorage::new(1);
    let journal = journal(&storage, 64 << 10);
    let data = EntryKind::Data;
    let old: Vec<Step> = (0..200).map(|at| one(data, 1, at % 280, 12, at as u64, true)).collect();
    fill(&journal, &[old]);
    journal.close().unwrap();
    drop(journal);
    let journal = reopen(&storage, 64 << 10);
    let from = journal.durable().lsn.0;
    let mut stream = Stream { position: journal.durable(), frames: Vec::new() };
    stream.writes(vec![entry(1, data, 5, 3)], 9000).append(&journal).unwrap();
    stream.heartbeat(true).append(&journal).unwrap();
    journal.sync().unwrap();
    let before = journal.statistics().index_cache_bytes;
    let changes: Vec<_> = journal.changed(DiskId(1), Lsn(from), Lsn(from + 1)).unwrap().collect();
    assert_eq!(changes.len(), 1);
    let read = journal.statistics().index_cache_bytes - before;
    let segments = journal.statistics().segments;
    assert!(segments > 10, "{segments} segments");
    assert!(read < 64 << 10, "{read} bytes of index were read for one write");
}
