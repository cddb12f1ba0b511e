//! A VM's seat in a barrier: where its splitter's answers go while one runs. A VM has one at a time.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use tidemark_proto::v1::{BarrierAnswer, BarrierOrder};
use tokio::sync::{mpsc, oneshot};

use super::vm::MarkerOutcome;
use super::{Command, Vm};

/// Answers of one VM to one barrier at most: one to each of its six orders, and one that the hold broke. Further ones are
/// ignored.
const ANSWERS_MAX: u32 = 7;

/// Bookmarks of one VM that are not wanted any more and whose markers may still come, at most; of more the oldest is forgotten, and
/// would stay as a bookmark of that VM alone. Each is of a point that was asked for and failed, at most one a second.
const UNWANTED_MAX: usize = 64;

/// What a seat hears.
#[derive(Debug)]
pub enum Said {
    /// The splitter's answer to an order.
    Answer(BarrierAnswer),
    /// Its session ended, for this reason.
    Gone(String),
}

/// What a VM's seats hear, with the number that whoever runs the barrier gave the seat.
pub type Hearing = mpsc::UnboundedSender<(usize, Said)>;

/// Who is to hear of answers.
#[derive(Debug)]
struct Taken {
    request_id: u64,
    number: usize,
    hearing: Hearing,
    answers_left: u32,
}

/// The VM's side.
#[derive(Debug, Default)]
pub(super) struct Place {
    taken: Mutex<Option<Taken>>,
    unwanted: Mutex<VecDeque<String>>,
}

/// Held by whoever runs a barrier; free again when dropped.
#[derive(Debug)]
pub struct Seat {
    vm: Arc<Vm>,
    request_id: u64,
    marker: Option<oneshot::Receiver<MarkerOutcome>>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Ok(mut taken) = self.vm.barrier.taken.lock() {
            taken.take_if(|taken| taken.request_id == self.request_id);
        }
    }
}

impl Seat {
    /// Names the barrier in orders to this VM.
    #[must_use]
    pub fn request_id(&self) -> u64 {
        self.request_id
    }

    /// Where the marker of this barrier arrives once it is durable, or why it does not: to be taken once.
    pub fn take_marker(&mut self) -> Option<oneshot::Receiver<MarkerOutcome>> {
        self.marker.take()
    }

    /// Gives the VM's session an order to send. False when there is none that takes it.
    #[must_use]
    pub fn order(&self, order: BarrierOrder) -> bool {
        self.vm.session().is_some_and(|session| session.commands.try_send(Command::Barrier(order)).is_ok())
    }
}

impl Vm {
    /// Takes the seat; what is heard goes to `hearing` with `number`. `None` while another barrier has it.
    #[must_use]
    pub fn take_seat(self: &Arc<Self>, number: usize, hearing: Hearing) -> Option<Seat> {
        let mut taken = self.barrier.taken.lock().ok()?;
        if taken.is_some() {
            return None;
        }
        let (request_id, marker) = self.expect_marker().ok()?;
        *taken = Some(Taken { request_id, number, hearing, answers_left: ANSWERS_MAX });
        drop(taken);
        Some(Seat { vm: Arc::clone(self), request_id, marker: Some(marker) })
    }

    /// Tells who runs the barrier; an answer that nobody waits for is ignored.
    pub(crate) fn barrier_answered(&self, answer: BarrierAnswer) {
        let Ok(mut taken) = self.barrier.taken.lock() else { return };
        if let Some(taken) = taken.as_mut().filter(|taken| taken.request_id == answer.request_id)
            && taken.answers_left > 0
        {
            taken.answers_left -= 1;
            // Whoever ran it may have just ended.
            let _ = taken.hearing.send((taken.number, Said::Answer(answer)));
        }
    }

    /// The session ended, and with it what its splitter held.
    pub(super) fn barrier_gone(&self, reason: &str) {
        let Ok(taken) = self.barrier.taken.lock() else { return };
        if let Some(taken) = taken.as_ref() {
            let _ = taken.hearing.send((taken.number, Said::Gone(reason.to_owned())));
        }
    }

    /// A bookmark whose marker may still come is not wanted any more.
    pub(crate) fn forget_bookmark(&self, id: &str) {
        let Ok(mut unwanted) = self.barrier.unwanted.lock() else { return };
        if unwanted.len() >= UNWANTED_MAX {
            unwanted.pop_front();
        }
        unwanted.push_back(id.to_owned());
    }

    /// Whether a bookmark that came is not wanted any more.
    pub(crate) fn forgets_bookmark(&self, id: &str) -> bool {
        self.barrier.unwanted.lock().is_ok_and(|unwanted| unwanted.iter().any(|known| known == id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::scripted;

    #[test]
    fn one_barrier_at_a_time_and_only_its_own_answers_are_heard() {
        let (vm, (hearing, mut heard)) = (scripted::vm("a"), mpsc::unbounded_channel());
        let seat = vm.take_seat(3, hearing.clone()).unwrap();
        assert!(vm.take_seat(4, hearing.clone()).is_none());
        let answer = |request_id| BarrierAnswer { request_id, ..BarrierAnswer::default() };
        vm.barrier_answered(answer(seat.request_id() + 1));
        assert!(heard.try_recv().is_err(), "another barrier's");
        for _ in 0..100 {
            vm.barrier_answered(answer(seat.request_id()));
        }
        vm.barrier_gone("reset");
        let mut numbers = Vec::new();
        while let Ok((number, _)) = heard.try_recv() {
            numbers.push(number);
        }
        assert_eq!(numbers, vec![3; ANSWERS_MAX as usize + 1], "no more answers than orders, and the end");
        let old = seat.request_id();
        drop(seat);
        let next = vm.take_seat(5, hearing).unwrap();
        assert!(next.request_id() > old);
        vm.barrier_answered(answer(old));
        assert!(heard.try_recv().is_err(), "late");
    }
}
