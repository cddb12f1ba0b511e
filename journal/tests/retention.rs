//! Retention with its real parts: a journal, a chunk store, and crashes at any step of folds, snapshots and collections.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "tests state what must hold")]

mod store_support;
mod support;

use std::collections::BTreeMap;
use std::sync::Arc;

use store_support::{DOMAIN, Random, create, large, try_open};
use support::{BaseRule, DISK_SECTORS, Model, SECTOR, Stream, difference, entry, journal, reopen};
use tidemark_journal::frame::EntryKind;
use tidemark_journal::image::{Image, mark};
use tidemark_journal::retention::{
    FoldError, ImageKeeper, Policy, Pressure, Schedule, Terms, advance, mark_images,
};
use tidemark_journal::storage::{Faults, SimStorage};
use tidemark_journal::store::{ChunkStore, CollectionReport, StoreError, SweepOptions};
use tidemark_journal::view::ExtentKind;
use tidemark_journal::{Journal, Pin, PinKind, RetentionError, SyncError, verify};
use tidemark_proto::ids::{DiskId, Lsn};

const SEGMENT_BYTES: u64 = 3000;
const PACK: usize = 16 << 10;
const MINUTE: u64 = 60_000_000;
const HOUR: u64 = 60 * MINUTE;
const START: u64 = 1_795_810_500_000_000;

/// A VM with its disks; what the test knows of it survives every crash.
struct World {
    log: SimStorage,
    packs: SimStorage,
    stream: Stream,
    random: Random,
    now_us: u64,
    lives: u8,
    /// Held bookmarks, by pin.
    held: BTreeMap<String, u64>,
    policy: Policy,
}

/// What a process has open.
struct Life {
    journal: Journal,
    store: Arc<ChunkStore>,
}

impl World {
    fn new(seed: u64) -> Self {
        let (log, packs) = (SimStorage::new(seed), SimStorage::new(seed + 1));
        let policy = Policy {
            window_us: 5 * HOUR,
            window_min_us: HOUR,
            window_bytes: None,
            schedule: Schedule { hourly: 3, daily: 2, weekly: 1, ..Schedule::default() },
            lock_us: 0,
        };
        let mut world = Self {
            log,
            packs,
            stream: Stream::default(),
            random: Random(seed),
            now_us: START,
            lives: 1,
            held: BTreeMap::new(),
            policy,
        };
        let journal = journal(&world.log, SEGMENT_BYTES);
        drop(create(&world.packs, PACK));
        let frames = [
            world.stream.line_start(&[1, 2], 0),
            world.stream.base(1, vec![entry(1, EntryKind::Data, 0, 60)], 1),
            world.stream.line_end(&[1, 2]),
            world.stream.heartbeat(true),
        ];
        for frame in frames {
            world.append(&journal, frame);
        }
        world
    }

    /// At its own time: the stream's clock is of another test.
    fn append(&mut self, journal: &Journal, mut frame: support::Owned) -> bool {
        frame.time_us = self.now_us;
        self.stream.frames.last_mut().unwrap().time_us = self.now_us;
        frame.append(journal).is_ok()
    }

    fn open(&mut self) -> Life {
        self.lives += 1;
        let journal = reopen(&self.log, SEGMENT_BYTES);
        let (store, report) = try_open(&self.packs, self.lives, PACK).unwrap();
        assert_eq!(report.unreadable, []);
        journal.set_images(Arc::new(ImageKeeper::new(Arc::clone(&store))));
        Life { journal, store }
    }

    fn terms(&self) -> Terms {
        Terms { policy: self.policy, now_us: self.now_us, lock_now_us: self.now_us, pressure: Pressure::None }
    }

    /// Some writes, now and then a gap, and a heartbeat; false when the disk failed.
    fn ingest(&mut self, life: &Life) -> bool {
        for _ in 0..1 + self.random.below(6) {
            self.now_us += self.random.below(40) * MINUTE;
            let seed = self.random.next() >> 32;
            let start = usize::try_from(self.random.below(280)).unwrap();
            let kind = if self.random.below(6) == 0 { EntryKind::Discard } else { EntryKind::Data };
            let disk = 1 + u32::try_from(self.random.below(2)).unwrap();
            let write = self.stream.writes(vec![entry(disk, kind, start, 1 + start % 17)], seed);
            if !self.append(&life.journal, write) {
                return false;
            }
        }
        if self.random.below(5) == 0 {
            let line = self.stream.position.lsn.0 + 1;
            let frame = self.stream.line_start(&[1], 0);
            let begun = self.append(&life.journal, frame);
            self.now_us += MINUTE;
            let frame = self.stream.base(line, vec![entry(1, EntryKind::Data, 20, 9)], line);
            let read = begun && self.append(&life.journal, frame);
            let frame = self.stream.line_end(&[1]);
            if !(read && self.append(&life.journal, frame)) {
                return false;
            }
        }
        let frame = self.stream.heartbeat(true);
        self.append(&life.journal, frame)
            && life.journal.sync().is_ok()
            && (self.random.below(2) == 0 || life.journal.maintain().is_ok())
    }

