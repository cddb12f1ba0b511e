//! Between the barrier and the words of the protocol.

use tidemark_proto::ids::Lsn;
use tidemark_proto::v1::{BarrierAnswer, BarrierOrder, BarrierStep, Consistency, HoldMethod};

use super::wish::{Member, Wish};
use crate::sets::barrier::{Order, Placed, Reply};

/// The step that an order is.
pub(super) fn step(order: Order) -> BarrierStep {
    match order {
        Order::Prepare { .. } => BarrierStep::Prepare,
        Order::Mark => BarrierStep::Mark,
        Order::Release { keep: true } => BarrierStep::Release,
        Order::Release { keep: false } => BarrierStep::GiveUp,
    }
}

/// A step that is not the first of its barrier.
pub(super) fn later(request_id: u64, step: BarrierStep) -> BarrierOrder {
    BarrierOrder { request_id, step: step.into(), ..BarrierOrder::default() }
}

/// The first step, which says what is wanted.
pub(super) fn first(request_id: u64, step: BarrierStep, member: &Member, wish: &Wish) -> BarrierOrder {
    BarrierOrder {
        bookmark_id: member.bookmark_id.clone(),
        name: wish.name.clone(),
        hold_ms: u32::try_from(wish.limits().hold_us / 1000).unwrap_or(u32::MAX),
        consistency: wish.level.or_crash().into(),
        allow_lower: wish.allow_lower,
        freeze: wish.freeze(),
        ..later(request_id, step)
    }
}

/// What an answer means.
#[derive(Debug)]
pub(super) enum Meaning {
    Quiesced,
    Thawed,
    Barrier(Reply),
}

/// Reads an answer, which the session has checked.
pub(super) fn meaning(answer: BarrierAnswer) -> Option<Meaning> {
    let placed = Placed {
        lsn: Lsn(answer.lsn),
        hold_us: answer.hold_us,
        method: HoldMethod::try_from(answer.method).unwrap_or_default(),
        level: Consistency::try_from(answer.consistency).unwrap_or_default().or_crash(),
        reason: printable(&answer.lower_reason),
    };
    Some(match BarrierStep::try_from(answer.step).ok()? {
        BarrierStep::Quiesce => Meaning::Quiesced,
        BarrierStep::Thaw => Meaning::Thawed,
        BarrierStep::Prepare => Meaning::Barrier(Reply::Held),
        BarrierStep::Mark => Meaning::Barrier(Reply::Marked),
        BarrierStep::Release => Meaning::Barrier(Reply::Released(placed)),
        BarrierStep::Failed => Meaning::Barrier(Reply::Failed(printable(&answer.reason))),
        BarrierStep::Unspecified | BarrierStep::GiveUp => return None,
    })
}

fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).collect()
}

/// The word for what held a member.
pub(super) fn method_word(method: HoldMethod) -> &'static str {
    match method {
        // A version that does not say is believed the least.
        HoldMethod::Unspecified | HoldMethod::Freeze => "freeze",
        HoldMethod::Suspend => "suspend",
        HoldMethod::Gate => "gate",
    }
}
