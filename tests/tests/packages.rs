//! The packages: what is in them, and the splitter's whole life in a Debian with systemd.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test states what must hold and stops where it does not"
)]

use std::collections::BTreeSet;
use std::io::BufReader;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tidemark_tests::guest::{self, System, system_unavailable};
use tidemark_tests::house::workspace_root;
use tidemark_tests::oracle::Judge;
use tidemark_tests::process::output_of;
use tidemark_tests::site::{Site, large, program, skipped};
use tidemark_tests::stamp::History;

const VM: &str = "debian";
/// Software emulation is ten to thirty times slower than the machine.
const LONG: Duration = Duration::from_secs(400);
const OLD: &str = "0.1.0";
const NEW: &str = "0.1.1";

/// Makes packages of the programs under test; the files made.
fn packages(out: &Path, version: &str, options: &[&str]) -> Vec<PathBuf> {
    let programs = program("tidemark-splitter").unwrap();
    let mut build = Command::new(workspace_root().join("packaging/build"));
    build.args(options).args(["--version", version, "--out"]).arg(out);
    build.arg("--programs").arg(programs.parent().unwrap()).env("TIDEMARK_PACKAGE_LEVEL", "0");
    output_of(&mut build).unwrap().lines().map(PathBuf::from).collect()
}

struct Machine {
    site: Site,
    system: System,
}

impl Machine {
    fn sh(&mut self, script: &str) -> String {
        let outcome = self.system.run(script, LONG).unwrap();
        if outcome.status != 0 {
            let log = self.log("");
            panic!("{script}: status {}: {}\n{log}", outcome.status, outcome.output);
        }
        outcome.output
    }

    /// What the splitter said in this boot, or since it was started.
    fn log(&mut self, options: &str) -> String {
        let script = format!("journalctl -b --no-pager -o cat -u tidemark-splitter {options} | tail -n 60");
        self.system.run(&script, LONG).unwrap().output
    }

    /// Until the initramfs knows the protected disks.
    fn wait_initramfs(&mut self, disks: usize) {
        self.sh(&format!(
            "for i in $(seq 300); do \
               [ \"$(cat /var/lib/tidemark-splitter/initramfs.list 2>/dev/null | wc -l)\" = {disks} ] && \
               [ \"$(systemctl show -p ActiveState --value tidemark-splitter-initramfs)\" = inactive ] && exit 0; sleep 1; \
             done; systemctl status --no-pager tidemark-splitter-initramfs; exit 1"
        ));
    }

    fn wait_protected(&mut self) {
        if let Err(error) = self.site.wait_state(VM, "protected", LONG) {
            panic!("{error:#}\n{}", self.log(""));
        }
    }

    fn gaps(&self) -> usize {
        self.site.points(VM).unwrap().gaps.len()
    }
}

/// Seconds since the kernel's start of its first message with these words.
fn second_of(log: &str, words: &str) -> f64 {
    let line = log.lines().find(|line| line.contains(words));
    let line = line.unwrap_or_else(|| panic!("the kernel's log says nowhere '{words}':\n{log}"));
    line.trim_start_matches('[').split(']').next().unwrap().trim().parse().unwrap()
}

#[test]
fn a_debian_installs_protects_reboots_upgrades_and_purges() {
    if skipped("systems in guests") {
        return;
    }
    if !large() {
        eprintln!(
            "skipped: rebuilding an initramfs in emulation takes minutes; by hand with TIDEMARK_TEST_SIZE=large"
        );
        return;
    }
    if let Some(reason) = system_unavailable() {
        eprintln!("skipped: {reason}");
        return;
    }
    let parcel = tempfile::tempdir().unwrap();
    for version in [OLD, NEW] {
        packages(parcel.path(), version, &["--deb", "--only", "tidemark-splitter"]);
    }
    std::fs::copy(program("tidemark-lab").unwrap(), parcel.path().join("tidemark-lab")).unwrap();
    let site = Site::start("packages").unwrap();
    let system = System::builder().disk("data", 32 << 20).parcel(parcel.path()).boot().unwrap();
    let mut machine = Machine { site, system };
    let before = files(&mut machine);
    install(&mut machine);
    reboot(&mut machine);
    upgrade_under_load(&mut machine);
    cut_the_power(&mut machine);
    purge(&mut machine, &before);
    let Machine { site, system } = machine;
    system.power_off().unwrap();
    site.finish(&["connect", "reset", "closed", "session", "stream", "heartbeat"]).unwrap();
}

