//! Synchronous mode as the package runs it: the gate in a systemd unit of its own, through restarts, kills, stops, a reboot
//! and the package's removal, under a mounted and busy file system.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test states what must hold and stops where it does not"
)]

use std::process::Command;
use std::time::{Duration, Instant};

use tidemark_tests::guest::{Kernel, System, system_unavailable};
use tidemark_tests::house::workspace_root;
use tidemark_tests::process::output_of;
use tidemark_tests::site::{GATES_DISTURBED, Site, large, program, skipped};

const VM: &str = "gated";
/// Software emulation on a busy machine.
const LONG: Duration = Duration::from_secs(400);
/// Writes in synchronous mode wait for a round trip, in emulation for many.
const LOAD_WAIT: Duration = Duration::from_secs(120);
const VOLUME: &str = "/dev/vg/files";
/// Writes small files durably, for ever, and counts; stops at the first error, with a word in /run/failed.
const LOAD: &str = "#!/bin/sh
i=0
while [ ! -e /run/stop ]; do
    i=$((i+1))
    dd if=/dev/urandom of=/data/file$((i % 20)) bs=4k count=3 conv=fsync 2>/run/dd.err || { cp /run/dd.err /run/failed; break; }
    echo $i >/run/count.new; mv /run/count.new /run/count
done
";

struct Machine {
    site: Site,
    system: System,
}

impl Machine {
    fn sh(&mut self, script: &str) -> String {
        let outcome = self.system.run(script, LONG).unwrap();
        if outcome.status != 0 {
            panic!("{script}: status {}: {}\n{}", outcome.status, outcome.output, self.log());
        }
        outcome.output
    }

    /// What splitter, gates, service manager and kernel said last.
    fn log(&mut self) -> String {
        let script = "journalctl -b --no-pager -o short-monotonic | grep -v audit | tail -n 90; \
                      tidemark-splitter status; dmsetup table; systemctl list-units --all 'tidemark*' --no-legend";
        self.system.run(script, LONG).map_or_else(|error| format!("{error:#}"), |outcome| outcome.output)
    }

    fn start_load(&mut self) {
        let script = base64(LOAD);
        self.sh(&format!(
            "echo {script} | base64 -d >/tmp/load; chmod +x /tmp/load; rm -f /run/stop /run/failed; \
             systemd-run --quiet --unit=load --collect /tmp/load"
        ));
    }

    fn count(&mut self) -> u64 {
        self.sh("cat /run/count 2>/dev/null || echo 0").trim().parse().unwrap_or(0)
    }

