//! The journal as its users see it: append, sync, view, timeline, reopen.

use std::sync::Arc;

use crate::support::*;
use tidemark_journal::frame::EntryKind;
use tidemark_journal::storage::{OsStorage, SimStorage, Storage};
use tidemark_journal::timeline::{RefusedCause, TimelineError};
use tidemark_journal::view::ExtentKind;
use tidemark_journal::{Journal, OpenError, dump, verify};
use tidemark_proto::ids::{DiskId, Lsn};

#[test]
fn every_point_equals_the_model_before_and_after_sealing_and_reopening() {
    for segment_bytes in [4 << 10, 20 << 10, 1 << 20] {
        let storage = SimStorage::new(1);
        let journal = journal(&storage, segment_bytes);
        let stream = sample(&journal);
        let model = Model::of(&stream.frames, BaseRule::AtLine);
        let lsns = || 0..=stream.position.lsn.0 + 2;
        assert_eq!(difference(&journal, &model, lsns()), None);
        journal.maintain().unwrap();
        assert_eq!(difference(&journal, &model, lsns()), None);
        drop(journal);
        let journal = reopen(&storage, segment_bytes);
        assert_eq!(journal.durable(), stream.position);
        assert_eq!(difference(&journal, &model, lsns()), None);
        journal.close().unwrap();
        drop(journal);
        let journal = reopen(&storage, segment_bytes);
        assert_eq!(difference(&journal, &model, lsns()), None);
        drop(journal);
        let report = verify(&storage).unwrap();
        assert!(report.is_clean(), "{report:?}");
    }
}

#[test]
fn the_checker_fails_models_that_place_base_blocks_wrongly() {
    let storage = SimStorage::new(1);
    let journal = journal(&storage, 4 << 10);
    let mut stream = sample(&journal);
    // Two base blocks of one line for one sector, a write below the line and one above it that arrives first.
    let line = stream.position.lsn.0 + 2;
    for frame in [
        stream.writes(vec![entry(1, EntryKind::Data, 20, 4)], 20),
        stream.line_start(&[1], 0),
        stream.writes(vec![entry(1, EntryKind::Data, 22, 1)], 21),
        stream.base(line, vec![entry(1, EntryKind::Data, 20, 4)], 22),
        stream.base(line, vec![entry(1, EntryKind::Data, 20, 1)], 23),
        stream.line_end(&[1]),
        stream.heartbeat(true),
    ] {
        frame.append(&journal).unwrap();
    }
    journal.sync().unwrap();
    let lsns = || 0..=stream.position.lsn.0;
    assert_eq!(difference(&journal, &Model::of(&stream.frames, BaseRule::AtLine), lsns()), None);
    for wrong in [BaseRule::AtArrival, BaseRule::BelowEverything, BaseRule::EarlierArrivalWins] {
        assert!(
            difference(&journal, &Model::of(&stream.frames, wrong), lsns()).is_some(),
            "{wrong:?} passes"
        );
    }
}

#[test]
fn a_real_directory_holds_a_journal_for_one_writer() {
    let directory = tempfile::tempdir().unwrap();
    let open = || Arc::new(OsStorage::create(directory.path().join("journal")).unwrap());
    let journal = Journal::create(open(), vm(), options(4 << 10)).unwrap();
    journal.put_disk(disk(1)).unwrap();
    journal.put_disk(disk(2)).unwrap();
    let stream = sample(&journal);
    assert!(matches!(Journal::open(open(), options(4 << 10)), Err(OpenError::Locked)));
    let (reader, _) = Journal::open_read_only(open(), options(4 << 10)).unwrap();
    let model = Model::of(&stream.frames, BaseRule::AtLine);
    assert_eq!(difference(&reader, &model, 0..=stream.position.lsn.0), None);
    assert!(stream.frames[0].append(&reader).is_err());
    journal.close().unwrap();
    drop(journal);
    assert!(matches!(Journal::create(open(), vm(), options(4 << 10)), Err(OpenError::Exists)));
    let (journal, report) = Journal::open(open(), options(4 << 10)).unwrap();
    assert_eq!((report.damage, report.cut_bytes), (None, 0));
    assert_eq!(difference(&journal, &model, 0..=stream.position.lsn.0), None);
    let storage = open();
    assert!(verify(storage.as_ref() as &dyn Storage).unwrap().is_clean());
    let mut text = Vec::new();
    dump(storage.as_ref(), &mut text).unwrap();
    assert!(String::from_utf8(text).unwrap().contains("before the upgrade"));
}