/// Three commands from nothing to protected, on a kernel that hides its addresses.
fn install(machine: &mut Machine) {
    machine.sh("echo 2 >/proc/sys/kernel/kptr_restrict; [ \"$(systemctl is-system-running --wait)\" = running ] || systemctl --failed");
    println!(
        "{}",
        machine.sh(&format!(
            "apt-get install -y -qq /run/parcel/tidemark-splitter_{OLD}_amd64.deb 2>&1 | tail -n 5"
        ))
    );
    // Nothing runs before there is an enrolment, and asking for it says what to do.
    assert_eq!(machine.sh("systemctl is-active tidemark-splitter || true").trim(), "inactive");
    let early = machine.sh("tidemark-splitter protect /dev/vdb --wait 2>&1 || true");
    assert!(early.contains("tidemark-splitter enroll"), "{early}");
    let token = machine.site.token(VM, &[]).unwrap();
    let port = machine.site.address().rsplit_once(':').unwrap().1.to_owned();
    let said = machine.sh(&format!("tidemark-splitter enroll --appliance 10.0.2.2:{port} --token {token}"));
    println!("{said}");
    assert!(said.contains("tidemark-splitter.service is running"), "{said}");
    println!("{}", machine.sh("tidemark-splitter protect /dev/vdb /dev/vda --wait"));
    let log = machine.log("");
    assert!(log.contains("constant_from=Noted"), "the page address came from the privileged step: {log}");
    machine.sh("systemctl is-enabled tidemark-splitter tidemark-splitter-initramfs.path");
    hardened(machine);
    machine.wait_protected();
    machine.wait_initramfs(2);
    let listed = machine.sh("lsinitramfs /boot/initrd.img-$(uname -r)");
    assert!(listed.contains("tidemark-splitter/disks.toml"), "{listed}");
    assert!(!listed.contains("credentials"), "no key in the initramfs: {listed}");
}

/// The running process has exactly the capabilities of the unit, and without those of the tap it says what is missing.
fn hardened(machine: &mut Machine) {
    let status = machine.sh("cat /proc/$(systemctl show -p MainPID --value tidemark-splitter)/status");
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim_start_matches(':').trim().to_owned()
    };
    // CAP_PERFMON is 38, CAP_BPF 39; for freezes CAP_DAC_READ_SEARCH 2, CAP_SETGID 6, CAP_SETUID 7, CAP_SYS_ADMIN 21,
    // CAP_SYS_RESOURCE 24.
    let wanted = 3 << 38 | 1 << 2 | 3 << 6 | 1 << 21 | 1 << 24;
    assert_eq!(u64::from_str_radix(&field("CapEff"), 16).unwrap(), wanted, "{status}");
    assert_eq!(u64::from_str_radix(&field("CapBnd"), 16).unwrap(), wanted, "{status}");
    assert_eq!((field("NoNewPrivs"), field("Seccomp")), ("1".into(), "2".into()), "{status}");
    assert!(field("VmLck") != "0 kB", "memory is locked: {status}");
    println!("{}", machine.sh("systemd-analyze security --no-pager tidemark-splitter | tail -n 1"));
    for missing in ["CAP_BPF", "CAP_PERFMON"] {
        let refused = machine.sh(&format!(
            "cp -a /var/lib/tidemark-splitter /run/copy; systemd-run --quiet --pipe --wait \
             -p CapabilityBoundingSet='~{missing}' tidemark-splitter run --state /run/copy 2>&1 || true; rm -r /run/copy"
        ));
        assert!(refused.contains("must run as root with CAP_BPF and CAP_PERFMON"), "{missing}: {refused}");
    }
}

/// The tap is attached before the root file system is mounted, and the service comes up by itself.
fn reboot(machine: &mut Machine) {
    machine.system.reboot().unwrap();
    came_up(machine);
}

