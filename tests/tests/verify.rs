//! Hashes first: after a reboot the whole disk is in doubt, and nearly nothing of it travels. And verify on request: what
//! changed behind the tap's back is found and repaired, and nothing else is.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test states what must hold and stops where it does not"
)]

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::Value;
use tidemark_tests::disks::{LoopDisk, read_direct};
use tidemark_tests::leftovers::{Resource, Undo};
use tidemark_tests::meter::Meter;
use tidemark_tests::site::{Site, large, program, skipped};

const VM: &str = "doubtful";
const DISK_BYTES: u64 = 192 << 20;
const BLOCK_BYTES: usize = 4096;

/// Writes random blocks to random places, directly to the disk.
fn scatter(device: &Path, blocks: u64, random: &mut StdRng) {
    scatter_in(device, blocks, DISK_BYTES, random);
}

/// The same in a disk of another size; of a small one the first block is always one of them.
fn scatter_in(device: &Path, blocks: u64, size_bytes: u64, random: &mut StdRng) {
    let file = OpenOptions::new().write(true).open(device).unwrap();
    for index in 0..blocks {
        let place = random.random_range(0..size_bytes / BLOCK_BYTES as u64) * BLOCK_BYTES as u64;
        let place = if index == 0 && size_bytes == SMALL_BYTES { 0 } else { place };
        let mut block = vec![0; BLOCK_BYTES];
        random.fill(&mut block[..]);
        file.write_all_at(&block, place).unwrap();
    }
    file.sync_all().unwrap();
}

fn fill(device: &Path, random: &mut StdRng) {
    let file = OpenOptions::new().write(true).open(device).unwrap();
    let mut piece = vec![0; 1 << 20];
    // A quarter of the disk was never written.
    for mib in 0..(DISK_BYTES / 4 * 3) >> 20 {
        random.fill(&mut piece[..]);
        file.write_all_at(&piece, mib << 20).unwrap();
    }
    file.sync_all().unwrap();
}

