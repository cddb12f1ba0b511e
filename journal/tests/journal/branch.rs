//! Branches: what is written into one, over what its parent held at the point where it begins, through crashes.

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::Arc;

use crate::support::*;
use tidemark_journal::branch::{BranchPoint, BranchStart, BranchWriter, ParentView};
use tidemark_journal::frame::EntryKind;
use tidemark_journal::retention::{ImageKeeper, fold_to, mark_images};
use tidemark_journal::storage::{Faults, SimStorage};
use tidemark_journal::store::SweepOptions;
use tidemark_journal::view::{BaseImages, ExtentKind, View};
use tidemark_journal::{Journal, Pin, PinKind, verify};
use tidemark_proto::ids::{DiskId, Lsn, VmId};
use uuid::Uuid;

const SEGMENT_BYTES: u64 = 3000;
const DISK_BYTES: usize = DISK_SECTORS * SECTOR;

/// Where a branch reads what it has not written itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Below {
    AtItsPoint,
    /// The mistake that the checker must catch.
    Latest,
}

fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

fn pick(state: &mut u64, below: usize) -> usize {
    usize::try_from(random(state) % below as u64).unwrap()
}

/// A journal that others may branch off, its disks' content at each point by a plain replay.
struct Tree {
    journal: Arc<Journal>,
    vm: VmId,
    storage: SimStorage,
    images: BTreeMap<u64, [Vec<u8>; 2]>,
}

/// Two disks, whole, then random writes, each a frame with a heartbeat.
fn parent(seed: &mut u64, writes: usize) -> (Tree, Stream) {
    let storage = SimStorage::new(*seed);
    let journal = journal(&storage, SEGMENT_BYTES);
    let mut stream = Stream::default();
    let frames = [
        stream.line_start(&[1, 2], 0),
        stream.base(1, vec![entry(1, EntryKind::Data, 0, 60), entry(2, EntryKind::Zeroes, 0, 300)], 1),
        stream.line_end(&[1, 2]),
        stream.heartbeat(true),
    ];
    for frame in &frames {
        frame.append(&journal).unwrap();
    }
    let mut tree = Tree { journal: Arc::new(journal), vm: vm(), storage, images: BTreeMap::new() };
    write_parent(&mut tree, &mut stream, seed, writes);
    (tree, stream)
}

fn write_parent(tree: &mut Tree, stream: &mut Stream, seed: &mut u64, writes: usize) {
    let kinds = [EntryKind::Data, EntryKind::Data, EntryKind::Discard];
    for _ in 0..writes {
        let sectors = 1 + pick(seed, 20);
        let disk = 1 + u32::try_from(pick(seed, 2)).unwrap();
        let start = pick(seed, DISK_SECTORS - sectors);
        let write =
            stream.writes(vec![entry(disk, kinds[pick(seed, 3)], start, sectors)], random(seed) >> 20);
        write.append(&tree.journal).unwrap();
        stream.heartbeat(true).append(&tree.journal).unwrap();
    }
    tree.journal.sync().unwrap();
    let model = Model::of(&stream.frames, BaseRule::AtLine);
    for lsn in 2..=stream.position.lsn.0 {
        tree.images.insert(lsn, [model.image(1, lsn), model.image(2, lsn)]);
    }
}

/// A branch of `tree` at `lsn`, and the pin that keeps the point.
fn branch(tree: &Tree, lsn: u64, seed: u64, below: Below) -> Tree {
    let storage = SimStorage::new(seed);
    let vm = VmId(Uuid::from_u128(u128::from(seed)));
    let pin = Pin { name: vm.to_string(), kind: PinKind::Clone, lsn: Lsn(lsn), until_us: None };
    tree.journal.put_pin(pin, 1).unwrap();
    let point = BranchPoint { parent: tree.vm, lsn: Lsn(lsn) };
    let time_us = tree.journal.timeline().time_of(Lsn(lsn)).unwrap();
    let start = BranchStart { point, time_us, disks: tree.journal.disks() };
    let options = options(SEGMENT_BYTES);
    drop(Journal::create_branch(Arc::new(storage.clone()), vm, options, &start).unwrap());
    let journal = open(&storage, tree, below);
    let mut images = BTreeMap::new();
    images.insert(lsn, tree.images[&lsn].clone());
    Tree { journal, vm, storage, images }
}

