//! The real splitter in guests with stock kernels: what the kernel of the build machine cannot show.

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

use std::io::BufReader;
use std::time::Duration;

use tidemark_tests::freeze::{is_sound, needs_replay};
use tidemark_tests::guest::{self, Guest, Kernel};
use tidemark_tests::oracle::Judge;
use tidemark_tests::site::{Site, program, skipped};
use tidemark_tests::stamp::History;

const VM: &str = "guest";
/// Software emulation is ten to thirty times slower than the machine.
const LONG: Duration = Duration::from_secs(240);
const STATE: &str = "--state /root/splitter";

fn cannot_run() -> bool {
    if skipped("splitters in guests") {
        return true;
    }
    if let Some(reason) = guest::unavailable() {
        eprintln!("skipped: {reason}");
        return true;
    }
    false
}

/// A guest with the splitter and the workload inside, and three disks: `data`, `spare`, `log`.
fn boot(kernel: Kernel, command_line: &str) -> Guest {
    let mut guest = Guest::builder(kernel)
        .disk("data", 32 << 20)
        .disk("spare", 32 << 20)
        .disk("log", 16 << 20)
        .module("dm-mod")
        .module("dm-flakey")
        .program(program("tidemark-splitter").unwrap())
        .program(program("tidemark-lab").unwrap())
        .program(guest::host_program("dmsetup").unwrap())
        .program(guest::host_program("losetup").unwrap())
        .program(guest::host_program("mkfs.ext4").unwrap())
        .module("ext4")
        .command_line(command_line)
        .network()
        .boot()
        .unwrap();
    guest.sh("mount -t bpf bpf /sys/fs/bpf; mkdir -p /root").unwrap();
    guest
}

/// Enrols the guest and starts its daemon.
fn start_splitter(site: &Site, guest: &mut Guest) {
    let token = site.token(VM, &[]).unwrap();
    let port = site.address().rsplit_once(':').unwrap().1;
    guest
        .sh(&format!("tidemark-splitter enroll --appliance 10.0.2.2:{port} --token {token} {STATE}"))
        .unwrap();
    guest
        .sh(&format!("NO_COLOR=1 tidemark-splitter run {STATE} --ring-mib 16 >/tmp/splitter.log 2>&1 &"))
        .unwrap();
    let wait = format!(
        "for i in $(seq 60); do tidemark-splitter status {STATE} | grep -qE ': (connected|running)' && exit 0; sleep 1; done; exit 1"
    );
    let outcome = guest.run(&wait, LONG).unwrap();
    let log = guest.sh("cat /tmp/splitter.log").unwrap();
    assert_eq!(
        outcome.status,
        0,
        "the splitter does not answer: {}\n{log}\n{}",
        outcome.output,
        guest.console()
    );
}

fn protect(site: &Site, guest: &mut Guest, device: &str) {
    let outcome = guest.run(&format!("tidemark-splitter protect {STATE} {device} --wait"), LONG).unwrap();
    let log = guest.sh("cat /tmp/splitter.log").unwrap();
    assert_eq!(outcome.status, 0, "{}\n{log}", outcome.output);
    site.wait_state(VM, "protected", LONG).unwrap();
}

/// Runs the workload on `device` and returns its log, carried out on the disk `log`.
fn stamp(guest: &mut Guest, device: &str, options: &str) -> History {
    let script = format!(
        "tidemark-lab stamp --disk {device} --log /tmp/history {options} && dd if=/tmp/history of=/dev/vdc bs=1M conv=fsync"
    );
    let outcome = guest.run(&script, LONG).unwrap();
    assert_eq!(outcome.status, 0, "{}", outcome.output);
    println!("{}", outcome.output.lines().next().unwrap_or_default());
    let carried = std::fs::read(guest.disk("log").unwrap()).unwrap();
    let end = carried.iter().position(|byte| *byte == 0).unwrap_or(carried.len());
    History::read_from(BufReader::new(&carried[..end])).unwrap()
}

fn captures_exactly(kernel: Kernel) {
    if cannot_run() {
        return;
    }
    let site = Site::start("guest").unwrap();
    let mut guest = boot(kernel, "");
    start_splitter(&site, &mut guest);
    protect(&site, &mut guest, "/dev/vda");
    // Stock kernels have KALLSYMS_ALL: the page address comes from the kernel's variables, and the self-test agreed.
    let log = guest.sh("cat /tmp/splitter.log").unwrap();
    assert!(log.contains("constant_from=Variables"), "{log}");
    // Small and slow enough for an emulated processor to encrypt: overload has its own test.
    let options = "--queue-depth 4 --seconds 30 --operations 1500 --rate 80 --largest-sectors 64 --seed 41";
    let history = stamp(&mut guest, "/dev/vda", options);
    println!("{}", guest.sh("grep -E 'gap|WARN' /tmp/splitter.log").unwrap_or_default());
    site.wait_state(VM, "protected", LONG).unwrap();
    let marker = site.bookmark(VM, "end").unwrap();
    let judge = Judge { site: &site, vm: VM, disk: 0, history: &history, exact: false };
    let judged = judge.random_points(40, 8, marker).unwrap();
    println!("{kernel:?}: {judged:?}");
    let image = site.image(VM, 0, "bookmark:end").unwrap();
    assert!(
        image == std::fs::read(guest.disk("data").unwrap()).unwrap(),
        "the last point is the disk itself"
    );
    guest.power_cut().unwrap();
    site.finish(&["connect", "reset", "closed", "session", "stream", "heartbeat"]).unwrap();
}

