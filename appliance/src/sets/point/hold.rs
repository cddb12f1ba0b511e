//! Holding the members of a set at the same time: the barrier with a clock and with sessions.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use tidemark_proto::v1::BarrierStep;
use tidemark_proto::version::BARRIER;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::hooks::{self, Thawing};
use super::orders::{self, Meaning};
use super::wish::{Member, Wish};
use crate::clock::now_us;
use crate::fleet::{MarkerOutcome, Said, Seat};
use crate::sets::barrier::{Barrier, MemberId, Order, Orders, Outcome, Reply};

/// How long freeze hooks of all members may take together: the splitters' watchdogs thaw after a minute, and the hold and the
/// thaw hooks must fit in, too.
const QUIESCE: Duration = Duration::from_secs(40);

/// How long a bookmark waits for another barrier of a member to end; automatic points wait for none. Most take milliseconds, but a
/// member that is behind tells its LSN late.
const BUSY_PATIENCE: Duration = Duration::from_secs(3);

/// Between looks whether a member is free.
const BUSY_INTERVAL: Duration = Duration::from_millis(5);

/// Where a marker arrives.
pub(super) type Marker = oneshot::Receiver<MarkerOutcome>;

/// What came of holding the members.
#[derive(Debug)]
pub(super) struct Held {
    /// By member: where it stands, or why it was not held.
    pub(super) outcomes: Vec<Outcome>,
    /// By member: where its marker arrives once it is durable.
    pub(super) markers: Vec<Option<Marker>>,
    /// Appliance time at which all that count were held, microseconds since 1970; now, if nobody was.
    pub(super) at_us: u64,
    /// From the first PREPARE to the last RELEASE that was given to a session.
    pub(super) took: Duration,
}

/// Why a member cannot take part in a barrier now; `None`: it can.
pub(super) fn obstacle(member: &Member) -> Option<String> {
    match member.vm.session() {
        None => Some("its splitter is not connected".to_owned()),
        Some(session) if session.protocol < BARRIER => Some(
            "its splitter is of an older version, which takes no part in barriers: upgrade it".to_owned(),
        ),
        Some(_) => None,
    }
}

/// Holds all members that can be held, and lets them go.
pub(super) async fn hold(members: &[Member], wish: &Wish) -> Held {
    let mut running = Running::begin(members, wish).await;
    let quiesced = if wish.quiesces() { running.quiesce().await } else { Vec::new() };
    if wish.strict() && !running.failed.is_empty() {
        // The level cannot be achieved any more: nobody is held in vain.
        for number in 0..members.len() {
            let vain = || "it was not held, because another member could not be".to_owned();
            running.failed.entry(number).or_insert_with(vain);
        }
    }
    running.barrier(quiesced).await
}

struct Running<'a> {
    members: &'a [Member],
    wish: &'a Wish,
    seats: BTreeMap<MemberId, Seat>,
    /// Members that are not held, and why.
    failed: BTreeMap<MemberId, String>,
    heard: mpsc::UnboundedReceiver<(MemberId, Said)>,
    begun: Instant,
    /// Members that know what is wanted.
    told: Vec<bool>,
}

impl<'a> Running<'a> {
    /// Takes the seats of all members that can take part.
    async fn begin(members: &'a [Member], wish: &'a Wish) -> Self {
        let (hearing, heard) = mpsc::unbounded_channel();
        let (mut seats, mut failed) = (BTreeMap::new(), BTreeMap::new());
        let patience = if wish.name.is_empty() { Duration::ZERO } else { BUSY_PATIENCE };
        let deadline = Instant::now() + patience;
        // Always in the same order, so that two points never wait for each other.
        let mut order: Vec<MemberId> = (0..members.len()).collect();
        order.sort_by_key(|number| members.get(*number).map(|member| member.vm.id.0));
        for number in order {
            let Some(member) = members.get(number) else { continue };
            let mut seat = member.vm.take_seat(number, hearing.clone());
            while seat.is_none() && Instant::now() < deadline {
                tokio::time::sleep(BUSY_INTERVAL).await;
                seat = member.vm.take_seat(number, hearing.clone());
            }
            // In this order: a session that ends now is heard of.
            match (seat, obstacle(member)) {
                (Some(seat), None) => drop(seats.insert(number, seat)),
                (_, Some(obstacle)) => drop(failed.insert(number, obstacle)),
                (None, None) => {
                    drop(failed.insert(number, "it was busy with another point".to_owned()));
                }
            }
        }
        let told = vec![false; members.len()];
        Self { members, wish, seats, failed, heard, begun: Instant::now(), told }
    }

