//! Reboots and power cuts at random under load: ext4, XFS and LVM, on disks whose cache forgets what was not flushed.
//! After each the disks are verified, the replica equals them, what travelled is bounded by what differed, and the time
//! in between is a gap on the timeline. The machine changes its kernel from boot to boot, as one that is upgraded does.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test states what must hold and stops where it does not"
)]

use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tidemark_tests::guest::{self, Disk, Guest, Kernel};
use tidemark_tests::meter::Meter;
use tidemark_tests::site::{Site, large, skipped};

const VM: &str = "continuity";
const MIB: u64 = 1 << 20;
const DISK_BYTES: u64 = 64 * MIB;
/// Each file system has so much that never changes: a full copy would show.
const BALLAST_MIB: u64 = 24;
const LONG: Duration = Duration::from_secs(240);
const BLOCK_BYTES: usize = 4096;
/// In the order in which the appliance gave them numbers.
const DISKS: [&str; 3] = ["ext4", "xfs", "pv"];

/// Mounts what there is. The splitter starts afterwards: whatever replays of journals write, it does not see.
const MOUNT: &str = r"
mkdir -p /m/ext4 /m/xfs /m/lv
vgchange -ay >/dev/null 2>&1 || true
mount -t ext4 /dev/vda /m/ext4 2>/dev/null || true
mount -t xfs /dev/sda /m/xfs 2>/dev/null || true
mount -t ext4 /dev/vg/lv /m/lv 2>/dev/null || true
";

