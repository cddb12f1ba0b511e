//! Damaged files: every flipped bit is found and located, nothing acknowledged vanishes in silence, no wrong byte is read.

use std::sync::Arc;

use crate::support::*;
use tidemark_journal::storage::{Faults, SimStorage};
use tidemark_journal::{AppendError, Damage, Journal, OpenError, SyncError, VerifyReport, verify};
use tidemark_proto::ids::DiskId;

fn names(found: &Damage, file: &str, offset: u64) -> bool {
    found.file == file && found.offset <= offset && offset < found.offset + found.bytes
}

fn located(report: &VerifyReport, file: &str, offset: u64) -> bool {
    report.damage.iter().chain(&report.torn_tail).any(|found| names(found, file, offset))
}

/// Flips one bit of every byte of every file, one at a time.
fn flip_all(storage: &SimStorage, stream: &Stream) {
    let files = storage.files();
    assert!(verify(storage).unwrap().is_clean());
    let model = Model::of(&stream.frames, BaseRule::AtLine);
    let expected = model.image(1, stream.position.lsn.0);
    for (name, bytes) in &files {
        for offset in 0..bytes.len() as u64 {
            let broken = SimStorage::with_files(1, &files);
            broken.flip(name, offset, u8::try_from(offset % 8).unwrap());
            let report = verify(&broken);
            assert!(
                report.is_ok_and(|report| located(&report, name, offset)),
                "{name} byte {offset} is not located"
            );
            let Ok((journal, report)) = Journal::open(Arc::new(broken.clone()), options(2 << 10)) else {
                continue;
            };
            let whole = journal.durable().seq == stream.position.seq;
            assert!(
                whole || report.damage.is_some(),
                "{name} byte {offset}: acknowledged frames vanish in silence"
            );
            if !whole {
                assert_eq!(broken.files()[name].len(), bytes.len(), "{name} byte {offset}: damage was cut");
                assert!(matches!(
                    stream.clone().heartbeat(true).append(&journal),
                    Err(AppendError::ReadOnly(_))
                ));
                continue;
            }
            let mut image = vec![0; expected.len()];
            if let Ok(view) = journal.view(stream.position.lsn)
                && view.read_at(DiskId(1), 0, &mut image).is_ok()
            {
                assert!(image == expected, "{name} byte {offset}: wrong bytes were read");
            }
        }
    }
}

#[test]
fn every_flipped_bit_of_a_closed_journal_is_located() {
    let storage = SimStorage::new(1);
    let journal = journal(&storage, 2 << 10);
    let stream = tiny(&journal);
    journal.close().unwrap();
    drop(journal);
    assert!(storage.files().keys().any(|name| name.starts_with("leaf-")));
    flip_all(&storage, &stream);
}

#[test]
fn every_flipped_bit_of_a_killed_journal_is_located() {
    let storage = SimStorage::new(1);
    let journal = journal(&storage, 1 << 20);
    let stream = tiny(&journal);
    drop(journal);
    flip_all(&storage, &stream);
}

#[test]
fn the_locator_fails_a_report_that_names_another_place() {
    let found = Damage { file: "segment-1".to_owned(), offset: 10, bytes: 5, problem: String::new() };
    assert!(names(&found, "segment-1", 14));
    assert!(
        !names(&found, "segment-1", 15) && !names(&found, "segment-1", 9) && !names(&found, "leaf-1", 12)
    );
    assert!(!located(&VerifyReport::default(), "segment-1", 0));
}

#[test]
fn a_torn_tail_is_cut_and_an_acknowledged_one_is_not() {
    let storage = SimStorage::new(1);
    let journal = journal(&storage, 1 << 20);
    let mut stream = tiny(&journal);
    let acked = stream.position;
    stream.marker("never acknowledged").append(&journal).unwrap();
    drop(journal);
    let files = storage.files();
    let segment = "segment-0000000000000001";
    let cut = |bytes: usize| {
        let mut files = files.clone();
        let file = files.get_mut(segment).unwrap();
        file.truncate(file.len() - bytes);
        SimStorage::with_files(1, &files)
    };
    let torn = cut(5);
    let (journal, report) = Journal::open(Arc::new(torn.clone()), options(1 << 20)).unwrap();
    assert!(report.cut_bytes > 0 && report.damage.is_none());
    assert_eq!(journal.durable(), acked);
    stream.rewind(acked);
    stream.marker("takes its place").append(&journal).unwrap();
    journal.close().unwrap();
    drop(journal);
    assert!(verify(&torn).unwrap().is_clean());
    let (journal, report) = Journal::open(Arc::new(cut(400)), options(1 << 20)).unwrap();
    let damage = report.damage.unwrap();
    assert_eq!(damage.file, segment);
    assert!(damage.problem.contains("were acknowledged"), "{damage}");
    assert!(journal.read_only().is_some() && journal.sync().is_err());
    assert!(matches!(journal.put_note("x", b"y"), Err(AppendError::ReadOnly(_))));
}

