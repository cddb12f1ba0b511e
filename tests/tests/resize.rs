//! A disk that grows and shrinks while it is protected: each point has the size and the content of its time.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test states what must hold and stops where it does not"
)]

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use tidemark_tests::disks::{LoopDisk, read_direct};
use tidemark_tests::process::output_of;
use tidemark_tests::site::{Site, skipped};

const VM: &str = "resize";
const MIB: u64 = 1 << 20;
/// A new size is noticed within a second, and copied within another; the rest is for a busy machine.
const TIMEOUT: Duration = Duration::from_secs(90);

/// Gives the unmounted loop device another size.
fn set_size(disk: &LoopDisk, bytes: u64) {
    OpenOptions::new().write(true).open(disk.backing()).unwrap().set_len(bytes).unwrap();
    output_of(Command::new("losetup").arg("-c").arg(disk.device())).unwrap();
}

fn write(device: &Path, offset: u64, value: u8) {
    let file = OpenOptions::new().write(true).open(device).unwrap();
    file.write_all_at(&vec![value; 1 << 20], offset).unwrap();
    file.sync_data().unwrap();
}

/// Waits until the newest point has the size of the disk, and compares the content.
fn wait_same(site: &Site, disk: &LoopDisk) {
    let wanted = read_direct(disk.device()).unwrap();
    let deadline = Instant::now() + TIMEOUT;
    loop {
        site.wait_state(VM, "protected", TIMEOUT).unwrap();
        // Refused inside a gap: that of the part that was added.
        let image = site.image(VM, 0, "latest");
        if image.as_ref().is_ok_and(|image| *image == wanted) {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "the newest point is {:?} bytes, the disk {}, or they differ",
            image.map(|image| image.len()),
            wanted.len()
        );
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn a_disk_that_grows_and_shrinks_keeps_its_points() {
    if skipped("the tap and loop devices") {
        return;
    }
    let mut site = Site::start("resize").unwrap();
    let disk = LoopDisk::create(&site.path().join("disk"), 16 * MIB).unwrap();
    write(disk.device(), MIB, 1);
    let splitter = site.add_splitter(VM, &["--ring-mib", "64"]).unwrap();
    site.splitter(splitter).unwrap().protect(disk.device(), true).unwrap();
    wait_same(&site, &disk);
    site.bookmark(VM, "small").unwrap();
    let small = read_direct(disk.device()).unwrap();

    set_size(&disk, 24 * MIB);
    wait_same(&site, &disk);
    write(disk.device(), 20 * MIB, 2);
    wait_same(&site, &disk);
    site.bookmark(VM, "large").unwrap();
    let large = read_direct(disk.device()).unwrap();

    // Smaller by a size that ends inside a block of the map.
    set_size(&disk, 12 * MIB + 512);
    wait_same(&site, &disk);
    write(disk.device(), 4 * MIB, 3);
    wait_same(&site, &disk);

    for (name, wanted) in [("small", &small), ("large", &large)] {
        let image = site.image(VM, 0, &format!("bookmark:{name}")).unwrap();
        assert_eq!(image.len(), wanted.len(), "{name}");
        assert!(image == *wanted, "{name}: the content differs");
    }
    // A size that changed while no splitter ran is told by the next hello.
    site.splitter(splitter).unwrap().stop().unwrap();
    set_size(&disk, 18 * MIB);
    site.splitter(splitter).unwrap().start().unwrap();
    wait_same(&site, &disk);
    site.finish(&[]).unwrap();
}
