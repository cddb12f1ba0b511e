//! Whether this machine can run the tap at all.

use std::path::Path;

use super::refusal::Refusal;

/// The lowest line that is tested; `bpf_ringbuf_reserve_dynptr` came with 5.19.
const KERNEL_FLOOR: (u32, u32) = (6, 1);
const KERNEL_FLOOR_TEXT: &str = "6.1";

/// `CAP_PERFMON` and `CAP_BPF` (include/uapi/linux/capability.h). `CAP_SYS_ADMIN` (to mount) and `CAP_SYSLOG` (to see
/// kernel addresses) are needed only where bpffs is not mounted or the page address is not noted, and are told then.
const CAPABILITIES: [u32; 2] = [38, 39];

/// Checks rights, architecture, kernel version, type information and lockdown.
///
/// # Errors
/// The first reason why not.
pub fn check() -> Result<(), Refusal> {
    if !cfg!(target_arch = "x86_64") {
        return Err(Refusal::Architecture(std::env::consts::ARCH));
    }
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let lockdown = std::fs::read_to_string("/sys/kernel/security/lockdown").unwrap_or_default();
    check_values(release.trim(), &status, &lockdown, Path::new("/sys/kernel/btf/vmlinux").exists())
}

fn check_values(release: &str, status: &str, lockdown: &str, has_types: bool) -> Result<(), Refusal> {
    if !has_capabilities(status) {
        return Err(Refusal::NotRoot);
    }
    if version(release).is_none_or(|found| found < KERNEL_FLOOR) {
        return Err(Refusal::KernelTooOld { found: release.to_owned(), floor: KERNEL_FLOOR_TEXT });
    }
    if lockdown.contains("[confidentiality]") {
        return Err(Refusal::Lockdown);
    }
    if has_types { Ok(()) } else { Err(Refusal::NoBtf) }
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn has_capabilities(status: &str) -> bool {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
    CAPABILITIES.iter().all(|capability| effective >> capability & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: &str = "Name:\tx\nCapEff:\t000001ffffffffff\n";

    #[test]
    fn each_obstacle_has_its_refusal() {
        assert!(check_values("6.1.0-56-cloud-amd64", ROOT, "[none] integrity confidentiality", true).is_ok());
        assert!(check_values("6.12.117+deb12", ROOT, "none [integrity] confidentiality", true).is_ok());
        let refused =
            |release, status, lockdown, types| check_values(release, status, lockdown, types).unwrap_err();
        assert!(matches!(refused("5.15.0-generic", ROOT, "", true), Refusal::KernelTooOld { .. }));
        assert!(matches!(refused("6.0.9", ROOT, "", true), Refusal::KernelTooOld { .. }));
        assert!(matches!(refused("strange", ROOT, "", true), Refusal::KernelTooOld { .. }));
        assert!(matches!(refused("6.1.0", "CapEff:\t0000000000000000\n", "", true), Refusal::NotRoot));
        assert!(matches!(
            refused("6.1.0", ROOT, "none integrity [confidentiality]", true),
            Refusal::Lockdown
        ));
        assert!(matches!(refused("6.1.0", ROOT, "", false), Refusal::NoBtf));
    }
}
