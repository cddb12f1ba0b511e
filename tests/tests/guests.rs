//! Guests boot and obey; their disks come, go, change and survive what they must survive.

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

use tidemark_tests::guest::{self, Disk, Guest, Kernel};

const MIB: u64 = 1 << 20;

fn cannot_run() -> bool {
    let reason = guest::unavailable();
    if let Some(reason) = &reason {
        eprintln!("skipped: {reason}");
    }
    reason.is_some()
}

/// Both stock kernels boot, run commands, see their disks, and their modules load.
#[test]
fn stock_kernels_boot_and_run_commands() {
    if cannot_run() {
        return;
    }
    for kernel in Kernel::ALL {
        let mut guest =
            Guest::builder(kernel).disk("data", 8 * MIB).module("dm-flakey").network().boot().unwrap();
        let release = guest.sh("uname -r").unwrap();
        assert!(release.starts_with(kernel.release_prefix()), "{release}");
        assert_eq!(guest.sh("cat /sys/block/vda/size").unwrap().trim(), "16384");
        assert_eq!(guest.sh("cat /sys/block/vda/serial").unwrap().trim(), "data");
        let failed = guest.run("echo no; exit 3", Duration::from_secs(10)).unwrap();
        assert_eq!((failed.status, failed.output.as_str()), (3, "no\n"));
        guest
            .sh("ping -c 1 -W 5 10.0.2.2 && ls /sys/class/misc/device-mapper /sys/kernel/btf/vmlinux")
            .unwrap();
        guest.sh("echo written in the guest | dd of=/dev/vda conv=fsync").unwrap();
        assert!(guest.content("data").unwrap().starts_with(b"written in the guest\n"));
        assert!(!guest.console().contains("insmod"), "{}", guest.console());
        guest.power_off().unwrap();
    }
}

/// File systems and LVM, a reboot, disks that are added, resized, removed and added again: on both kernels, both buses.
#[test]
fn disks_come_go_grow_and_outlive_reboots() {
    if cannot_run() {
        return;
    }
    for kernel in Kernel::ALL {
        let mut guest = Guest::builder(kernel)
            .disk("plain", 16 * MIB)
            .attach(Disk::new("pv", 96 * MIB).scsi())
            .file_systems()
            .lvm()
            .at_boot("vgchange -ay || true")
            .at_shutdown("echo shut down in order >/dev/console")
            .boot()
            .unwrap();
        let (plain, pv) = (guest.device("plain").unwrap(), guest.device("pv").unwrap());
        assert_eq!((plain.as_str(), pv.as_str()), ("/dev/vda", "/dev/sda"));
        guest
            .sh(&format!(
                "mkfs.ext4 -q {plain} && pvcreate {pv} && vgcreate vg {pv} && lvcreate -y -l 100%FREE -n lv vg && \
                 mkfs.small-xfs -q /dev/vg/lv && mkdir /a /b && mount {plain} /a && mount /dev/vg/lv /b && \
                 echo kept | tee /a/file /b/file"
            ))
            .unwrap();
        let began = Instant::now();
        let mut guest = guest.reboot().unwrap();
        println!("reboot: {:?}", began.elapsed());
        assert!(guest.console().contains("shut down in order"));
        guest.sh("mkdir /a /b; mount /dev/vda /a && mount /dev/vg/lv /b").unwrap();
        assert_eq!(guest.sh("cat /a/file /b/file").unwrap(), "kept\nkept\n");

        for (name, disk) in
            [("later", Disk::new("later", 8 * MIB)), ("scsi", Disk::new("scsi", 8 * MIB).scsi())]
        {
            let began = Instant::now();
            guest.hot_add(disk.clone()).unwrap();
            let device = guest.device(name).unwrap();
            guest.sh(&format!("echo {name} was here | dd of={device} conv=fsync")).unwrap();
            guest.resize(name, 12 * MIB).unwrap();
            guest.resize(name, 4 * MIB).unwrap();
            guest.hot_remove(name).unwrap();
            guest
                .sh(&format!("for i in $(seq 50); do [ -b {device} ] || exit 0; sleep 0.2; done; exit 1"))
                .unwrap();
            guest.hot_add(disk.size(4 * MIB)).unwrap();
            let device = guest.device(name).unwrap();
            assert_eq!(guest.sh(&format!("head -n 1 {device}")).unwrap(), format!("{name} was here\n"));
            println!("added, resized, removed and added again: {:?}", began.elapsed());
        }
        guest.power_off().unwrap();
    }
}

/// A power cut takes what was not flushed from a disk with a volatile cache, and nothing else.
#[test]
fn a_power_cut_loses_what_was_not_flushed() {
    if cannot_run() {
        return;
    }
    let mut guest = Guest::builder(Kernel::V6_12)
        .attach(Disk::new("kept", 8 * MIB))
        .attach(Disk::new("volatile", 8 * MIB).volatile())
        .boot()
        .unwrap();
    // Direct writes of 4 KiB that complete: block 0 is flushed, 1 is not, 2 is written, flushed and written again.
    let script = |device: &str| {
        format!(
            "block() {{ head -c 4096 /dev/zero | tr '\\0' $1; }}
             put() {{ block $1 | dd of={device} bs=4096 seek=$2 oflag=direct $3 2>/dev/null; }}
             put a 0; put a 2 conv=fsync; put b 1; put b 2"
        )
    };
    for device in ["/dev/vda", "/dev/vdb"] {
        guest.sh(&script(device)).unwrap();
    }
    assert!(
        guest.content("volatile").unwrap().starts_with(&[b'a'; 4096]),
        "what was flushed shows on the host"
    );
    let machine = guest.power_cut().unwrap();
    for (name, second) in [("kept", b'b'), ("volatile", 0)] {
        let content = machine.content(name).unwrap();
        let seen: Vec<u8> = (0..3).map(|block| content[block * 4096]).collect();
        assert_eq!(seen, [b'a', second, b'b'], "{name}");
    }
    // A copy is another machine with the same disks, and writes to its own.
    let other = "7d1dea2c-0000-4000-8000-00000000a002";
    let mut copy = machine.copy(Some(other)).unwrap().boot().unwrap();
    assert_eq!(copy.sh("cat /sys/class/dmi/id/product_uuid").unwrap().trim(), other);
    copy.sh("echo in the copy | dd of=/dev/vda conv=fsync").unwrap();
    let copy = copy.power_off().unwrap();
    assert!(copy.content("kept").unwrap().starts_with(b"in the copy"));
    assert!(machine.content("kept").unwrap().starts_with(b"aaaa"));
}