const MAKE: &str = r"
set -e
mkfs.ext4 -q -F /dev/vda && mkfs.small-xfs -q /dev/sda
pvcreate -q /dev/vdb && vgcreate -q vg /dev/vdb && lvcreate -q -y -l 100%FREE -n lv vg && mkfs.ext4 -q -F /dev/vg/lv
. /etc/mounts
[ $(grep -c ' /m/' /proc/mounts) = 3 ]
for folder in /m/*; do dd if=/dev/urandom of=$folder/ballast bs=1M count=BALLAST 2>/dev/null; done
sync
";

/// How a round ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Reboot,
    PowerCut,
}

struct World {
    site: Site,
    meter: Meter,
    random: StdRng,
    /// What the first copy put on the wire.
    first_copy: u64,
    number: u32,
}

impl World {
    fn start(seed: u64) -> (Self, Guest) {
        let site = Site::start("continuity").unwrap();
        let meter = Meter::start(site.address(), Duration::ZERO).unwrap();
        let mut guest = Guest::builder(Kernel::V6_12)
            .attach(Disk::new("ext4", DISK_BYTES).volatile())
            .attach(Disk::new("pv", DISK_BYTES).volatile())
            .attach(Disk::new("xfs", DISK_BYTES).scsi().volatile())
            .file_systems()
            .lvm()
            .text("/etc/mounts", MOUNT)
            .at_boot(MOUNT)
            .splitter("--ring-mib 32")
            .unwrap()
            .at_shutdown("killall tidemark-lab; true")
            .boot()
            .unwrap();
        guest.sh(&MAKE.replace("BALLAST", &BALLAST_MIB.to_string())).unwrap();
        guest.enrol(&site, VM, meter.address(), &[]).unwrap();
        guest.protect("/dev/vda /dev/sda /dev/vdb").unwrap();
        site.wait_state(VM, "protected", LONG).unwrap();
        let first_copy = meter.bytes();
        println!("first copy: {first_copy} bytes on the wire");
        assert!(first_copy > 3 * BALLAST_MIB * MIB, "the control: a full copy cannot be so small");
        (Self { site, meter, random: StdRng::seed_from_u64(seed), first_copy, number: 0 }, guest)
    }

    /// Load, an end at random, the next boot, of `kernel`, the verify, and all that must hold then.
    fn round(&mut self, mut guest: Guest, end: End, kernel: Kernel) -> Guest {
        self.number += 1;
        for (index, folder) in ["ext4", "xfs", "lv"].iter().enumerate() {
            let seed = u64::from(self.number) * 10 + index as u64;
            guest
                .sh(&format!("tidemark-lab files --dir /m/{folder} --seed {seed} >/tmp/load-{folder} 2>&1 &"))
                .unwrap();
        }
        std::thread::sleep(Duration::from_millis(self.random.random_range(300..4000)));
        assert_eq!(guest.sh("pidof tidemark-lab").unwrap().split_whitespace().count(), 3, "the load runs");
        let gaps_before = self.site.points(VM).unwrap().gaps.len();
        let began = Instant::now();
        let mut machine = match end {
            End::Reboot => guest.power_off().unwrap(),
            End::PowerCut => guest.power_cut().unwrap(),
        };
        let old = self.images("latest");
        let before = self.meter.bytes();
        machine.set_kernel(kernel);
        let mut guest = machine.boot().unwrap();
        guest.wait_splitter().unwrap();
        self.wait_verified(&mut guest, gaps_before);
        let (took, travelled) = (began.elapsed(), self.meter.bytes() - before);
        assert_eq!(
            guest.sh("grep -c ' /m/' /proc/mounts").unwrap().trim(),
            "3",
            "the journals were replayed"
        );
        // With what the boot itself wrote: replays of journals, and the part of its log that XFS then clears.
        let new = self.images("latest");
        let differed: u64 = old.iter().zip(&new).map(|(old, new)| differing_bytes(new, old)).sum();
        let allowed = differed + differed / 2 + MIB;
        println!(
            "{} {end:?}, then {kernel:?}: {took:?}, {differed} bytes differed, {travelled} travelled",
            self.number
        );
        assert!(travelled <= allowed, "{travelled} bytes travelled, {differed} differed");
        assert!(travelled < self.first_copy / 2, "{travelled} bytes are a full copy");
        self.compare(&mut guest);
        self.check_gaps(gaps_before);
        guest
    }

    /// Until the new capture has its gap and the gap has its end.
    fn wait_verified(&self, guest: &mut Guest, gaps_before: usize) {
        let began = Instant::now();
        loop {
            let gaps = self.site.points(VM).unwrap().gaps;
            let state = self.site.vm(VM).unwrap()["state"].as_str().unwrap_or_default().to_owned();
            if gaps.len() > gaps_before && gaps.iter().all(|gap| !gap.is_open()) && state == "protected" {
                return;
            }
            assert!(
                began.elapsed() < LONG,
                "{state}, gaps {gaps:?}, {:?}\n{}",
                guest.splitter_status(),
                guest.splitter_log().unwrap()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// The replica equals the disks.
    fn compare(&self, guest: &mut Guest) {
        guest.sh("umount /m/ext4 /m/xfs /m/lv && vgchange -an").unwrap();
        let name = format!("round-{}", self.number);
        self.site.bookmark(VM, &name).unwrap();
        let images = self.images(&format!("bookmark:{name}"));
        for (disk, image) in DISKS.iter().zip(&images) {
            let differing = differing_bytes(&guest.content(disk).unwrap(), image);
            assert_eq!(differing, 0, "the replica of {disk} differs from the disk in {differing} bytes");
        }
        guest.sh(". /etc/mounts").unwrap();
    }

    /// The time in which nobody looked is a gap with its cause, and no point in it is offered.
    fn check_gaps(&self, gaps_before: usize) {
        let list = self.site.points(VM).unwrap();
        let new = &list.gaps[gaps_before..];
        assert!(!new.is_empty() && new.iter().all(|gap| gap.cause.contains("restarted")), "{new:?}");
        let inside = new[0].from_lsn;
        let refused = self.site.cli_refused(&["export", VM, "--at", &format!("lsn:{inside}")]).unwrap();
        assert!(refused.contains("gap"), "{refused}");
    }

    fn images(&self, when: &str) -> Vec<Vec<u8>> {
        (0..DISKS.len()).map(|disk| self.site.image(VM, disk, when).unwrap()).collect()
    }
}

/// Bytes of the blocks that are not the same.
fn differing_bytes(disk: &[u8], image: &[u8]) -> u64 {
    assert_eq!(disk.len(), image.len());
    let blocks = disk.chunks(BLOCK_BYTES).zip(image.chunks(BLOCK_BYTES));
    blocks.filter(|(disk, image)| disk != image).count() as u64 * BLOCK_BYTES as u64
}

#[test]
fn reboots_and_power_cuts_under_load() {
    if skipped("splitters in guests") {
        return;
    }
    if let Some(reason) = guest::unavailable() {
        eprintln!("skipped: {reason}");
        return;
    }
    let (mut world, mut guest) = World::start(612);
    for round in 0..if large() { 100 } else { 6 } {
        let end = if round % 2 == 0 { End::Reboot } else { End::PowerCut };
        let kernel = if round / 2 % 2 == 0 { Kernel::V6_1 } else { Kernel::V6_12 };
        guest = world.round(guest, end, kernel);
    }
    guest.check_splitter_log(&[]).unwrap();
    guest.power_cut().unwrap();
    world.site.finish(&[]).unwrap();
}