fn open(storage: &SimStorage, parent: &Tree, below: Below) -> Arc<Journal> {
    let journal = reopen(storage, SEGMENT_BYTES);
    if let Some(point) = journal.branch_point() {
        assert_eq!(point.parent, parent.vm);
        let of = Arc::clone(&parent.journal);
        journal.set_images(Arc::new(ParentView::new(point, move |lsn| {
            let latest = of.timeline().horizon().unwrap().lsn;
            Ok(of.view(if below == Below::Latest { latest } else { lsn })?)
        })));
    }
    Arc::new(journal)
}

fn content(view: &View, disk: u32) -> Vec<u8> {
    let mut bytes = vec![0xee; DISK_BYTES];
    view.read_at(DiskId(disk), 0, &mut bytes).unwrap();
    let mut at = 0;
    for extent in view.extents(DiskId(disk), 0, DISK_BYTES as u64).unwrap() {
        assert_eq!(extent.offset, at, "extents have no holes");
        at += extent.bytes;
        let from = usize::try_from(extent.offset).unwrap();
        let range = &bytes[from..usize::try_from(at).unwrap()];
        assert!(extent.kind == ExtentKind::Data || range.iter().all(|byte| *byte == 0));
    }
    assert_eq!(at, DISK_BYTES as u64);
    bytes
}

/// The first point whose content is another than the model's.
fn differs(tree: &Tree) -> Option<String> {
    let first = *tree.images.first_key_value().unwrap().0;
    let horizon = tree.journal.timeline().horizon().unwrap().lsn;
    assert!(tree.journal.view(Lsn(first - 1)).is_err(), "the branch begins at {first}");
    assert!(tree.journal.view(horizon.next()).is_err());
    for (lsn, images) in tree.images.range(..=horizon.0) {
        let view = tree.journal.view(Lsn(*lsn)).unwrap();
        for (disk, image) in (1..).zip(images) {
            if content(&view, disk) != *image {
                return Some(format!("disk-{disk} at {lsn}"));
            }
        }
    }
    None
}

fn live(tree: &Tree, writer: &BranchWriter) -> [Vec<u8>; 2] {
    [1, 2].map(|disk| {
        let mut bytes = vec![0xee; DISK_BYTES];
        writer.read_at(&tree.journal, DiskId(disk), 0, &mut bytes).unwrap();
        bytes
    })
}

/// One random write of bytes, anywhere, and what the disks hold after each LSN that it took.
fn write(tree: &mut Tree, writer: &BranchWriter, seed: &mut u64) {
    let before = tree.journal.appended().lsn.0;
    let mut now = tree.images.last_key_value().unwrap().1.clone();
    let disk = pick(seed, 2);
    let most = if random(seed) & 1 == 0 { 700 } else { 9000 };
    let bytes = 1 + pick(seed, most);
    let offset = pick(seed, DISK_BYTES - bytes);
    // Half of them begin and end with a sector.
    let (offset, bytes) = if random(seed) & 1 == 0 {
        (offset / SECTOR * SECTOR, bytes.div_ceil(SECTOR) * SECTOR)
    } else {
        (offset, bytes)
    };
    let bytes = bytes.min(DISK_BYTES - offset);
    let id = DiskId(1 + u32::try_from(disk).unwrap());
    let range = &mut now[disk][offset..offset + bytes];
    if random(seed).is_multiple_of(4) {
        range.fill(0);
        let kind = if random(seed) & 1 == 0 { EntryKind::Zeroes } else { EntryKind::Discard };
        writer.zero(&tree.journal, id, (offset as u64, bytes as u64), kind, 5).unwrap();
    } else {
        let data = pattern(random(seed) >> 20, bytes.div_ceil(SECTOR));
        range.copy_from_slice(&data[..bytes]);
        writer.write_at(&tree.journal, id, offset as u64, &data[..bytes], 5).unwrap();
    }
    let after = tree.journal.appended().lsn.0;
    assert!(before < after && after <= before + 3, "head, middle, tail");
    // A write of several parts takes several LSNs; the model knows the last.
    tree.images.insert(after, now.clone());
    assert!(live(tree, writer) == now, "what was written can be read at once");
}

