//! This splitter's part in a barrier: one moment across the machines of a set.
//!
//! The appliance orders each step; the hold's thread waits for the next one with everything held, the worker reserves the
//! place at once when MARK comes. What comes late, twice or unasked is refused, and whenever the session ends all is let go.

use std::collections::VecDeque;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use tidemark_proto::limits::{HOLD_MAX_MS, QUIESCE_MAX_MS};
use tidemark_proto::v1::{BarrierAnswer, BarrierOrder, BarrierStep, HoldMethod};
use tidemark_splitter_core::engine::{Achieved, MarkerRequest, Place};

use super::super::command::Command;
use super::super::handle::Handle;
use super::super::protection::Protection;
use super::Worker;
use crate::hold::{Conduct, Gated, Hold, Taken};

/// For how long an automatic point is told the reason of the last one why nothing can be held here. Swap or a raw user seldom
/// goes away, and to look for them is a walk over all processes.
const LOOKED_AGAIN: Duration = Duration::from_secs(60);

/// Barriers of this splitter.
#[derive(Debug, Default)]
pub(super) struct Barriers {
    running: Option<Running>,
    /// Why nothing could be held last, whether file systems might have been frozen, and when that was.
    in_the_way: Option<(String, bool, Instant)>,
    /// Held and let go; the reader of the ring has not come to their places yet.
    passed: Vec<BarrierAnswer>,
    /// To be sent.
    pub(super) answers: VecDeque<BarrierAnswer>,
}

#[derive(Debug)]
struct Running {
    request: MarkerRequest,
    /// What was done last; UNSPECIFIED at first.
    done: BarrierStep,
    /// Freeze hooks were asked for, so THAW is answered.
    with_hooks: bool,
    /// File systems may be frozen.
    freeze: bool,
    /// To the hold's thread.
    wishes: mpsc::Sender<Wish>,
}

/// What the hold's thread is to do next.
#[derive(Debug)]
enum Wish {
    Hold,
    LetGo(Place),
    GiveUp,
    Thaw,
}

impl Barriers {
    /// A marker has its place: the answer to RELEASE. False when it is of no barrier.
    pub(super) fn placed(&mut self, request_id: u64, lsn: u64) -> bool {
        let Some(answer) = self.take_passed(request_id) else { return false };
        self.answers.push_back(BarrierAnswer { lsn, ..answer });
        true
    }

    /// A marker has no place. False when it is of no barrier.
    pub(super) fn failed(&mut self, request_id: u64, reason: &str) -> bool {
        let of_barrier = self.take_passed(request_id).is_some();
        if of_barrier {
            self.fail(request_id, reason.to_owned());
        }
        of_barrier
    }

    fn take_passed(&mut self, request_id: u64) -> Option<BarrierAnswer> {
        let index = self.passed.iter().position(|answer| answer.request_id == request_id)?;
        Some(self.passed.swap_remove(index))
    }

    fn fail(&mut self, request_id: u64, reason: String) {
        let step = BarrierStep::Failed.into();
        self.answers.push_back(BarrierAnswer { request_id, step, reason, ..BarrierAnswer::default() });
    }

    /// The session ended: who ordered it knows nothing of it any more.
    pub(super) fn disconnected(&mut self) {
        if let Some(running) = &self.running {
            let _ = running.wishes.send(Wish::GiveUp);
        }
        self.passed.clear();
        self.answers.clear();
    }

    /// Why an automatic point need not look whether writers can be held.
    fn known_obstacle(&self, order: &BarrierOrder) -> Option<String> {
        let (reason, freeze, at) = self.in_the_way.as_ref()?;
        let same = order.name.is_empty() && *freeze == order.freeze && at.elapsed() < LOOKED_AGAIN;
        same.then(|| reason.clone())
    }

    fn running(&mut self, request_id: u64) -> Option<&mut Running> {
        self.running.as_mut().filter(|running| running.request.request_id == request_id)
    }
}

