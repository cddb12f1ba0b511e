//! The checker of oracle 1 against a slow model, and its negative controls.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test states what must hold and stops where it does not"
)]

use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tidemark_tests::stamp::{Checker, History, Kind, Operation, Options, SECTOR_BYTES, Stamp, Violation};

const RUN: u64 = 9;
const DISK_SECTORS: u64 = 64;

/// A random history of the given queue depth, as the workload would log it.
fn history(seed: u64, count: u64, queue_depth: usize) -> History {
    let mut random = StdRng::seed_from_u64(seed);
    let mut operations: Vec<Operation> = Vec::new();
    let mut in_flight: Vec<usize> = Vec::new();
    let mut tick = 0;
    while (operations.len() as u64) < count || !in_flight.is_empty() {
        tick += 1;
        let submit =
            in_flight.len() < queue_depth && (operations.len() as u64) < count && random.random_bool(0.7);
        if submit {
            let sectors = random.random_range(1..=8);
            let start_sector = random.random_range(0..=DISK_SECTORS - sectors);
            let overlaps = in_flight.iter().any(|index| {
                let other = &operations[*index];
                other.start_sector < start_sector + sectors
                    && start_sector < other.start_sector + other.sectors
            });
            if overlaps {
                continue;
            }
            let kind = match random.random_range(0..10) {
                0 => Kind::Zeroes,
                1 => Kind::Discard,
                _ => Kind::Data,
            };
            let sequence = operations.len() as u64;
            in_flight.push(operations.len());
            operations.push(Operation {
                sequence,
                kind,
                start_sector,
                sectors,
                submitted: Some(tick),
                completed: None,
            });
        } else if !in_flight.is_empty() {
            let index = in_flight.swap_remove(random.random_range(0..in_flight.len()));
            operations[index].completed = Some(tick);
        }
    }
    History { run: RUN, disk_sectors: DISK_SECTORS, operations }
}

/// The slow model: plays the given writes one after the other.
fn replay<'a>(writes: impl IntoIterator<Item = &'a Operation>) -> Vec<u8> {
    let mut image = vec![0; DISK_SECTORS as usize * SECTOR_BYTES];
    for write in writes {
        for sector in write.start_sector..write.start_sector + write.sectors {
            let at = sector as usize * SECTOR_BYTES;
            let bytes = image[at..].first_chunk_mut::<SECTOR_BYTES>().unwrap();
            match write.kind {
                Kind::Data => Stamp { run: RUN, sequence: write.sequence, sector, time_us: 0 }.encode(bytes),
                Kind::Zeroes | Kind::Discard => bytes.fill(0),
            }
        }
    }
    image
}

/// A legal crash order: any order in which a write that completed before another's submission precedes it.
fn legal_order(history: &History, seed: u64) -> Vec<Operation> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut order = Vec::new();
    let mut left = history.operations.clone();
    while !left.is_empty() {
        let ready: Vec<usize> = (0..left.len())
            .filter(|index| {
                left.iter().all(|other| other.completed.unwrap() >= left[*index].submitted.unwrap())
            })
            .collect();
        order.push(left.remove(ready[random.random_range(0..ready.len())]));
    }
    order
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn every_prefix_of_every_legal_order_is_allowed(seed in any::<u64>(), depth in 1_usize..8, cut in 0_usize..60) {
        let history = history(seed, 60, depth);
        let checker = Checker::new(&history);
        let order = legal_order(&history, seed ^ 1);
        let earlier = checker.check(&replay(&order[..cut / 2]), 0).unwrap();
        let verdict = checker.check(&replay(&order[..cut]), earlier.frontier).unwrap();
        prop_assert!(verdict.must_contain <= cut as u64);
        checker.check(&replay(&order), u64::MAX).unwrap();
    }

    /// The checker against brute force: a contained set with a hole is refused, unless later writes hide the hole.
    #[test]
    fn a_missing_completed_write_is_found_when_it_shows(seed in any::<u64>(), hole in 0_usize..40) {
        let history = history(seed, 40, 1);
        let checker = Checker::new(&history);
        let with_hole: Vec<Operation> =
            history.operations.iter().filter(|write| write.sequence != hole as u64).copied().collect();
        let (whole, broken) = (replay(&history.operations), replay(&with_hole));
        let verdict = checker.check(&broken, u64::MAX);
        prop_assert_eq!(verdict.is_ok(), whole == broken, "{:?}", verdict);
    }

    #[test]
    fn the_exact_prefix_is_accepted_and_no_other_image(seed in any::<u64>(), cut in 1_u64..40) {
        let history = history(seed, 40, 1);
        let checker = Checker::new(&history);
        let image = replay(&history.operations[..cut as usize]);
        checker.check_prefix(&image, cut).unwrap();
        let before = replay(&history.operations[..cut as usize - 1]);
        prop_assert_eq!(checker.check_prefix(&before, cut).is_ok(), before == image);
    }
}

