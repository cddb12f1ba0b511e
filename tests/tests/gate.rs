//! Synchronous mode in guests: the gate under live volumes, its deaths, its lease, and what it is for: a guest that is
//! killed has lost no write that it saw completed.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test states what must hold and stops where it does not"
)]

use std::time::{Duration, Instant};

use tidemark_tests::guest::{self, Guest, Kernel};
use tidemark_tests::site::{GATES_DISTURBED, Site, large, program, skipped};
use tidemark_tests::witness::{self, Listener};

const VM: &str = "guest";
const STATE: &str = "--state /root/splitter";
/// Software emulation on a busy machine.
const LONG: Duration = Duration::from_secs(300);
/// Blocks that the witnessed workload goes round in.
const SLOTS: u64 = 256;
/// No udev runs in the guest.
const LVM: &str = r#"
devices { obtain_device_list_from_udev = 0 external_device_info_source = "none" use_devicesfile = 0 }
activation { udev_sync = 0 udev_rules = 0 monitoring = 0 }
global { use_lvmpolld = 0 }
backup { backup = 0 archive = 0 }
"#;

fn cannot_run() -> bool {
    if skipped("gates in guests") {
        return true;
    }
    let missing = guest::unavailable()
        .or_else(|| guest::host_program("lvm").err().map(|_| "lvm is missing (package lvm2)".to_owned()));
    if let Some(reason) = &missing {
        eprintln!("skipped: {reason}");
    }
    missing.is_some()
}

/// A guest with the volumes `vg/data` (raw) and `vg/files` (ext4, mounted on /mnt) on its disk, which is protected.
fn boot(site: &Site, kernel: Kernel, vm: &str, uuid: &str) -> Guest {
    let configuration = site.path().join("lvm.conf");
    std::fs::write(&configuration, LVM).unwrap();
    let mut builder = Guest::builder(kernel)
        .disk("data", 48 << 20)
        .module("dm-mod")
        .module("crc32c_generic")
        .module("ext4")
        .program(program("tidemark-splitter").unwrap())
        .program(program("tidemark-lab").unwrap())
        .file(&configuration, "/etc/lvm/lvm.conf")
        .uuid(uuid)
        .network();
    for name in ["lvm", "dmsetup", "mkfs.ext4", "e2fsck"] {
        builder = builder.program(guest::host_program(name).unwrap());
    }
    if kernel == Kernel::V6_12 {
        builder = builder.module("ublk_drv");
    }
    let mut guest = builder.boot().unwrap();
    let volumes = "mount -t bpf bpf /sys/fs/bpf; mkdir -p /root /mnt /run/lock
        lvm vgcreate --pvmetadatacopies 1 vg /dev/vda && lvm lvcreate -y -Wn -Zn -L 8M -n data vg && lvm lvcreate -y -Wn -Zn -L 16M -n files vg
        dmsetup mknodes; mkfs.ext4 -q /dev/mapper/vg-files && mount -t ext4 /dev/mapper/vg-files /mnt";
    guest.sh(volumes).unwrap();
    let token = site.token(vm, &[]).unwrap();
    let port = site.address().rsplit_once(':').unwrap().1;
    guest
        .sh(&format!("tidemark-splitter enroll --appliance 10.0.2.2:{port} --token {token} {STATE}"))
        .unwrap();
    start_daemon(&mut guest);
    ok(&mut guest, &format!("tidemark-splitter protect {STATE} /dev/vda --wait"));
    guest
}

fn start_daemon(guest: &mut Guest) {
    let script = format!(
        "NO_COLOR=1 tidemark-splitter run {STATE} --ring-mib 16 >>/tmp/splitter.log 2>&1 & echo $! >/tmp/splitter.pid
        for i in $(seq 100); do tidemark-splitter status {STATE} | grep -qE ': (connected|running)' && exit 0; sleep 1; done; exit 1"
    );
    ok(guest, &script);
}

