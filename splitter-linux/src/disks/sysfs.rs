//! Reading `/sys/block`.

use std::path::{Path, PathBuf};

/// An attribute without surrounding white space; `None` when it is missing or empty.
pub(crate) fn attribute(folder: &Path, name: &str) -> Option<String> {
    let bytes = std::fs::read(folder.join(name)).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let text = text.trim_matches(|c: char| c.is_whitespace() || c == '\0');
    (!text.is_empty()).then(|| text.to_owned())
}

pub(crate) fn number(folder: &Path, name: &str) -> Option<u64> {
    attribute(folder, name)?.parse().ok()
}

/// Names in a folder, sorted; none when it is missing.
pub(crate) fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .map(|entries| {
            entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
        })
        .unwrap_or_default();
    names.sort();
    names
}

/// The folder of a block device (disk or partition) by its number.
pub(crate) fn by_number(major: u64, minor: u64) -> Option<PathBuf> {
    std::fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")).ok()
}

/// Whether a device folder is that of a partition.
pub(crate) fn is_partition(folder: &Path) -> bool {
    folder.join("partition").exists()
}

/// The kernel's name of a device folder, in the form of a device file (`cciss!c0d0` is `cciss/c0d0`).
pub(crate) fn device_file(folder: &Path) -> String {
    let name = folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    format!("/dev/{}", name.replace('!', "/"))
}

/// The whole disks at the bottom of a stack of device-mapper, md and similar devices.
pub(crate) fn leaves(folder: &Path) -> Vec<PathBuf> {
    /// Deeper stacks do not exist; a loop in sysfs must not hang us.
    const DEPTH_MAX: u32 = 16;
    fn collect(folder: &Path, depth: u32, found: &mut Vec<PathBuf>) {
        let whole = if is_partition(folder) { folder.parent().unwrap_or(folder) } else { folder };
        let slaves = names(&whole.join("slaves"));
        if slaves.is_empty() || depth == 0 {
            if !found.iter().any(|known| known == whole) {
                found.push(whole.to_owned());
            }
            return;
        }
        for slave in slaves {
            if let Ok(below) = std::fs::canonicalize(whole.join("slaves").join(slave)) {
                collect(&below, depth - 1, found);
            }
        }
    }
    let mut found = Vec::new();
    collect(folder, DEPTH_MAX, &mut found);
    found
}
