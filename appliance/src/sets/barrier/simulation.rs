//! Machines that write and talk while barriers are made, over a network that delays and loses, with machines that are
//! killed, paused and cut off. A seed fixes everything.
//!
//! Each machine counts its writes (LSNs). Whatever it says carries what it knows: of each machine the last write that
//! anything it has seen depends on. A point is false if a member, at its marker, knew of a write behind another's marker.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use super::{Barrier, Limits, MemberId, Order, Placed, Reply};
use tidemark_proto::ids::Lsn;
use tidemark_proto::v1::{Consistency, HoldMethod};

const LIMITS: Limits = Limits { prepare_us: 60_000, mark_us: 40_000, release_us: 50_000, hold_us: 120_000 };
/// The watchdog of a dead agent needs this long at most.
const WATCHDOG_US: u64 = 5_000;
const END_US: u64 = 1_000_000;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, most: u64) -> u64 {
        self.next() % most
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// What a machine knows: of each machine the last write that this depends on.
type Known = Vec<u64>;

#[derive(Debug, Clone)]
enum Event {
    /// The application of a machine does something.
    Act(usize),
    /// Words of one application reach another.
    Words(usize, Known),
    /// An order of the barrier of this number reaches a machine.
    Order(usize, u64, Order),
    /// A machine's answer reaches the appliance.
    Reply(usize, u64, Reply),
    /// The deadline of a machine's hold, and the watchdog's after a death.
    Expire(usize, u64),
    /// The machine holds everything now, for the barrier of this number.
    Holds(usize, u64),
    Begin,
    Tick,
    Kill(usize),
    Pause(usize, bool),
    Cut(usize, bool),
}

#[derive(Debug, Default)]
struct Hold {
    barrier: u64,
    since_us: u64,
    /// All is held.
    whole: bool,
    place: Option<(u64, Known)>,
}

#[derive(Debug)]
struct Machine {
    lsn: u64,
    known: Known,
    hold: Option<Hold>,
    /// The barrier of the last hold that ended by itself.
    broken: Option<u64>,
    waiting: Vec<Known>,
    alive: bool,
    paused: bool,
    cut: bool,
    /// Orders that came while it was paused.
    late: Vec<(u64, Order)>,
    longest_us: u64,
}

/// Broken variants that the checker must catch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// Members mark when they like, and nobody waits.
    Uncoordinated,
    /// A hold that broke is called whole.
    BrokenIsWhole,
}

fn released(lsn: u64, hold_us: u64) -> Reply {
    let (method, level, reason) = (HoldMethod::Gate, Consistency::Crash, String::new());
    Reply::Released(Placed { lsn: Lsn(lsn), hold_us, method, level, reason })
}

struct World {
    random: Random,
    now_us: u64,
    number: u64,
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    events: BTreeMap<u64, Event>,
    machines: Vec<Machine>,
    barrier: Option<(u64, Barrier)>,
    /// What each machine knew at its marker, by barrier.
    markers: BTreeMap<(u64, usize), (u64, Known)>,
    fault: Fault,
    points: usize,
    /// Members of points, and those that were asked.
    placed: (usize, usize),
}

impl World {
    fn new(seed: u64, fault: Fault) -> Self {
        let mut random = Random(seed);
        let count = usize::try_from(2 + random.below(5)).unwrap();
        let machine = |_| Machine {
            lsn: 0,
            known: vec![0; count],
            hold: None,
            broken: None,
            waiting: Vec::new(),
            alive: true,
            paused: false,
            cut: false,
            late: Vec::new(),
            longest_us: 0,
        };
        let mut world = Self {
            random,
            now_us: 0,
            number: 0,
            queue: BinaryHeap::new(),
            events: BTreeMap::new(),
            machines: (0..count).map(machine).collect(),
            barrier: None,
            markers: BTreeMap::new(),
            fault,
            points: 0,
            placed: (0, 0),
        };
        for machine in 0..count {
            world.after(0, Event::Act(machine));
        }
        world.after(1000, Event::Begin);
        world
    }

