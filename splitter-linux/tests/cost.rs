//! What the tap costs: fio on a loop device in memory with and without it, the reader discarding everything.
//!
//! Not a check but a measurement, so ignored: `cargo test --release -p tidemark-splitter --test cost -- --ignored
//! --nocapture`. Runs alternate, and each ratio is that of neighbours.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::cast_possible_truncation,
    reason = "a test stops at the first surprise and says what it skips"
)]

mod support;

use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use support::*;
use tidemark_splitter::disks::Disk;
use tidemark_splitter_core::capture::{Control, Mode, Ring};

const ROUNDS: u32 = 3;

/// Runs fio while `meanwhile` is called again and again; returns requests and bytes per second.
fn measure(disk: &Path, arguments: &[&str], mut meanwhile: impl FnMut()) -> (f64, f64) {
    let mut child = Command::new("fio")
        .args([
            "--name=w",
            "--direct=1",
            "--ioengine=libaio",
            "--time_based",
            "--runtime=3",
            "--output-format=json",
        ])
        .arg(format!("--filename={}", disk.display()))
        .args(arguments)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    while child.try_wait().unwrap().is_none() {
        meanwhile();
    }
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let value: serde_json::Value = serde_json::from_str(&text[text.find('{').unwrap()..]).unwrap();
    let write = &value["jobs"][0]["write"];
    (write["iops"].as_f64().unwrap(), write["bw_bytes"].as_f64().unwrap())
}

#[test]
#[ignore = "a measurement"]
fn cost_of_the_tap() {
    if !can_run() {
        return;
    }
    let disk = LoopDisk::new(1 << 30);
    run(
        "fio",
        &[
            "--name=fill",
            "--rw=write",
            "--bs=1m",
            "--direct=1",
            "--size=1g",
            &format!("--filename={}", disk.text()),
        ],
    );
    let loads: [(&str, &[&str]); 3] = [
        ("4k random, depth 16", &["--rw=randwrite", "--bs=4k", "--iodepth=16"]),
        ("64k random, depth 8", &["--rw=randwrite", "--bs=64k", "--iodepth=8"]),
        ("1m sequential, depth 4", &["--rw=write", "--bs=1m", "--iodepth=4"]),
    ];
    eprintln!("| load | without | with | ratio | MB/s with | misses |");
    eprintln!("|---|---|---|---|---|---|");
    for (name, arguments) in loads {
        for _ in 0..ROUNDS {
            let (without, _) = measure(&disk.path, arguments, || thread::sleep(Duration::from_millis(1)));
            let mut test = TestCapture::new(256 << 20);
            let capture = test.get();
            capture.add_disk(&Disk::inspect(&disk.path).unwrap()).unwrap();
            start(capture);
            let (mut units, mut restarts) = (0_u64, 0_u64);
            let (with, bytes) = measure(&disk.path, arguments, || {
                while let Some(end) = capture.ring.next().unwrap().map(|unit| unit.end) {
                    units += 1;
                    if units.is_multiple_of(64) {
                        capture.ring.release(end);
                    }
                }
                capture.ring.release(capture.ring.position());
                if capture.control.status().mode == Mode::DirtyOnly {
                    restarts += 1;
                    capture.control.restart().unwrap();
                }
                thread::sleep(Duration::from_micros(500));
            });
            let misses = capture.control.status().drops;
            eprintln!(
                "| {name} | {without:.0} | {with:.0} | {:.2} | {:.0} | {misses} |",
                with / without,
                bytes / 1e6
            );
        }
    }
}