#[test]
fn a_guest_with_linux_6_12_is_captured_exactly() {
    captures_exactly(Kernel::V6_12);
}

#[test]
fn a_guest_with_linux_6_1_is_captured_exactly() {
    captures_exactly(Kernel::V6_1);
}

/// Requests that fail in the disk: what they may have changed is copied again, and the gap says why.
#[test]
fn io_errors_become_a_gap_and_a_resync() {
    if cannot_run() {
        return;
    }
    let site = Site::start("flakey").unwrap();
    let mut guest = boot(Kernel::V6_12, "");
    start_splitter(&site, &mut guest);
    // Up for 6 s, failing writes for 2 s, and so on, under a loop device: the leaf disk that the splitter protects.
    guest
        .sh("echo '0 65536 flakey /dev/vdb 0 6 2 1 error_writes' | dmsetup create flakey && dmsetup mknodes")
        .unwrap();
    // Past the page cache, which would take the writes and fail later, on its own.
    guest.sh("/bin/losetup --direct-io=on /dev/loop0 /dev/mapper/flakey").unwrap();
    protect(&site, &mut guest, "/dev/loop0");
    let options = "--queue-depth 2 --seconds 20 --rate 100 --seed 42 --zeroes-percent 0 --largest-sectors 64 --allow-errors";
    let history = stamp(&mut guest, "/dev/loop0", options);
    let failed = history.operations.len() - history.completed();
    assert!(failed > 0, "dm-flakey failed no write");
    // The disk is sound again.
    guest.sh("dmsetup suspend flakey && echo '0 65536 linear /dev/vdb 0' | dmsetup reload flakey && dmsetup resume flakey").unwrap();
    site.wait_state(VM, "protected", LONG).unwrap();
    let marker = site.bookmark(VM, "end").unwrap();
    let judge = Judge { site: &site, vm: VM, disk: 0, history: &history, exact: false };
    let judged = judge.random_points(20, 9, marker).unwrap();
    let gaps = site.points(VM).unwrap().gaps;
    println!("{failed} failed writes, {judged:?}, gaps {gaps:?}");
    assert!(gaps.iter().any(|gap| gap.cause.to_lowercase().contains("error")), "{gaps:?}");
    let image = site.image(VM, 0, "bookmark:end").unwrap();
    guest.sh("sync").unwrap();
    assert!(
        image == std::fs::read(guest.disk("spare").unwrap()).unwrap(),
        "the last point is the disk itself"
    );
    guest.power_cut().unwrap();
    site.finish(&["error", "resync", "gap", "connect", "reset", "closed", "session", "stream"]).unwrap();
}

/// What cannot be protected is refused, with the reason and what to do.
#[test]
fn stacked_devices_and_partitions_are_refused() {
    if cannot_run() {
        return;
    }
    let site = Site::start("refusals").unwrap();
    let mut guest = boot(Kernel::V6_12, "");
    start_splitter(&site, &mut guest);
    guest.sh("echo '0 65536 linear /dev/vdb 0' | dmsetup create stacked && dmsetup mknodes").unwrap();
    guest.sh("printf 'o\\nn\\np\\n1\\n2048\\n\\nw\\n' | fdisk /dev/vda; [ -b /dev/vda1 ]").unwrap();
    for (device, words) in [("/dev/mapper/stacked", "vdb"), ("/dev/vda1", "vda")] {
        let refused = guest.run(&format!("tidemark-splitter protect {STATE} {device}"), LONG).unwrap();
        println!("{device}: {}", refused.output.trim());
        assert_eq!(refused.status, 1, "{device}: {}", refused.output);
        assert!(refused.output.contains(words), "the advice names {words}: {}", refused.output);
        assert_eq!(refused.output.trim().lines().count(), 1, "{}", refused.output);
    }
    guest.power_cut().unwrap();
    site.finish(&["connect", "reset", "closed", "session", "stream", "refus"]).unwrap();
}

