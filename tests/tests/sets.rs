//! One moment across several VMs: money passes between them, and at no point of their set has anybody received what was not
//! sent yet. Each VM is a splitter of its own here, with a disk and a file system of its own.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test states what must hold and stops where it does not"
)]

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tidemark_tests::bank::{self, Branch, Counts, Early, Ledger, Point, StopOnDrop, Teller};
use tidemark_tests::disks::{LoopDisk, Mounted};
use tidemark_tests::postgres::{self, Postgres, two_phase};
use tidemark_tests::process::output_of;
use tidemark_tests::site::{Site, large, skipped};

const MEMBERS: [&str; 3] = ["bank-a", "bank-b", "bank-c"];
const PROTECT_TIMEOUT: Duration = Duration::from_secs(90);
/// Tokens on their way between the members.
const TOKENS: usize = 6;
/// Nobody's write may take longer for a hold: the rest of it is what other tests take from the processors.
const STALL_MAX: Duration = Duration::from_secs(3);

struct Bank {
    site: Site,
    teller: Teller,
    branches: Vec<Branch>,
    counts: Counts,
    stop: AtomicBool,
    mounts: Vec<Mounted>,
    disks: Vec<LoopDisk>,
}

impl Bank {
    fn open(name: &str) -> Self {
        let mut site = Site::start(name).unwrap();
        let (mut disks, mut mounts, mut branches) = (Vec::new(), Vec::new(), Vec::new());
        for vm in MEMBERS {
            let disk = LoopDisk::create(&site.path().join(vm), 32 << 20).unwrap();
            output_of(Command::new("mkfs.ext4").args(["-q", "-F", "-b", "4096"]).arg(disk.device())).unwrap();
            let mount = Mounted::mount(disk.device(), &site.path().join(format!("mnt-{vm}")), "rw").unwrap();
            branches.push(Branch::create(&mount.path().join("ledger")).unwrap());
            let splitter = site.add_splitter(vm, &["--ring-mib", "16"]).unwrap();
            site.splitter(splitter).unwrap().protect(disk.device(), true).unwrap();
            disks.push(disk);
            mounts.push(mount);
        }
        for vm in MEMBERS {
            site.wait_state(vm, "protected", PROTECT_TIMEOUT).unwrap();
        }
        let places: Vec<_> =
            MEMBERS.iter().zip(&branches).map(|(vm, branch)| (*vm, branch.disk_offset)).collect();
        let teller = Teller::new(&site, "bank", "name=bank-*", &places).unwrap();
        let (counts, stop) = (Counts::default(), AtomicBool::new(false));
        Self { site, teller, branches, counts, stop, mounts, disks }
    }

    /// What was received too early, of each set of LSNs; and how many ledgers were written from the first to the last.
    fn check(&self, moments: impl Iterator<Item = Vec<u64>>) -> (Vec<Vec<Early>>, u64) {
        let ledgers: Vec<Vec<Ledger>> =
            moments.map(|lsns| self.teller.ledgers(&self.site, &lsns).unwrap()).collect();
        let writes = |ledgers: &Vec<Ledger>| ledgers.iter().map(|ledger| ledger.sequence).sum::<u64>();
        let written = writes(ledgers.last().unwrap()) - writes(ledgers.first().unwrap());
        (ledgers.iter().map(|ledgers| bank::check(ledgers).unwrap()).collect(), written)
    }

    fn check_barriers(&self, held: &[Point]) {
        let barriers: Vec<&Point> = held.iter().filter(|point| point.cut == "barrier").collect();
        println!("{} barriers of {} points", barriers.len(), held.len());
        let last = held.last().map(|point| &point.text);
        assert!(barriers.len() * 2 > held.len(), "most points are barriers: {last:?}");
        let (early, written) = self.check(barriers.iter().map(|point| point.lsns.clone()));
        for (point, early) in barriers.iter().zip(&early) {
            assert!(early.is_empty(), "{early:?} at {}", point.text);
            assert!(point.hold_us > 0 && point.bound_us == 0, "{}", point.text);
        }
        assert!(written > 100, "{written} ledgers were written meanwhile");
        let mut holds: Vec<u64> = barriers.iter().map(|point| point.hold_us).collect();
        holds.sort_unstable();
        println!("held for {} us (median), {} us (most)", holds[holds.len() / 2], holds[holds.len() - 1]);
    }

    /// What came too early did so within the bound that the point states.
    fn check_clocks(&self, clocked: &[Point]) {
        let (early, _) = self.check(clocked.iter().map(|point| point.lsns.clone()));
        for (point, early) in clocked.iter().zip(&early) {
            assert_eq!((point.cut.as_str(), point.hold_us), ("clock", 0), "{}", point.text);
            assert!(point.bound_us > 0, "{}", point.text);
            let apart = early.iter().map(|early| early.apart_us).max().unwrap_or(0);
            assert!(apart <= point.bound_us, "{apart} us apart: {early:?} at {}", point.text);
        }
        let mut bounds: Vec<u64> = clocked.iter().map(|point| point.bound_us).collect();
        bounds.sort_unstable();
        let violated = early.iter().filter(|early| !early.is_empty()).count();
        let median = bounds[bounds.len() / 2];
        println!("clocks: {violated} of {} points had something too early; bound {median} us", clocked.len());
    }
}