    fn now_us(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// Gives an order to a member's session. False when that takes none.
    fn tell(&mut self, number: MemberId, step: BarrierStep) -> bool {
        let (Some(seat), Some(member)) = (self.seats.get(&number), self.members.get(number)) else {
            return false;
        };
        let first = self.told.get_mut(number).is_some_and(|told| !std::mem::replace(told, true));
        seat.order(match first {
            true => orders::first(seat.request_id(), step, member, self.wish),
            false => orders::later(seat.request_id(), step),
        })
    }

    /// Has the freeze hooks of one member after another run. Returns those whose thaw hooks are to run.
    async fn quiesce(&mut self) -> Vec<MemberId> {
        let names: Vec<&str> = self.members.iter().map(|member| member.vm.name.as_str()).collect();
        let deadline = Instant::now() + QUIESCE;
        let mut quiesced = Vec::new();
        for number in hooks::order(&names, &self.wish.set.order) {
            if self.failed.contains_key(&number) {
                continue;
            }
            if self.wish.strict() && !self.failed.is_empty() {
                break;
            }
            if !self.tell(number, BarrierStep::Quiesce) {
                self.failed.insert(number, "its session takes no orders".to_owned());
                continue;
            }
            // Whatever comes of it, its hooks may have run.
            quiesced.push(number);
            self.quiesced(number, deadline).await;
        }
        quiesced
    }

    async fn quiesced(&mut self, number: MemberId, deadline: Instant) {
        while !self.failed.contains_key(&number) {
            match tokio::time::timeout_at(deadline, self.heard.recv()).await {
                Ok(Some((member, Said::Gone(reason)))) => {
                    self.failed.entry(member).or_insert(reason);
                }
                Ok(Some((member, Said::Answer(answer)))) => match orders::meaning(answer) {
                    Some(Meaning::Quiesced) if member == number => return,
                    Some(Meaning::Barrier(Reply::Failed(reason))) => {
                        self.failed.entry(member).or_insert(reason);
                    }
                    _ => {}
                },
                Ok(None) | Err(_) => {
                    self.failed.insert(number, "its freeze hooks took too long".to_owned());
                    self.tell(number, BarrierStep::GiveUp);
                }
            }
        }
    }

    /// Holds those that have not failed, lets them go, and has thaw hooks run.
    async fn barrier(mut self, quiesced: Vec<MemberId>) -> Held {
        let start_us = self.now_us();
        let able: Vec<MemberId> =
            self.seats.keys().copied().filter(|number| !self.failed.contains_key(number)).collect();
        let (mut barrier, mut orders) = Barrier::begin(able, self.wish.limits(), start_us);
        let mut thawing = Thawing::of(quiesced);
        let (mut at_us, mut took_us) = (None, None);
        let outcome = loop {
            let marks = self.give(&mut barrier, orders);
            if at_us.is_none() && (marks || barrier.lets_go()) {
                // All that count hold, and go on until they are told: which is behind this line.
                at_us = Some(now_us());
            }
            if barrier.lets_go() {
                took_us = took_us.or(Some(self.now_us().saturating_sub(start_us)));
                while let Some(member) = thawing.next(self.now_us()) {
                    if !self.tell(member, BarrierStep::Thaw) {
                        thawing.gone(member);
                    }
                }
            }
            if let Some(outcome) = barrier.outcome().filter(|_| thawing.is_over()) {
                break outcome;
            }
            orders = self.listen(&mut barrier, &mut thawing).await;
        };
        let outcomes = (0..self.members.len()).map(|number| match outcome.get(&number) {
            Some(outcome) => outcome.clone(),
            None => Err(self.failed.get(&number).cloned().unwrap_or_default()),
        });
        let outcomes = outcomes.collect();
        let markers = (0..self.members.len()).map(|number| self.seats.get_mut(&number)?.take_marker());
        Held {
            outcomes,
            markers: markers.collect(),
            at_us: at_us.unwrap_or_else(now_us),
            took: Duration::from_micros(took_us.unwrap_or(0)),
        }
    }

    /// Gives the barrier's orders to the sessions. True if MARK was among them.
    fn give(&mut self, barrier: &mut Barrier, orders: Orders) -> bool {
        let (mut queue, mut marks) = (VecDeque::from(orders), false);
        while let Some((number, order)) = queue.pop_front() {
            marks |= order == Order::Mark;
            if !self.tell(number, orders::step(order)) && order != (Order::Release { keep: false }) {
                queue.extend(barrier.gone(number, "its session takes no orders", self.now_us()));
            }
        }
        marks
    }

    /// Waits for the next answer or deadline; gives what is to be told then.
    async fn listen(&mut self, barrier: &mut Barrier, thawing: &mut Thawing) -> Orders {
        let deadlines = [barrier.deadline_us(), thawing.deadline_us()];
        let deadline_us = deadlines.into_iter().flatten().min().unwrap_or(0);
        let deadline = self.begun + Duration::from_micros(deadline_us);
        let heard = tokio::time::timeout_at(deadline, self.heard.recv()).await;
        let now_us = self.now_us();
        match heard {
            Ok(Some((member, Said::Gone(reason)))) => {
                thawing.gone(member);
                barrier.gone(member, &reason, now_us)
            }
            Ok(Some((member, Said::Answer(answer)))) => match orders::meaning(answer) {
                Some(Meaning::Barrier(reply)) => barrier.reply(member, reply, now_us),
                Some(Meaning::Thawed) => {
                    thawing.done(member);
                    Orders::new()
                }
                Some(Meaning::Quiesced) | None => Orders::new(),
            },
            Ok(None) | Err(_) => barrier.tick(now_us),
        }
    }
}
