//! Completions that interrupts bring while the programs run: each is reported once, by every tap.
//!
//! Several taps follow one busy disk, so that what concerns the disk (a kernel that runs no program at that moment)
//! shows in all of them, and what a tap did wrong in one.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::cast_possible_truncation,
    reason = "a test stops at the first surprise and says what it skips"
)]

mod support;

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use support::*;
use tidemark_splitter::disks::Disk;
use tidemark_splitter_core::capture::{Control, Mode, Ring, Witness};

const MIB: u64 = 1 << 20;
/// Taps at once.
const TAPS: usize = 3;

/// Opens a pinned program (`BPF_OBJ_GET`).
fn open_pinned(path: &Path) -> OwnedFd {
    #[repr(C)]
    struct Attributes {
        path: u64,
        fd: u32,
        flags: u32,
    }
    let name = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    let attributes = Attributes { path: name.as_ptr().addr() as u64, fd: 0, flags: 0 };
    // SAFETY: the kernel reads 16 bytes of attributes and the path, which live until the call returns.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, 7, &raw const attributes, size_of::<Attributes>()) };
    assert!(fd >= 0, "{}: {}", path.display(), std::io::Error::last_os_error());
    // SAFETY: the descriptor is new and nobody else's.
    unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).unwrap()) }
}

/// Runs, nanoseconds (0 unless `kernel.bpf_stats_enabled`) and skipped runs of a tap's program.
fn statistics(capture: &str, program: &str) -> [u64; 3] {
    let root = std::env::var("TIDEMARK_BPFFS").unwrap_or_else(|_| "/sys/fs/bpf".to_owned());
    let fd = open_pinned(&Path::new(&root).join("tidemark").join(capture).join(program));
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).unwrap();
    ["run_cnt", "run_time_ns", "recursion_misses"].map(|key| {
        let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        line.map_or(0, |value| value.trim().parse().unwrap())
    })
}

/// What one tap saw.
#[derive(Debug)]
#[allow(dead_code, reason = "all of it is printed")]
struct Seen {
    completions: u64,
    /// Completions of requests whose issue was not seen, or that were completed already.
    unseen: u64,
    /// Requests whose completion was not seen.
    open: u64,
    witness: Witness,
    skipped: [u64; 3],
}

fn follow_busy_disk(taps: usize, seconds: u64, jobs: &[&str]) -> Vec<Seen> {
    let disk = LoopDisk::new(256 * MIB);
    let found = Disk::inspect(&disk.path).unwrap();
    // Completions are brought to the processor that submitted, by an interrupt.
    disk.complete_on("2");
    let mut tests: Vec<TestCapture> = (0..taps).map(|_| TestCapture::new(256 * MIB)).collect();
    let mut replicas: Vec<Replica> = tests.iter().map(|_| Replica::default()).collect();
    for test in &mut tests {
        test.get().add_disk(&found).unwrap();
        start(test.get());
    }
    let runtime = format!("--runtime={seconds}");
    let arguments: Vec<&str> = jobs.iter().copied().chain([runtime.as_str(), "--time_based"]).collect();
    let mut writer = fio(&disk.path, &arguments);
    while writer.try_wait().unwrap().is_none() {
        for (test, replica) in tests.iter_mut().zip(&mut replicas) {
            replica.consume(&mut test.get().ring);
        }
        thread::sleep(Duration::from_micros(200));
    }
    let seen = tests.iter_mut().zip(&mut replicas).map(|(test, replica)| {
        // What fio saw complete has passed the tracepoint; interrupts on other processors may still be in the programs.
        let deadline = Instant::now() + Duration::from_secs(5);
        while Instant::now() < deadline
            && (replica.consume(&mut test.get().ring) > 0 || !replica.in_flight.is_empty())
        {
            thread::sleep(Duration::from_millis(10));
        }
        let name = test.settings.name.clone();
        let capture = test.get();
        assert_eq!(capture.control.status().mode, Mode::Full, "{:?}", capture.control.status());
        assert_eq!(capture.ring.position(), capture.ring.producer());
        Seen {
            completions: replica.completions,
            unseen: replica.unseen,
            open: replica.in_flight.len() as u64 + replica.replaced,
            witness: capture.control.witness().unwrap(),
            skipped: ["prog_complete", "prog_complete2", "prog_issue"]
                .map(|name_of| statistics(&name, name_of)[2]),
        }
    });
    seen.collect()
}

#[test]
fn nested_completions_are_reported_once_by_every_tap() {
    if !can_run() {
        return;
    }
    let jobs = ["--rw=randwrite", "--bsrange=512-1k", "--iodepth=32", "--numjobs=4"];
    let seen = follow_busy_disk(TAPS, 4, &jobs);
    for tap in &seen {
        eprintln!("{tap:?}");
    }
    // What no tap saw, the kernel showed none; what one alone did not see, its witness must say.
    let unseen = seen.iter().map(|tap| tap.unseen).min().unwrap();
    let open = seen.iter().map(|tap| tap.open).min().unwrap();
    for tap in &seen {
        assert!(tap.completions > 10_000, "{tap:?}");
        assert_eq!(tap.unseen, unseen, "reported twice, or an issue was missed: {seen:?}");
        let honest = tap.open == open || tap.witness != Witness::Clean;
        assert!(honest, "a completion is missing and the witness does not know: {seen:?}");
    }
}

#[test]
#[ignore = "a measurement: cargo test --test nesting -- --ignored --nocapture"]
fn cost_of_each_program() {
    if !can_run() {
        return;
    }
    let switch = Path::new("/proc/sys/kernel/bpf_stats_enabled");
    std::fs::write(switch, "1").unwrap();
    for (name, jobs) in [
        ("4k", ["--rw=randwrite", "--bs=4k", "--iodepth=16", "--rate_iops=20000"]),
        ("64k", ["--rw=randwrite", "--bs=64k", "--iodepth=8", "--rate_iops=3000"]),
    ] {
        let disk = LoopDisk::new(256 * MIB);
        let mut test = TestCapture::new(256 * MIB);
        test.get().add_disk(&Disk::inspect(&disk.path).unwrap()).unwrap();
        start(test.get());
        let programs = ["prog_issue", "prog_complete", "prog_complete2"];
        let mut writer = fio(&disk.path, &[&jobs[..], &["--runtime=5", "--time_based"]].concat());
        let mut replica = Replica::default();
        let capture = test.settings.name.clone();
        let before = programs.map(|program| statistics(&capture, program));
        while writer.try_wait().unwrap().is_none() {
            replica.consume(&mut test.get().ring);
            thread::sleep(Duration::from_micros(500));
        }
        for (program, before) in programs.iter().zip(before) {
            let after = statistics(&capture, program);
            let (runs, ns) = (after[0] - before[0], after[1] - before[1]);
            eprintln!("{name} {program}: {runs} runs, {} ns each", ns / runs.max(1));
        }
        eprintln!("{name}: {} writes", replica.issues);
    }
    std::fs::write(switch, "0").unwrap();
}
