//! The planner of retention against a slow oracle that sees the whole history at once.

use std::collections::{BTreeMap, BTreeSet};

use tidemark_journal::LogPart;
use tidemark_journal::error::ReadError;
use tidemark_journal::retention::{
    Every, Plan, Points, Policy, PolicyError, Pressure, Schedule, plan, window_start,
};
use tidemark_journal::timeline::Point;
use tidemark_proto::ids::Lsn;

const MINUTE: u64 = 60_000_000;
const HOUR: u64 = 60 * MINUTE;
const START: u64 = 1_795_810_500_000_000;

struct Random(u64);

impl Random {
    fn below(&mut self, most: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % most
    }
}

/// All points of a VM, by time.
#[derive(Default)]
struct History(Vec<Point>);

impl History {
    fn upto(&self, time_us: u64) -> &[Point] {
        &self.0[..self.0.partition_point(|point| point.time_us <= time_us)]
    }
}

impl Points for History {
    fn last_at(&self, time_us: u64) -> Result<Option<Point>, ReadError> {
        Ok(self.upto(time_us).last().copied())
    }
}

fn counts(schedule: &Schedule) -> [(Every, u32); 5] {
    let counts = [schedule.hourly, schedule.daily, schedule.weekly, schedule.monthly, schedule.yearly];
    let mut all = Every::ALL.into_iter().zip(counts);
    [(); 5].map(|()| all.next().unwrap())
}

/// What must be kept, from the definition: of each kind the last point of each of the newest whole periods before the
/// window that had points.
fn wanted(history: &History, schedule: &Schedule, window_us: u64) -> BTreeSet<Lsn> {
    let mut wanted = BTreeSet::new();
    for (every, count) in counts(schedule) {
        let mut last_of: BTreeMap<u64, Lsn> = BTreeMap::new();
        for point in history.upto(every.start_of(window_us).saturating_sub(1)) {
            last_of.insert(every.start_of(point.time_us), point.lsn);
        }
        wanted.extend(last_of.values().rev().take(usize::try_from(count).unwrap()));
    }
    wanted
}

type Planner = dyn Fn(&Schedule, Option<Lsn>, u64, &History, &[Point], &[Point]) -> Plan;

fn real(
    schedule: &Schedule,
    base: Option<Lsn>,
    window_us: u64,
    history: &History,
    kept: &[Point],
    held: &[Point],
) -> Plan {
    plan(schedule, base, window_us, history, kept, held).unwrap()
}

/// One life of a VM under a schedule. Runs of retention come at any time, some far apart. What is wrong, if anything.
fn run(seed: u64, planner: &Planner) -> Option<String> {
    let mut random = Random(seed);
    let schedule = Schedule {
        hourly: u32::try_from(random.below(5)).unwrap(),
        daily: u32::try_from(random.below(4)).unwrap(),
        weekly: u32::try_from(random.below(3)).unwrap(),
        monthly: u32::try_from(random.below(3)).unwrap(),
        yearly: u32::try_from(random.below(2)).unwrap(),
    };
    let window = HOUR * (1 + random.below(30));
    let (mut now, mut lsn) = (START, 0);
    let mut history = History::default();
    let mut kept: BTreeMap<Lsn, u64> = BTreeMap::new();
    let (mut base, mut held): (Option<Lsn>, Vec<Point>) = (None, Vec::new());
    for _ in 0..200 {
        // Busy, idle, or switched off for weeks.
        let step = match random.below(20) {
            0 => HOUR * random.below(900),
            1..4 => HOUR * random.below(30),
            _ => MINUTE * random.below(50),
        };
        now += step;
        lsn += 1 + random.below(3);
        history.0.push(Point { lsn: Lsn(lsn), time_us: now });
        if random.below(9) == 0 {
            held.push(*history.0.last().unwrap());
        } else if random.below(9) == 0 && !held.is_empty() {
            held.remove(0);
        }
        if random.below(3) > 0 {
            continue;
        }
        let window_us = now - window;
        let Some(target) = history.last_at(window_us).unwrap() else { continue };
        let before: Vec<Point> = kept.iter().map(|(lsn, at)| Point { lsn: *lsn, time_us: *at }).collect();
        let plan = planner(&schedule, base, window_us, &history, &before, &held);
        if plan.stops.iter().any(|stop| stop.lsn > target.lsn || base.is_some_and(|base| stop.lsn < base)) {
            return Some(format!("seed {seed}: a stop is not between the base and the window: {plan:?}"));
        }
        kept.extend(plan.stops.iter().map(|stop| (stop.lsn, stop.time_us)));
        base = Some(target.lsn);
        kept.retain(|lsn, _| !plan.drop.contains(lsn));
        let there = |lsn: &Lsn| kept.contains_key(lsn) || *lsn > target.lsn;
        let mut must = wanted(&history, &schedule, window_us);
        must.extend(held.iter().map(|point| point.lsn));
        if let Some(lost) = must.iter().find(|lsn| !there(lsn) && **lsn != target.lsn) {
            return Some(format!("seed {seed}: {lost} was lost at {now}"));
        }
        let more = kept.keys().filter(|lsn| !must.contains(lsn)).count();
        if more > 0 {
            return Some(format!("seed {seed}: {more} snapshots are kept that nothing asks for"));
        }
    }
    None
}

