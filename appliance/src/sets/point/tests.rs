//! The barrier with a clock and with sessions that a script answers for, without journals.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tidemark_proto::v1::{BarrierAnswer, BarrierStep, Consistency};

use super::hold::{Held, hold};
use super::wish::{Member, Wish};
use crate::catalog::{Pointing, SetRow};
use crate::fleet::{Command, Vm, scripted};
use crate::sets::Set;

/// What members were told, in its order.
type Log = Arc<Mutex<Vec<(String, BarrierStep)>>>;

/// How a member answers a step.
type Script = fn(BarrierStep) -> Option<BarrierStep>;

fn good(step: BarrierStep) -> Option<BarrierStep> {
    Some(if step == BarrierStep::GiveUp { BarrierStep::Failed } else { step })
}

fn member(name: &str, script: Script, log: &Log) -> Member {
    let vm = scripted::vm(name);
    let mut commands = scripted::connect(&vm);
    let (own, log) = (Arc::clone(&vm), Arc::clone(log));
    tokio::spawn(async move {
        while let Some(command) = commands.recv().await {
            let Command::Barrier(order) = command else { continue };
            log.lock().unwrap().push((own.name.clone(), order.step()));
            if let Some(step) = script(order.step()) {
                let request_id = order.request_id;
                own.barrier_answered(BarrierAnswer {
                    request_id,
                    step: step.into(),
                    lsn: 7,
                    ..BarrierAnswer::default()
                });
            }
        }
    });
    Member { vm, bookmark_id: String::new() }
}

fn wish(level: Consistency, allow_lower: bool, order: &[&str]) -> Wish {
    let order = order.iter().map(|pattern| (*pattern).to_owned()).collect();
    let pointing = Pointing { every_us: 0, hold: "free".into(), order };
    let set = Set::of(&SetRow::new("shop".into(), &[], String::new(), 1, &pointing));
    Wish { set, name: "x".into(), level, allow_lower }
}

fn told(log: &Log, step: BarrierStep) -> Vec<String> {
    let log = log.lock().unwrap();
    log.iter().filter(|(_, told)| *told == step).map(|(name, _)| name.clone()).collect()
}

fn held(held: &Held) -> Vec<bool> {
    held.outcomes.iter().map(Result::is_ok).collect()
}

#[tokio::test]
async fn hooks_run_in_the_sets_order_and_thaw_in_reverse_after_all_were_let_go() {
    let log = Log::default();
    let members = ["db-1", "web-1", "queue", "web-2"].map(|name| member(name, good, &log));
    let done = hold(&members, &wish(Consistency::Application, false, &["web-*", "queue"])).await;
    assert_eq!(held(&done), [true; 4]);
    let order = ["web-1", "web-2", "queue", "db-1"];
    assert_eq!(told(&log, BarrierStep::Quiesce), order);
    assert_eq!(told(&log, BarrierStep::Thaw), order.iter().rev().copied().collect::<Vec<_>>());
    let log = log.lock().unwrap();
    let last = |step| log.iter().rposition(|(_, told)| *told == step).unwrap();
    let first = |step| log.iter().position(|(_, told)| *told == step).unwrap();
    assert!(last(BarrierStep::Quiesce) < first(BarrierStep::Prepare));
    assert!(last(BarrierStep::Mark) < first(BarrierStep::Release));
    for name in order {
        // What one of them got says nothing of when another did.
        let own = log.iter().filter(|(told, _)| told == name).map(|(_, step)| *step);
        assert!(own.is_sorted(), "{name}: {log:?}");
    }
}

#[tokio::test]
async fn hooks_that_fail_hold_nobody_unless_a_lower_level_will_do() {
    let fails: Script = |step| {
        good(step).map(|step| match step {
            BarrierStep::Quiesce => BarrierStep::Failed,
            step => step,
        })
    };
    let log = Log::default();
    let members = [member("a", good, &log), member("b", fails, &log), member("c", good, &log)];
    let done = hold(&members, &wish(Consistency::Application, false, &[])).await;
    assert_eq!(held(&done), [false; 3]);
    assert!(told(&log, BarrierStep::Prepare).is_empty(), "nobody is held in vain");
    assert_eq!(told(&log, BarrierStep::Quiesce), ["a", "b"]);
    assert_eq!(told(&log, BarrierStep::Thaw), ["b", "a"]);
    let done = hold(&members, &wish(Consistency::Application, true, &[])).await;
    assert_eq!(held(&done), [true, false, true]);
    assert_eq!(told(&log, BarrierStep::Thaw), ["b", "a", "c", "b", "a"]);
}

#[tokio::test]
async fn who_is_silent_is_left_out_and_told_to_give_up() {
    let silent: Script = |step| good(step).filter(|step| *step != BarrierStep::Prepare);
    let log = Log::default();
    let members = [member("a", good, &log), member("b", silent, &log)];
    let done = hold(&members, &wish(Consistency::Crash, true, &[])).await;
    assert_eq!(held(&done), [true, false]);
    assert_eq!(told(&log, BarrierStep::GiveUp), ["b"]);
    assert!(done.took < Duration::from_secs(1), "{:?}", done.took);
    assert_eq!(told(&log, BarrierStep::Thaw), [""; 0], "no hooks ran");
    assert!(members[0].vm.take_seat(0, tokio::sync::mpsc::unbounded_channel().0).is_some(), "free again");
}

#[tokio::test]
async fn a_member_that_is_busy_or_gone_is_named_and_the_others_need_it_for_nothing() {
    let log = Log::default();
    let members = [member("a", good, &log), member("b", good, &log), member("c", good, &log)];
    let _busy = members[1].vm.take_seat(0, tokio::sync::mpsc::unbounded_channel().0).unwrap();
    let gone: &Arc<Vm> = &members[2].vm;
    gone.end_session(1, "reset");
    let automatic = Wish { name: String::new(), ..wish(Consistency::Crash, true, &[]) };
    let done = hold(&members, &automatic).await;
    assert_eq!(held(&done), [true, false, false]);
    let reasons: Vec<_> = done.outcomes.iter().filter_map(|outcome| outcome.as_ref().err()).collect();
    assert!(reasons[0].contains("another point") && reasons[1].contains("not connected"), "{reasons:?}");
}

/// From the first PREPARE to the last RELEASE given to a session, with members that answer at once: what a hold costs besides
/// the network and the holding itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_appliances_own_part_of_a_hold_is_short() {
    println!("{:>8} {:>10} {:>10} {:>10}", "members", "p50 us", "p99 us", "max us");
    for (count, rounds, goal) in [
        (2, 300, Duration::from_millis(1)),
        (16, 300, Duration::from_millis(1)),
        (64, 200, Duration::from_millis(10)),
        (256, 100, Duration::from_millis(10)),
    ] {
        let log = Log::default();
        let members: Vec<Member> =
            (0..count).map(|number| member(&format!("vm-{number}"), good, &log)).collect();
        let mut took = Vec::new();
        for _ in 0..rounds {
            let done = hold(&members, &wish(Consistency::Crash, false, &[])).await;
            assert!(done.outcomes.iter().all(Result::is_ok));
            took.push(done.took);
        }
        took.sort_unstable();
        let at = |percent: usize| took[(took.len() * percent / 100).min(took.len() - 1)];
        let us = |time: Duration| time.as_micros();
        println!("{count:>8} {:>10} {:>10} {:>10}", us(at(50)), us(at(99)), us(at(100)));
        // The machine is shared: what the tail is depends on others, too.
        assert!(at(50) <= goal, "{count} members: {:?}", at(50));
    }
}
