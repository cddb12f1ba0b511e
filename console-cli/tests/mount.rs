//! `tidemark mount` for real: FUSE, loop devices, ext4. Needs root.
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

use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use fixture::{Fixture, Loop, content, root, shell};

/// Unmounts what a failing test leaves behind.
struct Mounts(Vec<String>);

impl Drop for Mounts {
    fn drop(&mut self) {
        for path in self.0.iter().rev() {
            let _ = shell("umount", &["-l", path]);
        }
    }
}

fn server_of(dir: &Path) -> i32 {
    let source = shell("findmnt", &["-no", "SOURCE", dir.to_str().unwrap()]).unwrap();
    source.split(':').nth(1).unwrap().parse().unwrap()
}

/// An ext4 file system with a file in it, whose journal has to be replayed: copied while mounted.
fn crashed_ext4(folder: &Path) -> Vec<u8> {
    let image = folder.join("image");
    fs::File::create(&image).unwrap().set_len(64 << 20).unwrap();
    shell("mkfs.ext4", &["-qF", "-E", "lazy_itable_init=0", image.to_str().unwrap()]).unwrap();
    let device = Loop::attach(&image, false);
    let at = folder.join("original");
    fs::create_dir(&at).unwrap();
    shell("mount", &[&device.0, at.to_str().unwrap()]).unwrap();
    fs::write(at.join("file"), content(3 << 20, 9)).unwrap();
    shell("sync", &["-f", at.to_str().unwrap()]).unwrap();
    fs::write(at.join("later"), "x").unwrap();
    fs::File::open(at.join("later")).unwrap().sync_all().unwrap();
    let bytes = fs::read(&device.0).unwrap();
    shell("umount", &[at.to_str().unwrap()]).unwrap();
    bytes
}

#[test]
fn a_read_only_mount_shows_every_byte_and_leaves_nothing() {
    if !root() {
        return;
    }
    let disks = [content(48 << 20, 1), content((5 << 20) + 1536, 2)];
    let fixture = Fixture::start(vec![("disk-1", disks[0].clone()), ("disk-2", disks[1].clone())]);
    let dir = fixture.path("then");
    let _mounts = Mounts(vec![dir.display().to_string()]);
    let started = Instant::now();
    let report = fixture.json(&["mount", "web-1", "--at", "-90s", dir.to_str().unwrap()]);
    eprintln!("mounted in {:?}", started.elapsed());
    assert_eq!(report["lsn"], 10);
    assert_eq!(report["files"][1]["disk"], "disk-2");
    assert_eq!(report["files"][1]["path"], dir.join("disk-2.raw").to_str().unwrap());
    let mut names: Vec<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["disk-1.raw", "disk-2.raw"]);
    for (name, disk) in ["disk-1.raw", "disk-2.raw"].iter().zip(&disks) {
        assert!(fs::read(dir.join(name)).unwrap() == *disk, "{name}");
    }
    let mut file = fs::File::open(dir.join("disk-2.raw")).unwrap();
    let mut tail = [0; 1000];
    file.seek(SeekFrom::End(-1000)).unwrap();
    file.read_exact(&mut tail).unwrap();
    assert!(tail[..] == disks[1][disks[1].len() - 1000..]);
    assert!(fs::File::options().write(true).open(dir.join("disk-1.raw")).is_err());
    assert!(fs::write(dir.join("other"), "").is_err());
    let again = fixture.fail(1, &["mount", "web-1", "--at", "latest", dir.to_str().unwrap()]);
    assert!(again.contains("already"), "{again}");
    let busy = fixture.fail(1, &["unmount", dir.to_str().unwrap()]);
    assert!(busy.contains("in use"), "{busy}");
    drop(file);
    let server = server_of(&dir);
    assert_eq!(fixture.state.views.lock().unwrap().len(), 1);
    fixture.succeed(&["unmount", dir.to_str().unwrap()]);
    // A container's init may leave the dead process in the table; a dead one has no program any more.
    assert!(fs::read_link(format!("/proc/{server}/exe")).is_err(), "the server has ended");
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
    let ended = Instant::now();
    while !fixture.state.views.lock().unwrap().is_empty() {
        assert!(ended.elapsed() < Duration::from_secs(5), "the lease ends with the process");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(fixture.fail(1, &["unmount", dir.to_str().unwrap()]).contains("nothing of tidemark"));
}

