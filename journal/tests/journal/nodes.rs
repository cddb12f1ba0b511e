//! Merged nodes: points through them, crashes at every step of their making, damage in them, and what they cost.

use std::sync::Arc;

use crate::support::*;
use tidemark_journal::frame::EntryKind;
use tidemark_journal::storage::{Faults, SimStorage};
use tidemark_journal::{Journal, verify};
use tidemark_proto::ids::DiskId;

const SEGMENT_BYTES: u64 = 600;

/// Many small segments, with lines whose base blocks arrive among later writes, in other segments than these.
fn stream(journal: &Journal, rounds: usize) -> Stream {
    let mut stream = Stream::default();
    let data = EntryKind::Data;
    let mut frames = vec![stream.line_start(&[1, 2], 0)];
    frames.push(stream.base(1, vec![entry(1, data, 0, 60), entry(2, EntryKind::Zeroes, 0, 300)], 1));
    frames.push(stream.line_end(&[1, 2]));
    for round in 0..rounds {
        let seed = 10 * round as u64;
        let start = (7 * round) % 250;
        frames.push(stream.writes(vec![entry(1, data, start, 9), entry(2, data, 250 - start, 3)], seed));
        if round % 5 == 1 {
            let line = stream.position.lsn.0 + 1;
            frames.push(stream.line_start(&[1], 0));
            frames.push(stream.writes(vec![entry(1, data, start + 2, 4)], seed + 1));
            frames.push(stream.base(line, vec![entry(1, data, start, 12)], seed + 2));
            frames.push(stream.writes(vec![entry(2, EntryKind::Discard, start, 40)], seed + 3));
            frames.push(stream.base(
                line,
                vec![entry(1, data, start + 1, 2), entry(1, EntryKind::Zeroes, 100, 200)],
                seed + 4,
            ));
            frames.push(stream.line_end(&[1]));
        }
        frames.push(stream.heartbeat(true));
    }
    for frame in &frames {
        frame.append(journal).unwrap();
        journal.sync().unwrap();
    }
    stream
}

fn nodes(storage: &SimStorage) -> Vec<String> {
    storage.files().into_keys().filter(|name| name.starts_with("node-")).collect()
}

#[test]
fn every_point_equals_the_model_through_nodes_of_three_levels() {
    let storage = SimStorage::new(1);
    let journal = journal(&storage, SEGMENT_BYTES);
    let stream = stream(&journal, 300);
    let model = Model::of(&stream.frames, BaseRule::AtLine);
    let lsns = || (0..=stream.position.lsn.0).step_by(3);
    assert_eq!(difference(&journal, &model, lsns()), None);
    journal.maintain().unwrap();
    assert!(storage.files().contains_key("node-3-0000000000000001"), "{:?}", nodes(&storage));
    assert_eq!(difference(&journal, &model, lsns()), None);
    for wrong in [BaseRule::AtArrival, BaseRule::BelowEverything, BaseRule::EarlierArrivalWins] {
        assert!(
            difference(&journal, &Model::of(&stream.frames, wrong), lsns()).is_some(),
            "{wrong:?} passes"
        );
    }
    journal.close().unwrap();
    drop(journal);
    let journal = reopen(&storage, SEGMENT_BYTES);
    assert_eq!(journal.statistics().nodes, nodes(&storage).len() as u64);
    assert_eq!(difference(&journal, &model, lsns()), None);
    let report = verify(&storage).unwrap();
    assert!(report.is_clean() && report.unlisted.is_empty(), "{report:?}");
}

