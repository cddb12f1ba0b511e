//! Negative controls of oracle 1, end to end: a splitter that lies runs in a whole installation, with the real tap, and
//! the judge of `points.rs` must find it out.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test states what must hold")]

use std::time::Duration;

use tidemark_tests::disks::LoopDisk;
use tidemark_tests::faults::Fault;
use tidemark_tests::oracle::Judge;
use tidemark_tests::site::{Site, skipped};
use tidemark_tests::stamp::{Options, Workload};

const VM: &str = "liar";
const PROTECT_TIMEOUT: Duration = Duration::from_secs(90);
const WRITES: u64 = 1500;

/// What the judge says of a run at queue depth 1; the run itself must go well.
fn judged(fault: Fault) -> String {
    let mut site = Site::start("faults").unwrap();
    let disk = LoopDisk::create(&site.path().join("disk"), 16 << 20).unwrap();
    let splitter = site.add_splitter(VM, &["--ring-mib", "64"]).unwrap();
    let splitter = site.splitter(splitter).unwrap();
    splitter.stop().unwrap();
    splitter.set_fault(fault);
    splitter.start().unwrap();
    splitter.protect(disk.device(), true).unwrap();
    site.wait_state(VM, "protected", PROTECT_TIMEOUT).unwrap();
    let options = Options {
        seed: 23,
        largest_sectors: 8,
        zeroes_percent: 0,
        rate: 1500,
        operations: WRITES,
        duration: Duration::from_secs(60),
        ..Options::default()
    };
    let workload = Workload::open(disk.device(), options).unwrap();
    let report = workload.run().unwrap();
    assert_eq!((report.errors.len(), report.history.operations.len() as u64), (0, WRITES));
    let history = workload.history();
    let marker = site.bookmark(VM, "end").unwrap();
    let judge = Judge { site: &site, vm: VM, disk: 0, history: &history, exact: true };
    let verdict = judge.random_points(60, 1, marker);
    drop(workload);
    match verdict {
        Ok(judged) => panic!("a splitter with the fault {fault:?} passed: {judged:?}"),
        Err(found) => format!("{found:#}"),
    }
}

#[test]
fn control_a_write_that_is_left_out_is_found() {
    if skipped("the tap and loop devices") {
        return;
    }
    let found = judged(Fault::Omit);
    println!("{found}");
    assert!(found.starts_with("at LSN "), "found in the content of a point: {found}");
}

#[test]
fn control_two_dependent_writes_that_change_places_are_found() {
    if skipped("the tap and loop devices") {
        return;
    }
    let found = judged(Fault::Swap);
    println!("{found}");
    assert!(found.starts_with("at LSN "), "found in the content of a point: {found}");
}