fn came_up(machine: &mut Machine) {
    let console = machine.sh("dmesg");
    let attached = second_of(&console, "tidemark-splitter: /dev/vda: what changes is noted");
    second_of(&console, "tidemark-splitter: /dev/vdb: what changes is noted");
    let mounted = second_of(&console, "EXT4-fs (vda): mounted filesystem");
    println!("attached at {attached} s, root mounted at {mounted} s");
    assert!(attached < mounted, "{console}");
    machine.sh("for i in $(seq 60); do systemctl is-active --quiet tidemark-splitter && exit 0; sleep 1; done; exit 1");
    // The appliance's word may still be that of before the boot; the splitter knows when the comparison is over.
    machine.sh("tidemark-splitter protect /dev/vdb /dev/vda --wait");
    machine.wait_protected();
    let log = machine.log("");
    let root = log.lines().find(|line| line.contains("found the tap running") && line.contains("root"));
    println!("{}", root.unwrap_or_default());
    let marks =
        root.and_then(|line| line.split("marks=").nth(1)?.split_whitespace().next()?.parse::<u64>().ok());
    assert!(marks.is_some_and(|marks| marks > 0), "what the boot wrote to the root disk is marked: {log}");
}

/// A package of another version goes in while the disk is written: no write is lost, no gap opens.
fn upgrade_under_load(machine: &mut Machine) {
    let gaps = machine.gaps();
    let process = machine.sh("systemctl show -p MainPID --value tidemark-splitter");
    // Rebuilding the initramfs takes minutes in emulation; that the purge rebuilds it is seen below.
    machine
        .sh("sed -i s/^update_initramfs=.*/update_initramfs=no/ /etc/initramfs-tools/update-initramfs.conf");
    machine.sh(
        "cp /run/parcel/tidemark-lab /root/lab; /root/lab stamp --disk /dev/vdb --log /run/history --queue-depth 4 \
         --seconds 240 --operations 2500 --rate 40 --largest-sectors 64 --seed 43 >/run/stamp 2>&1 & echo $! >/run/pid; sleep 3",
    );
    machine.sh(&format!(
        "apt-get install -y -qq /run/parcel/tidemark-splitter_{NEW}_amd64.deb 2>&1 | tail -n 3"
    ));
    let running = machine.sh("kill -0 $(cat /run/pid) && echo busy || cat /run/stamp");
    assert_eq!(running.trim(), "busy", "the load ended before the upgrade did");
    assert_ne!(
        process,
        machine.sh("systemctl show -p MainPID --value tidemark-splitter"),
        "a new process runs"
    );
    machine
        .sh("for i in $(seq 300); do kill -0 $(cat /run/pid) 2>/dev/null || exit 0; sleep 1; done; exit 1");
    println!("{}", machine.sh("cat /run/stamp"));
    assert_eq!(machine.sh("dpkg-query -W -f '${Version}' tidemark-splitter"), NEW);
    machine.wait_protected();
    let marker = machine.site.bookmark(VM, "upgraded").unwrap();
    let history = History::read_from(BufReader::new(machine.sh("cat /run/history").as_bytes())).unwrap();
    let judge = Judge { site: &machine.site, vm: VM, disk: 0, history: &history, exact: false };
    println!("{:?}", judge.random_points(10, 8, marker).unwrap());
    let log = machine.log("");
    assert!(log.contains("going on where the last process stopped"), "{log}");
    assert_eq!(machine.gaps(), gaps, "no gap opened: {log}");
    let image = machine.site.image(VM, 0, "bookmark:upgraded").unwrap();
    assert!(image == std::fs::read(machine.system.disk("data").unwrap()).unwrap(), "the disk itself");
}

/// After a power cut the root file system's journal is replayed: a write of the boot window.
fn cut_the_power(machine: &mut Machine) {
    machine.sh("for i in $(seq 20); do echo $i >/root/file-$i; done; sync; for i in $(seq 20); do rm /root/file-$i; done; sync /root; echo x >/root/y");
    machine.system.power_cut().unwrap();
    let console = machine.sh("dmesg");
    let attached = second_of(&console, "tidemark-splitter: /dev/vda: what changes is noted");
    let replayed = second_of(&console, "EXT4-fs (vda): recovery complete");
    assert!(attached < replayed, "{console}");
    came_up(machine);
    let image = machine.site.image(VM, 0, "latest").unwrap();
    assert!(image == std::fs::read(machine.system.disk("data").unwrap()).unwrap(), "the disk itself");
}

