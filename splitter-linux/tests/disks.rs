//! Disks of this machine: what names them, what is refused, and reading past the page cache.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::cast_possible_truncation,
    reason = "a test stops at the first surprise and says what it skips"
)]

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use support::*;
use tidemark_splitter::disks::{DirectReader, Disk, DiskSet as _, Refusal, find, refuse_nested};
use tidemark_splitter_core::capture::{DiskReader, Slot};

const MIB: u64 = 1 << 20;

#[test]
fn a_loop_device_is_its_file_and_is_found_again() {
    if !can_run() {
        return;
    }
    let disk = LoopDisk::new(4 * MIB);
    let found = Disk::inspect(&disk.path).unwrap();
    assert!(found.identity.starts_with("loop:/dev/shm/tidemark-tap-"), "{}", found.identity);
    assert_eq!((found.sectors, found.read_only), (4 * MIB / 512, false));
    assert!(found.disk_sequence > 0);
    assert_eq!(find(&found.identity).unwrap(), found);
    assert!(matches!(find("serial:none"), Err(Refusal::Gone(_))));
    let other = LoopDisk::new(4 * MIB);
    assert_ne!(Disk::inspect(&other.path).unwrap().identity, found.identity);
}

#[test]
fn what_cannot_be_captured_is_refused_with_advice() {
    if !can_run() {
        return;
    }
    assert!(matches!(Disk::inspect(Path::new("/dev/no-such-disk")), Err(Refusal::Missing { .. })));
    assert!(matches!(Disk::inspect(Path::new("/dev/null")), Err(Refusal::NotBlock(_))));
    assert!(matches!(Disk::inspect(Path::new("/etc/passwd")), Err(Refusal::NotBlock(_))));
    let disk = LoopDisk::new(8 * MIB);
    let script = "label: gpt\nstart=2048, size=4096\n";
    let mut sfdisk =
        match Command::new("sfdisk").arg("-q").arg(&disk.path).stdin(std::process::Stdio::piped()).spawn() {
            Ok(child) => child,
            Err(error) => return eprintln!("skipped the partition: sfdisk: {error}"),
        };
    std::io::Write::write_all(sfdisk.stdin.as_mut().unwrap(), script.as_bytes()).unwrap();
    assert!(sfdisk.wait().unwrap().success());
    run("partx", &["-a", disk.text()]);
    let partition = PathBuf::from(format!("{}p1", disk.text()));
    let refusal = Disk::inspect(&partition).unwrap_err().to_string();
    run("partx", &["-d", disk.text()]);
    assert_eq!(
        refusal,
        format!("{} is a partition: protect the whole disk {}", partition.display(), disk.text())
    );
}

#[test]
fn two_devices_on_one_file_cannot_be_told_apart() {
    if !can_run() {
        return;
    }
    let disk = LoopDisk::new(4 * MIB);
    let file = Disk::inspect(&disk.path).unwrap().identity.split(':').nth(1).unwrap().to_owned();
    let output = Command::new("losetup").args(["--show", "-f", &file]).output().unwrap();
    let twin = String::from_utf8(output.stdout).unwrap().trim().to_owned();
    let refusal = Disk::inspect(&disk.path);
    run("losetup", &["-d", &twin]);
    assert!(matches!(refusal, Err(Refusal::Ambiguous { .. })), "{refusal:?}");
}

#[test]
fn a_loop_device_and_the_disk_of_its_file_are_not_protected_together() {
    if !can_run() {
        return;
    }
    let outer = LoopDisk::new(32 * MIB);
    let mounted = Mounted::ext4(&outer);
    let file = mounted.folder.path().join("inner.img");
    std::fs::File::create(&file).unwrap().set_len(4 * MIB).unwrap();
    let output = Command::new("losetup").args(["--show", "-f"]).arg(&file).output().unwrap();
    let inner = PathBuf::from(String::from_utf8(output.stdout).unwrap().trim());
    let found = (Disk::inspect(&inner), Disk::inspect(&outer.path));
    let refusals = match &found {
        (Ok(inner), Ok(outer)) => Some((
            refuse_nested(inner, std::slice::from_ref(outer)),
            refuse_nested(outer, std::slice::from_ref(inner)),
            refuse_nested(outer, std::slice::from_ref(outer)),
        )),
        _ => None,
    };
    run("losetup", &["-d", inner.to_str().unwrap()]);
    let (of_inner, of_outer, of_itself) = refusals.unwrap();
    assert!(of_inner.unwrap_err().to_string().contains("whose file lies on"));
    assert!(matches!(of_outer, Err(Refusal::Nested { .. })));
    of_itself.unwrap();
    let apart = LoopDisk::new(4 * MIB);
    refuse_nested(&Disk::inspect(&apart.path).unwrap(), &[found.1.unwrap()]).unwrap();
}

#[test]
fn direct_reads_work_at_any_alignment() {
    if !can_run() {
        return;
    }
    let disk = LoopDisk::new(8 * MIB);
    write_at(&disk.direct(), pattern(4 << 20, 3).as_slice(), 0);
    let mut reader = DirectReader::default();
    reader.open(Slot(4), &disk.path, 512).unwrap();
    let content = disk.content();
    for (sector, bytes) in [(0, 4096), (1, 512), (7, 4608), (3, (2 << 20) + 512), (8, 1 << 20)] {
        let mut target = vec![0; bytes + 1];
        reader.read(Slot(4), sector, &mut target[1..]).unwrap();
        let start = sector as usize * 512;
        assert!(target[1..] == content[start..start + bytes], "sector {sector}, {bytes} bytes");
    }
    assert!(reader.read(Slot(4), 8 * MIB / 512, &mut [0; 512]).is_err());
    assert!(reader.read(Slot(5), 0, &mut [0; 512]).is_err());
    assert!(reader.read(Slot(4), u64::MAX, &mut [0; 512]).is_err());
}
