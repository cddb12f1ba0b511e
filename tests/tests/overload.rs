//! Overload: the appliance stands still, the ring is small. The guest goes on; what was lost is on the timeline.

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

use tidemark_tests::disks::{LoopDisk, read_direct};
use tidemark_tests::oracle::Judge;
use tidemark_tests::site::{Site, skipped};
use tidemark_tests::stamp::{Options, Workload};

const VM: &str = "busy";
/// No write may take longer while the appliance stands still. A tap that waited for it would take seconds; the bound is
/// as wide as the scheduling of two busy cores needs.
const SLOWEST_WRITE: Duration = Duration::from_millis(1000);
/// How long the appliance stands still.
const PAUSE: Duration = Duration::from_secs(4);

#[test]
fn overload_costs_history_and_never_the_application() {
    if skipped("the tap and loop devices") {
        return;
    }
    let mut site = Site::start("overload").unwrap();
    let disk = LoopDisk::create(&site.path().join("disk"), 64 << 20).unwrap();
    let splitter = site.add_splitter(VM, &["--ring-mib", "16", "--spool-mib", "0"]).unwrap();
    let options = Options {
        seed: 21,
        queue_depth: 4,
        largest_sectors: 256,
        rate: 3000,
        duration: Duration::from_secs(300),
        ..Options::default()
    };
    let workload = Workload::open(disk.device(), options).unwrap();
    site.splitter(splitter).unwrap().protect(disk.device(), true).unwrap();
    site.wait_state(VM, "protected", Duration::from_secs(60)).unwrap();
    let gaps_before = site.points(VM).unwrap().gaps.len();
    std::thread::scope(|scope| {
        let _stop = workload.stop_on_drop();
        let run = scope.spawn(|| workload.run().unwrap());
        std::thread::sleep(Duration::from_secs(1));
        let _ = workload.take_slowest();
        let before = workload.progress();
        site.appliance().unwrap().freeze().unwrap();
        std::thread::sleep(PAUSE);
        let during = workload.progress() - before;
        let slowest = workload.take_slowest();
        println!("appliance stopped for {PAUSE:?}: {during} writes, the slowest took {slowest:?}");
        assert!(slowest < SLOWEST_WRITE, "a write waited {slowest:?}");
        assert!(during > 1000, "the workload stood still: {during} writes");
        // It is honest meanwhile: what the splitter cannot capture it says.
        let status = site.splitter(splitter).unwrap().status().unwrap();
        assert!(status["dropped"].as_u64().unwrap() > 0, "{status}");
        assert_eq!(status["ladder"], "dirty-only", "{status}");
        site.appliance().unwrap().thaw().unwrap();
        // Capture and drops of the same sectors interleave: the load goes on until everything is protected again.
        std::thread::sleep(Duration::from_secs(3));
        workload.pause();
        site.wait_state(VM, "protected", Duration::from_secs(90)).unwrap();
        workload.resume();
        std::thread::sleep(Duration::from_secs(2));
        workload.stop();
        assert_eq!(run.join().unwrap().errors, []);
    });
    let history = workload.history();
    site.wait_state(VM, "protected", Duration::from_secs(60)).unwrap();
    let marker = site.bookmark(VM, "end").unwrap();
    site.wait_point(VM, marker, Duration::from_secs(30)).unwrap();
    let gaps = site.points(VM).unwrap().gaps.split_off(gaps_before);
    println!("gaps: {gaps:?}");
    assert!(gaps.iter().any(|gap| gap.cause.to_lowercase().contains("ring")), "the cause is named: {gaps:?}");
    assert!(gaps.iter().all(|gap| !gap.is_open()), "{gaps:?}");
    let judge = Judge { site: &site, vm: VM, disk: 0, history: &history, exact: false };
    let began = Instant::now();
    let judged = judge.random_points(80, 7, marker).unwrap();
    println!("{judged:?} in {:?}", began.elapsed());
    assert!(site.image(VM, 0, "bookmark:end").unwrap() == read_direct(disk.device()).unwrap());
    drop(workload);
    site.finish(&["ring", "drop", "gap", "resync", "dirty"]).unwrap();
}
