//! Disks of a running guest that come, go, change their size and look alike; LVM above them.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test states what must hold and stops where it does not"
)]

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use serde_json::Value;
use tidemark_tests::guest::{self, Disk, Guest, Kernel, STATE};
use tidemark_tests::site::{Site, skipped};

const VM: &str = "disks";
const MIB: u64 = 1 << 20;
const LONG: Duration = Duration::from_secs(240);
/// What the splitter warns of here.
const WARNED: [&str; 3] =
    ["a protected disk is gone", "a disk cannot be protected", "cannot be read; trying again"];

fn cannot_run() -> bool {
    if skipped("splitters in guests") {
        return true;
    }
    let reason = guest::unavailable();
    if let Some(reason) = &reason {
        eprintln!("skipped: {reason}");
    }
    reason.is_some()
}

fn write(guest: &mut Guest, device: &str, mib: u64) {
    guest
        .sh(&format!("dd if=/dev/urandom of={device} bs=1M count=1 seek={mib} oflag=direct conv=fsync 2>&1"))
        .unwrap();
}

/// The entry of a disk, by its path, of the guest's `status`.
fn own(guest: &mut Guest, path: &str) -> Value {
    let status = guest.splitter_status().unwrap();
    let found = status["disks"].as_array().unwrap().iter().find(|disk| disk["path"] == path).cloned();
    found.unwrap_or_default()
}

fn wait<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(began.elapsed() < LONG, "{what} did not come");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// A point after everything written so far, once there is one: right after a copy a bookmark may come too early.
fn bookmark(site: &Site, name: &str) {
    wait("a bookmark", || {
        site.wait_state(VM, "protected", LONG).unwrap();
        site.bookmark(VM, name).ok()
    });
}

fn exported_disks(site: &Site, when: &str) -> usize {
    let exports = site.cli_json(&["export", VM, "--at", when]).unwrap();
    let exports = exports.as_array().unwrap();
    for export in exports {
        site.cli(&["export", "stop", export["id"].as_str().unwrap_or_default()]).unwrap();
    }
    exports.len()
}

