//! The disks of the tests are what they claim to be.

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

use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tidemark_tests::disks::{LoopDisk, SlowDisk, read_direct};
use tidemark_tests::leftovers::{self, Undo};
use tidemark_tests::site::skipped;
use tidemark_tests::stamp::{AlignedBuffer, Checker, Options, SECTOR_BYTES, Sector, Workload};

#[test]
fn the_workload_runs_on_a_loop_device() {
    if skipped("loop devices") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let disk = LoopDisk::create(&folder.path().join("disk"), 16 << 20).unwrap();
    let options = Options { queue_depth: 4, operations: 500, zeroes_percent: 10, ..Options::default() };
    let workload = Workload::open(disk.device(), options).unwrap();
    let report = workload.run().unwrap();
    assert_eq!((report.errors.len(), report.history.completed()), (0, 500));
    let checker = Checker::new(&report.history);
    checker.check(&read_direct(disk.device()).unwrap(), u64::MAX).unwrap();
}

/// Reads must return old sectors while writes wait, or the resync tests on this disk show nothing.
#[test]
fn the_slow_disk_has_slow_writes_and_fast_reads() {
    if skipped("loop devices") {
        return;
    }
    if let Some(reason) = SlowDisk::unavailable() {
        eprintln!("skipped: {reason}");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let disk = SlowDisk::create(&folder.path().join("disk"), 4 << 20, 100).unwrap();
    let options = Options {
        operations: 60,
        largest_sectors: 8,
        zeroes_percent: 0,
        duration: Duration::from_secs(30),
        ..Options::default()
    };
    let workload = Workload::open(disk.device(), options).unwrap();
    let (done, began) = (AtomicBool::new(false), Instant::now());
    let (reads, stale) = std::thread::scope(|scope| {
        scope.spawn(|| {
            let _slow = disk.enter().unwrap();
            workload.run().unwrap();
            done.store(true, Ordering::SeqCst);
        });
        let reader =
            std::fs::File::options().read(true).custom_flags(libc::O_DIRECT).open(disk.device()).unwrap();
        let mut buffer = AlignedBuffer::new(4096);
        let (mut reads, mut stale) = (0_u64, 0_u64);
        while !done.load(Ordering::SeqCst) {
            let Some(running) = workload.history().operations.last().copied() else { continue };
            let bytes = &mut buffer.slice_mut()[..SECTOR_BYTES];
            reader.read_exact_at(bytes, running.start_sector * SECTOR_BYTES as u64).unwrap();
            reads += 1;
            let fresh =
                matches!(Sector::decode(bytes), Sector::Stamped(stamp) if stamp.sequence == running.sequence);
            stale += u64::from(!fresh);
        }
        (reads, stale)
    });
    println!("{reads} reads, {stale} of them older than the last issued write, in {:?}", began.elapsed());
    assert!(began.elapsed() > Duration::from_millis(400), "writes were not slow");
    assert!(reads > 1000 && stale > reads / 2, "{reads} reads, {stale} stale");
}

/// What a killed test leaves is removed by the next sweep; what a living one uses is not.
#[test]
fn a_sweep_removes_only_what_dead_owners_left() {
    if skipped("loop devices") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mine = LoopDisk::create(&folder.path().join("mine"), 1 << 20).unwrap();
    let orphan_file = folder.path().join("orphan");
    let orphan = LoopDisk::create(&orphan_file, 1 << 20).unwrap();
    let device = orphan.device().to_owned();
    // Hand the record to an owner that is long dead, as if it had been killed.
    let dead = leftovers::registry().join("4194303-1");
    std::fs::create_dir_all(&dead).unwrap();
    let undo = Undo::Loop { device: device.clone(), backing: orphan_file.clone() };
    std::fs::write(dead.join("000000"), serde_json::to_vec(&undo).unwrap()).unwrap();
    let swept = leftovers::sweep().unwrap();
    assert!(swept.contains(&undo), "{swept:?}");
    assert_eq!(leftovers::backing_of(&device), None);
    assert!(leftovers::backing_of(mine.device()).is_some());
}