#[test]
fn ext4_mounts_from_a_writable_view_and_changes_vanish() {
    if !root() {
        return;
    }
    let work = tempfile::tempdir().unwrap();
    let fixture = Fixture::start(vec![("disk-1", crashed_ext4(work.path()))]);
    let (dir, files) = (fixture.path("then"), work.path().join("files"));
    fs::create_dir(&files).unwrap();
    let _mounts = Mounts(vec![dir.display().to_string(), files.display().to_string()]);
    for round in 0..2 {
        fixture.succeed(&["mount", "web-1", "--at", "latest", dir.to_str().unwrap(), "--writable"]);
        {
            let device = Loop::attach(&dir.join("disk-1.raw"), false);
            shell("mount", &["-o", "discard", &device.0, files.to_str().unwrap()]).unwrap();
            assert!(fs::read(files.join("file")).unwrap() == content(3 << 20, 9));
            assert!(!files.join("new").exists(), "round {round}: changes of the last mount are gone");
            fs::write(files.join("new"), content(8 << 20, 11)).unwrap();
            fs::File::open(files.join("new")).unwrap().sync_all().unwrap();
            shell("sh", &["-c", "echo 3 > /proc/sys/vm/drop_caches"]).unwrap();
            assert!(fs::read(files.join("new")).unwrap() == content(8 << 20, 11));
            fs::remove_file(files.join("file")).unwrap();
            shell("fstrim", &[files.to_str().unwrap()]).unwrap();
            shell("umount", &[files.to_str().unwrap()]).unwrap();
            shell("e2fsck", &["-fn", &device.0]).unwrap();
        }
        fixture.succeed(&["unmount", dir.to_str().unwrap()]);
    }
}

#[test]
fn a_killed_server_is_cleaned_up_by_unmount() {
    if !root() {
        return;
    }
    let fixture = Fixture::start(vec![("disk-1", content(8 << 20, 1))]);
    let dir = fixture.path("then");
    let _mounts = Mounts(vec![dir.display().to_string()]);
    fixture.succeed(&["mount", "web-1", "--at", "latest", dir.to_str().unwrap(), "--writable"]);
    let mut file = fs::File::options().write(true).open(dir.join("disk-1.raw")).unwrap();
    file.write_all(&[1; 8192]).unwrap();
    drop(file);
    shell("kill", &["-9", &server_of(&dir).to_string()]).unwrap();
    std::thread::sleep(Duration::from_millis(200));
    let dead = fixture.fail(1, &["mount", "web-1", "--at", "latest", dir.to_str().unwrap()]);
    assert!(dead.contains("tidemark unmount"), "{dead}");
    fixture.succeed(&["unmount", dir.to_str().unwrap()]);
    fixture.succeed(&["mount", "web-1", "--at", "latest", dir.to_str().unwrap()]);
    fixture.succeed(&["unmount", dir.to_str().unwrap()]);
}

#[test]
fn a_dead_appliance_gives_errors_and_a_log_and_no_hang() {
    if !root() {
        return;
    }
    let mut fixture = Fixture::start(vec![("disk-1", content(32 << 20, 1))]);
    let dir = fixture.path("then");
    let _mounts = Mounts(vec![dir.display().to_string()]);
    fixture.succeed(&["mount", "web-1", "--at", "latest", dir.to_str().unwrap()]);
    fixture.kill();
    let started = Instant::now();
    let error = fs::read(dir.join("disk-1.raw")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(5), "{error}");
    assert!(started.elapsed() < Duration::from_secs(60), "{:?}", started.elapsed());
    let log = fs::read_to_string(fixture.path("state/tidemark/mount.log")).unwrap();
    assert!(log.contains("ERROR") && log.contains("appliance"), "{log}");
    fixture.succeed(&["unmount", dir.to_str().unwrap()]);
}

#[test]
fn what_cannot_be_mounted_is_said_at_once() {
    if !root() {
        return;
    }
    let fixture = Fixture::start(vec![("disk-1", content(1 << 20, 1))]);
    let dir = fixture.path("then");
    let to = dir.to_str().unwrap();
    assert!(fixture.fail(1, &["mount", "web-1", "--at", "lsn:999", to]).contains("nearest"));
    assert!(fixture.fail(1, &["mount", "nobody", "--at", "latest", to]).contains("tidemark vm list"));
    let overlay = ["mount", "web-1", "--at", "latest", to, "--writable", "--overlay-dir", "/nonexistent"];
    assert!(fixture.fail(1, &overlay).contains("--overlay-dir"));
    let full = fixture.folder.path().to_str().unwrap();
    assert!(fixture.fail(1, &["mount", "web-1", "--at", "latest", full]).contains("not empty"));
}