    fn after(&mut self, delay_us: u64, event: Event) {
        self.number += 1;
        self.queue.push(Reverse((self.now_us + delay_us, self.number)));
        self.events.insert(self.number, event);
    }

    /// The network between appliance and machines, or between machines: mostly quick, sometimes slow, sometimes gone.
    fn delay(&mut self) -> Option<u64> {
        match self.random.below(40) {
            0 => None,
            1..3 => Some(self.random.below(90_000)),
            _ => Some(100 + self.random.below(2000)),
        }
    }

    fn run(&mut self) {
        while let Some(Reverse((at, number))) = self.queue.pop() {
            if at > END_US {
                return;
            }
            self.now_us = at;
            let event = self.events.remove(&number).unwrap();
            self.take(event);
        }
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Act(machine) => self.act(machine),
            Event::Words(machine, known) => self.hear(machine, known),
            Event::Order(machine, barrier, order) => {
                let to = &mut self.machines[machine];
                if to.alive && to.paused {
                    to.late.push((barrier, order));
                } else if to.alive {
                    self.obey(machine, barrier, order);
                }
            }
            Event::Holds(machine, barrier) => self.holds(machine, barrier),
            Event::Reply(machine, barrier, reply) => {
                let now_us = self.now_us;
                if let Some((number, running)) = &mut self.barrier
                    && *number == barrier
                {
                    let orders = running.reply(machine, reply, now_us);
                    self.send(barrier, orders);
                }
            }
            Event::Expire(machine, barrier) => {
                if self.machines[machine].hold.as_ref().is_some_and(|hold| hold.barrier == barrier) {
                    self.machines[machine].broken = Some(barrier);
                    self.let_go(machine);
                }
            }
            Event::Begin => self.begin(),
            Event::Tick => {
                let now_us = self.now_us;
                if let Some((number, running)) = &mut self.barrier {
                    let (number, orders) = (*number, running.tick(now_us));
                    self.send(number, orders);
                }
            }
            Event::Kill(machine) => self.kill(machine),
            Event::Pause(machine, paused) => {
                self.machines[machine].paused = paused;
                if !paused {
                    for (barrier, order) in std::mem::take(&mut self.machines[machine].late) {
                        self.obey(machine, barrier, order);
                    }
                }
            }
            Event::Cut(machine, cut) => self.machines[machine].cut = cut,
        }
    }

    /// The application writes and talks; while it is held it can do neither, but what it said before is on its way.
    fn act(&mut self, machine: usize) {
        let pause = 50 + self.random.below(1500);
        self.after(pause, Event::Act(machine));
        if self.machines[machine].hold.is_some() || !self.machines[machine].alive {
            return;
        }
        for known in std::mem::take(&mut self.machines[machine].waiting) {
            self.learn(machine, &known);
        }
        self.write(machine);
        let to = usize::try_from(self.random.below(self.machines.len() as u64)).unwrap();
        let quick = 20 + self.random.below(600);
        let known = self.machines[machine].known.clone();
        self.after(quick, Event::Words(to, known));
    }

    fn write(&mut self, machine: usize) {
        let this = &mut self.machines[machine];
        this.lsn += 1;
        this.known[machine] = this.lsn;
    }

    fn learn(&mut self, machine: usize, known: &Known) {
        for (mine, theirs) in self.machines[machine].known.iter_mut().zip(known) {
            *mine = (*mine).max(*theirs);
        }
        self.write(machine);
    }

    fn hear(&mut self, machine: usize, known: Known) {
        if self.machines[machine].hold.is_some() {
            self.machines[machine].waiting.push(known);
        } else if self.machines[machine].alive {
            self.learn(machine, &known);
        }
    }

    fn begin(&mut self) {
        self.judge();
        self.number += 1;
        let barrier = self.number;
        let members: Vec<MemberId> = (0..self.machines.len()).collect();
        let (running, orders) = Barrier::begin(members, LIMITS, self.now_us);
        self.barrier = Some((barrier, running));
        self.send(barrier, orders);
        self.trouble();
        let next = 200_000 + self.random.below(50_000);
        self.after(next, Event::Begin);
    }

    fn trouble(&mut self) {
        for machine in 0..self.machines.len() {
            let when = self.random.below(90_000);
            let long = self.random.below(200_000);
            match self.random.below(12) {
                0 => self.after(when, Event::Kill(machine)),
                1 => {
                    self.after(when, Event::Pause(machine, true));
                    self.after(when + long, Event::Pause(machine, false));
                }
                2 => {
                    self.after(when, Event::Cut(machine, true));
                    self.after(when + long, Event::Cut(machine, false));
                }
                _ => {}
            }
        }
    }

    fn send(&mut self, barrier: u64, orders: super::Orders) {
        for (machine, order) in orders {
            if let Some(delay) = self.delay()
                && !self.machines[machine].cut
            {
                self.after(delay, Event::Order(machine, barrier, order));
            }
        }
        let deadline = self.barrier.as_ref().and_then(|(_, running)| running.deadline_us());
        if let Some(deadline) = deadline {
            self.after(deadline.saturating_sub(self.now_us), Event::Tick);
        }
    }

    fn answer(&mut self, machine: usize, barrier: u64, reply: Reply) {
        if let Some(delay) = self.delay()
            && !self.machines[machine].cut
        {
            self.after(delay, Event::Reply(machine, barrier, reply));
        }
    }

    fn obey(&mut self, machine: usize, barrier: u64, order: Order) {
        let now_us = self.now_us;
        match order {
            Order::Prepare { hold_us } => {
                if self.machines[machine].hold.is_some() {
                    return self.answer(machine, barrier, Reply::Failed("it holds already".to_owned()));
                }
                self.machines[machine].hold = Some(Hold { barrier, since_us: now_us, ..Hold::default() });
                self.after(hold_us, Event::Expire(machine, barrier));
                let takes = if self.random.one_in(10) { 70_000 } else { 4000 };
                let takes = self.random.below(takes);
                self.after(takes, Event::Holds(machine, barrier));
                if self.fault == Fault::Uncoordinated {
                    // It marks at once, and lets go at once.
                    let this = &mut self.machines[machine];
                    this.hold = None;
                    self.markers.insert((barrier, machine), (this.lsn, this.known.clone()));
                }
            }
            Order::Mark => {
                let this = &mut self.machines[machine];
                let here = (this.lsn, this.known.clone());
                let held = this.hold.as_mut().filter(|hold| hold.barrier == barrier && hold.whole);
                let told = if let Some(hold) = held {
                    hold.place = Some(here);
                    Reply::Marked
                } else if self.fault == Fault::None {
                    // A late MARK is refused.
                    Reply::Failed("it holds nothing".to_owned())
                } else {
                    Reply::Marked
                };
                self.answer(machine, barrier, told);
            }
            Order::Release { keep } => {
                let this = &mut self.machines[machine];
                let held = this.hold.take_if(|hold| hold.barrier == barrier);
                let hold_us = held.as_ref().map_or(0, |hold| now_us - hold.since_us);
                this.longest_us = this.longest_us.max(hold_us);
                let place = held.and_then(|hold| hold.place);
                let told = match (keep, place) {
                    (true, Some((lsn, known))) => {
                        self.markers.insert((barrier, machine), (lsn, known));
                        released(lsn, hold_us)
                    }
                    (true, None) if self.fault == Fault::BrokenIsWhole => {
                        let (lsn, known) = (this.lsn, this.known.clone());
                        self.markers.insert((barrier, machine), (lsn, known));
                        released(lsn, hold_us)
                    }
                    (true, None) if self.fault == Fault::Uncoordinated => {
                        let lsn = self.markers.get(&(barrier, machine)).map_or(0, |marker| marker.0);
                        released(lsn, hold_us)
                    }
                    _ => Reply::Failed("the hold broke".to_owned()),
                };
                self.answer(machine, barrier, told);
            }
        }
    }

    fn holds(&mut self, machine: usize, barrier: u64) {
        let this = &mut self.machines[machine];
        if !this.alive {
            return;
        }
        let held = this.hold.as_mut().filter(|hold| hold.barrier == barrier);
        if let Some(hold) = held {
            hold.whole = true;
            self.answer(machine, barrier, Reply::Held);
        } else if self.fault == Fault::Uncoordinated {
            self.answer(machine, barrier, Reply::Held);
        }
    }

    fn let_go(&mut self, machine: usize) {
        if let Some(hold) = self.machines[machine].hold.take() {
            let held_us = self.now_us - hold.since_us;
            self.machines[machine].longest_us = self.machines[machine].longest_us.max(held_us);
        }
    }

    /// The agent dies: its watchdog lets go, a new agent comes up and knows of nothing.
    fn kill(&mut self, machine: usize) {
        let barrier = self.machines[machine].hold.as_ref().map(|hold| hold.barrier);
        if let Some(barrier) = barrier {
            if let Some(hold) = &mut self.machines[machine].hold {
                (hold.whole, hold.place) = (false, None);
            }
            self.after(WATCHDOG_US, Event::Expire(machine, barrier));
        }
        self.machines[machine].late.clear();
        let now_us = self.now_us;
        if let Some((number, running)) = &mut self.barrier {
            let (number, orders) = (*number, running.gone(machine, "its stream ended", now_us));
            self.send(number, orders);
        }
    }

    /// Looks at the last barrier's point.
    fn judge(&mut self) {
        let Some((barrier, running)) = self.barrier.take() else { return };
        let outcome = running.outcome().expect("a barrier is over before its limits have passed");
        let members: Vec<(usize, u64)> = outcome
            .iter()
            .filter_map(|(member, outcome)| Some((*member, outcome.as_ref().ok()?.lsn.0)))
            .collect();
        self.placed.0 += members.len();
        self.placed.1 += outcome.len();
        self.points += usize::from(members.len() > 1);
        for (member, lsn) in &members {
            let (at, known) = &self.markers[&(barrier, *member)];
            assert_eq!(at, lsn, "the marker that was told of");
            for (other, mark) in &members {
                assert!(
                    known[*other] <= *mark,
                    "false point: {member} at {lsn} knows write {} of {other}, whose marker is {mark}",
                    known[*other]
                );
            }
        }
    }
}