/// Under confidentiality lockdown the kernel does not let the tap read memory.
#[test]
fn confidentiality_lockdown_is_refused_clearly() {
    if cannot_run() {
        return;
    }
    let site = Site::start("lockdown").unwrap();
    let mut guest = boot(Kernel::V6_12, "lockdown=confidentiality");
    let token = site.token(VM, &[]).unwrap();
    let port = site.address().rsplit_once(':').unwrap().1;
    guest
        .sh(&format!("tidemark-splitter enroll --appliance 10.0.2.2:{port} --token {token} {STATE}"))
        .unwrap();
    let start = format!("(timeout 60 tidemark-splitter run {STATE}; echo ended with $?)");
    let script = format!("{start} & sleep 1; tidemark-splitter protect {STATE} /dev/vda; wait");
    let outcome = guest.run(&script, LONG).unwrap();
    println!("{}", outcome.output.trim());
    assert!(outcome.output.contains("ended with 1"), "{}", outcome.output);
    assert!(outcome.output.to_lowercase().contains("lockdown"), "{}", outcome.output);
    guest.power_cut().unwrap();
    site.finish(&["connect", "reset", "closed", "session", "stream"]).unwrap();
}

/// In a guest the agent lies on a file system of its own and the frozen one on a device-mapper volume; on both kernels once.
fn freezes(kernel: Kernel) {
    if cannot_run() {
        return;
    }
    let site = Site::start("guest-freeze").unwrap();
    let mut guest = boot(kernel, "");
    start_splitter(&site, &mut guest);
    guest.sh("echo '0 65536 linear /dev/vda 0' | dmsetup create volume && dmsetup mknodes").unwrap();
    guest.sh("mkfs.ext4 -q -F /dev/mapper/volume && mkdir /live && mount /dev/mapper/volume /live").unwrap();
    protect(&site, &mut guest, "/dev/vda");
    let load = "n=0; while [ ! -e /tmp/stop ]; do n=$((n + 1)); dd if=/dev/zero of=/live/f$((n % 50)) bs=64k count=1 conv=fsync 2>/dev/null; done";
    guest.sh(&format!("({load}) >/dev/null 2>&1 & sleep 1")).unwrap();
    let make = |level: &str| {
        let name = format!("at-{level}");
        site.cli_json(&["bookmark", "create", &name, "--vm", VM, "--consistency", level]).unwrap()
    };
    let (frozen, crash) = (make("filesystem"), make("crash"));
    println!("{kernel:?}: {frozen}");
    assert_eq!((&frozen["achieved"], &crash["achieved"]), (&"filesystem".into(), &"crash".into()));
    // Written past the file system: no more than crash, and the volume is named.
    let holder = "exec 9<>/dev/mapper/volume; sleep 100";
    guest.sh(&format!("sh -c '{holder}' >/dev/null 2>&1 & sleep 1")).unwrap();
    let why =
        site.cli_refused(&["bookmark", "create", "raw", "--vm", VM, "--consistency", "filesystem"]).unwrap();
    assert!(why.contains("writes to"), "{why}");
    println!("{}", why.trim());
    let image = |name: &str| site.image(VM, 0, &format!("bookmark:{name}")).unwrap();
    assert!(!needs_replay(&image("at-filesystem")));
    is_sound(&image("at-filesystem")).unwrap();
    // The control.
    assert!(needs_replay(&image("at-crash")));
    // The watchdog leaves nobody behind.
    let left = guest.sh("ps | grep hold-watchdo[g] || true").unwrap();
    assert_eq!(left.trim(), "");
    survives_its_group(&mut guest);
    guest.power_cut().unwrap();
    site.finish(&["connect", "reset", "closed", "session", "stream", "heartbeat", "bookmark"]).unwrap();
}

/// Everything in the service's control group is killed while an application is quiesced: its thaw hook runs all the same.
fn survives_its_group(guest: &mut Guest) {
    guest
        .sh("mkdir -p /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup && mkdir /sys/fs/cgroup/unit /etc/tidemark /etc/tidemark/hooks.d")
        .unwrap();
    let hook = "#!/bin/sh\necho $1 >>/tmp/hooks\n[ $1 = thaw ] || sleep 30\n";
    guest
        .sh(&format!("printf '{hook}' >/etc/tidemark/hooks.d/slow; chmod 755 /etc/tidemark/hooks.d/slow; killall sleep; sleep 1"))
        .unwrap();
    guest.sh("echo $(pidof tidemark-splitter) >/sys/fs/cgroup/unit/cgroup.procs").unwrap();
    let ask = format!("tidemark-splitter bookmark killed {STATE} --consistency application");
    guest
        .sh(&format!(
            "({ask}) >/tmp/asked 2>&1 & for i in $(seq 100); do [ -e /tmp/hooks ] && break; sleep 0.2; done"
        ))
        .unwrap();
    let hooks = guest
        .sh("cat /tmp/hooks; echo 1 >/sys/fs/cgroup/unit/cgroup.kill; sleep 6; cat /tmp/hooks; cat /sys/fs/cgroup/unit/cgroup.procs; pidof tidemark-splitter || true")
        .unwrap();
    assert_eq!(hooks, "freeze\nfreeze\nthaw\n", "{}", guest.sh("cat /tmp/asked").unwrap());
}

#[test]
fn file_systems_of_a_guest_with_linux_6_12_are_frozen() {
    freezes(Kernel::V6_12);
}

#[test]
fn file_systems_of_a_guest_with_linux_6_1_are_frozen() {
    freezes(Kernel::V6_1);
}