/// A disk that is removed is an honest state while the other goes on; back again it is found and compared; unprotected
/// it is no part of the points any more.
#[test]
fn a_removed_disk_is_missing_and_found_again_by_identity() {
    if cannot_run() {
        return;
    }
    let site = Site::start("missing").unwrap();
    let more = Disk::new("more", 24 * MIB).scsi();
    let mut guest = Guest::builder(Kernel::V6_12)
        .disk("data", 16 * MIB)
        .attach(more.clone())
        .splitter("--ring-mib 16")
        .unwrap()
        .boot()
        .unwrap();
    guest.enrol(&site, VM, site.address(), &[]).unwrap();
    for (device, count) in [("/dev/vda", 4), ("/dev/sda", 16)] {
        (0..count).for_each(|mib| write(&mut guest, device, mib));
    }
    guest.protect("/dev/vda /dev/sda").unwrap();
    bookmark(&site, "both");

    // In use while it goes.
    guest.sh("(while dd if=/dev/urandom of=/dev/sda bs=64k count=4 oflag=direct; do :; done) >/dev/null 2>&1 &").unwrap();
    std::thread::sleep(Duration::from_millis(500));
    guest.hot_remove("more").unwrap();
    let missing = wait("the missing disk", || {
        let disk = own(&mut guest, "/dev/sda");
        (disk["state"] == "missing").then_some(disk)
    });
    assert!(missing["reason"].as_str().unwrap().contains("attach it again"), "{missing}");
    let vm = wait("the state error", || {
        let vm = site.vm(VM).unwrap();
        (vm["state"] == "error").then_some(vm)
    });
    println!("{vm}");
    let shown = site.cli(&["vm", "show", VM]).unwrap();
    assert!(shown.contains("missing"), "{shown}");
    let alarms = site.cli_json(&["status"]).unwrap()["alarms"].to_string();
    assert!(alarms.contains("missing in the machine"), "{alarms}");
    let gap = site.points(VM).unwrap().gaps.last().cloned().unwrap();
    assert!(gap.is_open(), "{gap:?}");

    // The other disk goes on: its newest point has what was written since.
    write(&mut guest, "/dev/vda", 9);
    let data = guest.content("data").unwrap();
    let file = site.path().join("recovered");
    wait("the newest point of the other disk", || {
        let _ = std::fs::remove_file(&file);
        let to = file.to_string_lossy();
        let recovered = site.cli(&["recover", VM, "--at", "latest", "--disk", "disk-1", "--to", &to]);
        (recovered.is_ok() && std::fs::read(&file).unwrap() == data).then_some(())
    });

    // Elsewhere somebody writes to the disk; back again it is compared.
    let elsewhere = OpenOptions::new().write(true).open(guest.folder().join("more.raw")).unwrap();
    elsewhere.write_all_at(&[0xa5; 8192], 3 * MIB).unwrap();
    drop(elsewhere);
    let ballast = site.metrics().unwrap();
    guest.hot_add(more.clone()).unwrap();
    site.wait_state(VM, "protected", LONG).unwrap();
    bookmark(&site, "back");
    let image = site.image(VM, 1, "bookmark:back").unwrap();
    assert!(image == guest.content("more").unwrap(), "the disk that is back was not verified");
    assert!(site.points(VM).unwrap().gaps.iter().all(|gap| !gap.is_open()));
    let known = |metrics: &str| {
        let line = metrics.lines().find(|line| line.contains("ingest_known_bytes") && !line.starts_with('#'));
        line.and_then(|line| line.split_whitespace().last()?.parse::<f64>().ok()).unwrap_or(0.0)
    };
    let (before, after) = (known(&ballast), known(&site.metrics().unwrap()));
    println!("known of the disk that is back: {} bytes", after - before);
    assert!(after - before > 12e6, "it was compared by hashes, not sent: {before} {after}");
    assert_eq!(exported_disks(&site, "bookmark:back"), 2);

    // Its protection ended while it was away for good: the machine's points are of what is left.
    guest.hot_remove("more").unwrap();
    wait("the missing disk", || (own(&mut guest, "/dev/sda")["state"] == "missing").then_some(()));
    guest.sh(&format!("tidemark-splitter unprotect {STATE} /dev/sda")).unwrap();
    bookmark(&site, "without");
    assert_eq!(exported_disks(&site, "bookmark:without"), 1);
    assert_eq!(exported_disks(&site, "bookmark:both"), 2);
    assert!(site.points(VM).unwrap().gaps.iter().all(|gap| !gap.is_open()));

    // Protected again, it is copied again.
    guest.hot_add(more).unwrap();
    guest.protect("/dev/sda").unwrap();
    bookmark(&site, "again");
    assert!(site.image(VM, 1, "bookmark:again").unwrap() == guest.content("more").unwrap());
    assert!(site.image(VM, 1, "bookmark:both").unwrap().len() as u64 == 24 * MIB);
    guest.check_splitter_log(&WARNED).unwrap();
    guest.power_cut().unwrap();
    site.finish(&[]).unwrap();
}