#[test]
fn a_branch_is_its_parent_at_the_point_and_what_was_written_above() {
    let mut seed = 0x2545_F491_4F6C_DD1D;
    for round in 0..6 {
        let (mut tree, mut stream) = parent(&mut seed, 30);
        let at = 2 + pick(&mut seed, 28) as u64;
        let mut child = branch(&tree, at, 100 + round, Below::AtItsPoint);
        assert_eq!(differs(&child), None, "a branch begins as its parent");
        let mut writer = BranchWriter::default();
        let mut flushed = at;
        for step in 0..120 {
            match pick(&mut seed, 12) {
                0 => flushed = writer.flush(&child.journal, 6).unwrap().lsn.0,
                1 => child.journal.maintain().unwrap(),
                2 => {
                    // The parent lives on, below and beside.
                    write_parent(&mut tree, &mut stream, &mut seed, 3);
                    tree.journal.maintain().unwrap();
                }
                3 if step % 2 == 0 => {
                    child.storage.crash();
                    child.journal = open(&child.storage, &tree, Below::AtItsPoint);
                    writer = BranchWriter::default();
                    let survived = child.journal.appended().lsn.0;
                    assert!(survived >= flushed, "{flushed} was flushed, {survived} survived");
                    child.images.retain(|lsn, _| *lsn <= survived);
                    // A write of several parts may have been cut between them.
                    let now = live(&child, &writer);
                    child.images.insert(survived, now);
                }
                _ => write(&mut child, &writer, &mut seed),
            }
        }
        flushed = writer.flush(&child.journal, 7).unwrap().lsn.0;
        assert_eq!(child.journal.timeline().horizon().unwrap().lsn.0, flushed);
        assert_eq!(differs(&child), None);
        let report = verify(&child.storage).unwrap();
        assert!(report.damage.is_empty(), "{report:?}");
        // A branch of the branch, at a point of it; then both go on.
        let points: Vec<u64> = child.images.keys().copied().collect();
        let point = points[pick(&mut seed, points.len())];
        let mut grandchild = branch(&child, point, 200 + round, Below::AtItsPoint);
        let other = BranchWriter::default();
        for _ in 0..20 {
            write(&mut grandchild, &other, &mut seed);
            write(&mut child, &writer, &mut seed);
        }
        other.flush(&grandchild.journal, 8).unwrap();
        writer.flush(&child.journal, 8).unwrap();
        assert_eq!((differs(&child), differs(&grandchild)), (None, None));
    }
}

#[test]
fn a_branch_that_reads_its_parent_at_latest_is_caught() {
    let mut seed = 0x1234_5678_9ABC_DEF1;
    let (mut tree, mut stream) = parent(&mut seed, 30);
    let child = branch(&tree, 12, 1, Below::Latest);
    write_parent(&mut tree, &mut stream, &mut seed, 10);
    assert!(differs(&child).is_some(), "this is no point of the parent");
    let right = branch(&tree, 12, 2, Below::AtItsPoint);
    assert_eq!(differs(&right), None);
}

#[test]
fn the_pin_keeps_the_point_and_folding_the_branch_frees_it_of_its_parent() {
    let mut seed = 77;
    let (tree, _) = parent(&mut seed, 20);
    let child = branch(&tree, 9, 3, Below::AtItsPoint);
    assert_eq!(tree.journal.advance_cutoff(Lsn(15), 2).unwrap(), Lsn(9), "the cutoff stops at the pin");
    assert!(child.journal.branch_point().is_some());
    let writer = BranchWriter::default();
    writer.write_at(&child.journal, DiskId(1), 512, &[7; 512], 5).unwrap();
    let end = writer.flush(&child.journal, 6).unwrap().lsn;
    child.journal.advance_cutoff(end, 7).unwrap();
    let fold = child.journal.plan_fold().unwrap();
    assert_eq!(fold.lsn(), end);
    let named = fold.disks().iter().map(|disk| (disk.id, b"image".to_vec())).collect();
    child.journal.set_base(end, named).unwrap();
    assert_eq!(child.journal.branch_point(), None, "images hold what the parent had");
}

#[test]
fn a_crash_while_a_branch_is_made_leaves_all_of_it_or_nothing() {
    let mut seed = 5;
    let (tree, _) = parent(&mut seed, 10);
    let point = BranchPoint { parent: tree.vm, lsn: Lsn(7) };
    let start = BranchStart { point, time_us: 1, disks: tree.journal.disks() };
    let mut outcomes = [0, 0];
    for halt in 0..20 {
        let storage = SimStorage::new(halt + 1);
        storage.set_faults(Faults { halt_after: Some(halt), ..Faults::default() });
        let made = Journal::create_branch(Arc::new(storage.clone()), vm(), options(SEGMENT_BYTES), &start);
        let made = made.map(drop).is_ok();
        storage.crash();
        match Journal::open(Arc::new(storage.clone()), options(SEGMENT_BYTES)) {
            Ok((journal, report)) => {
                assert_eq!(report.damage, None);
                // Found whole, or as what no folder with a final name ever holds: the caller names it last.
                assert!(!made || journal.branch_point() == Some(point));
                outcomes[0] += 1;
            }
            Err(_) => {
                assert!(!made, "{halt}: it was made, and is gone");
                outcomes[1] += 1;
            }
        }
    }
    assert!(outcomes[0] > 0 && outcomes[1] > 0, "{outcomes:?}");
}

