//! Oracle 1, end to end: for random points of a stamped raw-disk run, the recovered image is exactly what the history
//! allows.

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

use std::time::Duration;

use tidemark_tests::disks::{LoopDisk, SlowDisk, read_direct};
use tidemark_tests::oracle::Judge;
use tidemark_tests::site::{Site, large, skipped};
use tidemark_tests::stamp::{Checker, Options, Workload};

const VM: &str = "oracle";
/// An initial copy of the disks here takes a second or two.
const PROTECT_TIMEOUT: Duration = Duration::from_secs(90);

fn points(ci: usize) -> usize {
    if large() { ci * 20 } else { ci }
}

/// One write at a time, none larger than a request: every point is an exact list of writes.
#[test]
fn every_point_is_an_exact_prefix_at_queue_depth_1() {
    if skipped("the tap and loop devices") {
        return;
    }
    let mut site = Site::start("exact").unwrap();
    let disk = LoopDisk::create(&site.path().join("disk"), 32 << 20).unwrap();
    let splitter = site.add_splitter(VM, &["--ring-mib", "64"]).unwrap();
    let options = Options {
        seed: 11,
        largest_sectors: 128,
        zeroes_alignment_sectors: 8,
        rate: 1500,
        duration: Duration::from_secs(120),
        ..Options::default()
    };
    let workload = Workload::open(disk.device(), options).unwrap();
    std::thread::scope(|scope| {
        let _stop = workload.stop_on_drop();
        let run = scope.spawn(|| workload.run().unwrap());
        // Protected while it is busy: the initial copy runs below the writes.
        while workload.progress() < 1000 {
            std::thread::sleep(Duration::from_millis(10));
        }
        site.splitter(splitter).unwrap().protect(disk.device(), false).unwrap();
        site.wait_state(VM, "protected", PROTECT_TIMEOUT).unwrap();
        // The list of writes is known exactly from the start of the last window on: an honest gap (a completion that
        // this kernel hid from the tap) begins a new one, and the load goes on until that is long enough.
        let wanted = if large() { 60_000 } else { 9_000 };
        let newest =
            || site.points(VM).unwrap().windows.last().map_or(0, |window| window.to_lsn - window.from_lsn);
        while newest() < wanted && !run.is_finished() {
            std::thread::sleep(Duration::from_millis(250));
        }
        workload.stop();
        let report = run.join().unwrap();
        assert_eq!(report.errors, []);
    });
    let history = workload.history();
    let marker = site.bookmark(VM, "end").unwrap();
    let judge = Judge { site: &site, vm: VM, disk: 0, history: &history, exact: true };
    let judged = judge.random_points(points(180), 1, marker).unwrap();
    println!("{judged:?} of {} writes", history.operations.len());
    assert_eq!(judged.points, points(180));
    assert!(judged.exact >= judged.points * 9 / 10, "{judged:?}");
    assert!(judged.most - judged.fewest > 5000, "the points are spread: {judged:?}");
    // Inside the gap of the initial copy there is nothing to recover, and the refusal says where there is.
    let gaps = site.points(VM).unwrap().gaps;
    let gap = gaps.first().expect("the initial copy is on the timeline");
    let inside = format!("lsn:{}", gap.from_lsn);
    let refusal = site.cli_refused(&["export", VM, "--at", &inside]).unwrap();
    let after = gap.to_lsn.expect("closed");
    assert!(refusal.contains(&after.to_string()), "{refusal} should name LSN {after}");
    drop(workload);
    site.finish(&[]).unwrap();
}