#[test]
fn a_crash_at_any_step_of_a_merge_loses_nothing_and_leaves_nothing() {
    let storage = SimStorage::new(1);
    // Leaves only: what is left to do is merging, and sealing the last segments.
    let stream = stream(&journal(&storage, SEGMENT_BYTES), 40);
    let model = Model::of(&stream.frames, BaseRule::AtLine);
    let files = storage.files();
    let mut whole = Vec::new();
    let mut steps = 0;
    for halt in 0.. {
        let storage = SimStorage::with_files(halt, &files);
        let journal = reopen(&storage, SEGMENT_BYTES);
        storage.set_faults(Faults { halt_after: Some(halt), ..Faults::default() });
        let done = journal.maintain().is_ok();
        if !done {
            steps += 1;
            drop(journal);
            storage.crash();
            let journal = reopen(&storage, SEGMENT_BYTES);
            assert_eq!(
                difference(&journal, &model, (0..=stream.position.lsn.0).step_by(11)),
                None,
                "step {halt}"
            );
            let report = verify(&storage).unwrap();
            assert!(
                report.damage.is_empty() && !report.unlisted.iter().any(|name| name.starts_with("node")),
                "{report:?}"
            );
            journal.maintain().unwrap();
            assert!(verify(&storage).unwrap().is_clean());
        }
        if whole.is_empty() {
            whole = nodes(&storage);
        }
        assert_eq!(nodes(&storage), whole, "step {halt}");
        if done {
            break;
        }
    }
    assert!(steps > 60 && whole.iter().any(|name| name.starts_with("node-2")), "{steps} steps, {whole:?}");
}

#[test]
fn a_full_disk_stops_merging_and_nothing_else() {
    let storage = SimStorage::new(1);
    let journal = journal(&storage, SEGMENT_BYTES);
    let mut stream = stream(&journal, 20);
    let used: usize = storage.files().values().map(Vec::len).sum();
    storage.set_faults(Faults { capacity_bytes: Some(used as u64 + 700), ..Faults::default() });
    assert!(journal.maintain().is_err());
    storage.set_faults(Faults::default());
    stream.heartbeat(true).append(&journal).unwrap();
    journal.sync().unwrap();
    journal.maintain().unwrap();
    assert!(nodes(&storage).len() > 2);
    assert!(verify(&storage).unwrap().damage.is_empty());
}

#[test]
fn damage_in_a_node_is_located_read_around_and_repaired() {
    let storage = SimStorage::new(1);
    let journal = journal(&storage, SEGMENT_BYTES);
    let stream = stream(&journal, 14);
    journal.maintain().unwrap();
    journal.close().unwrap();
    drop(journal);
    let files = storage.files();
    let model = Model::of(&stream.frames, BaseRule::AtLine);
    let last = stream.position.lsn;
    let expected = model.image(1, last.0);
    let name = "node-1-0000000000000001";
    for offset in 0..files[name].len() as u64 {
        let broken = SimStorage::with_files(1, &files);
        broken.flip(name, offset, u8::try_from(offset % 8).unwrap());
        let report = verify(&broken).unwrap();
        let found = report
            .damage
            .iter()
            .any(|found| found.file == name && found.offset <= offset && offset < found.offset + found.bytes);
        assert!(found, "byte {offset} is not located: {report:?}");
        let journal = reopen(&broken, SEGMENT_BYTES);
        let mut image = vec![0; expected.len()];
        for disk in [2, 1] {
            journal.view(last).unwrap().read_at(DiskId(disk), 0, &mut image).unwrap();
        }
        assert!(image == expected, "byte {offset}");
        journal.maintain().unwrap();
        assert_eq!(broken.files()[name], files[name], "byte {offset} is not repaired");
        assert_eq!(difference(&journal, &model, [last.0]), None);
    }
    let mut without = files.clone();
    without.remove(name);
    let broken = SimStorage::with_files(1, &without);
    assert!(!verify(&broken).unwrap().is_clean());
    let journal = reopen(&broken, SEGMENT_BYTES);
    assert_eq!(difference(&journal, &model, 0..=last.0), None);
    journal.maintain().unwrap();
    assert!(verify(&broken).unwrap().damage.is_empty());
    let (reader, _) = Journal::open_read_only(Arc::new(broken.clone()), options(SEGMENT_BYTES)).unwrap();
    assert_eq!(difference(&reader, &model, 0..=last.0), None);
}