/// Waits for the end of the present copy; the states seen on the way.
fn wait_protected(site: &mut Site, splitter: usize) -> Vec<String> {
    let (began, mut seen) = (Instant::now(), Vec::new());
    loop {
        let status = site.splitter(splitter).unwrap().status().unwrap();
        let own = status["disks"][0]["state"].as_str().unwrap_or_default().to_owned();
        let state = site.vm(VM).unwrap()["state"].as_str().unwrap().to_owned();
        for state in [&own, &state] {
            if seen.last() != Some(state) {
                seen.push(state.clone());
            }
        }
        if state == "protected" && own == "protected" {
            return seen;
        }
        assert!(began.elapsed() < Duration::from_secs(90), "states so far: {seen:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What a reboot leaves: no splitter, no tap, and writes that nobody saw.
fn reboot(site: &mut Site, splitter: usize, device: &Path, blocks: u64, random: &mut StdRng) {
    let splitter = site.splitter(splitter).unwrap();
    splitter.kill().unwrap();
    splitter.command(&["unload"]).unwrap();
    scatter(device, blocks, random);
    splitter.start().unwrap();
}

#[test]
fn after_a_reboot_with_one_percent_changed_at_most_two_percent_travel() {
    if skipped("the tap and loop devices") {
        return;
    }
    let mut site = Site::start("verify").unwrap();
    let mut random = StdRng::seed_from_u64(17);
    let disk = LoopDisk::create(&site.path().join("disk"), DISK_BYTES).unwrap();
    fill(disk.device(), &mut random);
    let meter = Meter::start(site.address(), Duration::ZERO).unwrap();
    let splitter = site.add_splitter_at(VM, meter.address(), &["--ring-mib", "64"]).unwrap();
    let began = Instant::now();
    site.splitter(splitter).unwrap().protect(disk.device(), true).unwrap();
    site.wait_state(VM, "protected", Duration::from_secs(60)).unwrap();
    let first = meter.bytes();
    println!("first copy: {first} bytes on the wire in {:?}", began.elapsed());
    // The control: the meter sees what is sent, and zeroes are not.
    assert!(first > DISK_BYTES / 4 * 3 && first < DISK_BYTES / 5 * 4, "{first} bytes");

    // One per cent, in blocks that lie as badly as they can.
    let changed = DISK_BYTES / 100 / BLOCK_BYTES as u64;
    let (before, began) = (meter.bytes(), Instant::now());
    reboot(&mut site, splitter, disk.device(), changed, &mut random);
    let seen = wait_protected(&mut site, splitter);
    let travelled = meter.bytes() - before;
    println!("verify: {travelled} bytes on the wire in {:?}, states {seen:?}", began.elapsed());
    assert!(travelled <= DISK_BYTES / 50, "{travelled} bytes, {} are 2 %", DISK_BYTES / 50);
    assert!(travelled >= changed * 3000, "{changed} blocks cannot travel in {travelled} bytes");
    assert!(seen.iter().any(|state| state == "verify"), "{seen:?}");
    site.bookmark(VM, "verified").unwrap();
    assert!(site.image(VM, 0, "bookmark:verified").unwrap() == read_direct(disk.device()).unwrap());

    // Killed in the middle, the splitter goes on where it stopped: what was compared is not compared again.
    reboot(&mut site, splitter, disk.device(), changed, &mut random);
    std::thread::sleep(Duration::from_millis(300));
    site.splitter(splitter).unwrap().kill().unwrap();
    site.splitter(splitter).unwrap().start().unwrap();
    wait_protected(&mut site, splitter);
    site.bookmark(VM, "again").unwrap();
    assert!(site.image(VM, 0, "bookmark:again").unwrap() == read_direct(disk.device()).unwrap());
    assert!(site.image(VM, 0, "bookmark:verified").unwrap().len() as u64 == DISK_BYTES);
    site.finish(&["connection", "not connected", "broke", "transport", "session", "stream"]).unwrap();
}

/// `vm verify --wait`: the job, and what was said where that is a failure.
fn verified(site: &Site) -> (Value, Option<String>) {
    let output = Command::new(program("tidemark").unwrap())
        .arg("--context")
        .arg(site.data().join("admin.context"))
        .args(["vm", "verify", VM, "--wait", "--json"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let job = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {said}"));
    (job, (!output.status.success()).then_some(said))
}

fn found_by_verify(site: &Site) -> usize {
    site.points(VM).unwrap().gaps.iter().filter(|gap| gap.cause == "found by a verify").count()
}

fn verify_alarms(site: &Site) -> usize {
    let status = site.cli_json(&["status"]).unwrap();
    let alarms = status["alarms"].as_array().unwrap();
    alarms.iter().filter(|alarm| alarm["text"].as_str().unwrap().contains("verify found")).count()
}

const SMALL_BYTES: u64 = 64 << 20;

#[test]
fn a_sector_that_changed_behind_the_tap_is_found_and_repaired() {
    if skipped("the tap and loop devices") {
        return;
    }
    let mut site = Site::start("on-request").unwrap();
    let mut random = StdRng::seed_from_u64(19);
    let disk = LoopDisk::create(&site.path().join("disk"), SMALL_BYTES).unwrap();
    let splitter = site.add_splitter(VM, &["--ring-mib", "64"]).unwrap();
    let refused = site.cli_refused(&["vm", "verify", VM]).unwrap();
    assert!(refused.contains("not connected"), "{refused}");
    site.splitter(splitter).unwrap().protect(disk.device(), true).unwrap();
    site.wait_state(VM, "protected", Duration::from_secs(60)).unwrap();
    let file = OpenOptions::new().write(true).open(disk.device()).unwrap();
    let mut piece = vec![0; 1 << 20];
    for mib in 0..(SMALL_BYTES / 2) >> 20 {
        random.fill(&mut piece[..]);
        file.write_all_at(&piece, mib << 20).unwrap();
    }
    file.sync_all().unwrap();
    let began = Instant::now();
    let (clean, failure) = verified(&site);
    println!("verify of {SMALL_BYTES} bytes: {:?}", began.elapsed());
    assert_eq!(failure, None, "{clean}");
    assert_eq!(clean["disks"][0]["equal_bytes"], SMALL_BYTES, "{clean}");
    assert_eq!(found_by_verify(&site), 0);

    // The first sector of a block that was written, and one that never was.
    site.bookmark(VM, "wrong").unwrap();
    let backing = OpenOptions::new().write(true).open(disk.backing()).unwrap();
    let places = [(5 << 20) + 8192, (SMALL_BYTES / 4 * 3) + 4096 + 512];
    for place in places {
        backing.write_all_at(&[0xa5; 512], place).unwrap();
    }
    backing.sync_all().unwrap();
    let (job, failure) = verified(&site);
    assert!(failure.unwrap().contains("in doubt"), "{job}");
    let found: Vec<_> = job["disks"][0]["differing"].as_array().unwrap().clone();
    let expected = places.map(|place| serde_json::json!({ "offset": place / 4096 * 4096, "bytes": 4096 }));
    assert_eq!(found, expected, "{job}");
    assert_eq!(job["disks"][0]["differing_bytes"], 8192, "{job}");
    assert_eq!(job["disks"][0]["compared_bytes"], SMALL_BYTES, "{job}");
    assert!(found_by_verify(&site) > 0);
    assert_eq!(verify_alarms(&site), 1);
    let metrics = site.metrics().unwrap();
    let counted = format!("tidemark_verify_differing_bytes_total{{vm=\"{VM}\"}} 8192");
    assert!(metrics.contains(&counted), "{metrics}");

    // Repaired from the end of the gap on; before it the point is there, with a warning.
    site.bookmark(VM, "right").unwrap();
    let present = read_direct(disk.device()).unwrap();
    assert!(site.image(VM, 0, "bookmark:right").unwrap() == present);
    assert!(site.image(VM, 0, "bookmark:wrong").unwrap() != present);
    let listed = site.cli(&["point", "list", VM]).unwrap();
    assert!(listed.contains("in doubt"), "{listed}");
    let warned = Command::new(program("tidemark").unwrap())
        .arg("--context")
        .arg(site.data().join("admin.context"))
        .args(["recover", VM, "--at", "bookmark:wrong", "--to"])
        .arg(site.path().join("restored"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&warned.stderr);
    assert!(warned.status.success() && said.contains("in doubt"), "{said}");

    let (clean, failure) = verified(&site);
    assert_eq!(failure, None, "{clean}");
    assert_eq!(verify_alarms(&site), 0);
    assert_eq!(site.cli_json(&["job", "list"]).unwrap().as_array().unwrap().len(), 3);

    // A splitter that is killed on the way begins anew, by itself.
    let begun = site.cli_json(&["vm", "verify", VM, "--disk", "disk-1"]).unwrap();
    let splitter = site.splitter(splitter).unwrap();
    splitter.kill().unwrap();
    splitter.start().unwrap();
    let id = begun["id"].as_str().unwrap();
    let done = site.cli_json(&["job", "wait", id, "--timeout", "60s"]).unwrap();
    assert_eq!((done["state"].as_str(), &done["id"]), (Some("done"), &begun["id"]), "{done}");
    site.finish(&[
        "connection",
        "not connected",
        "broke",
        "transport",
        "session",
        "stream",
        "a verify found",
    ])
    .unwrap();
}

#[test]
fn a_busy_disk_verifies_clean_three_times() {
    if skipped("the tap and loop devices") {
        return;
    }
    let mut site = Site::start("busy").unwrap();
    let mut random = StdRng::seed_from_u64(20);
    let disk = LoopDisk::create(&site.path().join("disk"), SMALL_BYTES).unwrap();
    let splitter = site.add_splitter(VM, &["--ring-mib", "64"]).unwrap();
    site.splitter(splitter).unwrap().protect(disk.device(), true).unwrap();
    site.wait_state(VM, "protected", Duration::from_secs(60)).unwrap();
    let (device, done) = (disk.device().to_path_buf(), Arc::new(AtomicBool::new(false)));
    let writer = {
        let done = Arc::clone(&done);
        std::thread::spawn(move || {
            let mut written = 0_u64;
            while !done.load(Ordering::Relaxed) {
                // Scattered, and one place that is written all the time.
                scatter_in(&device, 16, SMALL_BYTES, &mut random);
                written += 16;
            }
            written
        })
    };
    let mut skipped_bytes = 0;
    for _ in 0..3 {
        let (job, failure) = verified(&site);
        assert_eq!(failure, None, "{job}");
        let disk = &job["disks"][0];
        skipped_bytes += disk["skipped_bytes"].as_u64().unwrap();
        println!("{disk}");
        let equal = disk["equal_bytes"].as_u64().unwrap();
        assert!(equal >= SMALL_BYTES - (1 << 20), "{job}");
    }
    done.store(true, Ordering::Relaxed);
    println!("{} writes meanwhile, {skipped_bytes} bytes passed over", writer.join().unwrap());
    assert_eq!(found_by_verify(&site), 0);
    site.wait_state(VM, "protected", Duration::from_secs(60)).unwrap();
    site.bookmark(VM, "end").unwrap();
    assert!(site.image(VM, 0, "bookmark:end").unwrap() == read_direct(disk.device()).unwrap());
    site.finish(&[]).unwrap();
}

/// Seconds from now until the copy that `act` begins is done.
fn timed(site: &mut Site, splitter: usize, act: impl FnOnce(&mut Site)) -> f64 {
    let began = Instant::now();
    act(site);
    wait_protected(site, splitter);
    began.elapsed().as_secs_f64()
}

/// Rates by hand: `TIDEMARK_TEST_SIZE=large`. They stand beside the raw read rate of the same run.
#[test]
fn rates_of_copy_and_comparison() {
    if skipped("the tap and loop devices") {
        return;
    }
    if !large() {
        println!("rates are measured with TIDEMARK_TEST_SIZE=large");
        return;
    }
    for delay_ms in [0, 25] {
        let mut site = Site::start("rates").unwrap();
        let mut random = StdRng::seed_from_u64(18);
        let backing = std::path::PathBuf::from(format!("/dev/shm/tidemark-rates-{}", std::process::id()));
        let _remove = Resource::register(Undo::Folder(backing.clone())).unwrap();
        std::fs::create_dir_all(&backing).unwrap();
        let disk = LoopDisk::create(&backing.join("disk"), DISK_BYTES * 4).unwrap();
        for quarter in 0..4 {
            let file = OpenOptions::new().write(true).open(disk.device()).unwrap();
            let mut piece = vec![0; 1 << 20];
            for mib in 0..DISK_BYTES >> 20 {
                random.fill(&mut piece[..]);
                file.write_all_at(&piece, quarter * DISK_BYTES + (mib << 20)).unwrap();
            }
            file.sync_all().unwrap();
        }
        let began = Instant::now();
        read_direct(disk.device()).unwrap();
        let mib = ((DISK_BYTES * 4) >> 20) as f64;
        let raw = mib / began.elapsed().as_secs_f64();
        let meter = Meter::start(site.address(), Duration::from_millis(delay_ms)).unwrap();
        let splitter = site.add_splitter_at(VM, meter.address(), &["--ring-mib", "64"]).unwrap();
        let device = disk.device().to_path_buf();
        let copy = timed(&mut site, splitter, |site| {
            site.splitter(splitter).unwrap().protect(&device, false).map(drop).unwrap();
        });
        // Loading the tap takes a second or two of each; a disk of one block tells how much.
        let mut again = |blocks: u64| {
            let before = meter.bytes();
            let seconds =
                timed(&mut site, splitter, |site| reboot(site, splitter, &device, blocks, &mut random));
            (seconds, meter.bytes() - before)
        };
        let (same, same_bytes) = again(0);
        let (changed, changed_bytes) = again(DISK_BYTES * 4 / 100 / BLOCK_BYTES as u64);
        println!("round trip {} ms: raw read {raw:.0} MiB/s, first copy {:.0}", 2 * delay_ms, mib / copy);
        println!("  nothing changed: {:.0} MiB/s with the restart, {same_bytes} bytes", mib / same);
        println!("  1 % changed: {:.0} MiB/s with the restart, {changed_bytes} bytes", mib / changed);
        site.finish(&["connection", "not connected", "broke", "transport", "session", "stream"]).unwrap();
    }
}
