//! A VM's journal, its chunk store and its clones, with everything that is done to them, and machines that stop at any
//! step of it.

mod clones;

use std::collections::BTreeMap;
use std::sync::Arc;

use clones::Clones;
use tidemark_journal::frame::EntryKind;
use tidemark_journal::retention::{
    FoldError, ImageKeeper, Policy, Pressure, Schedule, Terms, advance, mark_images,
};
use tidemark_journal::storage::SimStorage;
use tidemark_journal::store::{ChunkStore, CollectionReport, StoreError, SweepOptions};
use tidemark_journal::{Journal, Pin, PinKind, RetentionError, SyncError, verify};
use tidemark_proto::ids::{Lsn, VmId};

use crate::store_support::{DOMAIN, Random, create, try_open};
use crate::support::{BaseRule, Model, Owned, Stream, difference, entry, journal, reopen};

pub(crate) const SEGMENT_BYTES: u64 = 3000;
pub(crate) const PACK: usize = 16 << 10;
pub(crate) const MINUTE: u64 = 60_000_000;
pub(crate) const HOUR: u64 = 60 * MINUTE;
const START: u64 = 1_795_810_500_000_000;

/// A VM with its disks; what the test knows of it survives every crash.
pub(crate) struct World {
    pub(crate) log: SimStorage,
    pub(crate) packs: SimStorage,
    pub(crate) stream: Stream,
    pub(crate) random: Random,
    pub(crate) now_us: u64,
    lives: u64,
    /// Held bookmarks, by pin.
    pub(crate) held: BTreeMap<String, u64>,
    pub(crate) policy: Policy,
    pub(crate) clones: Clones,
    pub(crate) counts: Counts,
}

/// What was done and compared.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counts {
    /// Frames, flushes, folds, holds, clones, collections.
    pub(crate) operations: u64,
    /// Points of the VM and of clones whose disks were compared whole, or that were refused as they must be.
    pub(crate) points: u64,
}

/// What a process has open.
pub(crate) struct Life {
    pub(crate) journal: Arc<Journal>,
    pub(crate) store: Arc<ChunkStore>,
    pub(crate) clones: BTreeMap<VmId, Arc<Journal>>,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
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
            clones: Clones::new(seed),
            counts: Counts::default(),
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
    fn append(&mut self, journal: &Journal, mut frame: Owned) -> bool {
        frame.time_us = self.now_us;
        self.stream.frames.last_mut().unwrap().time_us = self.now_us;
        frame.append(journal).is_ok()
    }

    pub(crate) fn open(&mut self) -> Life {
        self.lives += 1;
        let journal = Arc::new(reopen(&self.log, SEGMENT_BYTES));
        // The seed of a store's nonces; no two lives may share one.
        let seed = u8::try_from(self.lives % 256).unwrap();
        let (store, report) = try_open(&self.packs, seed, PACK).unwrap();
        assert_eq!(report.unreadable, []);
        journal.set_images(Arc::new(ImageKeeper::new(Arc::clone(&store))));
        let clones = self.clones.open(&journal, self.now_us);
        Life { journal, store, clones }
    }

    pub(crate) fn terms(&self) -> Terms {
        Terms {
            policy: self.policy,
            now_us: self.now_us,
            lock_now_us: self.now_us,
            pressure: Pressure::None,
            // A few segments, so that one advance takes several steps.
            step_bytes: 3 * SEGMENT_BYTES,
        }
    }

    /// Some writes, now and then a gap, and a heartbeat; false when the disk failed.
    pub(crate) fn ingest(&mut self, life: &Life) -> bool {
        for _ in 0..1 + self.random.below(6) {
            self.counts.operations += 1;
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
    pub(crate) fn act(&mut self, life: &mut Life) -> Result<(), String> {
        self.counts.operations += 1;
        match self.random.below(14) {
            0..4 => self.ingest(life).then_some(()).ok_or_else(|| "ingest".to_owned()),
            4..8 => advance(&life.journal, &life.store, DOMAIN, &self.terms(), &mut |_| true)
                .map(|_| ())
                .map_err(of_the_machine),
            8 => self.hold(life).map_err(of_the_machine),
            9..13 => self.clones.act(life, self.now_us),
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
    pub(crate) fn crash(&mut self, life: Life) {
        self.log.crash();
        self.packs.crash();
        self.clones.crash();
        drop(life);
        let life = self.open();
        let position = life.journal.durable();
        self.stream.rewind(position);
    }

    /// What is wrong with what can be recovered, if anything.
    pub(crate) fn wrong(&mut self, life: &Life) -> Option<String> {
        let model = Model::of(&self.stream.frames, BaseRule::AtLine);
        let last = self.stream.position.lsn.0;
        let base = life.journal.base().map_or(1, |(lsn, _)| lsn.0);
        let some: Vec<u64> =
            (0..12).map(|_| base + self.random.below(last.saturating_sub(base) + 1)).collect();
        self.counts.points += 2 * (some.len() as u64 + 2);
        if let Some(wrong) = difference(&life.journal, &model, some.into_iter().chain([base, last])) {
            return Some(wrong);
        }
        let kept: Vec<u64> = life.journal.snapshots().iter().map(|kept| kept.lsn.0).collect();
        self.counts.points += 2 * kept.len() as u64;
        if let Some(wrong) = difference(&life.journal, &model, kept.iter().copied()) {
            return Some(format!("a snapshot: {wrong}"));
        }
        match self.clones.compare(life) {
            Ok(points) => self.counts.points += points,
            Err(wrong) => return Some(wrong),
        }
        let held = self.held.values().copied().filter(|lsn| *lsn < base);
        if let Some(lost) = held.filter(|lsn| !kept.contains(lsn)).min() {
            return Some(format!("the held point {lost} is lost"));
        }
        let between = (1..base).find(|lsn| !kept.contains(lsn) && life.journal.view(Lsn(*lsn)).is_ok());
        between.map(|lsn| format!("{lsn} is offered below the base {base}"))
    }

    /// What is left over once everything that is due was done.
    pub(crate) fn leaks(&mut self, life: &Life) -> Option<String> {
        advance(&life.journal, &life.store, DOMAIN, &self.terms(), &mut |_| true).unwrap();
        // Clones that were read keep files of what they were read from.
        life.clones.values().for_each(|clone| clone.let_go_below());
        life.journal.drop_folded().unwrap();
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
pub(crate) fn of_the_machine(error: FoldError) -> String {
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

pub(crate) fn collect(life: &Life, fill_percent: u64) -> Result<CollectionReport, StoreError> {
    let gc = life.store.begin_gc()?;
    let missing =
        mark_images(&life.store, &life.journal, &gc).map_err(|error| StoreError::Index(error.to_string()))?;
    assert_eq!(missing, 0, "roots reach what is lost");
    gc.sweep(SweepOptions { fill_percent, ..SweepOptions::default() })
}