    /// Anything that retention is made of; an error is the machine's.
    fn act(&mut self, life: &Life) -> Result<(), String> {
        match self.random.below(10) {
            0..4 => self.ingest(life).then_some(()).ok_or_else(|| "ingest".to_owned()),
            4..8 => advance(&life.journal, &life.store, DOMAIN, &self.terms(), &mut |_| true)
                .map(|_| ())
                .map_err(of_the_machine),
            8 => self.hold(life).map_err(of_the_machine),
            _ => collect(life, 100).map(|_| ()).map_err(|error| of_the_machine(error.into())),
        }
    }

    /// Sets or releases a hold at the newest point.
    fn hold(&mut self, life: &Life) -> Result<(), FoldError> {
        if self.random.below(3) == 0
            && let Some(name) = self.held.keys().next().cloned()
        {
            // Whether a crash leaves it set is open, so it is not expected any more from here on.
            self.held.remove(&name);
            return Ok(life.journal.revoke_pin(&name, self.now_us)?);
        }
        let timeline = life.journal.timeline();
        let Some(horizon) = timeline.horizon() else { return Ok(()) };
        if timeline.check(horizon.lsn, &[]).is_ok() {
            let name = format!("hold-{}", horizon.lsn);
            let pin = Pin { name: name.clone(), kind: PinKind::Bookmark, lsn: horizon.lsn, until_us: None };
            life.journal.put_pin(pin, self.now_us)?;
            self.held.insert(name, horizon.lsn.0);
        }
        Ok(())
    }

    /// The machine stops; what was not synced may be lost.
    fn crash(&mut self, life: Life) {
        self.log.crash();
        self.packs.crash();
        drop(life);
        let life = self.open();
        let position = life.journal.durable();
        self.stream.rewind(position);
    }

    /// What is wrong with what can be recovered, if anything.
    fn wrong(&mut self, life: &Life) -> Option<String> {
        let model = Model::of(&self.stream.frames, BaseRule::AtLine);
        let last = self.stream.position.lsn.0;
        let base = life.journal.base().map_or(1, |(lsn, _)| lsn.0);
        let some: Vec<u64> =
            (0..12).map(|_| base + self.random.below(last.saturating_sub(base) + 1)).collect();
        if let Some(wrong) = difference(&life.journal, &model, some.into_iter().chain([base, last])) {
            return Some(wrong);
        }
        let kept: Vec<u64> = life.journal.snapshots().iter().map(|kept| kept.lsn.0).collect();
        if let Some(wrong) = difference(&life.journal, &model, kept.iter().copied()) {
            return Some(format!("a snapshot: {wrong}"));
        }
        let held = self.held.values().copied().filter(|lsn| *lsn < base);
        if let Some(lost) = held.filter(|lsn| !kept.contains(lsn)).min() {
            return Some(format!("the held point {lost} is lost"));
        }
        let between = (1..base).find(|lsn| !kept.contains(lsn) && life.journal.view(Lsn(*lsn)).is_ok());
        between.map(|lsn| format!("{lsn} is offered below the base {base}"))
    }

    /// What is left over once everything that is due was done.
    fn leaks(&mut self, life: &Life) -> Option<String> {
        advance(&life.journal, &life.store, DOMAIN, &self.terms(), &mut |_| true).unwrap();
        // Small packs of what is alive are merged first.
        for _ in 0..3 {
            collect(life, 100).unwrap();
        }
        let again = collect(life, 100).unwrap();
        if (again.dropped_packs, again.repacked_packs) != (0, 0) {
            return Some(format!("the store: {again:?}"));
        }
        let mut report = verify(&self.log).unwrap();
        // What an append had begun when the machine stopped: nobody's to remove.
        report.unlisted.retain(|name| !name.starts_with("aside-"));
        let segments = life.journal.log_parts();
        let base = life.journal.base().map_or(Lsn::ZERO, |(lsn, _)| lsn);
        let folded = segments.iter().filter(|part| part.sealed && part.last_lsn <= base).count();
        if !report.damage.is_empty() || !report.unlisted.is_empty() || folded > 1 {
            return Some(format!("the journal: {folded} folded segments, {report:?}"));
        }
        None
    }
}