/// Names of everything that could be ours: files, units, users, what the kernel holds.
fn files(machine: &mut Machine) -> BTreeSet<String> {
    let found = machine.sh(
        "find / -xdev -iname '*tidemark*' -not -path '/proc/*' -not -path '/var/log/*' 2>/dev/null; \
         find /run /sys/fs/bpf -iname '*tidemark*' -not -path '/run/parcel*' -not -path '/run/log/*'; \
         systemctl list-unit-files --no-legend | grep -i tidemark; systemctl list-units --all --no-legend | grep -i tidemark; \
         getent passwd | grep -i tidemark; \
         lsinitramfs /boot/initrd.img-$(uname -r) | grep -i tidemark; \
         grep -o 'ringbuf_map_alloc\\|bpf_ringbuf[a-z_]*' /proc/vmallocinfo; true",
    );
    found.lines().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()).collect()
}

fn purge(machine: &mut Machine, before: &BTreeSet<String>) {
    // The control of the search itself: it finds each kind while the package is there.
    let installed = files(machine);
    for kind in
        ["/usr/bin/tidemark-splitter", "/sys/fs/bpf/tidemark", "/etc/tidemark", "disks.toml", "ringbuf"]
    {
        assert!(installed.iter().any(|line| line.contains(kind)), "{kind} is not found: {installed:?}");
    }
    machine
        .sh("sed -i s/^update_initramfs=.*/update_initramfs=yes/ /etc/initramfs-tools/update-initramfs.conf");
    machine.sh("apt-get purge -y -qq tidemark-splitter 2>&1 | tail -n 3");
    let left: Vec<String> = files(machine).difference(before).cloned().collect();
    assert!(left.is_empty(), "left behind: {left:?}");
    assert_eq!(machine.sh("systemctl --failed --no-legend | wc -l").trim(), "0");
}