#[test]
fn writes_beyond_the_end_and_of_unknown_disks_are_refused() {
    let mut seed = 9;
    let (tree, _) = parent(&mut seed, 10);
    let child = branch(&tree, 5, 4, Below::AtItsPoint);
    let writer = BranchWriter::default();
    let before = child.journal.appended();
    for (disk, offset, bytes) in
        [(1, DISK_BYTES as u64, 1), (1, DISK_BYTES as u64 - 1, 2), (1, u64::MAX, 2), (3, 0, 1)]
    {
        let zeroed = writer.zero(&child.journal, DiskId(disk), (offset, bytes), EntryKind::Zeroes, 1);
        let data = vec![0; usize::try_from(bytes).unwrap()];
        let written = writer.write_at(&child.journal, DiskId(disk), offset, &data, 1);
        assert!(zeroed.is_err() && written.is_err(), "{disk} {offset}");
    }
    assert_eq!(child.journal.appended(), before);
}

/// The parent and images of a store, as what an appliance puts below a branch.
#[derive(Debug)]
struct Either(ParentView, ImageKeeper);

impl BaseImages for Either {
    fn read(
        &self,
        disk: DiskId,
        image: &[u8],
        sector: u64,
        buffer: &mut [u8],
    ) -> Result<(), Box<dyn Error + Send + Sync>> {
        match BranchPoint::decode(image) {
            Some(_) => self.0.read(disk, image, sector, buffer),
            None => self.1.read(disk, image, sector, buffer),
        }
    }
}

#[test]
fn a_branch_that_is_folded_needs_its_parent_no_more_and_views_from_before_still_do() {
    let mut seed = 0x9E37_79B9_7F4A_7C15;
    for round in 0..6 {
        let (tree, _) = parent(&mut seed, 30);
        let at = 2 + pick(&mut seed, 28) as u64;
        let mut child = branch(&tree, at, 100 + round, Below::AtItsPoint);
        let chunks = crate::store_support::create(&SimStorage::new(round), 16 << 10);
        let point = child.journal.branch_point().unwrap();
        let of = Arc::clone(&tree.journal);
        let below = ParentView::new(point, move |lsn| Ok(of.view(lsn)?));
        child.journal.set_images(Arc::new(Either(below, ImageKeeper::new(Arc::clone(&chunks)))));
        let writer = BranchWriter::default();
        for _ in 0..40 {
            write(&mut child, &writer, &mut seed);
            writer.flush(&child.journal, 6).unwrap();
        }
        child.journal.maintain().unwrap();
        let points: Vec<u64> = child.images.keys().copied().collect();
        let cutoff = points[points.len() / 2];
        let before = child.journal.view(Lsn(points[3])).unwrap();
        let domain = crate::store_support::DOMAIN;
        let folded =
            fold_to(&child.journal, &chunks, domain, Lsn(cutoff), 7, &mut |_| true).unwrap().unwrap();
        assert_eq!(folded.lsn, Lsn(cutoff));
        child.journal.drop_folded().unwrap();
        assert_eq!(child.journal.branch_point(), None);
        assert!(child.journal.needs_parent(), "a view from before reads it");
        for disk in [1, 2] {
            assert!(content(&before, disk) == child.images[&points[3]][disk as usize - 1]);
        }
        drop(before);
        // The writer's own view is of its last write.
        drop(writer);
        assert!(!child.journal.needs_parent());
        child.images.retain(|lsn, _| *lsn >= cutoff);
        assert_eq!(differs(&child), None);
        // Without the parent, opened again, and after a collection that knows of nothing else.
        child.storage.crash();
        drop(tree);
        let journal = reopen(&child.storage, SEGMENT_BYTES);
        journal.set_images(Arc::new(ImageKeeper::new(Arc::clone(&chunks))));
        child.journal = Arc::new(journal);
        let gc = chunks.begin_gc().unwrap();
        assert_eq!(mark_images(&chunks, &child.journal, &gc).unwrap(), 0);
        gc.sweep(SweepOptions { fill_percent: 100, tolerate_missing: false }).unwrap();
        assert_eq!(differs(&child), None);
        // It folds on as any journal does.
        let cutoff = points[points.len() - 3];
        fold_to(&child.journal, &chunks, domain, Lsn(cutoff), 8, &mut |_| true).unwrap().unwrap();
        child.images.retain(|lsn, _| *lsn >= cutoff);
        assert_eq!(differs(&child), None);
    }
}