#[test]
fn times_resolve_to_the_last_point_and_gaps_refuse_with_both_neighbours() {
    let storage = SimStorage::new(1);
    let journal = journal(&storage, 4 << 10);
    let stream = sample(&journal);
    journal.maintain().unwrap();
    let timeline = journal.timeline();
    let model = Model::of(&stream.frames, BaseRule::AtLine);
    for (lsn, time) in &model.times {
        assert_eq!(timeline.time_of(Lsn(*lsn)).unwrap(), *time, "lsn {lsn}");
    }
    let horizon = timeline.horizon().unwrap();
    assert_eq!(horizon.lsn, stream.position.lsn);
    assert_eq!(timeline.at_time(horizon.time_us, &[]).unwrap(), horizon.lsn);
    // The gap of disk-2 is [9, 12): 8 is the last good point, and times after it until 12 are refused.
    let disk = [DiskId(2)];
    let gap = timeline.gaps().iter().find(|gap| gap.line == Lsn(10)).unwrap();
    assert_eq!((gap.from, gap.to), (Lsn(9), Some(Lsn(12))));
    assert_eq!(timeline.at_time(model.times[&7], &disk).unwrap(), Lsn(7));
    for time in [model.times[&10], model.times[&12] - 1] {
        let Err(TimelineError::Refused(refused)) = timeline.at_time(time, &disk) else { panic!("{time}") };
        assert_eq!(refused.cause, RefusedCause::Gap(2));
        assert_eq!((refused.before.unwrap().lsn, refused.after.unwrap().lsn), (Lsn(8), Lsn(12)));
    }
    let refused = |time| match timeline.at_time(time, &[]) {
        Err(TimelineError::Refused(refused)) => refused.cause,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(horizon.time_us + 1), RefusedCause::AfterLatest);
    assert_eq!(refused(5), RefusedCause::BeforeHistory);
    let windows = timeline.windows(&disk).unwrap();
    let ends: Vec<_> = windows.iter().map(|window| (window.from.lsn.0, window.to.lsn.0)).collect();
    assert_eq!(ends, [(4, 8), (12, stream.position.lsn.0)]);
    assert_eq!(timeline.markers()[0].name, "before the upgrade");
}

#[test]
fn extents_are_sparse_and_reads_take_any_alignment() {
    let storage = SimStorage::new(1);
    let journal = journal(&storage, 4 << 10);
    let stream = sample(&journal);
    let view = journal.view(stream.position.lsn).unwrap();
    let size = (DISK_SECTORS * SECTOR) as u64;
    let image = Model::of(&stream.frames, BaseRule::AtLine).image(1, stream.position.lsn.0);
    let extents = view.extents(DiskId(1), 0, size).unwrap();
    assert_eq!(extents.iter().map(|extent| extent.bytes).sum::<u64>(), size);
    assert!(extents.windows(2).all(|pair| pair[0].kind != pair[1].kind));
    for extent in &extents {
        let from = usize::try_from(extent.offset).unwrap();
        let zero = image[from..from + usize::try_from(extent.bytes).unwrap()].iter().all(|byte| *byte == 0);
        assert_eq!(zero, extent.kind == ExtentKind::Zero);
    }
    for (from, length) in [(0, 1), (511, 2), (1000, 70_000), (65_535, 3), (100_001, 40_000)] {
        let mut buffer = vec![0xee; length];
        view.read_at(DiskId(1), from as u64, &mut buffer).unwrap();
        assert_eq!(buffer, image[from..from + length], "{from} + {length}");
    }
    assert!(view.read_at(DiskId(1), size - 1, &mut [0; 2]).is_err());
    assert!(view.read_at(DiskId(3), 0, &mut [0; 2]).is_err());
}

