//! Guests boot and obey.

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

use std::time::Duration;

use tidemark_tests::guest::{self, Guest, Kernel};

/// Both stock kernels boot, run commands, see their disks, and their modules load.
#[test]
fn stock_kernels_boot_and_run_commands() {
    if let Some(reason) = guest::unavailable() {
        eprintln!("skipped: {reason}");
        return;
    }
    for kernel in Kernel::ALL {
        let mut guest =
            Guest::builder(kernel).disk("data", 8 << 20).module("dm-flakey").network().boot().unwrap();
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
        let disk = std::fs::read(guest.disk("data").unwrap()).unwrap();
        assert!(disk.starts_with(b"written in the guest\n"));
        assert!(!guest.console().contains("insmod"), "{}", guest.console());
        guest.power_off().unwrap();
    }
}
