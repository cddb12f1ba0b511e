//! The ladder of overload with a spool: what waits there is no gap; what does not fit is one, with its cause.

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

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use tidemark_tests::disks::{LoopDisk, Mounted, read_direct};
use tidemark_tests::meter::Meter;
use tidemark_tests::oracle::Judge;
use tidemark_tests::process::output_of;
use tidemark_tests::site::{Gap, Site, large, skipped};
use tidemark_tests::stamp::{Options, Workload};

const VM: &str = "behind";
const MIB: u64 = 1 << 20;
const DISK_BYTES: u64 = 64 << 20;
/// As in `overload.rs`: what the scheduling of two busy cores needs, and no more.
const SLOWEST_WRITE: Duration = Duration::from_millis(1000);
const PATIENCE: Duration = Duration::from_secs(120);

fn options(seed: u64, rate: u64) -> Options {
    Options {
        seed,
        queue_depth: 4,
        largest_sectors: 256,
        rate,
        duration: Duration::from_secs(3600),
        ..Options::default()
    }
}

fn number(status: &Value, field: &str) -> u64 {
    status[field].as_u64().unwrap_or_else(|| panic!("no {field} in {status}"))
}

/// Asks for the splitter's status until it is as wanted.
fn wait_for(site: &mut Site, splitter: usize, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let began = Instant::now();
    loop {
        let status = site.splitter(splitter).unwrap().status().unwrap();
        if wanted(&status) {
            return status;
        }
        assert!(began.elapsed() < PATIENCE, "no {what}: {status}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Stops the appliance until so much waits in the spool. The kernel of a borrowed machine hides a completion now and then:
/// its gap stays open while the appliance stands still, and nothing is spooled for it. Then it is tried again. Returns the
/// status and how many gaps there were before.
fn fill(site: &mut Site, splitter: usize, workload: &Workload, spool_bytes: u64) -> (Value, usize) {
    for _ in 0..4 {
        site.wait_state(VM, "protected", PATIENCE).unwrap();
        let gaps_before = site.points(VM).unwrap().gaps.len();
        let _ = workload.take_slowest();
        site.appliance().unwrap().freeze().unwrap();
        let done = |status: &Value| number(status, "spool_bytes_used") > spool_bytes;
        let lost = |status: &Value| status["disks"][0]["state"] != "protected";
        let status = wait_for(site, splitter, "full enough spool", |status| done(status) || lost(status));
        if !lost(&status) {
            return (status, gaps_before);
        }
        println!("once more: {status}");
        site.appliance().unwrap().thaw().unwrap();
    }
    panic!("each time a gap was open");
}

/// Waits until the appliance says of the guest what is wanted.
fn wait_told(site: &Site, what: &str, wanted: impl Fn(u64) -> bool) {
    let began = Instant::now();
    while !wanted(site.vm(VM).unwrap()["spool_bytes"].as_u64().unwrap()) {
        assert!(began.elapsed() < PATIENCE, "the appliance does not say that {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Whether a stamp can be read in any file of a folder or in this file.
fn shows_stamps(path: &Path) -> bool {
    let files: Vec<_> = match std::fs::read_dir(path) {
        Ok(entries) => entries.flatten().map(|entry| entry.path()).collect(),
        Err(_) => vec![path.to_owned()],
    };
    assert!(!files.is_empty(), "nothing is in {}", path.display());
    files.iter().any(|file| std::fs::read(file).unwrap().windows(8).any(|bytes| bytes == b"TMSTAMP1"))
}

fn folder_bytes(path: &Path) -> u64 {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    entries.filter_map(|entry| Some(entry.metadata().ok()?.len())).sum()
}

fn new_gaps(site: &Site, before: usize) -> Vec<Gap> {
    site.points(VM).unwrap().gaps.split_off(before)
}

/// The load has stopped: everything is durable, and no gap open.
fn settle(site: &mut Site, splitter: usize) {
    wait_for(site, splitter, "end of what waits", |status| {
        let durable = number(status, "acked_lsn");
        status["ladder"] == "ring"
            && status["disks"][0]["state"] == "protected"
            && durable == number(status, "captured_lsn")
    });
    site.wait_state(VM, "protected", PATIENCE).unwrap();
}

/// The end of each run: everything is durable, the image is the disk, and random points are what they must be.
fn judge(site: &Site, workload: &Workload, disk: &LoopDisk, points: usize) {
    let history = workload.history();
    let marker = site.bookmark(VM, "end").unwrap();
    site.wait_point(VM, marker, PATIENCE).unwrap();
    let judge = Judge { site, vm: VM, disk: 0, history: &history, exact: false };
    println!("{:?}", judge.random_points(points, 7, marker).unwrap());
    assert!(site.image(VM, 0, "bookmark:end").unwrap() == read_direct(disk.device()).unwrap());
}

#[test]
fn what_fits_into_the_spool_costs_no_point_though_the_splitter_is_killed() {
    if skipped("the tap and loop devices") {
        return;
    }
    let mut site = Site::start("spool").unwrap();
    let file = site.path().join("disk");
    let disk = LoopDisk::create(&file, DISK_BYTES).unwrap();
    let meter = Meter::start(site.address(), Duration::ZERO).unwrap();
    let arguments = ["--ring-mib", "32", "--spool-mib", "512"];
    let splitter = site.add_splitter_at(VM, meter.address(), &arguments).unwrap();
    let workload = Workload::open(disk.device(), options(31, 700)).unwrap();
    site.splitter(splitter).unwrap().protect(disk.device(), true).unwrap();
    let spool = site.splitter(splitter).unwrap().state().join("spool");
    let mut gaps_before = 0;
    std::thread::scope(|scope| {
        let _stop = workload.stop_on_drop();
        let run = scope.spawn(|| workload.run().unwrap());
        std::thread::sleep(Duration::from_millis(500));
        let (status, gaps) = fill(&mut site, splitter, &workload, 24 * MIB);
        gaps_before = gaps;
        println!("{status}");
        workload.pause();
        assert_eq!(status["ladder"], "spool", "{status}");
        assert!(workload.take_slowest() < SLOWEST_WRITE);
        assert!(!shows_stamps(&spool), "the spool can be read by anybody");
        assert!(shows_stamps(&file), "the search finds nothing where there is something");
        // A splitter without memory, and an appliance that comes back on a slow line, while the load goes on.
        site.splitter(splitter).unwrap().kill().unwrap();
        meter.throttle(8 * MIB);
        site.appliance().unwrap().thaw().unwrap();
        site.splitter(splitter).unwrap().start().unwrap();
        wait_for(&mut site, splitter, "session", |status| status["connected"] == true);
        wait_told(&site, "the guest is behind", |bytes| bytes > 0);
        assert!(site.cli(&["status"]).unwrap().contains("wait in the guest's spool"));
        assert!(site.cli(&["vm", "show", VM]).unwrap().contains("behind "));
        workload.resume();
        std::thread::sleep(Duration::from_millis(500));
        workload.pause();
        site.splitter(splitter).unwrap().kill().unwrap();
        site.splitter(splitter).unwrap().start().unwrap();
        meter.throttle(0);
        // Before it is welcomed it knows of no frames.
        wait_for(&mut site, splitter, "way back to the ring", |status| {
            let durable = number(status, "acked_lsn");
            status["connected"] == true
                && status["ladder"] == "ring"
                && durable > 0
                && durable == number(status, "captured_lsn")
        });
        wait_told(&site, "it is over", |bytes| bytes == 0);
        workload.resume();
        std::thread::sleep(Duration::from_millis(500));
        workload.stop();
        assert_eq!(run.join().unwrap().errors, []);
    });
    settle(&mut site, splitter);
    judge(&site, &workload, &disk, 60);
    let list = site.cli_json(&["point", "list", VM]).unwrap();
    let spools = list["spools"].as_array().unwrap();
    assert!(!spools.is_empty() && spools.iter().all(|spool| spool["to_time"].is_string()), "{list}");
    // A completion that the kernel of the host hid is a short gap of its own.
    let gaps = new_gaps(&site, gaps_before);
    println!("gaps: {gaps:?}");
    assert!(gaps.iter().all(|gap| !gap.cause.contains("ring") && !gap.detail.contains("spool")), "{gaps:?}");
    let status =
        wait_for(&mut site, splitter, "empty spool", |status| number(status, "spool_bytes_used") == 0);
    assert_eq!(folder_bytes(&spool), 0, "{status}");
    drop(workload);
    site.finish(&["gap", "resync"]).unwrap();
}

#[test]
fn what_does_not_fit_into_the_spool_is_a_gap_that_names_it() {
    if skipped("the tap and loop devices") {
        return;
    }
    let mut site = Site::start("spool-full").unwrap();
    let disk = LoopDisk::create(&site.path().join("disk"), DISK_BYTES).unwrap();
    let splitter = site.add_splitter(VM, &["--ring-mib", "32", "--spool-mib", "64"]).unwrap();
    let workload = Workload::open(disk.device(), options(32, 700)).unwrap();
    site.splitter(splitter).unwrap().protect(disk.device(), true).unwrap();
    let spool = site.splitter(splitter).unwrap().state().join("spool");
    let mut gaps_before = 0;
    std::thread::scope(|scope| {
        let _stop = workload.stop_on_drop();
        let run = scope.spawn(|| workload.run().unwrap());
        std::thread::sleep(Duration::from_millis(500));
        (_, gaps_before) = fill(&mut site, splitter, &workload, 40 * MIB);
        wait_for(&mut site, splitter, "overflow", |status| status["ladder"] == "dirty-only");
        std::thread::sleep(Duration::from_millis(300));
        workload.pause();
        assert!(workload.take_slowest() < SLOWEST_WRITE);
        assert!(folder_bytes(&spool) <= 64 * MIB, "{}", folder_bytes(&spool));
        site.appliance().unwrap().thaw().unwrap();
        site.wait_state(VM, "protected", PATIENCE).unwrap();
        let status = wait_for(&mut site, splitter, "way back", |status| status["ladder"] == "ring");
        let sent = status["disks"][0]["sent_bytes"].as_u64().unwrap();
        let log = std::fs::read_to_string(site.splitter(splitter).unwrap().log()).unwrap();
        let dirty: u64 = log.lines().rev().find_map(dirty_bytes).unwrap();
        println!("{sent} bytes sent for {dirty} dirty ones");
        assert!(dirty > 0 && sent * 10 <= dirty * 11, "{sent} bytes were sent for {dirty}");
        workload.resume();
        std::thread::sleep(Duration::from_secs(1));
        workload.stop();
        assert_eq!(run.join().unwrap().errors, []);
    });
    settle(&mut site, splitter);
    judge(&site, &workload, &disk, 60);
    let gaps = new_gaps(&site, gaps_before);
    println!("gaps: {gaps:?}");
    let full = |gap: &Gap| gap.cause.contains("ring") && gap.detail.contains("the spool of 64 MiB was full");
    assert!(gaps.iter().any(full), "{gaps:?}");
    assert!(gaps.iter().all(|gap| !gap.is_open()), "{gaps:?}");
    drop(workload);
    site.finish(&["ring", "drop", "gap", "resync", "dirty"]).unwrap();
}

/// Of a line of the log that tells of a gap by overload.
fn dirty_bytes(line: &str) -> Option<u64> {
    let (_, rest) = line.split_once("dirty_bytes=").filter(|_| line.contains("RING_FULL"))?;
    rest.split(' ').next()?.parse().ok()
}

#[test]
fn five_times_the_link_for_long_is_bounded_everywhere() {
    if skipped("the tap and loop devices") {
        return;
    }
    if !large() {
        eprintln!("skipped: three minutes of overload run with TIDEMARK_TEST_SIZE=large");
        return;
    }
    let (load, link) = (180, 6 * MIB);
    let mut site = Site::start("spool-long").unwrap();
    let disk = LoopDisk::create(&site.path().join("disk"), DISK_BYTES).unwrap();
    let meter = Meter::start(site.address(), Duration::ZERO).unwrap();
    let arguments = ["--ring-mib", "16", "--spool-mib", "128"];
    let splitter = site.add_splitter_at(VM, meter.address(), &arguments).unwrap();
    // Some 22 KiB a write.
    let workload = Workload::open(disk.device(), options(33, 1400)).unwrap();
    site.splitter(splitter).unwrap().protect(disk.device(), true).unwrap();
    site.wait_state(VM, "protected", PATIENCE).unwrap();
    let gaps_before = site.points(VM).unwrap().gaps.len();
    let spool = site.splitter(splitter).unwrap().state().join("spool");
    let mut seen: Vec<String> = Vec::new();
    std::thread::scope(|scope| {
        let _stop = workload.stop_on_drop();
        let run = scope.spawn(|| workload.run().unwrap());
        std::thread::sleep(Duration::from_millis(500));
        let _ = workload.take_slowest();
        meter.throttle(link);
        let (began, mut resident, mut on_disk, mut slowest) = (Instant::now(), 0, 0, Duration::ZERO);
        while began.elapsed() < Duration::from_secs(load) {
            let status = site.splitter(splitter).unwrap().status().unwrap();
            let ladder = status["ladder"].as_str().unwrap().to_owned();
            if !seen.contains(&ladder) {
                seen.push(ladder);
            }
            resident = resident.max(number(&status, "rss_bytes"));
            on_disk = on_disk.max(folder_bytes(&spool));
            slowest = slowest.max(workload.take_slowest());
            std::thread::sleep(Duration::from_millis(200));
        }
        println!(
            "{load} s at {} MiB/s: {} writes, the slowest took {slowest:?}; {} MiB resident, {} MiB in the spool, \
             {seen:?}",
            link / MIB,
            workload.progress(),
            resident / MIB,
            on_disk / MIB
        );
        assert!(slowest < SLOWEST_WRITE, "a write waited {slowest:?}");
        assert!(resident < 96 * MIB, "{resident} bytes resident");
        assert!(on_disk <= 128 * MIB, "{on_disk} bytes in the spool");
        workload.pause();
        meter.throttle(0);
        site.wait_state(VM, "protected", PATIENCE).unwrap();
        workload.resume();
        std::thread::sleep(Duration::from_secs(1));
        workload.stop();
        assert_eq!(run.join().unwrap().errors, []);
    });
    assert!(seen.contains(&"spool".to_owned()) && seen.contains(&"dirty-only".to_owned()), "{seen:?}");
    settle(&mut site, splitter);
    judge(&site, &workload, &disk, 200);
    let gaps = new_gaps(&site, gaps_before);
    println!("gaps: {gaps:?}");
    assert!(!gaps.is_empty() && gaps.iter().all(|gap| !gap.is_open() && !gap.cause.is_empty()), "{gaps:?}");
    drop(workload);
    site.finish(&["ring", "drop", "gap", "resync", "dirty"]).unwrap();
}

#[test]
fn a_spool_on_the_disk_it_spools_for_is_refused() {
    if skipped("the tap and loop devices") {
        return;
    }
    let mut site = Site::start("spool-feedback").unwrap();
    let disk = LoopDisk::create(&site.path().join("disk"), DISK_BYTES).unwrap();
    output_of(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(disk.device())).unwrap();
    let mounted = Mounted::mount(disk.device(), &site.path().join("mounted"), "rw").unwrap();
    let folder = mounted.path().join("spool");
    let arguments = ["--ring-mib", "16", "--spool", folder.to_str().unwrap()];
    let splitter = site.add_splitter(VM, &arguments).unwrap();
    site.splitter(splitter).unwrap().protect(disk.device(), true).unwrap();
    let status = site.splitter(splitter).unwrap().status().unwrap();
    let reason = status["spool_off"].as_str().unwrap();
    assert!(reason.contains("is protected") && reason.contains("--spool DIR"), "{reason}");
    assert_eq!(number(&status, "spool_bytes"), 0);
    let screen = site.splitter(splitter).unwrap().command(&["status"]).unwrap();
    assert!(screen.contains("no spool: "), "{screen}");
    drop(mounted);
    site.finish(&[]).unwrap();
}