#[test]
fn what_the_schedule_and_holds_ask_for_is_kept_and_no_more() {
    let seeds =
        if std::env::var("TIDEMARK_TEST_SIZE").is_ok_and(|size| size == "large") { 20_000 } else { 400 };
    for seed in 0..seeds {
        assert_eq!(run(seed, &real), None);
    }
}

/// Negative controls: the same oracle fails planners with the mistakes one makes.
#[test]
fn the_oracle_catches_wrong_planners() {
    let first_missed = |planner: &Planner| (0..400).find_map(|seed| run(seed, planner));
    // The first stop is forgotten.
    let lossy = |s: &Schedule, b: Option<Lsn>, w: u64, h: &History, k: &[Point], held: &[Point]| {
        let mut plan = real(s, b, w, h, k, held);
        plan.stops.pop();
        plan
    };
    // Bookmarks are not looked at.
    let forgetful = |s: &Schedule, b: Option<Lsn>, w: u64, h: &History, k: &[Point], _: &[Point]| {
        real(s, b, w, h, k, &[])
    };
    // A period counts before it is over.
    let early = |s: &Schedule, b: Option<Lsn>, w: u64, h: &History, k: &[Point], held: &[Point]| {
        real(s, b, w.saturating_sub(2 * HOUR), h, k, held)
    };
    // Nothing is ever given up.
    let hoarding = |s: &Schedule, b: Option<Lsn>, w: u64, h: &History, k: &[Point], held: &[Point]| Plan {
        drop: Vec::new(),
        ..real(s, b, w, h, k, held)
    };
    for (name, planner) in
        [("lossy", &lossy as &Planner), ("forgetful", &forgetful), ("early", &early), ("hoarding", &hoarding)]
    {
        assert!(first_missed(planner).is_some(), "{name} passes");
    }
}

fn policy(window_us: u64, window_min_us: u64, window_bytes: Option<u64>) -> Policy {
    Policy { window_us, window_min_us, window_bytes, schedule: Schedule::default(), lock_us: 0 }
}

#[test]
fn a_window_ends_by_time_by_size_and_under_pressure_but_never_below_its_minimum() {
    let part = |first_time_us, bytes| LogPart { bytes, last_lsn: Lsn(0), first_time_us, sealed: true };
    let now = 1000 * HOUR;
    let parts: Vec<_> = (0..10).map(|at| part(now - (10 - at) * HOUR, 100)).collect();
    let begins = |policy: &Policy, pressure| (now - window_start(policy, now, &parts, pressure)) / HOUR;
    assert_eq!(begins(&policy(8 * HOUR, 0, None), Pressure::None), 8);
    assert_eq!(begins(&policy(8 * HOUR, 0, Some(1000)), Pressure::None), 8);
    assert_eq!(begins(&policy(8 * HOUR, 0, Some(399)), Pressure::None), 3);
    assert_eq!(begins(&policy(8 * HOUR, 5 * HOUR, Some(399)), Pressure::None), 5);
    assert_eq!(begins(&policy(8 * HOUR, 2 * HOUR, Some(10)), Pressure::None), 2);
    assert_eq!(begins(&policy(8 * HOUR, 6 * HOUR, None), Pressure::Shorten), 6);
    assert_eq!(
        begins(&policy(2000 * HOUR, 2000 * HOUR, None), Pressure::Shorten),
        1000,
        "as far as time goes"
    );
    // Whatever is asked, the guaranteed part is there.
    let mut random = Random(7);
    for _ in 0..2000 {
        let window = HOUR * random.below(20);
        let policy = policy(window, random.below(window + 1), Some(random.below(1500)));
        for pressure in [Pressure::None, Pressure::Shorten] {
            let start = window_start(&policy, now, &parts, pressure);
            assert!((now - policy.window_us..=now - policy.window_min_us).contains(&start));
        }
    }
}

#[test]
fn policies_that_contradict_themselves_are_refused() {
    let some = Schedule { daily: 1, ..Schedule::default() };
    assert_eq!(policy(2, 1, None).check(), Ok(()));
    assert_eq!(policy(1, 2, None).check(), Err(PolicyError::Minimum));
    assert_eq!(Policy { lock_us: 1, ..policy(1, 1, None) }.check(), Err(PolicyError::Lock));
    assert_eq!(Policy { lock_us: 1, schedule: some, ..policy(1, 1, None) }.check(), Ok(()));
    let many = Schedule { hourly: 401, ..some };
    assert_eq!(Policy { schedule: many, ..policy(1, 1, None) }.check(), Err(PolicyError::Count));
}
