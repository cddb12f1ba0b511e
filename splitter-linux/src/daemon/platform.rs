//! What the machine looks like: a clone or a reverted machine shows another face or an old one.

use std::fs;

use tidemark_proto::limits::TEXT_MAX_BYTES;
use tidemark_proto::v1::Platform;

/// Reads the platform's identity. What cannot be read is empty, which the appliance treats as "not known".
pub(super) fn read() -> Platform {
    Platform {
        dmi_uuid: line("/sys/class/dmi/id/product_uuid"),
        machine_id: line("/etc/machine-id"),
        boot_id: line("/proc/sys/kernel/random/boot_id"),
        kernel: line("/proc/sys/kernel/osrelease"),
        hostname: line("/proc/sys/kernel/hostname"),
    }
}

fn line(path: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.trim().chars().take(TEXT_MAX_BYTES / 4).collect()
}