/// No RPM distribution runs here: the files, the scripts, and an installation into an empty root with a shell.
#[test]
fn rpms_install_into_an_empty_root_and_leave_it() {
    if skipped("installations into a root of their own") {
        return;
    }
    if guest::host_program("rpmbuild").is_err() || guest::host_program("busybox").is_err() {
        eprintln!("skipped: rpmbuild or busybox is missing (packages rpm, busybox-static)");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let made = packages(folder.path(), OLD, &["--rpm"]);
    let newer = packages(folder.path(), NEW, &["--rpm", "--only", "tidemark-splitter"]);
    assert_eq!((made.len(), newer.len()), (3, 1), "{made:?}");
    let root = empty_root(folder.path());
    let rpm = |options: &[&str], files: &[PathBuf]| {
        output_of(
            Command::new("rpm")
                .arg("--root")
                .arg(&root)
                .args(["--dbpath", "/var/lib/rpm"])
                .args(options)
                .args(files),
        )
        .unwrap()
    };
    rpm(&["--initdb"], &[]);
    for package in &made {
        let scripts = output_of(Command::new("rpm").args(["-qp", "--scripts"]).arg(package)).unwrap();
        let console = package.to_string_lossy().contains("/tidemark-0");
        assert_eq!(scripts.contains("running_systemd"), !console, "{scripts}");
        let needed = output_of(Command::new("rpm").args(["-qp", "--requires"]).arg(package)).unwrap();
        assert!(needed.contains("libc.so.6(GLIBC_2."), "{needed}");
    }
    let untouched = names_below(&root);
    // Dependencies are another distribution's; everything else is checked.
    rpm(&["--nodeps", "-i"], &made);
    for file in ["bin/tidemark", "bin/tidemark-appliance", "bin/tidemark-splitter"] {
        assert!(root.join("usr").join(file).exists(), "{file}");
    }
    for file in [
        "etc/tidemark/splitter.env",
        "usr/lib/systemd/system/tidemark-splitter.service",
        "usr/lib/dracut/modules.d/90tidemark/module-setup.sh",
        "usr/lib/udev/rules.d/59-tidemark-gate.rules",
        "usr/share/man/man1/tidemark-splitter-protect.1.gz",
    ] {
        assert!(root.join(file).exists(), "{file}");
    }
    assert!(!root.join("usr/share/initramfs-tools").exists(), "hooks of another distribution");
    std::fs::write(root.join("etc/tidemark/splitter.env"), "TIDEMARK_RING_MIB=64\n").unwrap();
    rpm(&["--nodeps", "-U"], &newer);
    let kept = std::fs::read_to_string(root.join("etc/tidemark/splitter.env")).unwrap();
    assert_eq!(kept, "TIDEMARK_RING_MIB=64\n", "an upgrade keeps the settings");
    assert_eq!(rpm(&["-q", "tidemark-splitter"], &[]).trim(), format!("tidemark-splitter-{NEW}-1.x86_64"));
    rpm(&["-e", "tidemark-splitter", "tidemark-appliance", "tidemark"], &[]);
    let left: Vec<String> = names_below(&root).difference(&untouched).cloned().collect();
    // Settings that somebody changed are kept aside, as everywhere with RPM.
    let aside = ["/etc/tidemark".to_owned(), "/etc/tidemark/splitter.env.rpmsave".to_owned()];
    assert!(left.iter().all(|name| aside.contains(name)), "left behind: {left:?}");
}

/// A root with nothing but a shell, for the scripts of packages.
fn empty_root(folder: &Path) -> PathBuf {
    let root = folder.join("root");
    // Folders that other packages of a distribution have made.
    for name in [
        "bin",
        "dev",
        "etc",
        "proc",
        "tmp",
        "usr/bin",
        "usr/lib/dracut/modules.d",
        "usr/lib/systemd/system",
        "usr/lib/sysusers.d",
        "usr/lib/udev/rules.d",
        "usr/sbin",
        "usr/share/doc",
        "usr/share/man/man1",
        "var/lib/rpm",
        "var/tmp",
    ] {
        std::fs::create_dir_all(root.join(name)).unwrap();
    }
    std::fs::copy(guest::host_program("busybox").unwrap(), root.join("bin/busybox")).unwrap();
    for applet in ["sh", "rm", "rmdir", "cat", "mkdir", "sort", "getent"] {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    // The appliance's user is made by a program that only a whole system has.
    let sysusers = root.join("bin/systemd-sysusers");
    std::fs::write(&sysusers, "#!/bin/sh\n[ -e \"$1\" ]\n").unwrap();
    std::fs::set_permissions(&sysusers, std::fs::Permissions::from_mode(0o755)).unwrap();
    output_of(Command::new("mknod").arg(root.join("dev/null")).args(["c", "1", "3"])).unwrap();
    root
}

fn names_below(root: &Path) -> BTreeSet<String> {
    let listing = output_of(Command::new("find").current_dir(root).args([
        ".",
        "-not",
        "-path",
        "./var/lib/rpm/*",
        "-printf",
        "/%P\\n",
    ]));
    listing.unwrap().lines().map(str::to_owned).collect()
}

/// What dracut's module puts into an initramfs, with dracut's own functions told apart from it.
#[test]
fn the_dracut_module_installs_what_the_initramfs_needs() {
    let folder = tempfile::tempdir().unwrap();
    let run = |disks: &str| {
        std::fs::write(folder.path().join("disks.toml"), disks).unwrap();
        let script = format!(
            "set -e; for f in inst_binary inst_simple inst_hook instmods require_binaries; do \
               eval \"$f() {{ echo $f \\\"\\$@\\\"; }}\"; done; moddir=/module; . {}; tidemark_state={}; \
             check || exit $?; depends; installkernel; install",
            workspace_root().join("packaging/splitter/dracut/module-setup.sh").display(),
            folder.path().display(),
        );
        Command::new("bash").args(["-c", &script]).output().unwrap()
    };
    // Nothing is protected: nothing belongs into the initramfs.
    assert_eq!(run("").status.code(), Some(255));
    let said = run("[[disk]]\n");
    let said = String::from_utf8(said.stdout).unwrap();
    for line in [
        "instmods loop ext4",
        "inst_binary /usr/bin/tidemark-splitter",
        "inst_hook initqueue/settled 05 /module/tidemark-attach.sh",
        "inst_hook pre-mount 05 /module/tidemark-attach.sh",
    ] {
        assert!(said.lines().any(|known| known == line), "{line}: {said}");
    }
    assert!(said.contains(&format!("inst_simple {}/disks.toml", folder.path().display())), "{said}");
    assert!(!said.contains("credentials"), "no key in the initramfs: {said}");
}