/// Two writes, the second submitted after the first completed.
fn dependent_pair() -> History {
    let write = |sequence, start_sector, submitted| Operation {
        sequence,
        kind: Kind::Data,
        start_sector,
        sectors: 4,
        submitted: Some(submitted),
        completed: Some(submitted + 1),
    };
    History { run: RUN, disk_sectors: DISK_SECTORS, operations: vec![write(0, 0, 1), write(1, 32, 3)] }
}

#[test]
fn control_two_dependent_writes_swapped() {
    let history = dependent_pair();
    let checker = Checker::new(&history);
    checker.check(&replay(&history.operations[..1]), 0).unwrap();
    let swapped = replay(&history.operations[1..]);
    let expected = Violation::Missing { sector: 0, missing: 0, shown: None, because_of: Some(1) };
    assert_eq!(checker.check(&swapped, 0).unwrap_err(), expected);
    assert!(checker.check_prefix(&swapped, 1).is_err());
}

#[test]
fn control_an_older_write_over_a_newer_one() {
    let mut history = dependent_pair();
    history.operations[1].start_sector = 0;
    let checker = Checker::new(&history);
    let reversed = replay(history.operations.iter().rev());
    assert!(matches!(checker.check(&reversed, u64::MAX).unwrap_err(), Violation::Missing { missing: 1, .. }));
    // As a point before the second write it is fine.
    checker.check(&reversed, 0).unwrap();
}

#[test]
fn control_damage_and_foreign_sectors() {
    let history = dependent_pair();
    let checker = Checker::new(&history);
    let whole = replay(&history.operations);
    let mut torn = whole.clone();
    torn[100] ^= 1;
    assert_eq!(checker.check(&torn, 0).unwrap_err(), Violation::Garbage { sector: 0 });
    let mut moved = whole.clone();
    moved.copy_within(0..SECTOR_BYTES, 10 * SECTOR_BYTES);
    assert!(matches!(checker.check(&moved, 0).unwrap_err(), Violation::Foreign { sector: 10, .. }));
    assert!(matches!(checker.check(&whole[SECTOR_BYTES..], 0).unwrap_err(), Violation::Size { .. }));
    // A write from the future of this log.
    let early = Checker::new(&History { operations: history.operations[..1].to_vec(), ..history.clone() });
    assert!(matches!(early.check(&whole, 0).unwrap_err(), Violation::Foreign { sector: 32, .. }));
}

/// The workload on a file: its log and its image agree, at every queue depth.
#[test]
fn the_workload_logs_what_it_writes() {
    let folder = tempfile::tempdir().unwrap();
    for queue_depth in [1, 6] {
        let disk = folder.path().join(format!("disk-{queue_depth}"));
        std::fs::File::create(&disk).unwrap().set_len(4 << 20).unwrap();
        let options =
            Options { seed: RUN, queue_depth, operations: 400, zeroes_percent: 5, ..Options::default() };
        let report = tidemark_tests::stamp::run(&disk, options).unwrap();
        assert_eq!(report.errors, []);
        assert_eq!(report.history.completed(), 400);
        let image = std::fs::read(&disk).unwrap();
        let checker = Checker::new(&report.history);
        checker.check(&image, u64::MAX).unwrap();
        if queue_depth == 1 {
            checker.check_prefix(&image, 400).unwrap();
            assert!(checker.check_prefix(&image, 399).is_err());
        }
        let mut text = Vec::new();
        report.history.write_to(&mut text).unwrap();
        assert_eq!(History::read_from(text.as_slice()).unwrap(), report.history);
    }
}
