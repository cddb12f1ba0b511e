//! Oracle 3: the splitter and the appliance are killed at random under load, and nothing acknowledged is lost.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test states what must hold and stops where it does not"
)]

use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tidemark_tests::disks::{LoopDisk, read_direct};
use tidemark_tests::oracle::Judge;
use tidemark_tests::site::{Site, large, skipped};
use tidemark_tests::stamp::{Options, Workload};

const VM: &str = "victim";
/// A splitter reconnects with a growing pause between attempts.
const RECONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// What a dying peer or a restarted one may say.
const EXPECTED: &[&str] = &[
    "connect",
    "Connect",
    "reset",
    "broken pipe",
    "closed",
    "unavailable",
    "Unavailable",
    "transport",
    "recover",
    "torn",
    "retry",
    "killed",
    "session",
    "stream",
];

fn acked(site: &mut Site, splitter: usize) -> u64 {
    let status = site.splitter(splitter).unwrap().status().unwrap();
    status["acked_lsn"].as_u64().unwrap_or_else(|| panic!("no acked_lsn in {status}"))
}

/// Waits until more is acknowledged than before the kill: the stream goes on.
fn wait_progress(site: &mut Site, splitter: usize, before: u64) {
    let began = Instant::now();
    while acked(site, splitter) <= before {
        assert!(began.elapsed() < RECONNECT_TIMEOUT, "nothing acknowledged since LSN {before}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn thirty_kills_each_of_appliance_and_splitter_lose_nothing() {
    if skipped("the tap and loop devices") {
        return;
    }
    let rounds = if large() { 300 } else { 30 };
    let mut site = Site::start("kills").unwrap();
    let disk = LoopDisk::create(&site.path().join("disk"), 32 << 20).unwrap();
    let splitter = site.add_splitter(VM, &["--ring-mib", "256"]).unwrap();
    let options = Options {
        seed: 31,
        queue_depth: 4,
        rate: 400,
        largest_sectors: 256,
        duration: Duration::from_secs(3600),
        ..Options::default()
    };
    let workload = Workload::open(disk.device(), options).unwrap();
    site.splitter(splitter).unwrap().protect(disk.device(), true).unwrap();
    site.wait_state(VM, "protected", Duration::from_secs(60)).unwrap();
    let gaps_before = site.points(VM).unwrap().gaps.len();
    let mut random = StdRng::seed_from_u64(5);
    std::thread::scope(|scope| {
        let _stop = workload.stop_on_drop();
        let run = scope.spawn(|| workload.run().unwrap());
        let mut kills = (0..2 * rounds).map(|round| round % 2 == 0).collect::<Vec<_>>();
        for index in (1..kills.len()).rev() {
            kills.swap(index, random.random_range(0..=index));
        }
        for (round, kill_appliance) in kills.into_iter().enumerate() {
            std::thread::sleep(Duration::from_millis(random.random_range(30..300)));
            let before = acked(&mut site, splitter);
            if kill_appliance {
                site.kill_appliance().unwrap();
                std::thread::sleep(Duration::from_millis(random.random_range(0..200)));
                site.start_appliance().unwrap();
                // What was acknowledged to the splitter is durable: the appliance that comes back knows it.
                let durable = site.vm(VM).unwrap()["durable_lsn"].as_u64().unwrap();
                assert!(
                    durable >= before,
                    "round {round}: LSN {before} was acknowledged, {durable} is durable"
                );
            } else {
                site.splitter(splitter).unwrap().kill().unwrap();
                std::thread::sleep(Duration::from_millis(random.random_range(0..200)));
                site.splitter(splitter).unwrap().start().unwrap();
            }
            wait_progress(&mut site, splitter, before);
        }
        workload.stop();
        assert_eq!(run.join().unwrap().errors, []);
    });
    let history = workload.history();
    site.wait_state(VM, "protected", Duration::from_secs(60)).unwrap();
    let marker = site.bookmark(VM, "end").unwrap();
    let judge = Judge { site: &site, vm: VM, disk: 0, history: &history, exact: false };
    let judged = judge.random_points(if large() { 500 } else { 60 }, 6, marker).unwrap();
    let gaps = site.points(VM).unwrap().gaps;
    println!("{judged:?} of {} writes; gaps: {gaps:?}", history.operations.len());
    // The tap and its ring outlive the splitter: the initial copy is never repeated.
    for gap in &gaps[gaps_before..] {
        let cause = gap.cause.to_lowercase();
        assert!(
            !cause.contains("initial") && !cause.contains("capture"),
            "a full copy was repeated: {gap:?}"
        );
        assert!(!gap.is_open(), "{gap:?}");
    }
    assert!(site.image(VM, 0, "bookmark:end").unwrap() == read_direct(disk.device()).unwrap());
    drop(workload);
    site.finish(EXPECTED).unwrap();
}