impl Worker {
    /// The appliance orders a step.
    pub(super) fn barrier_order(&mut self, order: BarrierOrder) {
        let (request_id, step) = (order.request_id, order.step());
        let Some(running) = self.barriers.running(request_id) else {
            return match step {
                BarrierStep::Quiesce | BarrierStep::Prepare => self.begin_barrier(order),
                // Nothing is held, and nothing is owed.
                BarrierStep::GiveUp => {}
                BarrierStep::Thaw => {
                    let answer = BarrierAnswer { request_id, step: step.into(), ..BarrierAnswer::default() };
                    self.barriers.answers.push_back(answer);
                }
                _ => self.barriers.fail(request_id, "the hold is over".to_owned()),
            };
        };
        let wish = match (step, running.done) {
            (BarrierStep::Prepare, BarrierStep::Quiesce) => Wish::Hold,
            (BarrierStep::Mark, BarrierStep::Prepare) => return self.mark(request_id),
            (BarrierStep::Release, BarrierStep::Mark) => {
                let Some(place) = self.bookmarks.reserved() else { return };
                running.done = BarrierStep::Release;
                Wish::LetGo(place)
            }
            (BarrierStep::Thaw, _) => Wish::Thaw,
            // Given up, or out of order, which counts as that.
            _ => Wish::GiveUp,
        };
        let _ = running.wishes.send(wish);
    }

    fn begin_barrier(&mut self, order: BarrierOrder) {
        let request_id = order.request_id;
        let obstacle = if self.bookmarks.holding {
            Some("another point is being taken")
        } else if order.hold_ms == 0 || order.hold_ms > HOLD_MAX_MS {
            Some("the hold is too long for this version")
        } else {
            self.obstacle()
        };
        let obstacle = obstacle.map(str::to_owned).or_else(|| self.barriers.known_obstacle(&order));
        if let Some(obstacle) = obstacle {
            return self.barriers.fail(request_id, obstacle);
        }
        let gates = self.gates.list();
        let hold = Hold {
            disks: self.protection.as_ref().map(Protection::disks).unwrap_or_default(),
            wanted: order.consistency().or_crash(),
            allow_lower: order.allow_lower,
            freeze: order.freeze,
            gates: gates.iter().map(|gate| Gated::new(gate.name.clone(), &gate.page)).collect(),
            at_most: Duration::from_millis(order.hold_ms.into()),
            hooks: self.bookmarks.hooks.clone(),
        };
        let with_hooks = order.step() == BarrierStep::Quiesce;
        let (wishes, queue) = mpsc::channel();
        let member = Member {
            worker: self.handle.clone(),
            request_id,
            at_most: hold.at_most,
            wishes: queue,
            waits_for_prepare: with_hooks,
        };
        if let Err(reason) = self.start_holder(hold, member) {
            return self.barriers.fail(request_id, reason);
        }
        self.bookmarks.holding = true;
        let BarrierOrder { bookmark_id, name, freeze, .. } = order;
        let request = MarkerRequest { request_id, bookmark_id, name, achieved: Achieved::default() };
        let done = BarrierStep::Unspecified;
        self.barriers.running = Some(Running { request, done, with_hooks, freeze, wishes });
    }

    /// A step was done: said to the appliance.
    fn did(&mut self, request_id: u64, step: BarrierStep, answer: BarrierAnswer) {
        if let Some(running) = self.barriers.running(request_id) {
            running.done = step;
            self.barriers.answers.push_back(BarrierAnswer { request_id, step: step.into(), ..answer });
        }
    }

    /// The freeze hooks ran.
    pub(super) fn quiesced(&mut self, request_id: u64, problem: Option<String>) {
        let lower_reason = problem.unwrap_or_default();
        self.did(
            request_id,
            BarrierStep::Quiesce,
            BarrierAnswer { lower_reason, ..BarrierAnswer::default() },
        );
    }

    /// Everything is held.
    pub(super) fn stands_still(&mut self, request_id: u64, method: HoldMethod) {
        let method = method.into();
        self.did(request_id, BarrierStep::Prepare, BarrierAnswer { method, ..BarrierAnswer::default() });
    }

    fn mark(&mut self, request_id: u64) {
        match self.reserve() {
            Ok(_) => self.did(request_id, BarrierStep::Mark, BarrierAnswer::default()),
            Err(reason) => {
                self.barriers.fail(request_id, reason);
                if let Some(running) = self.barriers.running(request_id) {
                    let _ = running.wishes.send(Wish::GiveUp);
                }
            }
        }
    }