    /// The load goes on, without an error. How long that took.
    fn goes_on(&mut self, what: &str) -> Duration {
        let (before, begun) = (self.count(), Instant::now());
        loop {
            let failed = self.sh("cat /run/failed 2>/dev/null; true");
            assert_eq!(failed, "", "{what}: a write failed");
            if self.count() >= before + 3 {
                println!("{what}: goes on after {:.1} s", begun.elapsed().as_secs_f64());
                return begun.elapsed();
            }
            assert!(begun.elapsed() < LOAD_WAIT, "{what}: the load stands still\n{}", self.log());
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    fn wait_in_force(&mut self) {
        self.sh("for i in $(seq 240); do tidemark-splitter status --json >/run/status 2>&1; \
             grep -q '\"in_force\": true' /run/status && exit 0; sleep 0.5; done; cat /run/status; exit 1");
        println!("{}", self.sh(&format!("tidemark-splitter status | grep {VOLUME}")).trim());
    }

    /// The unit of the gate, and its process.
    fn gate(&mut self) -> (String, String) {
        let unit = self
            .sh("systemctl list-units --no-legend --plain --state=active 'tidemark-gate-*' | cut -d' ' -f1");
        let unit = unit.trim().to_owned();
        assert!(!unit.is_empty() && !unit.contains('\n'), "one unit: {unit}");
        let process = self.sh(&format!("systemctl show -p MainPID --value '{unit}'"));
        (unit, process.trim().to_owned())
    }
}

fn base64(text: &str) -> String {
    use std::io::Write as _;
    let mut child = Command::new("base64")
        .arg("-w0")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()
}

#[test]
fn a_packaged_splitter_keeps_a_mounted_volume_in_synchronous_mode() {
    if skipped("systems in guests") {
        return;
    }
    if !large() {
        eprintln!(
            "skipped: a Debian and its reboot in emulation take minutes; by hand with TIDEMARK_TEST_SIZE=large"
        );
        return;
    }
    if let Some(reason) = system_unavailable() {
        eprintln!("skipped: {reason}");
        return;
    }
    let mut machine = boot();
    install(&mut machine);
    let table = machine.sh("dmsetup table vg-files");
    machine.start_load();
    machine.goes_on("in mode async");
    println!("{}", machine.sh(&format!("tidemark-splitter mode {VOLUME} sync")).trim());
    machine.wait_in_force();
    let gated = machine.sh("dmsetup table vg-files; dmsetup table tidemark-gate-vg-files");
    assert!(gated.contains(table.trim()) && !gated.starts_with(table.trim()), "{gated}");
    confined(&mut machine);
    lives_through_the_service(&mut machine);
    reboot(&mut machine);
    remove(&mut machine, &table);
    let Machine { site, system } = machine;
    system.power_off().unwrap();
    site.finish(&GATES_DISTURBED).unwrap();
}

fn boot() -> Machine {
    let parcel = tempfile::tempdir().unwrap();
    let programs = program("tidemark-splitter").unwrap();
    output_of(
        Command::new(workspace_root().join("packaging/build"))
            .args(["--deb", "--only", "tidemark-splitter", "--version", "0.1.0", "--out"])
            .arg(parcel.path())
            .arg("--programs")
            .arg(programs.parent().unwrap())
            .env("TIDEMARK_PACKAGE_LEVEL", "0"),
    )
    .unwrap();
    let site = Site::start("packaged-gates").unwrap();
    let system =
        System::builder().kernel(Kernel::V6_12).disk("data", 96 << 20).parcel(parcel.path()).boot().unwrap();
    Machine { site, system }
}

/// The package, a volume with a mounted file system on the data disk, and its protection.
fn install(machine: &mut Machine) {
    println!("{}", machine.sh("uname -r; systemctl --version | head -n 1").trim());
    // Rebuilding the initramfs takes minutes in emulation, and is another test's.
    machine
        .sh("sed -i s/^update_initramfs=.*/update_initramfs=no/ /etc/initramfs-tools/update-initramfs.conf");
    machine.sh(
        "pvcreate -q /dev/vdb && vgcreate -q vg /dev/vdb && lvcreate -q -y -n files -L 64M vg && \
         mkfs.ext4 -q /dev/vg/files && mkdir /data && echo '/dev/vg/files /data ext4 defaults 0 0' >>/etc/fstab && \
         systemctl daemon-reload && mount /data",
    );
    machine.sh("apt-get install -y -qq /run/parcel/tidemark-splitter_0.1.0_amd64.deb 2>&1");
    let token = machine.site.token(VM, &[]).unwrap();
    let port = machine.site.address().rsplit_once(':').unwrap().1.to_owned();
    machine.sh(&format!("tidemark-splitter enroll --appliance 10.0.2.2:{port} --token {token}"));
    println!("{}", machine.sh("tidemark-splitter protect /dev/vdb --wait").trim());
}

/// The gate's process has what it needs and nothing else, and so has the service.
fn confined(machine: &mut Machine) {
    let (unit, process) = machine.gate();
    let status = machine.sh(&format!("cat /proc/{process}/status"));
    // CAP_SYS_ADMIN is 21, CAP_SYS_RESOURCE 24.
    let wanted = format!("CapEff:\t{:016x}", 1_u64 << 21 | 1 << 24);
    assert!(
        status.contains(&wanted) && status.contains("Seccomp:\t2") && status.contains("NoNewPrivs:\t1"),
        "{status}"
    );
    let name = machine.sh(&format!(
        "head -c 1 /proc/{process}/cmdline; cat /proc/{process}/oom_score_adj; ps -o ni= -p {process} || true"
    ));
    assert!(name.starts_with("@-1000"), "spared at the end, and for memory: {name}");
    println!(
        "{unit}: {}",
        machine.sh(&format!("systemd-analyze security --no-pager '{unit}' | tail -n 1")).trim()
    );
    println!("{}", machine.sh("systemd-analyze security --no-pager tidemark-splitter | tail -n 1").trim());
    println!("{}", machine.sh("systemctl show -p DeviceAllow tidemark-splitter").trim());
    let links = machine.sh("find /dev/disk -lname '*ublk*'");
    assert_eq!(links, "", "no name of the file system leads to the gate");
}

/// Restart, kill of the gate, kill of the splitter, stop and start.
fn lives_through_the_service(machine: &mut Machine) {
    let (_, before) = machine.gate();
    machine.sh("systemctl restart tidemark-splitter");
    machine.goes_on("the service was restarted");
    machine.wait_in_force();
    assert_eq!(machine.gate().1, before, "the gate's process is the same one");
    machine.sh(&format!("kill -9 {before}"));
    machine.goes_on("the gate was killed");
    machine.wait_in_force();
    let (_, process) = machine.gate();
    assert_ne!(process, before);
    machine.sh("systemctl kill --kill-whom=all --signal=KILL tidemark-splitter");
    machine.goes_on("the splitter was killed");
    machine.wait_in_force();
    assert_eq!(machine.gate().1, process, "the gate's process is the same one");
    machine.sh("systemctl stop tidemark-splitter");
    machine.goes_on("the service was stopped");
    let refused = machine.sh("systemctl stop 'tidemark-gate-*' 2>&1 || true");
    assert_eq!(machine.gate().1, process, "the gate is not stopped by hand: {refused}");
    machine.sh("systemctl start tidemark-splitter");
    machine.wait_in_force();
    machine.goes_on("the service was started");
}

/// The gate serves until the file systems are unmounted, and is back by itself.
fn reboot(machine: &mut Machine) {
    machine.sh("touch /run/stop; for i in $(seq 60); do systemctl is-active -q load || exit 0; sleep 1; done; exit 1");
    machine.sh("echo whole >/data/word");
    let begun = Instant::now();
    machine.system.reboot().unwrap();
    println!("rebooted in {:.0} s", begun.elapsed().as_secs_f64());
    machine.wait_in_force();
    machine.gate();
    assert_eq!(machine.sh("cat /data/word"), "whole\n");
    let before = machine.sh("journalctl -b -1 --no-pager -o cat -u data.mount; dmesg | grep -i 'vg-files\\|dm-0\\|EXT4-fs' || true");
    println!("{before}");
    assert!(!before.contains("recovery complete"), "it was unmounted in order: {before}");
    machine.start_load();
    machine.goes_on("after the reboot");
}

/// The package goes while the volume is in synchronous mode; when a gate cannot be taken out, it does not.
fn remove(machine: &mut Machine, table: &str) {
    println!("{}", machine.sh("apt-get remove -y -qq tidemark-splitter 2>&1 | tail -n 4").trim());
    machine.goes_on("the package was removed");
    assert_eq!(machine.sh("dmsetup table vg-files"), table, "its own table");
    let left = machine.sh(
        "ls /dev | grep ublkb; dmsetup ls | grep gate; ls -d /run/tidemark-gate /run/systemd/system.control/tidemark*; \
         systemctl list-units --all --no-legend --plain 'tidemark*'; true",
    );
    let left: Vec<&str> = left.lines().filter(|line| !line.contains("cannot access")).collect();
    assert!(left.is_empty(), "left behind: {left:?}");
    machine.sh("touch /run/stop; for i in $(seq 60); do systemctl is-active -q load || exit 0; sleep 1; done; exit 1");
    machine.sh("umount /data && e2fsck -fn /dev/vg/files");
}