/// Only a machine that stops may make these fail.
fn of_the_machine(error: FoldError) -> String {
    let text = error.to_string();
    let sound = match error {
        FoldError::Sync(SyncError::Failed(_) | SyncError::Poisoned) | FoldError::Image(_) => true,
        FoldError::View(_) => text.contains("halted"),
        FoldError::Retention(error) => matches!(error, RetentionError::Write(_) | RetentionError::Read(_)),
        _ => false,
    };
    assert!(sound, "{text}");
    assert!(!text.contains("is not in the store") && !text.contains("missing"), "{text}");
    text
}

fn collect(life: &Life, fill_percent: u64) -> Result<CollectionReport, StoreError> {
    let gc = life.store.begin_gc()?;
    let missing =
        mark_images(&life.store, &life.journal, &gc).map_err(|error| StoreError::Index(error.to_string()))?;
    assert_eq!(missing, 0, "roots reach what is lost");
    gc.sweep(SweepOptions { fill_percent, ..SweepOptions::default() })
}

/// Lives that end at a random step. How many did.
fn run(seed: u64, lives: usize) -> usize {
    let mut world = World::new(seed);
    let mut crashes = 0;
    for life_number in 0..lives {
        let life = world.open();
        world.stream.rewind(life.journal.durable());
        assert_eq!(world.wrong(&life), None, "seed {seed}, life {life_number}");
        let halt = Faults { halt_after: Some(world.random.below(400)), ..Faults::default() };
        let (log, packs) = (world.random.below(3) > 0, world.random.below(3) > 0);
        if log {
            world.log.set_faults(halt.clone());
        }
        if packs {
            world.packs.set_faults(halt);
        }
        crashes += usize::from((0..14).any(|_| world.act(&life).is_err()));
        world.log.set_faults(Faults::default());
        world.packs.set_faults(Faults::default());
        world.crash(life);
    }
    let life = world.open();
    world.stream.rewind(life.journal.durable());
    assert_eq!(world.wrong(&life), None, "seed {seed}, at the end");
    assert_eq!(world.leaks(&life), None, "seed {seed}");
    assert_eq!(world.wrong(&life), None, "seed {seed}, after the last collection");
    crashes
}

#[test]
fn kills_at_any_step_lose_no_reachable_point_and_leak_no_space() {
    let (seeds, lives) = if large() { (60, 40) } else { (4, 15) };
    let crashes: usize = (0..seeds).map(|seed| run(seed, lives)).sum();
    println!("{crashes} lives ended within an operation");
    assert!(crashes > lives * usize::try_from(seeds).unwrap() / 3, "{crashes} crashes");
}

/// A world in which there are snapshots, a base and a log.
fn grown(seed: u64) -> (World, Life) {
    let mut world = World::new(seed);
    let life = world.open();
    let mut rounds = 0;
    while rounds < 25 || (rounds < 200 && life.journal.snapshots().len() < 4) {
        rounds += 1;
        assert!(world.ingest(&life));
        advance(&life.journal, &life.store, DOMAIN, &world.terms(), &mut |_| true).unwrap();
    }
    assert!(rounds < 200, "there are no snapshots");
    (world, life)
}

