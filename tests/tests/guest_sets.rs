//! One moment across machines that hold their writers in different ways: a guest whose volume has a gate, one whose volume is
//! suspended, and a machine whose file system is frozen. Money passes between them through a hub.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test states what must hold and stops where it does not"
)]

use std::net::TcpListener;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tidemark_tests::bank::{self, Branch, Counts, Point, StopOnDrop, Teller};
use tidemark_tests::disks::{LoopDisk, Mounted};
use tidemark_tests::guest::{self, Disk, Guest, Kernel, STATE};
use tidemark_tests::process::output_of;
use tidemark_tests::site::{Site, large, skipped};

const MEMBERS: [&str; 3] = ["mixed-gate", "mixed-suspend", "mixed-freeze"];
const METHODS: [&str; 3] = ["gate", "suspend", "freeze"];
const LONG: Duration = Duration::from_secs(240);
const SECTOR_BYTES: u64 = 512;
/// What the logs of emulated machines may warn of.
const EXPECTED: [&str; 3] = ["gap", "synchronous mode", "heartbeat"];

/// A guest with a mounted file system on a volume of its protected disk.
fn boot(site: &Site, vm: &str, uuid: &str) -> Guest {
    let mut guest = Guest::builder(Kernel::V6_12)
        .attach(Disk::new("pv", 48 << 20))
        .file_systems()
        .lvm()
        .module("ublk_drv")
        .uuid(uuid)
        .splitter("--ring-mib 16")
        .unwrap()
        .boot()
        .unwrap();
    let volume = "pvcreate -q /dev/vda && vgcreate -q vg /dev/vda && lvcreate -q -y -l 80%FREE -n lv vg &&
        mkfs.ext4 -q -F -b 4096 /dev/vg/lv && mkdir -p /m && mount -t ext4 /dev/vg/lv /m";
    guest.sh(volume).unwrap();
    guest.enrol(site, vm, site.address(), &[]).unwrap();
    guest.protect("/dev/vda").unwrap();
    guest
}

/// Has a guest join the bank. Returns where its ledger lies on the protected disk.
fn join(guest: &mut Guest, number: usize, port: u16) -> u64 {
    let members = MEMBERS.len();
    let start = format!(
        "tidemark-lab bank --ledger /m/ledger --member {number} --members {members} --hub 10.0.2.2:{port} >/tmp/bank 2>&1 &
        for i in $(seq 100); do [ -s /tmp/bank ] && break; sleep 0.1; done; cat /tmp/bank"
    );
    let in_volume: u64 = guest.sh(&start).unwrap().trim().parse().unwrap();
    // `0 SECTORS linear MAJOR:MINOR START`; of a gated volume its private mapping tells.
    let tables = guest.sh("dmsetup table tidemark-gate-vg-lv 2>/dev/null || dmsetup table vg-lv").unwrap();
    let start: u64 = tables.split_whitespace().last().unwrap().parse().unwrap();
    start * SECTOR_BYTES + in_volume
}

fn in_force(guest: &mut Guest) {
    let wait = format!(
        "for i in $(seq 240); do tidemark-splitter status {STATE} --json | grep -q '\"in_force\": true' && exit 0; sleep 0.5; done; exit 1"
    );
    assert_eq!(guest.run(&wait, LONG).unwrap().status, 0, "{}", guest.splitter_log().unwrap());
}

#[test]
fn gates_volumes_and_file_systems_are_held_at_one_moment() {
    if skipped("splitters in guests") {
        return;
    }
    if let Some(reason) = guest::unavailable() {
        eprintln!("skipped: {reason}");
        return;
    }
    let mut site = Site::start("mixed").unwrap();
    let mut gated = boot(&site, MEMBERS[0], "7d1dea2c-0000-4000-8000-00000000c001");
    gated.sh(&format!("tidemark-splitter mode {STATE} /dev/vg/lv sync")).unwrap();
    let mut suspended = boot(&site, MEMBERS[1], "7d1dea2c-0000-4000-8000-00000000c002");
    in_force(&mut gated);
    let disk = LoopDisk::create(&site.path().join("disk"), 32 << 20).unwrap();
    output_of(Command::new("mkfs.ext4").args(["-q", "-F", "-b", "4096"]).arg(disk.device())).unwrap();
    let mount = Mounted::mount(disk.device(), &site.path().join("mnt"), "rw").unwrap();
    let branch = Branch::create(&mount.path().join("ledger")).unwrap();
    let splitter = site.add_splitter(MEMBERS[2], &["--ring-mib", "16"]).unwrap();
    site.splitter(splitter).unwrap().protect(disk.device(), true).unwrap();
    for vm in MEMBERS {
        site.wait_state(vm, "protected", LONG).unwrap();
    }

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let hub = listener.local_addr().unwrap();
    let (stop, counts) = (AtomicBool::new(false), Counts::default());
    let (teller, points) = std::thread::scope(|scope| {
        scope.spawn(|| bank::hub(&listener, MEMBERS.len()));
        let places =
            [join(&mut gated, 0, hub.port()), join(&mut suspended, 1, hub.port()), branch.disk_offset];
        let ours =
            scope.spawn(|| bank::join(&branch, (2, MEMBERS.len()), 2, &hub.to_string(), &stop, &counts));
        let stop_at_the_end = StopOnDrop(&stop);
        let members: Vec<_> = MEMBERS.into_iter().zip(places).collect();
        let teller = Teller::new(&site, "mixed", "name=mixed-*", &members).unwrap();
        std::thread::sleep(Duration::from_secs(2));
        let points = teller.automatic(&site, "freeze", if large() { 200 } else { 12 }).unwrap();
        drop(stop_at_the_end);
        ours.join().unwrap().unwrap();
        for guest in [&mut gated, &mut suspended] {
            guest.sh("killall tidemark-lab").unwrap();
        }
        (teller, points)
    });
    println!("{} messages came here", counts.messages.load(Ordering::Relaxed));
    check(&site, &teller, &points);
    for mut guest in [gated, suspended] {
        guest.check_splitter_log(&EXPECTED).unwrap();
        guest.power_cut().unwrap();
    }
    drop((mount, disk));
    site.finish(&EXPECTED).unwrap();
}

fn check(site: &Site, teller: &Teller, points: &[Point]) {
    let barriers: Vec<&Point> = points.iter().filter(|point| point.cut == "barrier").collect();
    println!("{} barriers of {} points", barriers.len(), points.len());
    let last = points.last().map(|point| &point.text);
    assert!(barriers.len() * 2 > points.len(), "most points are barriers: {last:?}");
    let mut written = Vec::new();
    for point in &barriers {
        assert_eq!(point.methods, METHODS, "{}", point.text);
        let ledgers = teller.ledgers(site, &point.lsns).unwrap();
        assert_eq!(bank::check(&ledgers).unwrap(), [], "{}", point.text);
        written.push(ledgers.iter().map(|ledger| ledger.sequence).sum::<u64>());
        println!("held for {} us", point.hold_us);
    }
    assert!(written.first() < written.last(), "money passed meanwhile: {written:?}");
    // The control: the same machines at moments of different points.
    let mut crossed = barriers[0].lsns.clone();
    crossed[2] = barriers[barriers.len() - 1].lsns[2];
    let early = bank::check(&teller.ledgers(site, &crossed).unwrap()).unwrap();
    assert!(!early.is_empty(), "the checker sees nothing in a mixture of two moments");
}