/// Many writes in flight, up to 1 MiB, with zeroings and discards: every point is a state that can have existed, and
/// the last one is the disk itself. Points are read while the load goes on, too.
#[test]
fn every_point_is_a_legal_state_at_queue_depth_8() {
    if skipped("the tap and loop devices") {
        return;
    }
    let mut site = Site::start("deep").unwrap();
    let disk = LoopDisk::create(&site.path().join("disk"), 32 << 20).unwrap();
    let splitter = site.add_splitter(VM, &["--ring-mib", "128"]).unwrap();
    let options = Options {
        seed: 12,
        queue_depth: 8,
        rate: 800,
        zeroes_percent: 5,
        duration: Duration::from_secs(120),
        ..Options::default()
    };
    let workload = Workload::open(disk.device(), options).unwrap();
    std::thread::scope(|scope| {
        let _stop = workload.stop_on_drop();
        let run = scope.spawn(|| workload.run().unwrap());
        while workload.progress() < 500 {
            std::thread::sleep(Duration::from_millis(10));
        }
        site.splitter(splitter).unwrap().protect(disk.device(), true).unwrap();
        site.wait_state(VM, "protected", PROTECT_TIMEOUT).unwrap();
        // Everything that was complete before the bookmark was asked for is in it.
        let complete = workload.tick();
        let early = site.bookmark(VM, "under-load").unwrap();
        site.wait_point(VM, early, Duration::from_secs(30)).unwrap();
        let image = site.image(VM, 0, "bookmark:under-load").unwrap();
        Checker::new(&workload.history()).check(&image, complete).unwrap();
        let wanted = workload.progress() + if large() { 40_000 } else { 4_000 };
        while workload.progress() < wanted {
            std::thread::sleep(Duration::from_millis(10));
        }
        workload.stop();
        assert_eq!(run.join().unwrap().errors, []);
    });
    let history = workload.history();
    let marker = site.bookmark(VM, "end").unwrap();
    let judge = Judge { site: &site, vm: VM, disk: 0, history: &history, exact: false };
    let judged = judge.random_points(points(150), 2, marker).unwrap();
    println!("{judged:?} of {} operations", history.operations.len());
    assert_eq!(judged.points, points(150));
    let last = site.image(VM, 0, "bookmark:end").unwrap();
    assert!(last == read_direct(disk.device()).unwrap(), "the last point is the disk itself");
    drop(workload);
    site.finish(&[]).unwrap();
}

/// On a disk with slow writes and fast reads, blocks read by the initial copy are older than writes captured before the
/// read: stamped naively they would hide those writes.
#[test]
fn initial_copy_is_exact_on_a_disk_with_slow_writes_and_fast_reads() {
    if skipped("the tap and loop devices") {
        return;
    }
    if let Some(reason) = SlowDisk::unavailable() {
        eprintln!("skipped: {reason}");
        return;
    }
    let mut site = Site::start("slow").unwrap();
    let disk = SlowDisk::create(&site.path().join("disk"), 16 << 20, 400).unwrap();
    let splitter = site.add_splitter(VM, &["--ring-mib", "64"]).unwrap();
    let options = Options {
        seed: 13,
        queue_depth: 16,
        largest_sectors: 64,
        zeroes_percent: 0,
        duration: Duration::from_secs(120),
        ..Options::default()
    };
    let workload = Workload::open(disk.device(), options).unwrap();
    std::thread::scope(|scope| {
        let _stop = workload.stop_on_drop();
        let run = scope.spawn(|| {
            let _slow = disk.enter().unwrap();
            workload.run().unwrap()
        });
        while workload.progress() < 400 {
            std::thread::sleep(Duration::from_millis(10));
        }
        site.splitter(splitter).unwrap().protect(disk.device(), false).unwrap();
        site.wait_state(VM, "protected", PROTECT_TIMEOUT).unwrap();
        let wanted = workload.progress() + 1000;
        while workload.progress() < wanted {
            std::thread::sleep(Duration::from_millis(10));
        }
        workload.stop();
        assert_eq!(run.join().unwrap().errors, []);
    });
    let history = workload.history();
    let marker = site.bookmark(VM, "end").unwrap();
    let judge = Judge { site: &site, vm: VM, disk: 0, history: &history, exact: false };
    let judged = judge.random_points(points(60), 3, marker).unwrap();
    println!("{judged:?} of {} writes", history.operations.len());
    drop(workload);
    site.finish(&[]).unwrap();
}
