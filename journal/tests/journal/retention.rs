//! Retention with its real parts: a journal, a chunk store, clones, and crashes at any step of ingest, folds, snapshots,
//! clones and collections.

use crate::store_support::{DOMAIN, large};
use crate::support::{BaseRule, DISK_SECTORS, Model, SECTOR};
use crate::world::{Counts, HOUR, Life, World, collect};
use tidemark_journal::image::{Image, mark};
use tidemark_journal::retention::{Policy, Pressure, Schedule, Terms, advance, due, held_back};
use tidemark_journal::storage::Faults;
use tidemark_journal::store::SweepOptions;
use tidemark_journal::view::ExtentKind;
use tidemark_journal::{Pin, PinKind, RetentionError};
use tidemark_proto::ids::{DiskId, Lsn};

/// Lives that end at a random step. How many did, and what was done.
fn run(seed: u64, lives: usize) -> (usize, Counts) {
    let mut world = World::new(seed);
    let mut crashes = 0;
    for life_number in 0..lives {
        let mut life = world.open();
        world.stream.rewind(life.journal.durable());
        assert_eq!(world.wrong(&life), None, "seed {seed}, life {life_number}");
        let halt = Faults { halt_after: Some(world.random.below(400)), ..Faults::default() };
        let (log, packs) = (world.random.below(3) > 0, world.random.below(3) > 0);
        if log {
            world.log.set_faults(halt.clone());
        }
        if packs {
            world.packs.set_faults(halt.clone());
        }
        if world.random.below(3) == 0 {
            world.clones.set_faults(&halt);
        }
        crashes += usize::from((0..24).any(|_| world.act(&mut life).is_err()));
        world.log.set_faults(Faults::default());
        world.packs.set_faults(Faults::default());
        world.clones.set_faults(&Faults::default());
        world.crash(life);
    }
    let life = world.open();
    world.stream.rewind(life.journal.durable());
    assert_eq!(world.wrong(&life), None, "seed {seed}, at the end");
    assert_eq!(world.leaks(&life), None, "seed {seed}");
    assert_eq!(world.wrong(&life), None, "seed {seed}, after the last collection");
    (crashes, world.counts)
}

#[test]
fn kills_at_any_step_lose_no_reachable_point_and_leak_no_space() {
    // Many short histories and some long ones: what a life costs grows with the history that is checked after it.
    let sizes: &[(u64, usize)] = if large() { &[(1000, 15), (40, 60)] } else { &[(4, 15)] };
    let (mut crashes, mut lived, mut counts) = (0, 0, Counts::default());
    for &(seeds, lives) in sizes {
        for seed in 0..seeds {
            let (ended, done) = run(seed, lives);
            crashes += ended;
            lived += lives;
            counts.operations += done.operations;
            counts.points += done.points;
        }
    }
    println!("{crashes} of {lived} lives ended within an operation; {counts:?}");
    assert!(crashes > lived / 3, "{crashes} crashes");
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

#[test]
fn the_point_of_a_clone_becomes_a_snapshot_and_the_log_behind_it_goes() {
    let (mut world, life) = grown(9);
    world.policy.schedule = Schedule::default();
    let lsn = life.journal.timeline().horizon().unwrap().lsn;
    let pin = Pin { name: "clone:1".into(), kind: PinKind::Clone, lsn, until_us: None };
    life.journal.put_pin(pin, world.now_us).unwrap();
    let content = Model::of(&world.stream.frames, BaseRule::AtLine).image(1, lsn.0);
    for _ in 0..6 {
        world.now_us += 2 * HOUR;
        assert!(world.ingest(&life));
        life.journal.maintain().unwrap();
    }
    world.now_us += 9 * HOUR;
    assert!(world.ingest(&life));
    life.journal.maintain().unwrap();
    // What would go without it is known before, and is nothing afterwards.
    let held = held_back(&life.journal, &due(&life.journal, &world.terms()).unwrap());
    assert!(held.len() == 1 && held[0].0 == "clone:1" && held[0].1 > 0, "{held:?}");
    let done = advance(&life.journal, &life.store, DOMAIN, &world.terms(), &mut |_| true).unwrap();
    assert!(done.base > Some(lsn) && !done.held_back && done.segments > 0, "{done:?}");
    let held = held_back(&life.journal, &due(&life.journal, &world.terms()).unwrap());
    assert_eq!(held, [("clone:1".to_owned(), 0)]);
    assert_eq!(life.journal.snapshots().iter().map(|kept| kept.lsn).collect::<Vec<_>>(), [lsn]);
    assert!(matches!(life.journal.drop_snapshot(lsn, world.now_us), Err(RetentionError::Held { .. })));
    collect(&life, 100).unwrap();
    let mut image = vec![0; DISK_SECTORS * SECTOR];
    life.journal.view(lsn).unwrap().read_at(DiskId(1), 0, &mut image).unwrap();
    assert!(image == content);
    // The clone goes, and the snapshot with it.
    life.journal.revoke_pin("clone:1", 0).unwrap();
    advance(&life.journal, &life.store, DOMAIN, &world.terms(), &mut |_| true).unwrap();
    assert_eq!(life.journal.snapshots(), []);
    assert_eq!(world.leaks(&life), None);
}

#[test]
fn while_space_is_short_each_segment_frees_its_own_before_the_next_is_folded() {
    let folded_at_once = |pressure| {
        let (mut world, life) = grown(10);
        world.policy.schedule = Schedule::default();
        for _ in 0..8 {
            world.now_us += HOUR;
            assert!(world.ingest(&life));
            life.journal.maintain().unwrap();
        }
        world.now_us += 30 * HOUR;
        assert!(world.ingest(&life));
        let before = life.journal.log_parts().len();
        let mut fewest = before;
        let terms = Terms { pressure, step_bytes: u64::MAX, ..world.terms() };
        // Stopped once half of the log would be left: what went until then had been dropped already.
        let stopped = advance(&life.journal, &life.store, DOMAIN, &terms, &mut |_| {
            fewest = fewest.min(life.journal.log_parts().len());
            fewest > before / 2
        });
        (stopped.is_err(), fewest < before)
    };
    assert_eq!(folded_at_once(Pressure::Shorten), (true, true));
    assert_eq!(folded_at_once(Pressure::None), (false, false), "negative control: small logs go in one step");
}
