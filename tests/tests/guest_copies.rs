//! Machines that are copies: clones, reverted snapshots, disks that went back in time.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test states what must hold and stops where it does not"
)]

use std::time::{Duration, Instant};

use tidemark_tests::guest::{self, Guest, Kernel};
use tidemark_tests::site::{Site, skipped};

const VM: &str = "copied";
const MIB: u64 = 1 << 20;
const LONG: Duration = Duration::from_secs(240);
const CLONE_UUID: &str = "7d1dea2c-0000-4000-8000-00000000a0ff";

fn write(guest: &mut Guest, mib: u64) {
    guest
        .sh(&format!("dd if=/dev/urandom of=/dev/vda bs=1M count=1 seek={mib} oflag=direct conv=fsync 2>&1"))
        .unwrap();
}

/// Why the guest's splitter says that nothing is taken from it.
fn quarantined(guest: &mut Guest) -> String {
    let began = Instant::now();
    loop {
        let status = guest.splitter_status().unwrap();
        if let Some(reason) = status["quarantined"].as_str() {
            assert_eq!(status["connected"], false, "{status}");
            return reason.to_owned();
        }
        assert!(began.elapsed() < LONG, "{status}\n{}", guest.splitter_log().unwrap());
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn wait_exact(site: &Site, guest: &Guest, name: &str) {
    let began = Instant::now();
    loop {
        site.wait_state(VM, "protected", LONG).unwrap();
        if site.bookmark(VM, name).is_ok() {
            break;
        }
        assert!(began.elapsed() < LONG);
        std::thread::sleep(Duration::from_millis(200));
    }
    let image = site.image(VM, 0, &format!("bookmark:{name}")).unwrap();
    assert!(image == guest.content("data").unwrap(), "{name}: the replica is not the disk");
}

#[test]
fn copies_write_nothing_into_the_history_of_the_original() {
    if skipped("splitters in guests") {
        return;
    }
    if let Some(reason) = guest::unavailable() {
        eprintln!("skipped: {reason}");
        return;
    }
    let site = Site::start("copies").unwrap();
    let mut guest = Guest::builder(Kernel::V6_12)
        .disk("data", 16 * MIB)
        .splitter("--ring-mib 16")
        .unwrap()
        .boot()
        .unwrap();
    guest.enrol(&site, VM, site.address(), &[]).unwrap();
    guest.protect("/dev/vda").unwrap();
    write(&mut guest, 1);
    wait_exact(&site, &guest, "before");
    let machine = guest.power_off().unwrap();
    let snapshot = machine.copy(None).unwrap();
    let clone = machine.copy(Some(CLONE_UUID)).unwrap();
    let old_data = machine.content("data").unwrap();

    // The original goes on; a clone that is started beside it is told that it is one, and the original stays protected.
    let mut guest = machine.boot().unwrap();
    write(&mut guest, 2);
    wait_exact(&site, &guest, "original");
    let mut copy = clone.boot().unwrap();
    let reason = quarantined(&mut copy);
    println!("clone: {reason}");
    assert!(reason.contains("--replace"), "{reason}");
    drop(copy);
    write(&mut guest, 3);
    wait_exact(&site, &guest, "beside-the-clone");
    let alarms = site.cli_json(&["status"]).unwrap()["alarms"].to_string();
    assert!(alarms.contains("copy"), "{alarms}");

    // Only the data disk goes back in time: the machine is the same, and the disk is compared.
    let machine = guest.power_off().unwrap();
    std::fs::write(machine.disk("data").unwrap(), &old_data).unwrap();
    let gaps = site.points(VM).unwrap().gaps.len();
    let mut guest = machine.boot().unwrap();
    guest.wait_splitter().unwrap();
    let began = Instant::now();
    while site.points(VM).unwrap().gaps.len() == gaps {
        assert!(began.elapsed() < LONG, "the new capture has no gap");
        std::thread::sleep(Duration::from_millis(100));
    }
    wait_exact(&site, &guest, "data-reverted");
    assert!(guest.content("data").unwrap() == old_data);
    guest.power_off().unwrap();

    // The whole machine goes back in time: nothing is taken until it is enrolled again, then the disk is compared.
    let mut guest = snapshot.boot().unwrap();
    let reason = quarantined(&mut guest);
    println!("reverted: {reason}");
    assert!(reason.contains("reverted") && reason.contains("--replace"), "{reason}");
    assert_eq!(site.vm(VM).unwrap()["state"], "quarantined");
    let last = site.points(VM).unwrap().windows.last().copied().unwrap();
    write(&mut guest, 5);
    guest.enrol(&site, VM, site.address(), &["--replace"]).unwrap();
    wait_exact(&site, &guest, "enrolled-again");
    let points = site.points(VM).unwrap();
    assert!(points.windows.last().unwrap().to_lsn > last.to_lsn);
    guest.check_splitter_log(&["takes nothing more"]).unwrap();
    guest.power_cut().unwrap();
    site.finish(&["VM quarantined", "a copy of the VM was refused"]).unwrap();
}