/// Runs a script that must succeed; with the splitter's log when it does not.
fn ok(guest: &mut Guest, script: &str) -> String {
    let outcome = guest.run(script, LONG).unwrap();
    if outcome.status != 0 {
        let log = guest.sh("tail -n 40 /tmp/splitter.log; dmesg | tail -n 30").unwrap_or_default();
        panic!("{script}: status {}: {}\n{log}", outcome.status, outcome.output);
    }
    outcome.output
}

fn mode(guest: &mut Guest, volume: &str, words: &str) -> String {
    ok(guest, &format!("tidemark-splitter mode {STATE} {volume} {words}"))
}

/// Waits until `status` says of a volume what `wanted` says.
fn wait_in_force(guest: &mut Guest, wanted: bool) {
    let script = format!(
        "for i in $(seq 240); do tidemark-splitter status {STATE} --json >/tmp/status; grep -q '\"in_force\": {wanted}' /tmp/status && exit 0; sleep 0.5; done; cat /tmp/status; exit 1"
    );
    ok(guest, &script);
}

/// Writes small files durably, for ever, and counts; stops at the first error, with a word in /tmp/failed.
const LOAD: &str = r"
    (i=0; while [ ! -e /tmp/stop ]; do i=$((i+1))
        dd if=/dev/urandom of=/mnt/file$((i % 20)) bs=4k count=3 conv=fsync 2>/tmp/dd.err || { cp /tmp/dd.err /tmp/failed; break; }
        echo $i >/tmp/count.new; mv /tmp/count.new /tmp/count
    done; echo over >/tmp/over) >/dev/null 2>&1 &";

fn count(guest: &mut Guest) -> u64 {
    guest.sh("cat /tmp/count 2>/dev/null || echo 0").unwrap().trim().parse().unwrap()
}