/// Negative controls: the same checker finds what is lost by a collection that ignores a root, and by a base that is
/// named before its chunks are durable.
#[test]
fn the_checker_catches_a_forgotten_root_and_an_early_base() {
    let (mut world, life) = grown(3);
    assert_eq!(world.wrong(&life), None);
    let gc = life.store.begin_gc().unwrap();
    for (_, descriptor) in life.journal.base().unwrap().1 {
        mark(&life.store, &Image::decode(&descriptor).unwrap(), &gc).unwrap();
    }
    let freed = gc.sweep(SweepOptions { fill_percent: 100, tolerate_missing: false }).unwrap();
    assert!(freed.freed_bytes > 0);
    assert!(world.wrong(&life).unwrap().starts_with("a snapshot"));

    let (mut world, life) = grown(4);
    world.now_us += 30 * HOUR;
    assert!(world.ingest(&life));
    let target = life.journal.timeline().horizon().unwrap().lsn;
    life.journal.advance_cutoff(target, world.now_us).unwrap();
    let fold = life.journal.plan_fold().unwrap();
    let below = life.journal.base().unwrap().1;
    let session = life.store.session(DOMAIN).unwrap();
    let mut images = Vec::new();
    for ((_, previous), disk) in below.iter().zip(fold.disks()) {
        let previous = Image::decode(previous).unwrap();
        let mut builder = tidemark_journal::image::ImageBuilder::new(
            &session,
            Some(&previous),
            disk.id,
            fold.lsn(),
            disk.size_bytes,
        )
        .unwrap();
        for change in fold.changes(disk.id) {
            let change = change.unwrap();
            let mut content = vec![0; usize::try_from(change.sectors).unwrap() * SECTOR];
            match change.kind {
                ExtentKind::Data => fold.read_at(disk.id, change.start, &mut content).unwrap(),
                ExtentKind::Zero => {}
            }
            builder.write(change.start, &content).unwrap();
        }
        images.push((disk.id, builder.finish().unwrap().encode()));
    }
    // The flush of the store is left out.
    life.journal.set_base(fold.lsn(), images).unwrap();
    drop((session, fold));
    world.crash(life);
    let life = world.open();
    assert!(world.wrong(&life).is_some());
}

#[test]
fn snapshots_are_points_by_lsn_and_by_time_and_what_lies_between_names_its_neighbours() {
    let (mut world, life) = grown(5);
    let kept = life.journal.snapshots();
    let timeline = life.journal.timeline();
    for kept in &kept {
        for at in [kept.time_us, kept.until_us - 1] {
            assert_eq!(timeline.at_time(at, &[]).unwrap(), kept.lsn);
        }
        assert_eq!(timeline.time_of(kept.lsn).unwrap(), kept.time_us);
    }
    let (first, second) = (&kept[0], &kept[1]);
    assert!(first.until_us < second.time_us, "choose another seed");
    let refused = timeline.at_time(first.until_us, &[]).unwrap_err().to_string();
    let neighbours = format!("the nearest are lsn:{} and lsn:{}", first.lsn, second.lsn);
    assert!(refused.contains("only snapshots are kept") && refused.contains(&neighbours), "{refused}");
    let refused = timeline.check(first.lsn.next(), &[]).unwrap_err().to_string();
    assert!(refused.contains(&neighbours), "{refused}");
    let (base, last) = (life.journal.base().unwrap().0, kept.last().unwrap().lsn);
    if last.next() < base {
        let refused = timeline.check(last.next(), &[]).unwrap_err().to_string();
        assert!(refused.contains(&format!("lsn:{last} and lsn:{base}")), "{refused}");
    }
    // What differs between a snapshot and a point of the log is found, too.
    let model = Model::of(&world.stream.frames, BaseRule::AtLine);
    let latest = timeline.horizon().unwrap().lsn;
    let (old, new) = (model.image(1, first.lsn.0), model.image(1, latest.0));
    let mut differs = vec![false; DISK_SECTORS];
    for changed in life.journal.changed(DiskId(1), first.lsn, latest).unwrap() {
        let changed = changed.unwrap();
        let from = usize::try_from(changed.offset).unwrap() / SECTOR;
        differs[from..from + usize::try_from(changed.bytes).unwrap() / SECTOR].fill(true);
    }
    for (sector, differs) in differs.iter().enumerate() {
        let range = sector * SECTOR..(sector + 1) * SECTOR;
        assert_eq!(*differs, old[range.clone()] != new[range], "sector {sector}");
    }
    // A view of a snapshot outlives it, whatever is collected.
    let view = life.journal.view(first.lsn).unwrap();
    life.journal.drop_snapshot(first.lsn, world.now_us).unwrap();
    collect(&life, 100).unwrap();
    let mut image = vec![0; DISK_SECTORS * SECTOR];
    view.read_at(DiskId(1), 0, &mut image).unwrap();
    assert!(image == old);
    assert!(life.journal.view(first.lsn).is_err());
    drop(view);
    assert_eq!(world.leaks(&life), None);
}

#[test]
fn holes_of_images_are_known_without_reading_them() {
    let (_, life) = grown(6);
    let base = life.journal.base().unwrap().0;
    let view = life.journal.view(base).unwrap();
    for disk in [1, 2] {
        let mut image = vec![0; DISK_SECTORS * SECTOR];
        view.read_at(DiskId(disk), 0, &mut image).unwrap();
        let mut at = 0;
        for extent in view.extents(DiskId(disk), 0, image.len() as u64).unwrap() {
            assert_eq!(extent.offset, at);
            at += extent.bytes;
            let range = usize::try_from(extent.offset).unwrap()..usize::try_from(at).unwrap();
            assert!(extent.kind == ExtentKind::Data || image[range].iter().all(|byte| *byte == 0));
        }
        assert_eq!(at, image.len() as u64);
    }
}