#[test]
fn nobody_has_received_what_was_not_sent() {
    if skipped("the tap, loop devices and mounts") {
        return;
    }
    let bank = Bank::open("bank");
    let wanted = if large() { 2000 } else { 25 };
    let (held, clocked, alone) = std::thread::scope(|scope| {
        let work = scope.spawn(|| bank::run(&bank.branches, TOKENS, &bank.stop, &bank.counts));
        // Whatever fails below, the members stop.
        let stop = StopOnDrop(&bank.stop);
        let held = bank.teller.automatic(&bank.site, "freeze", wanted).unwrap();
        let stalled = Duration::from_micros(bank.counts.slowest_us.load(Ordering::Relaxed));
        println!("the slowest write of a ledger took {stalled:?}");
        assert!(stalled < STALL_MAX, "{stalled:?}");
        let clocked = bank.teller.automatic(&bank.site, "clock", wanted).unwrap();
        let alone = bank.teller.uncoordinated(&bank.site, 8).unwrap();
        drop(stop);
        work.join().unwrap().unwrap();
        (held, clocked, alone)
    });
    println!("{} messages", bank.counts.messages.load(Ordering::Relaxed));
    bank.check_barriers(&held);
    bank.check_clocks(&clocked);
    // The control: the same VMs, the same checker, moments that nobody coordinated.
    let count = alone.len();
    let (early, _) = bank.check(alone.into_iter());
    let violated = early.iter().filter(|early| !early.is_empty()).count();
    println!("uncoordinated: {violated} of {count} had something too early");
    assert!(violated > 0, "the checker sees nothing in moments that nobody coordinated");
    let Bank { site, mounts, disks, .. } = bank;
    drop((mounts, disks));
    site.finish(&[]).unwrap();
}

const DATABASES: [&str; 2] = ["pg-left", "pg-right"];
/// Clients whose transactions span both servers.
const CLIENTS: usize = 3;

/// Both servers as of two points, which may be one.
fn agree(site: &Site, points: [&Point; 2]) -> anyhow::Result<two_phase::Agreed> {
    let open = |side: usize| {
        let vm = DATABASES[side];
        let folder = site.path().join(format!("view-{vm}"));
        std::fs::create_dir_all(&folder)?;
        let view = site.mount(vm, &format!("lsn:{}", points[side].lsns[side]), &folder)?;
        let image = LoopDisk::attach(&folder.join("disk-1.raw"), &[])?;
        let mounted = Mounted::mount(image.device(), &site.path().join(format!("then-{vm}")), "rw")?;
        let run = site.path().join(format!("run-{vm}"));
        let database = Postgres::open(mounted.path(), &run)?;
        anyhow::Ok((database, mounted, image, view))
    };
    let (left, right) = (open(0)?, open(1)?);
    let agreed = two_phase::check([&left.0, &right.0]);
    for (database, mounted, image, view) in [left, right] {
        database.stop()?;
        drop((mounted, image, view));
    }
    agreed
}

#[test]
fn transactions_across_two_databases_are_whole() {
    if skipped("the tap, loop devices and mounts") {
        return;
    }
    if let Some(reason) = postgres::unavailable() {
        eprintln!("skipped: {reason}");
        return;
    }
    let mut site = Site::start("two-phase").unwrap();
    let (mut disks, mut mounts, mut databases) = (Vec::new(), Vec::new(), Vec::new());
    for vm in DATABASES {
        let disk = LoopDisk::create(&site.path().join(vm), 256 << 20).unwrap();
        output_of(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(disk.device())).unwrap();
        let mount = Mounted::mount(disk.device(), &site.path().join(format!("live-{vm}")), "rw").unwrap();
        let database = Postgres::create(mount.path(), &site.path().join(format!("live-run-{vm}"))).unwrap();
        two_phase::prepare(&database).unwrap();
        output_of(Command::new("sync").arg("-f").arg(mount.path())).unwrap();
        let splitter = site.add_splitter(vm, &["--ring-mib", "32"]).unwrap();
        site.splitter(splitter).unwrap().protect(disk.device(), true).unwrap();
        disks.push(disk);
        mounts.push(mount);
        databases.push(database);
    }
    for vm in DATABASES {
        site.wait_state(vm, "protected", PROTECT_TIMEOUT).unwrap();
    }
    let teller = Teller::new(&site, "databases", "name=pg-*", &DATABASES.map(|vm| (vm, 0))).unwrap();
    let stop = AtomicBool::new(false);
    let (points, committed) = std::thread::scope(|scope| {
        let (stop, databases) = (&stop, &databases);
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| scope.spawn(move || two_phase::run([&databases[0], &databases[1]], client, stop)))
            .collect();
        let stop_at_the_end = StopOnDrop(stop);
        std::thread::sleep(Duration::from_secs(1));
        let points = teller.automatic(&site, "freeze", if large() { 120 } else { 6 }).unwrap();
        drop(stop_at_the_end);
        let committed: u64 = clients.into_iter().map(|client| client.join().unwrap().unwrap()).sum();
        (points, committed)
    });
    let barriers: Vec<&Point> = points.iter().filter(|point| point.cut == "barrier").collect();
    println!("{committed} transactions committed; {} barriers of {} points", barriers.len(), points.len());
    assert!(barriers.len() * 2 > points.len(), "most points are barriers");
    let mut open = 0;
    for point in &barriers {
        let agreed = agree(&site, [point, point]).unwrap();
        assert!(agreed.committed > 0, "{agreed:?} at {}", point.text);
        open += agreed.prepared;
    }
    println!("{open} transactions were prepared and not yet decided at these points");
    // The control: one server at one point, the other at another.
    let crossed = agree(&site, [barriers[0], barriers[barriers.len() - 1]]).unwrap_err();
    assert!(crossed.to_string().contains("absent on the other"), "{crossed}");
    for database in databases {
        database.stop().unwrap();
    }
    drop((mounts, disks));
    site.finish(&[]).unwrap();
}
