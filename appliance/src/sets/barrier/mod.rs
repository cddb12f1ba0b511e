//! One moment across many machines: the barrier of a set's point, without network, clock or thread.
//!
//! PREPARE goes to every member at once; each holds all its writers and says so. When all hold, or the time for it is over,
//! MARK has each of those that hold reserve the place in its stream where it stands. When all have, RELEASE lets them go, and
//! each answers whether it held without a break since PREPARE, and the LSN of its marker.
//!
//! **Why the markers are one moment.** Let t be the time when the last member that counts said that it holds. Each of them
//! holds from before t until after it got RELEASE, which is sent after t, and its marker is where it stood in between. So
//! what a member wrote after its marker it wrote after t, and what it wrote before its marker it wrote before t: nothing
//! that one of them learned before its marker can come from behind the marker of another, whichever way it took.
//! A member that broke its hold, died or stayed silent does not count; the others need it for nothing.
//!
//! **What bounds the hold.** Each member lets go by itself at the deadline that PREPARE names, and its watchdog does so
//! when it dies; the barrier sends RELEASE as soon as it has what it waits for, and to whom it waits for no more.

#[cfg(test)]
mod simulation;

use std::collections::BTreeMap;

use tidemark_proto::ids::Lsn;
use tidemark_proto::v1::{Consistency, HoldMethod};

/// Names a member for the length of one barrier.
pub type MemberId = usize;

/// How long each step may take, microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// From PREPARE until a member holds. Who needs longer is left out.
    pub prepare_us: u64,
    /// From MARK until a member has its place.
    pub mark_us: u64,
    /// From RELEASE until a member has answered; it holds nothing meanwhile.
    pub release_us: u64,
    /// From PREPARE until a member lets go by itself.
    pub hold_us: u64,
}

/// What a member is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Hold everything, for at most so many microseconds from now.
    Prepare { hold_us: u64 },
    /// Reserve the place where you stand.
    Mark,
    /// Let go; with `keep` put the marker there, if the hold was whole.
    Release { keep: bool },
}

/// What a member answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// Everything is held.
    Held,
    /// The place is reserved.
    Marked,
    /// Everything was let go after a hold without a break; the place lies there.
    Released(Placed),
    /// It cannot hold, or the hold broke.
    Failed(String),
}

/// What came of one member.
pub type Outcome = Result<Placed, String>;

/// A member's part of the point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// Its marker.
    pub lsn: Lsn,
    /// How long its writers were held, microseconds.
    pub hold_us: u64,
    /// What held them.
    pub method: HoldMethod,
    /// The level achieved.
    pub level: Consistency,
    /// Why that is lower than was asked for; empty otherwise.
    pub reason: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Stand {
    Preparing,
    Held,
    Marking,
    Marked,
    Releasing,
    Done(Outcome),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Prepare,
    Mark,
    Release,
    Over,
}

/// Orders to be sent, by member.
pub type Orders = Vec<(MemberId, Order)>;

/// One barrier.
#[derive(Debug)]
pub struct Barrier {
    limits: Limits,
    members: BTreeMap<MemberId, Stand>,
    phase: Phase,
    deadline_us: u64,
}

impl Barrier {
    /// Begins with these members.
    #[must_use]
    pub fn begin(members: impl IntoIterator<Item = MemberId>, limits: Limits, now_us: u64) -> (Self, Orders) {
        let members: BTreeMap<_, _> = members.into_iter().map(|member| (member, Stand::Preparing)).collect();
        let prepare = Order::Prepare { hold_us: limits.hold_us };
        let mut orders: Orders = members.keys().map(|member| (*member, prepare)).collect();
        let deadline_us = now_us.saturating_add(limits.prepare_us);
        let mut barrier = Self { limits, members, phase: Phase::Prepare, deadline_us };
        barrier.advance(now_us, &mut orders);
        (barrier, orders)
    }