/// `protect --all` takes in what is added, leaves out what matches, refuses what looks like another disk.
#[test]
fn every_disk_is_protected_also_one_that_is_added() {
    if cannot_run() {
        return;
    }
    let site = Site::start("all").unwrap();
    let mut guest = Guest::builder(Kernel::V6_1)
        .disk("data", 16 * MIB)
        .disk("scratch-1", 8 * MIB)
        .lvm()
        .splitter("--ring-mib 16")
        .unwrap()
        .boot()
        .unwrap();
    guest.enrol(&site, VM, site.address(), &[]).unwrap();
    guest.protect("--all --except serial:tidemark-state --except 'serial:scratch-*'").unwrap();
    let paths = |guest: &mut Guest| {
        let status = guest.splitter_status().unwrap();
        let disks = status["disks"].as_array().unwrap().iter();
        disks.map(|disk| disk["path"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(paths(&mut guest), ["/dev/vda"]);

    // What is added is protected by itself, and what matches an exception is not.
    guest.hot_add(Disk::new("scratch-2", 8 * MIB)).unwrap();
    guest.hot_add(Disk::new("later", 8 * MIB)).unwrap();
    let later = guest.device("later").unwrap();
    wait("the added disk", || (own(&mut guest, &later)["state"] == "protected").then_some(()));
    assert_eq!(paths(&mut guest), ["/dev/vda", later.as_str()]);
    let gaps = site.points(VM).unwrap().gaps;
    assert_eq!(gaps.iter().filter(|gap| gap.cause == "initial copy").count(), 2, "{gaps:?}");

    // It grows and shrinks; each point has the size of its time.
    write(&mut guest, &later, 7);
    for (name, size) in [("at-8", 8), ("at-16", 16), ("at-4", 4)] {
        guest.resize("later", size * MIB).unwrap();
        write(&mut guest, &later, size - 1);
        let content = guest.content("later").unwrap();
        wait("the new size", || {
            bookmark(&site, &format!("{name}-{}", site.points(VM).unwrap().points.len()));
            let image = site.image(VM, 1, "latest").ok()?;
            (image == content).then_some(())
        });
        bookmark(&site, name);
    }
    for (name, size) in [("at-8", 8), ("at-16", 16), ("at-4", 4)] {
        let image = site.image(VM, 1, &format!("bookmark:{name}")).unwrap();
        assert_eq!(image.len() as u64, size * MIB, "{name}");
    }

    // A twin cannot be told from the first.
    guest.hot_add(Disk::new("twin", 8 * MIB).serial("data")).unwrap();
    let refused = wait("the refusal", || {
        let status = guest.splitter_status().unwrap();
        status["refused"].as_array().and_then(|refused| refused.first().cloned())
    });
    assert!(refused["reason"].as_str().unwrap().contains("cannot be told from"), "{refused}");
    let said = guest.sh(&format!("tidemark-splitter status {STATE}")).unwrap();
    assert!(said.contains("NOT protected") && said.contains("every disk is protected but"), "{said}");
    guest.hot_remove("twin").unwrap();
    wait("the end of the refusal", || guest.splitter_status().unwrap()["refused"].is_null().then_some(()));

    // One level only: the disk below a physical volume, not what LVM makes of it.
    guest
        .sh("pvcreate -q /dev/vda && vgcreate -q vg /dev/vda && lvcreate -q -y -l 100%FREE -n lv vg")
        .unwrap();
    let stacked = guest.run(&format!("tidemark-splitter protect {STATE} /dev/vg/lv"), LONG).unwrap();
    assert_eq!(stacked.status, 1, "{}", stacked.output);
    assert!(stacked.output.contains("protect /dev/vda instead"), "{}", stacked.output);
    write(&mut guest, "/dev/vg/lv", 2);
    guest.sh("sync").unwrap();
    bookmark(&site, "lvm");
    assert!(site.image(VM, 0, "bookmark:lvm").unwrap() == guest.content("data").unwrap());

    // Unprotected it stays so.
    guest.sh(&format!("tidemark-splitter unprotect {STATE} {later}")).unwrap();
    std::thread::sleep(Duration::from_secs(4));
    assert_eq!(paths(&mut guest), ["/dev/vda"]);
    guest.sh(&format!("tidemark-splitter unprotect {STATE} --all")).unwrap();
    std::thread::sleep(Duration::from_secs(4));
    assert!(paths(&mut guest).is_empty());
    guest.check_splitter_log(&WARNED).unwrap();
    guest.power_cut().unwrap();
    site.finish(&[]).unwrap();
}
