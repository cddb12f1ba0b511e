//! `tidemark recover` into files and onto devices.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::cast_possible_truncation,
    missing_debug_implementations,
    unreachable_pub,
    dead_code,
    reason = "tests"
)]

mod fixture;

use std::os::unix::fs::MetadataExt;
use std::sync::atomic::Ordering;

use fixture::{Fixture, Loop, content, root};

#[test]
fn all_disks_come_back_sparse_and_exact() {
    let disks = [content(40 << 20, 1), content((9 << 20) + 512, 2)];
    let fixture = Fixture::start(vec![("disk-1", disks[0].clone()), ("disk-3", disks[1].clone())]);
    let to = fixture.path("restored/here");
    let report = fixture.json(&["recover", "web-1", "--at", "-10s", "--to", to.to_str().unwrap()]);
    for (index, id) in ["disk-1", "disk-3"].iter().enumerate() {
        let path = to.join(format!("{id}.raw"));
        assert!(std::fs::read(&path).unwrap() == disks[index], "{id}");
        assert!(path.metadata().unwrap().blocks() * 512 < disks[index].len() as u64 - (1 << 20));
        let one = &report[index];
        assert_eq!((&one["vm"], &one["disk"], &one["lsn"]), (&"web-1".into(), &(*id).into(), &90.into()));
        assert_eq!(one["bytes"], disks[index].len());
        assert_eq!(one["time"], "2026-11-21T01:01:30.000000Z");
        assert!(one["seconds"].as_f64().unwrap() > 0.0);
    }
    assert_eq!(std::fs::read_dir(&to).unwrap().count(), 2, "no marker stays");
    let again = fixture.fail(1, &["recover", "web-1", "--at", "latest", "--to", to.to_str().unwrap()]);
    assert!(again.contains("--overwrite"), "{again}");
    fixture.succeed(&["recover", "web-1", "--at", "latest", "--overwrite", "--to", to.to_str().unwrap()]);
    // The appliance hears of a command's end when its connection closes.
    let began = std::time::Instant::now();
    while !fixture.state.views.lock().unwrap().is_empty() {
        assert!(began.elapsed() < std::time::Duration::from_secs(10), "leases end with the command");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

#[test]
fn an_interrupted_restore_is_marked_and_runs_again() {
    let disk = content(64 << 20, 3);
    let fixture = Fixture::start(vec![("disk-1", disk.clone())]);
    let to = fixture.path("one.raw");
    let marker = fixture.path("one.raw.tidemark-incomplete");
    let arguments = ["recover", "web-1", "--at", "latest", "--disk", "disk-1", "--to", to.to_str().unwrap()];
    fixture.state.limited.store(true, Ordering::Relaxed);
    fixture.state.reads_left.store(3, Ordering::Relaxed);
    let error = fixture.fail(1, &arguments);
    assert!(error.contains("damaged at byte 17") && error.contains("again"), "{error}");
    assert!(marker.exists());
    fixture.state.limited.store(false, Ordering::Relaxed);
    // Killed in the middle: the marker tells.
    fixture.state.delay_ms.store(300, Ordering::Relaxed);
    let mut child = fixture.command(&arguments).spawn().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(450));
    child.kill().unwrap();
    child.wait().unwrap();
    let note: serde_json::Value = serde_json::from_slice(&std::fs::read(&marker).unwrap()).unwrap();
    assert_eq!(
        (&note["disk"], &note["lsn"], &note["missing_bytes"]),
        (&"disk-1".into(), &100.into(), &disk.len().into())
    );
    fixture.state.delay_ms.store(0, Ordering::Relaxed);
    fixture.succeed(&arguments);
    assert!(std::fs::read(&to).unwrap() == disk);
    assert!(!marker.exists());
}

#[test]
fn a_lost_view_is_opened_again() {
    let disk = content(64 << 20, 4);
    let fixture = Fixture::start(vec![("disk-1", disk.clone())]);
    let to = fixture.path("one.raw");
    fixture.state.delay_ms.store(100, Ordering::Relaxed);
    let mut child = fixture
        .command(&["recover", "web-1", "--at", "latest", "--disk", "disk-1", "--to", to.to_str().unwrap()])
        .spawn()
        .unwrap();
    while fixture.state.reads.load(Ordering::Relaxed) < 5 {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    fixture.state.views.lock().unwrap().clear();
    assert!(child.wait().unwrap().success());
    assert!(std::fs::read(&to).unwrap() == disk);
}

#[test]
fn a_device_is_written_whole_and_only_when_it_is_free() {
    if !root() {
        return;
    }
    let disk = content(16 << 20, 5);
    let fixture = Fixture::start(vec![("disk-1", disk.clone())]);
    let backing = fixture.path("device");
    std::fs::write(&backing, vec![0xAA; (16 << 20) + 4096]).unwrap();
    let device = Loop::attach(&backing, false);
    let arguments = ["recover", "web-1", "--at", "latest", "--disk", "disk-1", "--to", &device.0];
    // Interrupted: the head says so, and no partition table can be found.
    fixture.state.limited.store(true, Ordering::Relaxed);
    fixture.state.reads_left.store(1, Ordering::Relaxed);
    fixture.fail(1, &arguments);
    let head = std::fs::read(&device.0).unwrap();
    assert!(head.starts_with(b"TIDEMARK: an incomplete restore"));
    assert!(head[512..1 << 20].iter().all(|byte| *byte == 0));
    fixture.state.limited.store(false, Ordering::Relaxed);
    fixture.json(&arguments);
    let content = std::fs::read(&backing).unwrap();
    assert!(content[..16 << 20] == disk, "what the device held before is gone");
    assert!(content[16 << 20..].iter().all(|byte| *byte == 0xAA), "beyond the disk nothing changed");
    // In use.
    fixture::shell("mkfs.ext4", &["-qF", &device.0]).unwrap();
    let mounted = fixture.path("mounted");
    std::fs::create_dir(&mounted).unwrap();
    fixture::shell("mount", &[&device.0, mounted.to_str().unwrap()]).unwrap();
    let busy = fixture.fail(1, &arguments);
    fixture::shell("umount", &[mounted.to_str().unwrap()]).unwrap();
    assert!(busy.contains("in use"), "{busy}");
    // Too small, and not there.
    let small = fixture.path("small");
    std::fs::write(&small, vec![0xAA; 8 << 20]).unwrap();
    let small = Loop::attach(&small, false);
    let error =
        fixture.fail(1, &["recover", "web-1", "--at", "latest", "--disk", "disk-1", "--to", &small.0]);
    assert!(error.contains("too small"), "{error}");
    assert!(std::fs::read(&small.0).unwrap().iter().all(|byte| *byte == 0xAA), "refused untouched");
    fixture
        .fail(1, &["recover", "web-1", "--at", "latest", "--disk", "disk-1", "--to", "/dev/no-such-device"]);
    fixture.fail(1, &["recover", "web-1", "--at", "latest", "--disk", "disk-1", "--to", "/dev/null"]);
}