    /// A member answered. What comes too late, or unasked, counts for nothing.
    #[must_use]
    pub fn reply(&mut self, member: MemberId, reply: Reply, now_us: u64) -> Orders {
        let mut orders = Orders::new();
        if let Some(stand) = self.members.get_mut(&member) {
            let next = match (&*stand, reply) {
                (Stand::Done(_), _) => None,
                (_, Reply::Failed(reason)) => Some(Stand::Done(Err(reason))),
                (Stand::Preparing, Reply::Held) => Some(Stand::Held),
                (Stand::Marking, Reply::Marked) => Some(Stand::Marked),
                (Stand::Releasing, Reply::Released(placed)) => Some(Stand::Done(Ok(placed))),
                _ => Some(Stand::Done(Err("it answered what it was not asked".to_owned()))),
            };
            if let Some(next) = next {
                let holds = matches!(stand, Stand::Held | Stand::Marking | Stand::Marked);
                if holds && matches!(next, Stand::Done(Err(_))) {
                    orders.push((member, Order::Release { keep: false }));
                }
                *stand = next;
            }
        }
        self.advance(now_us, &mut orders);
        orders
    }

    /// A member cannot be reached any more. Its own deadline lets it go.
    #[must_use]
    pub fn gone(&mut self, member: MemberId, reason: &str, now_us: u64) -> Orders {
        self.reply(member, Reply::Failed(reason.to_owned()), now_us)
    }

    /// Time went by.
    #[must_use]
    pub fn tick(&mut self, now_us: u64) -> Orders {
        let mut orders = Orders::new();
        if self.phase != Phase::Over && now_us >= self.deadline_us {
            let late = match self.phase {
                Phase::Prepare => (Stand::Preparing, "it did not hold in time"),
                Phase::Mark => (Stand::Marking, "it did not mark its place in time"),
                Phase::Release | Phase::Over => (Stand::Releasing, "it did not say whether it held"),
            };
            for (member, stand) in &mut self.members {
                if *stand == late.0 {
                    *stand = Stand::Done(Err(late.1.to_owned()));
                    if self.phase != Phase::Release {
                        orders.push((*member, Order::Release { keep: false }));
                    }
                }
            }
        }
        self.advance(now_us, &mut orders);
        orders
    }

    /// When [`Barrier::tick`] is due; `None` when it is over.
    #[must_use]
    pub fn deadline_us(&self) -> Option<u64> {
        (self.phase != Phase::Over).then_some(self.deadline_us)
    }

    /// Whether everybody was told to let go: nobody is held for this barrier any more, but by words that are on the way.
    #[must_use]
    pub fn lets_go(&self) -> bool {
        matches!(self.phase, Phase::Release | Phase::Over)
    }

    /// What came of each member, once it is over.
    #[must_use]
    pub fn outcome(&self) -> Option<BTreeMap<MemberId, Outcome>> {
        let outcome = |(member, stand): (&MemberId, &Stand)| match stand {
            Stand::Done(outcome) => Some((*member, outcome.clone())),
            _ => None,
        };
        if self.phase == Phase::Over { self.members.iter().map(outcome).collect() } else { None }
    }

    /// Goes on to the next step once nobody is waited for in this one.
    fn advance(&mut self, now_us: u64, orders: &mut Orders) {
        loop {
            let (waits_for, takes, becomes, order, next, limit_us) = match self.phase {
                Phase::Prepare => (
                    Stand::Preparing,
                    Stand::Held,
                    Stand::Marking,
                    Order::Mark,
                    Phase::Mark,
                    self.limits.mark_us,
                ),
                Phase::Mark => (
                    Stand::Marking,
                    Stand::Marked,
                    Stand::Releasing,
                    Order::Release { keep: true },
                    Phase::Release,
                    self.limits.release_us,
                ),
                Phase::Release => {
                    if !self.members.values().any(|stand| *stand == Stand::Releasing) {
                        self.phase = Phase::Over;
                    }
                    return;
                }
                Phase::Over => return,
            };
            if self.members.values().any(|stand| *stand == waits_for) {
                return;
            }
            for (member, stand) in self.members.iter_mut().filter(|(_, stand)| **stand == takes) {
                *stand = becomes.clone();
                orders.push((*member, order));
            }
            self.phase = next;
            self.deadline_us = now_us.saturating_add(limit_us);
        }
    }
}