fn run(seed: u64, fault: Fault) -> World {
    let mut world = World::new(seed, fault);
    world.run();
    for (number, machine) in world.machines.iter().enumerate() {
        let bound = LIMITS.hold_us + WATCHDOG_US;
        assert!(machine.longest_us <= bound, "seed {seed}: {number} was held for {} us", machine.longest_us);
    }
    world
}

#[test]
fn no_point_is_false_and_nobody_is_held_beyond_the_bound() {
    let (mut points, mut placed) = (0, (0, 0));
    for seed in 0..10_000 {
        let world = run(seed, Fault::None);
        points += world.points;
        placed = (placed.0 + world.placed.0, placed.1 + world.placed.1);
    }
    println!("{points} points; {} of {} members were placed", placed.0, placed.1);
    // Trouble leaves most members whole.
    assert!(points > 20_000 && placed.0 * 2 > placed.1, "{points} points, {placed:?}");
}

/// In how many of so many seeds the checker finds a fault.
fn caught(fault: Fault, seeds: u64) -> usize {
    let found = |seed| std::panic::catch_unwind(|| run(seed, fault)).is_err();
    (0..seeds).filter(|seed| found(*seed)).count()
}

#[test]
fn marks_without_a_barrier_are_caught() {
    assert!(caught(Fault::Uncoordinated, 300) > 100);
}

#[test]
fn a_broken_hold_that_is_called_whole_is_caught() {
    // Few holds break, and not every one at a moment that matters.
    assert!(caught(Fault::BrokenIsWhole, 2000) > 20);
}
