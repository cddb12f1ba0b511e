//! Pins, the cutoff, and folding into images: nothing reachable is lost at any crash, nothing leaks.

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::{Arc, Mutex};

use crate::support::*;
use tidemark_journal::frame::EntryKind;
use tidemark_journal::storage::{Faults, SimStorage};
use tidemark_journal::view::{BaseImages, ExtentKind};
use tidemark_journal::{ImageNames, Journal, Pin, PinKind, RetentionError, verify};
use tidemark_proto::ids::{DiskId, Lsn};

const SEGMENT_BYTES: u64 = 600;

/// Images in RAM, by (disk, LSN), as a chunk store would keep them.
#[derive(Debug, Default)]
struct Images(Mutex<BTreeMap<(u32, u64), Vec<u8>>>);

impl BaseImages for Images {
    fn read(
        &self,
        disk: DiskId,
        image: &[u8],
        sector: u64,
        buffer: &mut [u8],
    ) -> Result<(), Box<dyn Error + Send + Sync>> {
        let lsn = u64::from_le_bytes(image.try_into()?);
        let images = self.0.lock().unwrap();
        let image = images.get(&(disk.0, lsn)).ok_or("no such image")?;
        let from = usize::try_from(sector)? * SECTOR;
        buffer.copy_from_slice(image.get(from..from + buffer.len()).ok_or("beyond the image")?);
        Ok(())
    }
}

impl Images {
    /// Builds the images of a plan above the present ones, as far as the plan says that there are changes.
    fn fold(&self, journal: &Journal) -> Option<(Lsn, ImageNames)> {
        let fold = journal.plan_fold()?;
        let below = journal.base();
        let mut named = Vec::new();
        for disk in fold.disks() {
            let before = below.as_ref().map(|(lsn, _)| (disk.id.0, lsn.0));
            let mut images = self.0.lock().unwrap();
            let mut image =
                before.and_then(|key| images.get(&key).cloned()).unwrap_or(vec![0; DISK_SECTORS * SECTOR]);
            let mut next = 0;
            for change in fold.changes(disk.id) {
                let change = change.unwrap();
                assert!(change.start >= next, "changes are in order and apart");
                next = change.start + change.sectors;
                let from = usize::try_from(change.start).unwrap() * SECTOR;
                let out = &mut image[from..from + usize::try_from(change.sectors).unwrap() * SECTOR];
                match change.kind {
                    ExtentKind::Data => fold.read_at(disk.id, change.start, out).unwrap(),
                    ExtentKind::Zero => out.fill(0),
                }
            }
            images.insert((disk.id.0, fold.lsn().0), image);
            named.push((disk.id, fold.lsn().0.to_le_bytes().to_vec()));
        }
        Some((fold.lsn(), named))
    }
}

