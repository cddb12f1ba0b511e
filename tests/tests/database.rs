//! Oracle 5: PostgreSQL under pgbench, recovered at random points that nobody prepared.

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

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tidemark_tests::disks::{LoopDisk, Mounted};
use tidemark_tests::postgres::{self, CommitLog, Postgres};
use tidemark_tests::process::output_of;
use tidemark_tests::site::{Site, large, skipped};

const VM: &str = "database";
/// A point in time holds what was written before it up to the error of the guest's measured clock offset; on one machine
/// that is well below this.
const CLOCK_ERROR_US: u64 = 50_000;

#[test]
fn postgres_recovers_at_unquiesced_points() {
    if skipped("the tap, loop devices and mounts") {
        return;
    }
    if let Some(reason) = postgres::unavailable() {
        eprintln!("skipped: {reason}");
        return;
    }
    let points = if large() { 200 } else { 20 };
    let mut site = Site::start("postgres").unwrap();
    let disk = LoopDisk::create(&site.path().join("disk"), 512 << 20).unwrap();
    output_of(std::process::Command::new("mkfs.ext4").args(["-q", "-F"]).arg(disk.device())).unwrap();
    let live = Mounted::mount(disk.device(), &site.path().join("live"), "rw").unwrap();
    let database = Postgres::create(live.path(), &site.path().join("live-run")).unwrap();
    database.bench(&["-i", "-s", "2", "-q"]).unwrap();
    database.sql("create table commits (client int, number bigint, primary key (client, number))").unwrap();
    database.sql("create extension amcheck").unwrap();
    // initdb does not sync what it writes; from here on the database keeps its own promises.
    output_of(std::process::Command::new("sync").arg("-f").arg(live.path())).unwrap();

    let splitter = site.add_splitter(VM, &["--ring-mib", "128"]).unwrap();
    let seconds = if large() { 120 } else { 16 };
    let log = std::thread::scope(|scope| {
        let bench = scope.spawn(|| database.bench(&["-c", "4", "-j", "1", "-T", &seconds.to_string()]));
        let commits = scope.spawn(|| CommitLog::record(&database, 2, Duration::from_secs(seconds)).unwrap());
        std::thread::sleep(Duration::from_secs(1));
        // The disk is mounted and busy.
        site.splitter(splitter).unwrap().protect(disk.device(), true).unwrap();
        site.wait_state(VM, "protected", Duration::from_secs(90)).unwrap();
        bench.join().unwrap().unwrap();
        commits.join().unwrap()
    });
    let marker = site.bookmark(VM, "end").unwrap();
    site.wait_point(VM, marker, Duration::from_secs(30)).unwrap();
    assert!(log.entries.len() > 100, "{} commits logged", log.entries.len());

    let window = *site.points(VM).unwrap().windows.last().unwrap();
    let mut random = StdRng::seed_from_u64(51);
    let mut with_commits = 0;
    for number in 0..points {
        let at_us = random.random_range(window.from_time.as_microsecond()..=window.to_time.as_microsecond());
        let at = jiff::Timestamp::from_microsecond(at_us).unwrap();
        let folder = site.path().join(format!("view-{number}"));
        std::fs::create_dir(&folder).unwrap();
        let view = site.mount(VM, &at.to_string(), &folder).unwrap();
        let image = LoopDisk::attach(&folder.join("disk-1.raw"), &[]).unwrap();
        let mounted = Mounted::mount(image.device(), &site.path().join("then"), "rw").unwrap();
        let recovered = Postgres::open(mounted.path(), &site.path().join("then-run")).unwrap();
        recovered.check_bench_sums().unwrap();
        recovered.check_indexes().unwrap();
        let cut_us = at_us as u64 - CLOCK_ERROR_US;
        let missing = log.missing(&recovered, cut_us).unwrap();
        assert_eq!(
            missing,
            Vec::<(usize, u64)>::new(),
            "commits logged before {at} (LSN {}) are lost",
            view.lsn
        );
        with_commits += usize::from(log.before(cut_us) > 0);
        recovered.stop().unwrap();
        drop((mounted, image, view));
    }
    println!(
        "{points} points, {with_commits} of them after a logged commit; {} commits in all",
        log.entries.len()
    );
    assert!(with_commits * 2 > points, "most points must lie after a commit");
    database.stop().unwrap();
    drop(live);
    site.finish(&[]).unwrap();
}

/// Negative control: the checks fail on a database that lost a commit, and on one whose sums do not agree.
#[test]
fn control_a_lost_commit_and_unequal_sums_are_found() {
    if skipped("a user for PostgreSQL") {
        return;
    }
    if let Some(reason) = postgres::unavailable() {
        eprintln!("skipped: {reason}");
        return;
    }
    let folder = tempfile::Builder::new().prefix("tidemark-postgres-").tempdir_in("/var/tmp").unwrap();
    let database = Postgres::create(&folder.path().join("disk"), &folder.path().join("run")).unwrap();
    database.bench(&["-i", "-s", "1", "-q"]).unwrap();
    database.sql("create table commits (client int, number bigint, primary key (client, number))").unwrap();
    database.sql("create extension amcheck").unwrap();
    database.bench(&["-c", "2", "-t", "50"]).unwrap();
    let log = CommitLog::record(&database, 1, Duration::from_millis(500)).unwrap();
    assert_eq!(log.missing(&database, u64::MAX).unwrap(), []);
    database.check_bench_sums().unwrap();
    database.check_indexes().unwrap();
    let lost = log.entries[log.entries.len() / 2];
    database
        .sql(&format!("delete from commits where client = {} and number = {}", lost.client, lost.number))
        .unwrap();
    assert_eq!(log.missing(&database, u64::MAX).unwrap(), [(lost.client, lost.number)]);
    database.sql("update pgbench_accounts set abalance = abalance + 1 where aid = 7").unwrap();
    assert!(database.check_bench_sums().is_err());
    database.stop().unwrap();
}