#[test]
fn nobody_gives_up_a_locked_snapshot_before_its_time() {
    let (mut world, life) = grown(7);
    world.policy.lock_us = 48 * HOUR;
    world.now_us += 8 * HOUR;
    assert!(world.ingest(&life));
    advance(&life.journal, &life.store, DOMAIN, &world.terms(), &mut |_| true).unwrap();
    let locks: Vec<Pin> = life.journal.pins().into_iter().filter(|pin| pin.kind == PinKind::Lock).collect();
    let lock = locks.first().expect("a snapshot was made");
    let until_us = lock.until_us.unwrap();
    assert_eq!(until_us, world.now_us + 48 * HOUR);
    let refused = life.journal.drop_snapshot(lock.lsn, until_us - 1).unwrap_err();
    assert!(matches!(refused, RetentionError::Locked { .. }), "{refused}");
    // A policy that keeps nothing gives up all others.
    world.policy = Policy { schedule: Schedule::default(), lock_us: 0, ..world.policy };
    let done = advance(&life.journal, &life.store, DOMAIN, &world.terms(), &mut |_| true).unwrap();
    assert!(done.given_up > 0);
    let left: Vec<Lsn> = life.journal.snapshots().iter().map(|kept| kept.lsn).collect();
    let mut locked: Vec<Lsn> = locks.iter().map(|pin| pin.lsn).collect();
    locked.sort();
    assert_eq!(left, locked);
    // A clock that goes back changes nothing; its end does.
    world.now_us = until_us;
    assert!(world.ingest(&life));
    advance(&life.journal, &life.store, DOMAIN, &world.terms(), &mut |_| true).unwrap();
    assert_eq!(life.journal.snapshots(), []);
    assert_eq!(world.leaks(&life), None);
}

#[test]
fn a_held_bookmark_becomes_a_snapshot_until_it_is_released() {
    let (mut world, life) = grown(8);
    world.policy.schedule = Schedule::default();
    let lsn = life.journal.timeline().horizon().unwrap().lsn;
    let hold = Pin { name: "before".into(), kind: PinKind::Bookmark, lsn, until_us: None };
    life.journal.put_pin(hold, world.now_us).unwrap();
    world.now_us += 9 * HOUR;
    for _ in 0..4 {
        assert!(world.ingest(&life));
    }
    world.now_us += 9 * HOUR;
    assert!(world.ingest(&life));
    let done = advance(&life.journal, &life.store, DOMAIN, &world.terms(), &mut |_| true).unwrap();
    assert!(done.base > Some(lsn) && !done.held_back, "the window went on without it: {done:?}");
    assert_eq!(life.journal.snapshots().iter().map(|kept| kept.lsn).collect::<Vec<_>>(), [lsn]);
    assert!(matches!(life.journal.drop_snapshot(lsn, world.now_us), Err(RetentionError::Held { .. })));
    let lock = Pin { name: "law".into(), kind: PinKind::Lock, lsn, until_us: Some(world.now_us + HOUR) };
    life.journal.put_pin(lock, world.now_us).unwrap();
    life.journal.revoke_pin("before", world.now_us).unwrap();
    advance(&life.journal, &life.store, DOMAIN, &world.terms(), &mut |_| true).unwrap();
    assert_eq!(life.journal.snapshots().len(), 1, "a lock can be set on a snapshot");
    world.now_us += HOUR;
    advance(&life.journal, &life.store, DOMAIN, &world.terms(), &mut |_| true).unwrap();
    assert_eq!(life.journal.snapshots().len(), 0);
    // A lease is another matter: the log stays from its point on.
    let lsn = life.journal.timeline().horizon().unwrap().lsn;
    let lease = Pin { name: "view".into(), kind: PinKind::Lease, lsn, until_us: None };
    life.journal.put_pin(lease, world.now_us).unwrap();
    world.now_us += 9 * HOUR;
    assert!(world.ingest(&life));
    let done = advance(&life.journal, &life.store, DOMAIN, &world.terms(), &mut |_| true).unwrap();
    assert!(done.base <= Some(lsn));
}