    /// Everything was let go.
    pub(super) fn barrier_held(&mut self, request_id: u64, taken: Taken) {
        let Taken { place, whole, method, achieved } = taken;
        self.give_back_all_but(place);
        let Some(running) = self.barriers.running(request_id) else { return };
        let request = MarkerRequest { achieved: achieved.clone(), ..running.request.clone() };
        tracing::debug!(
            request_id,
            whole,
            hold_us = achieved.hold_us,
            reason = achieved.reason,
            "held for a set"
        );
        match place.filter(|_| whole) {
            Some(place) => {
                self.barriers.passed.push(BarrierAnswer {
                    request_id,
                    step: BarrierStep::Release.into(),
                    hold_us: achieved.hold_us,
                    method: method.into(),
                    consistency: achieved.consistency.into(),
                    lower_reason: achieved.reason,
                    ..BarrierAnswer::default()
                });
                self.engine.settle_place(place, Some(request));
            }
            None => {
                if let Some(place) = place {
                    self.engine.settle_place(place, None);
                }
                // Not everything could be held.
                if running.done == BarrierStep::Unspecified && !running.with_hooks {
                    let freeze = running.freeze;
                    self.barriers.in_the_way = Some((achieved.reason.clone(), freeze, Instant::now()));
                }
                self.barriers.fail(request_id, achieved.reason);
            }
        }
    }

    /// The hold's thread ended.
    pub(super) fn barrier_over(&mut self, failed: &[String]) {
        let Some(running) = self.barriers.running.take() else { return };
        if running.with_hooks {
            let (request_id, step) = (running.request.request_id, BarrierStep::Thaw.into());
            let reason = failed.join("; ").chars().take(THAW_REASON_MAX_CHARS).collect();
            let answer = BarrierAnswer { request_id, step, reason, ..BarrierAnswer::default() };
            self.barriers.answers.push_back(answer);
        }
    }
}

/// Characters of what failed in thaw hooks that are told at most: a text of the protocol holds any of them.
const THAW_REASON_MAX_CHARS: usize = 256;

/// The hold's own end of a barrier.
struct Member {
    worker: Handle,
    request_id: u64,
    at_most: Duration,
    wishes: mpsc::Receiver<Wish>,
    /// PREPARE is an order of its own, after the hooks.
    waits_for_prepare: bool,
}

impl Member {
    /// The next wish, if it comes in time.
    fn next(&self, patience: Duration) -> Result<Wish, String> {
        match self.wishes.recv_timeout(patience) {
            Ok(Wish::GiveUp) => Err("the appliance gave it up, or was lost".to_owned()),
            Ok(wish) => Ok(wish),
            Err(_) => Err("the appliance's next order did not come in time".to_owned()),
        }
    }
}

impl Conduct for Member {
    fn quiesced(&mut self, problem: Option<&str>) -> Result<(), String> {
        if !self.waits_for_prepare {
            return Ok(());
        }
        let (request_id, problem) = (self.request_id, problem.map(str::to_owned));
        self.worker.send(Command::Quiesced { request_id, problem });
        match self.next(Duration::from_millis(QUIESCE_MAX_MS.into()))? {
            Wish::Hold => Ok(()),
            _ => Err("an order came before its time".to_owned()),
        }
    }

    fn still_wanted(&mut self) -> Result<(), String> {
        match self.wishes.try_recv() {
            Err(mpsc::TryRecvError::Empty) => Ok(()),
            _ => Err("the appliance gave it up, or was lost".to_owned()),
        }
    }

    fn held(&mut self, method: HoldMethod) -> Result<Place, String> {
        self.worker.send(Command::StandsStill { request_id: self.request_id, method });
        match self.next(self.at_most)? {
            Wish::LetGo(place) => Ok(place),
            _ => Err("an order came before its time".to_owned()),
        }
    }

    fn settled(&mut self, taken: Taken) {
        self.worker.send(Command::BarrierHeld { request_id: self.request_id, taken });
    }

    fn thaws(&mut self) {
        // The watchdog does not wait for longer either.
        let until = Instant::now() + Duration::from_millis(QUIESCE_MAX_MS.into());
        while let Ok(wish) = self.next(until.saturating_duration_since(Instant::now())) {
            if matches!(wish, Wish::Thaw) {
                return;
            }
        }
    }
}
