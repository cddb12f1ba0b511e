//! A disk restored onto a block device of its machine by a grant: what is fetched, what is refused, and what an
//! interruption leaves.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test states what must hold and stops where it does not"
)]

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tidemark_tests::disks::{LoopDisk, Mounted, read_direct};
use tidemark_tests::process::output_of;
use tidemark_tests::site::{Site, program, skipped};
use tidemark_tests::synthetic::Synthetic;

const VM: &str = "rescued";
/// 64 MiB.
const DISK_SECTORS: u64 = 131_072;
const DISK_BYTES: u64 = DISK_SECTORS * 512;
const PATIENCE: Duration = Duration::from_secs(60);

fn restore(site: &Site, grant: &str, disk: &Path) -> Command {
    let mut command = Command::new(program("tidemark-splitter").unwrap());
    command.args(["restore", "--appliance", site.address(), "--grant", grant, "--json"]).arg(disk);
    command
}

fn restored(site: &Site, grant: &str, disk: &Path) -> Value {
    serde_json::from_str(&output_of(&mut restore(site, grant, disk)).unwrap()).unwrap()
}

fn refused(site: &Site, grant: &str, disk: &Path) -> String {
    let output = restore(site, grant, disk).output().unwrap();
    assert!(!output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(said.trim_end().lines().count(), 1, "one line that says what to do: {said}");
    said
}

fn grant(site: &Site, at: &str) -> String {
    let said = site.cli(&["grant", "create", VM, "--at", at, "--disk", "disk-1"]).unwrap();
    said.split_whitespace().last().unwrap().to_owned()
}

#[test]
fn a_disk_is_restored_by_a_grant_and_only_what_differs_is_fetched() {
    if skipped("block devices") {
        return;
    }
    let site = Site::start("grants").unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let mut splitter = Synthetic::enrol(&site, VM, DISK_SECTORS, 11).await.unwrap();
        let mut stream = splitter.connect().await.unwrap();
        splitter.run(&mut stream, 600).await.unwrap();
    });
    let wanted = site.image(VM, 0, "lsn:300").unwrap();
    let word = grant(&site, "lsn:300");

    // Refused untouched: no device, too small, in use, another appliance's word.
    let small = LoopDisk::create(&site.path().join("small"), DISK_BYTES - 4096).unwrap();
    assert!(refused(&site, &word, small.device()).contains("name a disk that is as large"));
    assert!(read_direct(small.device()).unwrap().iter().all(|byte| *byte == 0));
    assert!(refused(&site, &word, &site.data().join("admin.context")).contains("no block device"));
    assert!(refused(&site, "tm1.what", small.device()).contains("not a grant"));
    let target = LoopDisk::create(&site.path().join("target"), DISK_BYTES + (1 << 20)).unwrap();
    output_of(Command::new("mkfs.ext4").arg("-q").arg(target.device())).unwrap();
    {
        let folder = site.path().join("mounted");
        let _mounted = Mounted::mount(target.device(), &folder, "rw").unwrap();
        assert!(refused(&site, &word, target.device()).contains("is in use"));
    }

    // What lies beyond the disk stays.
    let device = OpenOptions::new().read(true).write(true).open(target.device()).unwrap();
    device.write_all_at(&[7; 4096], DISK_BYTES).unwrap();
    device.sync_all().unwrap();
    drop(device);
    let outcome = restored(&site, &word, target.device());
    assert_eq!((outcome["lsn"].as_u64(), outcome["bytes"].as_u64()), (Some(300), Some(DISK_BYTES)));
    assert_eq!(outcome["untouched_bytes"].as_u64(), Some(1 << 20));
    let now = read_direct(target.device()).unwrap();
    let end = usize::try_from(DISK_BYTES).unwrap();
    assert!(now[..end] == wanted && now[end..end + 4096] == [7; 4096]);

    // Again, nothing is fetched; from there to the newest point, what differs in pieces of 64 KiB.
    let again = restored(&site, &word, target.device());
    assert_eq!((again["fetched_bytes"].as_u64(), again["zeroed_bytes"].as_u64()), (Some(0), Some(0)));
    let latest = site.image(VM, 0, "latest").unwrap();
    let pieces = |image: &[u8]| image.chunks(64 << 10).map(<[u8]>::to_vec).collect::<Vec<_>>();
    let differing: usize = pieces(&wanted)
        .iter()
        .zip(&pieces(&latest))
        .filter(|(old, new)| old != new)
        .map(|(old, _)| old.len())
        .sum();
    assert!(differing > 0);
    let newest = restored(&site, &grant(&site, "latest"), target.device());
    let moved = newest["fetched_bytes"].as_u64().unwrap() + newest["zeroed_bytes"].as_u64().unwrap();
    assert_eq!(moved, differing as u64);
    assert!(read_direct(target.device()).unwrap()[..end] == latest);

    site.cli(&["grant", "revoke", word.split('.').nth(1).unwrap()]).unwrap();
    assert!(refused(&site, &word, target.device()).contains("was revoked"));
    site.finish(&["restore was refused"]).unwrap();
}

#[test]
fn a_killed_restore_is_marked_and_goes_on() {
    if skipped("block devices") {
        return;
    }
    let site = Site::start("grants-killed").unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let mut splitter = Synthetic::enrol(&site, VM, DISK_SECTORS, 12).await.unwrap();
        let mut stream = splitter.connect().await.unwrap();
        splitter.run(&mut stream, 400).await.unwrap();
    });
    let wanted = site.image(VM, 0, "latest").unwrap();
    let word = grant(&site, "latest");
    let target = LoopDisk::create(&site.path().join("target"), DISK_BYTES).unwrap();
    let device = OpenOptions::new().read(true).write(true).open(target.device()).unwrap();
    device.write_all_at(&vec![0x5a; usize::try_from(DISK_BYTES).unwrap()], 0).unwrap();
    device.sync_all().unwrap();

    let mut child =
        restore(&site, &word, target.device()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let begun = Instant::now();
    let mut start = [0; 8];
    while start != *b"TIDEMARK" {
        assert!(
            begun.elapsed() < PATIENCE && child.try_wait().unwrap().is_none(),
            "it ended before it was seen"
        );
        device.read_exact_at(&mut start, 0).unwrap();
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let left = read_direct(target.device()).unwrap();
    assert!(left != wanted && left.starts_with(b"TIDEMARK: an incomplete restore"));

    // The appliance notices the end of the connection by itself.
    let outcome = loop {
        let output = restore(&site, &word, target.device()).output().unwrap();
        if output.status.success() {
            break serde_json::from_slice::<Value>(&output.stdout).unwrap();
        }
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("is running") && begun.elapsed() < PATIENCE, "{said}");
        std::thread::sleep(Duration::from_millis(100));
    };
    assert!(outcome["fetched_bytes"].as_u64().unwrap() > 0);
    assert!(read_direct(target.device()).unwrap() == wanted);
    site.finish(&["restore was refused"]).unwrap();
}