/// The load goes on, without an error.
fn goes_on(guest: &mut Guest, what: &str) {
    let before = count(guest);
    let until = Instant::now() + Duration::from_secs(90);
    loop {
        assert_eq!(guest.sh("cat /tmp/failed 2>/dev/null; true").unwrap(), "", "{what}: a write failed");
        if count(guest) >= before + 3 {
            return;
        }
        assert!(Instant::now() < until, "{what}: the load stands still at {before}: {}", guest.console());
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// A volume is switched to sync and back under a mounted, busy file system; gate and splitter are killed meanwhile.
#[test]
fn sync_mode_is_switched_live_and_survives_deaths() {
    if cannot_run() {
        return;
    }
    let site = Site::start("gate").unwrap();
    let mut guest = boot(&site, Kernel::V6_12, VM, "7d1dea2c-0000-4000-8000-00000000b001");
    let table = guest.sh("dmsetup table vg-files").unwrap();
    let generation = site.vm(VM).unwrap()["generation"].clone();
    guest.sh(LOAD).unwrap();
    goes_on(&mut guest, "before");
    println!("{}", mode(&mut guest, "/dev/vg/files", "sync").trim());
    goes_on(&mut guest, "in sync mode");
    let gated = guest.sh("dmsetup table vg-files; dmsetup table tidemark-gate-vg-files").unwrap();
    println!("{gated}");
    assert!(gated.contains(table.trim()) && gated.lines().next() != Some(table.trim()), "{gated}");
    println!("{}", guest.sh(&format!("tidemark-splitter status {STATE}")).unwrap());
    // It was told with the next ping.
    let until = Instant::now() + Duration::from_secs(60);
    while site.vm(VM).unwrap()["sync"][0]["in_force"] != true {
        assert!(Instant::now() < until, "{}", site.vm(VM).unwrap()["sync"]);
        std::thread::sleep(Duration::from_millis(200));
    }
    let vm = site.vm(VM).unwrap();
    assert!(vm["sync"][0]["proven_until"].is_string(), "{}", vm["sync"]);

    for round in 0..2 {
        let process = "sed -n 's/.*\"process\": \\([0-9]*\\).*/\\1/p'";
        ok(&mut guest, &format!("kill -9 $(tidemark-splitter status {STATE} --json | {process})"));
        goes_on(&mut guest, "the gate was killed");
        wait_in_force(&mut guest, true);
        ok(&mut guest, "kill -9 $(cat /tmp/splitter.pid)");
        start_daemon(&mut guest);
        goes_on(&mut guest, "the splitter was killed");
        wait_in_force(&mut guest, true);
        println!("round {round}: {} writes", count(&mut guest));
    }

    // Everything is held for a moment, and then goes on; a hold that is too long releases by itself.
    println!("{}", ok(&mut guest, &format!("tidemark-splitter hold {STATE} --hold-ms 500")).trim());
    goes_on(&mut guest, "after a barrier");
    let late = format!("tidemark-splitter hold {STATE} --hold-ms 3000 --deadline-ms 1500");
    let outcome = guest.run(&late, LONG).unwrap();
    assert!(outcome.status == 1 && outcome.output.contains("released by itself"), "{}", outcome.output);
    goes_on(&mut guest, "after a barrier that broke");
    println!("{}", mode(&mut guest, "/dev/vg/files", "async").trim());
    goes_on(&mut guest, "back in async mode");
    assert_eq!(guest.sh("dmsetup table vg-files").unwrap(), table);
    let left =
        guest.sh("ls /dev | grep ublkb; dmsetup ls | grep gate; ls /run/tidemark-gate/*; true").unwrap();
    assert_eq!(left, "", "nothing of the gate is left");
    ok(
        &mut guest,
        "touch /tmp/stop; for i in $(seq 100); do [ -e /tmp/over ] && exit 0; sleep 0.1; done; exit 1",
    );
    ok(&mut guest, "umount /mnt && e2fsck -fn /dev/mapper/vg-files");
    site.wait_state(VM, "protected", LONG).unwrap();
    assert_eq!(site.vm(VM).unwrap()["generation"], generation, "no resync either way");
    let marker = site.bookmark(VM, "end").unwrap();
    site.wait_point(VM, marker, LONG).unwrap();
    guest.sh("sync").unwrap();
    let image = site.image(VM, 0, "bookmark:end").unwrap();
    assert!(
        image == std::fs::read(guest.disk("data").unwrap()).unwrap(),
        "the last point is the disk itself"
    );
    guest.power_cut().unwrap();
    site.finish(&GATES_DISTURBED).unwrap();
}

/// The appliance stands still: with `async` writes go on after the lease, with `hold` they wait for it; and sync mode
/// comes back by itself.
#[test]
fn a_lease_lapses_as_the_volume_says() {
    if cannot_run() {
        return;
    }
    let site = Site::start("lapse").unwrap();
    let mut guest = boot(&site, Kernel::V6_12, VM, "7d1dea2c-0000-4000-8000-00000000b002");
    let write = "tidemark-lab witness --device /dev/mapper/vg-data --writes 1";
    mode(&mut guest, "/dev/vg/data", "sync");
    site.appliance().unwrap().freeze().unwrap();
    let began = Instant::now();
    println!("the first write without the appliance: {}", ok(&mut guest, write).trim());
    let waited = began.elapsed();
    // The lease of 5 s, 1 s of freshness, a look every 0.25 s; the rest is emulation.
    assert!(waited > Duration::from_secs(2) && waited < Duration::from_secs(25), "{waited:?}");
    println!("the second: {}", ok(&mut guest, write).trim());
    wait_in_force(&mut guest, false);
    println!("{}", guest.sh(&format!("tidemark-splitter status {STATE}")).unwrap());
    site.appliance().unwrap().thaw().unwrap();
    wait_in_force(&mut guest, true);
    let status = guest.sh("cat /tmp/status").unwrap();
    assert!(status.contains("\"lapses\": 1"), "{status}");

    mode(&mut guest, "/dev/vg/data", "async");
    mode(&mut guest, "/dev/vg/data", "sync --on-lapse hold --hold-max 120");
    site.appliance().unwrap().freeze().unwrap();
    guest.sh(&format!("({write} && echo done >/tmp/held) >/dev/null 2>&1 &")).unwrap();
    std::thread::sleep(Duration::from_secs(15));
    assert_eq!(guest.sh("cat /tmp/held 2>/dev/null; true").unwrap(), "", "it waits beyond the lease");
    site.appliance().unwrap().thaw().unwrap();
    ok(&mut guest, "for i in $(seq 300); do [ -e /tmp/held ] && exit 0; sleep 0.2; done; exit 1");
    wait_in_force(&mut guest, true);
    let status = guest.sh("cat /tmp/status").unwrap();
    assert!(status.contains("\"lapses\": 0") && status.contains("\"unreplicated_writes\": 0"), "{status}");
    guest.power_cut().unwrap();
    site.finish(&GATES_DISTURBED).unwrap();
}

/// Where the volume's blocks begin on the disk, in bytes.
fn data_offset(guest: &mut Guest) -> usize {
    let table = guest.sh("dmsetup table vg-data").unwrap();
    table.split_whitespace().last().unwrap().parse::<usize>().unwrap() * 512
}

/// Kills a guest in the middle of writing and tells which writes that it saw completed are not at the appliance, and how
/// many it saw.
fn kill_while_writing(site: &mut Site, round: u64, sync: bool) -> (Vec<u64>, u64) {
    let vm = format!("{}-{round}", if sync { "sync" } else { "async" });
    let uuid = format!("7d1dea2c-0000-4000-8000-{:012x}", 0xc000_0000 + round * 2 + u64::from(sync));
    let mut guest = boot(site, Kernel::V6_12, &vm, &uuid);
    let offset = data_offset(&mut guest);
    if sync {
        mode(&mut guest, "/dev/vg/data", "sync");
    }
    let listener = Listener::start().unwrap();
    let port = listener.port();
    guest
        .sh(&format!(
            "(tidemark-lab witness --device /dev/mapper/vg-data --to 10.0.2.2:{port} --slots {SLOTS} >/tmp/witness 2>&1 &)"
        ))
        .unwrap();
    listener.wait(50, LONG).unwrap();
    std::thread::sleep(Duration::from_millis(rand::random_range(0..1500)));
    // The appliance stands still for a moment before the end and is killed, too: what is on its way then never arrives.
    let cut = round.is_multiple_of(2) || !sync;
    if cut {
        site.appliance().unwrap().freeze().unwrap();
        std::thread::sleep(Duration::from_millis(700));
    }
    guest.power_cut().unwrap();
    std::thread::sleep(Duration::from_millis(50));
    let heard = listener.heard();
    if cut {
        site.kill_appliance().unwrap();
        site.start_appliance().unwrap();
    }
    site.wait_state(&vm, "disconnected", LONG).unwrap();
    let image = site.image(&vm, 0, "latest").unwrap();
    (witness::missing(&image[offset..], SLOTS, heard), heard)
}

#[test]
fn a_killed_guest_has_lost_no_write_that_it_saw_completed() {
    if cannot_run() {
        return;
    }
    let mut site = Site::start("killed").unwrap();
    let rounds = if large() { 100 } else { 5 };
    for round in 0..rounds {
        let (missing, heard) = kill_while_writing(&mut site, round, true);
        println!("round {round}: {heard} writes were seen completed, {} of them are missing", missing.len());
        assert!(missing.is_empty(), "{missing:?} of {heard}");
    }
    // The negative control: without the gate the same checker finds losses.
    let (missing, heard) = kill_while_writing(&mut site, 0, false);
    println!("async: {heard} writes were seen completed, {} of them are missing", missing.len());
    assert!(!missing.is_empty(), "asynchronous mode lost nothing: the checker cannot tell");
    site.finish(&GATES_DISTURBED).unwrap();
}

/// Something (LVM, a reboot) gives the volume its own table back: sync mode is not in force, and the splitter puts the gate
/// back by itself.
#[test]
fn a_volume_that_lost_its_gate_gets_it_back() {
    if cannot_run() {
        return;
    }
    let site = Site::start("gate-lost").unwrap();
    let mut guest = boot(&site, Kernel::V6_12, VM, "7d1dea2c-0000-4000-8000-00000000b005");
    let table = guest.sh("dmsetup table vg-files").unwrap();
    guest.sh(LOAD).unwrap();
    mode(&mut guest, "/dev/vg/files", "sync");
    let gated = guest.sh("dmsetup table vg-files").unwrap();
    assert_ne!(gated, table);
    ok(&mut guest, &format!("echo '{}' | dmsetup reload vg-files && dmsetup resume vg-files", table.trim()));
    goes_on(&mut guest, "the gate was bypassed");
    ok(
        &mut guest,
        "for i in $(seq 200); do grep -q 'in place again' /tmp/splitter.log && exit 0; sleep 0.2; done; exit 1",
    );
    wait_in_force(&mut guest, true);
    assert_ne!(guest.sh("dmsetup table vg-files").unwrap(), table);
    goes_on(&mut guest, "gated again");
    mode(&mut guest, "/dev/vg/files", "async");
    assert_eq!(guest.sh("dmsetup table vg-files").unwrap(), table);
    guest.power_cut().unwrap();
    site.finish(&GATES_DISTURBED).unwrap();
}

/// Kernels and volumes that cannot have a gate are refused, with the reason and what to do.
#[test]
fn what_cannot_be_gated_is_refused() {
    if cannot_run() {
        return;
    }
    let site = Site::start("gate-refusals").unwrap();
    let mut guest = boot(&site, Kernel::V6_1, VM, "7d1dea2c-0000-4000-8000-00000000b003");
    let refused = |guest: &mut Guest, volume: &str, words: &[&str]| {
        let outcome = guest.run(&format!("tidemark-splitter mode {STATE} {volume} sync"), LONG).unwrap();
        println!("{}", outcome.output.trim());
        assert_eq!((outcome.status, outcome.output.trim().lines().count()), (1, 1), "{}", outcome.output);
        for word in words {
            assert!(outcome.output.contains(word), "no '{word}' in {}", outcome.output);
        }
    };
    refused(&mut guest, "/dev/vg/data", &["ublk", "CONFIG_BLK_DEV_UBLK"]);
    guest.power_cut().unwrap();

    let mut guest = boot(&site, Kernel::V6_12, "newer", "7d1dea2c-0000-4000-8000-00000000b004");
    refused(&mut guest, "/dev/vda", &["no LVM"]);
    guest.sh("mkswap /dev/mapper/vg-data && swapon /dev/mapper/vg-data").unwrap();
    refused(&mut guest, "/dev/vg/data", &["swap"]);
    guest.sh("swapoff /dev/mapper/vg-data").unwrap();
    guest.sh("echo '0 64 error' | dmsetup create failing -u test-failing && dmsetup mknodes").unwrap();
    refused(&mut guest, "/dev/mapper/failing", &["kind 'error'", "only linear"]);
    // The state folder on the volume itself.
    ok(&mut guest, "cp -a /root/splitter /mnt/splitter; kill $(cat /tmp/splitter.pid); sleep 2");
    ok(
        &mut guest,
        "(NO_COLOR=1 tidemark-splitter run --state /mnt/splitter --ring-mib 16 >/tmp/other.log 2>&1 &); sleep 5",
    );
    let outcome = guest.run("tidemark-splitter mode --state /mnt/splitter /dev/vg/files sync", LONG).unwrap();
    println!("{}", outcome.output.trim());
    assert!(outcome.status == 1 && outcome.output.contains("state folder"), "{}", outcome.output);
    guest.power_cut().unwrap();
    site.finish(&GATES_DISTURBED).unwrap();
}