#[test]
fn a_claim_in_a_later_frame_is_enough_to_know_that_the_hole_was_acknowledged() {
    let storage = SimStorage::new(1);
    let journal = journal(&storage, 1 << 20);
    let manifest = storage.files()["manifest"].clone();
    let mut stream = tiny(&journal);
    stream.marker("knows what is durable").append(&journal).unwrap();
    drop(journal);
    // As after a power cut that took the manifest's unsynced witnesses but not the synced record of the segment.
    let mut files = storage.files();
    let open_record_end = manifest.len() + 60 + 56;
    files.get_mut("manifest").unwrap().truncate(open_record_end);
    let segment = files.get_mut("segment-0000000000000001").unwrap();
    segment[600] ^= 1;
    let (journal, report) =
        Journal::open(Arc::new(SimStorage::with_files(1, &files)), options(1 << 20)).unwrap();
    assert!(report.damage.is_some(), "{report:?}");
    assert!(journal.durable().seq < stream.position.seq);
}

#[test]
fn a_failed_sync_poisons_until_reopened() {
    let storage = SimStorage::new(1);
    let journal = journal(&storage, 1 << 20);
    let mut stream = tiny(&journal);
    let acked = stream.position;
    stream.marker("lost").append(&journal).unwrap();
    storage.set_faults(Faults { fail_sync_after: Some(0), ..Faults::default() });
    assert!(matches!(journal.sync(), Err(SyncError::Failed(_))));
    assert!(matches!(journal.sync(), Err(SyncError::Poisoned)));
    assert!(matches!(stream.clone().marker("x").append(&journal), Err(AppendError::Poisoned)));
    assert!(matches!(journal.put_note("x", b"y"), Err(AppendError::Poisoned)));
    assert_eq!(journal.durable(), acked);
    storage.crash();
    drop(journal);
    let journal = reopen(&storage, 1 << 20);
    stream.rewind(journal.appended());
    stream.marker("again").append(&journal).unwrap();
    journal.sync().unwrap();
}

#[test]
fn a_full_disk_refuses_and_later_appends_work() {
    let storage = SimStorage::new(1);
    let journal = journal(&storage, 1 << 20);
    let mut stream = tiny(&journal);
    let used: usize = storage.files().values().map(Vec::len).sum();
    storage.set_faults(Faults { capacity_bytes: Some(used as u64 + 100), ..Faults::default() });
    let frame = stream.writes(vec![entry(1, tidemark_journal::frame::EntryKind::Data, 0, 50)], 9);
    for _ in 0..3 {
        assert!(matches!(frame.append(&journal), Err(AppendError::Full)));
    }
    storage.set_faults(Faults::default());
    frame.append(&journal).unwrap();
    journal.close().unwrap();
    drop(journal);
    assert!(verify(&storage).unwrap().is_clean());
}

#[test]
fn what_the_manifest_does_not_name_is_moved_aside() {
    let storage = SimStorage::new(1);
    let journal = journal(&storage, 1 << 20);
    tiny(&journal);
    drop(journal);
    let mut files = storage.files();
    files.insert("segment-0000000000000002".to_owned(), b"left by a killed process".to_vec());
    files.insert("manifest.new".to_owned(), b"half a snapshot".to_vec());
    let storage = SimStorage::with_files(1, &files);
    assert_eq!(verify(&storage).unwrap().unlisted.len(), 2);
    let (_, report) = Journal::open(Arc::new(storage.clone()), options(1 << 20)).unwrap();
    assert_eq!(report.moved_aside, ["aside-segment-0000000000000002"]);
    assert!(!storage.files().contains_key("manifest.new"));
}

#[test]
fn no_journal_and_a_ruined_manifest_are_told_apart() {
    let empty = Arc::new(SimStorage::new(1));
    assert!(matches!(Journal::open(empty, options(1 << 20)), Err(OpenError::Missing)));
    let storage = SimStorage::new(1);
    drop(journal(&storage, 1 << 20));
    storage.flip("manifest", 3, 0);
    assert!(matches!(Journal::open(Arc::new(storage), options(1 << 20)), Err(OpenError::Damaged(_))));
}