fn stream(journal: &Journal, rounds: usize) -> Stream {
    let mut stream = Stream::default();
    let data = EntryKind::Data;
    let mut frames = vec![
        stream.line_start(&[1, 2], 0),
        stream.base(1, vec![entry(1, data, 0, 60), entry(2, EntryKind::Zeroes, 0, 300)], 1),
        stream.line_end(&[1, 2]),
    ];
    for round in 0..rounds {
        let (seed, start) = (10 * round as u64, (7 * round) % 250);
        frames.push(stream.writes(vec![entry(1, data, start, 9), entry(2, data, 250 - start, 3)], seed));
        if round % 4 == 1 {
            let line = stream.position.lsn.0 + 1;
            frames.push(stream.line_start(&[1], 0));
            frames.push(stream.writes(
                vec![entry(1, data, start + 2, 4), entry(2, EntryKind::Discard, start, 40)],
                seed + 1,
            ));
            frames.push(stream.base(
                line,
                vec![entry(1, data, start, 12), entry(1, EntryKind::Zeroes, 100, 200)],
                seed + 2,
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

/// The first difference to the model at points from the base on; points below must be refused.
fn differs(journal: &Journal, model: &Model, last: u64) -> Option<String> {
    let base = journal.base().map_or(0, |(lsn, _)| lsn.0);
    if let Some(lsn) = (0..base).find(|lsn| journal.view(Lsn(*lsn)).is_ok()) {
        return Some(format!("{lsn} is offered below the base {base}"));
    }
    difference(journal, model, base..=last)
}

fn open(storage: &SimStorage, images: &Arc<Images>) -> Journal {
    let journal = reopen(storage, SEGMENT_BYTES);
    journal.set_images(Arc::clone(images) as Arc<dyn BaseImages>);
    journal
}

fn pin(name: &str, kind: PinKind, lsn: u64, until_us: Option<u64>) -> Pin {
    Pin { name: name.to_owned(), kind, lsn: Lsn(lsn), until_us }
}

#[test]
fn folded_points_come_from_images_and_all_others_stay() {
    let storage = SimStorage::new(1);
    let images = Arc::new(Images::default());
    drop(journal(&storage, SEGMENT_BYTES));
    let mut journal = open(&storage, &images);
    let stream = stream(&journal, 60);
    let model = Model::of(&stream.frames, BaseRule::AtLine);
    let last = stream.position.lsn.0;
    journal.maintain().unwrap();
    let before = storage.files().len();
    for cutoff in [20, 21, 50, last / 2, last - 3] {
        assert_eq!(journal.advance_cutoff(Lsn(cutoff), 1).unwrap(), Lsn(cutoff));
        if let Some((lsn, named)) = images.fold(&journal) {
            assert!(lsn.0 <= cutoff);
            journal.set_base(lsn, named).unwrap();
            assert_eq!(differs(&journal, &model, last), None);
            journal.drop_folded().unwrap();
        }
        assert_eq!(differs(&journal, &model, last), None);
        assert!(journal.timeline().windows(&[]).unwrap().iter().all(|window| window.from.time_us > 0));
        drop(journal);
        journal = open(&storage, &images);
        assert_eq!(differs(&journal, &model, last), None, "after reopening at {cutoff}");
        journal.maintain().unwrap();
        assert_eq!(differs(&journal, &model, last), None);
        let report = verify(&storage).unwrap();
        assert!(report.damage.is_empty() && report.unlisted.is_empty(), "{report:?}");
    }
    assert!(storage.files().len() < before / 4, "{before} files, then {:?}", storage.files().keys());
    // Negative control: the same checker fails images that miss a change.
    images.0.lock().unwrap().values_mut().for_each(|image| image.fill(0x55));
    assert!(differs(&journal, &model, last).is_some());
}

#[test]
fn a_crash_at_any_step_of_a_fold_loses_nothing_and_leaks_nothing() {
    let storage = SimStorage::new(1);
    let stream = stream(&journal(&storage, SEGMENT_BYTES), 24);
    reopen(&storage, SEGMENT_BYTES).maintain().unwrap();
    let model = Model::of(&stream.frames, BaseRule::AtLine);
    let last = stream.position.lsn.0;
    let files = storage.files();
    let step = |journal: &Journal, images: &Images| -> Result<(), RetentionError> {
        journal.advance_cutoff(Lsn(last / 2), 1)?;
        if let Some((lsn, named)) = images.fold(journal) {
            journal.set_base(lsn, named)?;
        }
        journal.drop_folded().map_err(|error| RetentionError::Invalid(error.to_string()))?;
        Ok(())
    };
    let mut steps = 0;
    for halt in 0.. {
        let storage = SimStorage::with_files(halt, &files);
        let images = Arc::new(Images::default());
        let journal = open(&storage, &images);
        storage.set_faults(Faults { halt_after: Some(halt), ..Faults::default() });
        let done = step(&journal, &images).is_ok();
        drop(journal);
        storage.crash();
        let journal = open(&storage, &images);
        assert_eq!(differs(&journal, &model, last), None, "step {halt}");
        let report = verify(&storage).unwrap();
        assert!(report.damage.is_empty() && report.unlisted.is_empty(), "step {halt}: {report:?}");
        step(&journal, &images).unwrap();
        assert_eq!(differs(&journal, &model, last), None, "step {halt}");
        assert!(storage.files().len() < files.len());
        let report = verify(&storage).unwrap();
        assert!(report.damage.is_empty() && report.unlisted.is_empty(), "step {halt}: {report:?}");
        if done {
            break;
        }
        steps += 1;
    }
    assert!(steps > 20, "{steps} steps");
}

#[test]
fn an_open_view_keeps_what_it_reads() {
    let storage = SimStorage::new(1);
    let images = Arc::new(Images::default());
    drop(journal(&storage, SEGMENT_BYTES));
    let journal = open(&storage, &images);
    let stream = stream(&journal, 30);
    let model = Model::of(&stream.frames, BaseRule::AtLine);
    journal.maintain().unwrap();
    let last = stream.position.lsn.0;
    let view = journal.view(Lsn(last)).unwrap();
    journal.advance_cutoff(Lsn(last / 2), 1).unwrap();
    let (lsn, named) = images.fold(&journal).unwrap();
    journal.set_base(lsn, named).unwrap();
    let before = storage.files().len();
    assert!(journal.drop_folded().unwrap() > 5);
    let mut image = vec![0; DISK_SECTORS * SECTOR];
    view.read_at(DiskId(1), 0, &mut image).unwrap();
    assert!(image == model.image(1, last));
    assert_eq!(storage.files().len(), before, "the view's files stay");
    drop(view);
    journal.drop_folded().unwrap();
    assert!(storage.files().len() < before);
    assert_eq!(differs(&journal, &model, last), None);
    // A second opening of the same point reads the images.
    let view = journal.view(Lsn(last)).unwrap();
    view.read_at(DiskId(1), 0, &mut image).unwrap();
    assert!(image == model.image(1, last));
}

#[test]
fn no_cutoff_passes_a_pin_and_no_pin_comes_back_below_one() {
    let storage = SimStorage::new(1);
    let journal = journal(&storage, SEGMENT_BYTES);
    stream(&journal, 20);
    let pins = [
        pin("view", PinKind::Lease, 10, Some(100)),
        pin("kept", PinKind::Bookmark, 15, None),
        pin("law", PinKind::Lock, 20, Some(500)),
    ];
    for pin in pins.clone() {
        journal.put_pin(pin, 1).unwrap();
    }
    assert_eq!(journal.advance_cutoff(Lsn(40), 50).unwrap(), Lsn(10));
    assert_eq!(journal.advance_cutoff(Lsn(40), 100).unwrap(), Lsn(15), "the lease has ended");
    assert_eq!(journal.pins().len(), 2);
    assert!(matches!(journal.put_pin(pins[0].clone(), 100), Err(RetentionError::Gone { cutoff: Lsn(15) })));
    journal.revoke_pin("kept", 100).unwrap();
    storage.crash();
    drop(journal);
    let journal = reopen(&storage, SEGMENT_BYTES);
    assert_eq!(journal.cutoff(), Lsn(15));
    assert_eq!(journal.advance_cutoff(Lsn(40), 0).unwrap(), Lsn(20));
    // A lock stands against everybody until its time, and a clock that goes back does not help.
    let locked = |result| matches!(result, Err(RetentionError::Locked { until_us: 500, .. }));
    assert!(locked(journal.revoke_pin("law", 499)));
    assert!(locked(journal.put_pin(pin("law", PinKind::Lock, 20, Some(499)), 200)));
    assert!(locked(journal.put_pin(pin("law", PinKind::Lock, 21, Some(900)), 200)));
    assert!(locked(journal.put_pin(pin("law", PinKind::Bookmark, 20, None), 200)));
    assert!(journal.put_pin(pin("endless", PinKind::Lock, 20, None), 200).is_err());
    journal.put_pin(pin("law", PinKind::Lock, 20, Some(600)), 200).unwrap();
    assert!(journal.revoke_pin("law", 500).is_err());
    assert_eq!(journal.advance_cutoff(Lsn(40), 599).unwrap(), Lsn(20));
    journal.put_pin(pin("later", PinKind::Replica, 30, None), 599).unwrap();
    assert!(journal.revoke_pin("law", 1).is_err(), "the clock goes on from 599");
    assert_eq!(journal.advance_cutoff(Lsn(40), 600).unwrap(), Lsn(30));
    journal.revoke_pin("later", 600).unwrap();
    journal.revoke_pin("never there", 600).unwrap();
    assert_eq!(journal.advance_cutoff(Lsn(1), 600).unwrap(), Lsn(30), "a cutoff never goes back");
}

#[test]
fn images_end_before_a_line_that_is_open_and_need_every_disk() {
    let storage = SimStorage::new(1);
    let images = Arc::new(Images::default());
    drop(journal(&storage, SEGMENT_BYTES));
    let journal = open(&storage, &images);
    let mut stream = stream(&journal, 6);
    let line = stream.position.lsn.0 + 1;
    let data = EntryKind::Data;
    for frame in
        [stream.line_start(&[1], 0), stream.writes(vec![entry(1, data, 5, 4)], 500), stream.heartbeat(true)]
    {
        frame.append(&journal).unwrap();
    }
    journal.sync().unwrap();
    journal.advance_cutoff(Lsn(line + 1), 1).unwrap();
    let (lsn, named) = images.fold(&journal).unwrap();
    assert!(lsn.0 < line, "base blocks of the line still come below the write above it");
    assert!(journal.set_base(Lsn(line), named.clone()).is_err());
    assert!(journal.set_base(lsn, named[..1].to_vec()).is_err());
    journal.set_base(lsn, named.clone()).unwrap();
    assert!(journal.set_base(lsn, named).is_err(), "not twice");
    journal.drop_folded().unwrap();
    for frame in
        [stream.base(line, vec![entry(1, data, 0, 16)], 501), stream.line_end(&[1]), stream.heartbeat(true)]
    {
        frame.append(&journal).unwrap();
    }
    journal.sync().unwrap();
    let model = Model::of(&stream.frames, BaseRule::AtLine);
    assert_eq!(differs(&journal, &model, stream.position.lsn.0), None);
}
