//! What processes and folders cost.

use std::path::Path;

use anyhow::{Context, Result};

/// Seconds of processor time that a process has used, its threads included.
///
/// # Errors
/// When there is no such process.
pub fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // Fields 14 and 15 of proc(5), counted after the name, which may hold spaces.
    let rest = stat.rsplit(')').next().context("stat without a name")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks = |index: usize| fields.get(index).and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0);
    // USER_HZ is 100 on every Linux architecture that this runs on.
    Ok((ticks(11) + ticks(12)) / 100.0)
}

/// Resident bytes of a process.
///
/// # Errors
/// When there is no such process.
pub fn resident_bytes(pid: u32) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib * 1024.0)
}

/// Bytes allocated below a folder.
///
/// # Errors
/// As `readdir(3)`.
pub fn folder_bytes(folder: &Path) -> Result<f64> {
    let mut bytes = 0.0;
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let metadata = std::fs::symlink_metadata(&path)?;
        bytes += if metadata.is_dir() {
            folder_bytes(&path)?
        } else {
            #[expect(clippy::cast_precision_loss, reason = "a figure to be shown")]
            let length = metadata.len() as f64;
            length
        };
    }
    Ok(bytes)
}