#[test]
fn frames_that_break_the_stream_are_refused_and_leave_no_trace() {
    let storage = SimStorage::new(1);
    let journal = journal(&storage, 1 << 20);
    let stream = sample(&journal);
    let before = storage.files();
    let refuse = |change: &dyn Fn(&mut Stream) -> Owned| {
        let mut other = stream.clone();
        assert!(change(&mut other).append(&journal).is_err());
    };
    refuse(&|stream| {
        stream.position.seq += 1;
        stream.heartbeat(true)
    });
    refuse(&|stream| {
        stream.position.lsn = Lsn(stream.position.lsn.0 + 1);
        stream.marker("x")
    });
    refuse(&|stream| stream.base(1, vec![entry(1, EntryKind::Data, 0, 1)], 1));
    refuse(&|stream| stream.base(10, vec![entry(2, EntryKind::Data, 0, 1)], 1));
    refuse(&|stream| stream.writes(vec![entry(7, EntryKind::Data, 0, 1)], 1));
    refuse(&|stream| stream.writes(vec![entry(1, EntryKind::Data, 0, 0)], 1));
    refuse(&|stream| stream.writes(vec![], 1));
    refuse(&|stream| stream.line_start(&[], 0));
    refuse(&|stream| stream.line_end(&[9]));
    assert_eq!(storage.files(), before);
    let mut stream = stream;
    stream.marker("fits").append(&journal).unwrap();
}

#[test]
fn notes_disks_and_sizes_survive() {
    let storage = SimStorage::new(1);
    let journal = journal(&storage, 4 << 10);
    let mut stream = sample(&journal);
    journal.put_note("bookmark/x", b"revoked").unwrap();
    journal.put_note("gone", b"1").unwrap();
    journal.put_note("gone", b"").unwrap();
    let before = stream.position.lsn;
    let size_bytes = 2 * disk(1).size_bytes;
    journal.put_disk(tidemark_journal::DiskRecord { size_bytes, ..disk(1) }).unwrap();
    stream.marker("after").append(&journal).unwrap();
    stream.heartbeat(true).append(&journal).unwrap();
    journal.sync().unwrap();
    for _ in 0..2000 {
        journal.put_note("often", &[1; 40]).unwrap();
    }
    storage.crash();
    drop(journal);
    let journal = reopen(&storage, 4 << 10);
    assert_eq!(journal.note("bookmark/x").as_deref(), Some(b"revoked".as_slice()));
    assert_eq!(journal.note("gone"), None);
    assert_eq!(journal.disks()[0].size_bytes, size_bytes);
    assert_eq!(journal.view(before).unwrap().disks()[0].size_bytes, disk(1).size_bytes);
    assert_eq!(journal.view(stream.position.lsn).unwrap().disks()[0].size_bytes, size_bytes);
    // Snapshots keep the manifest small.
    assert!(storage.files()["manifest"].len() < 24 << 10);
}

#[test]
fn appends_syncs_and_views_run_beside_each_other() {
    let directory = tempfile::tempdir().unwrap();
    let storage = Arc::new(OsStorage::create(directory.path().join("journal")).unwrap());
    let journal = Journal::create(storage, vm(), options(64 << 10)).unwrap();
    journal.put_disk(disk(1)).unwrap();
    journal.put_disk(disk(2)).unwrap();
    let mut stream = sample(&journal);
    std::thread::scope(|scope| {
        let syncing = scope.spawn(|| {
            let mut last = journal.durable().seq;
            while last < 500 {
                let position = journal.sync().unwrap();
                assert!(position.seq >= last && journal.durable().seq >= position.seq);
                last = position.seq;
                journal.maintain().unwrap();
            }
        });
        let viewing = scope.spawn(|| {
            while journal.durable().seq < 500 {
                let horizon = journal.timeline().horizon().unwrap();
                let view = journal.view(horizon.lsn).unwrap();
                let mut first = vec![0; DISK_SECTORS * SECTOR];
                let mut second = first.clone();
                view.read_at(DiskId(1), 0, &mut first).unwrap();
                view.read_at(DiskId(1), 0, &mut second).unwrap();
                assert!(first == second, "a view changed");
            }
        });
        while stream.position.seq < 500 {
            let start = usize::try_from(stream.position.seq % 200).unwrap();
            stream.writes(vec![entry(1, EntryKind::Data, start, 7)], start as u64).append(&journal).unwrap();
            stream.heartbeat(true).append(&journal).unwrap();
        }
        syncing.join().unwrap();
        viewing.join().unwrap();
    });
    journal.sync().unwrap();
    let model = Model::of(&stream.frames, BaseRule::AtLine);
    assert_eq!(difference(&journal, &model, (0..=stream.position.lsn.0).step_by(7)), None);
}
