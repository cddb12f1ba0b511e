//! Feedback: a folder whose writes would be captured from the disk that they record.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::disk::Disk;
use super::refusal::Refusal;
use super::sysfs;

/// Loop devices on loop devices on …: deeper is not followed.
const DEPTH_MAX: u32 = 8;

/// The whole disks (as kernel device numbers) that hold a file or folder, through partitions, device-mapper and loop
/// devices. None for file systems without a disk.
#[must_use]
pub fn disks_below(path: &Path) -> Vec<u32> {
    let mut found = Vec::new();
    collect(path, DEPTH_MAX, &mut found);
    found
}

fn collect(path: &Path, depth: u32, found: &mut Vec<u32>) {
    // A folder that is to be made lies on the disk of the nearest one that exists.
    let Some(metadata) = path.ancestors().find_map(|ancestor| std::fs::metadata(ancestor).ok()) else {
        return;
    };
    let (major, minor) = (nix::sys::stat::major(metadata.dev()), nix::sys::stat::minor(metadata.dev()));
    let Some(folder) = sysfs::by_number(major, minor) else { return };
    for leaf in sysfs::leaves(&folder) {
        let Some(device) = sysfs::attribute(&leaf, "dev").and_then(|text| parse(&text)) else { continue };
        if found.contains(&device) {
            continue;
        }
        found.push(device);
        if let Some(file) = sysfs::attribute(&leaf.join("loop"), "backing_file")
            && depth > 0
        {
            collect(&PathBuf::from(file), depth - 1, found);
        }
    }
}

fn parse(numbers: &str) -> Option<u32> {
    let (major, minor) = numbers.split_once(':')?;
    Some(major.parse::<u32>().ok()? << 20 | minor.parse::<u32>().ok()?)
}

/// Refuses a disk that holds one of these folders (an appliance's data, a spool), directly or below a loop device.
///
/// # Errors
/// The folder that is on it.
pub fn refuse_feedback(disk: &Disk, folders: &[PathBuf]) -> Result<(), Refusal> {
    match folders.iter().find(|folder| disks_below(folder).contains(&disk.device)) {
        Some(folder) => Err(Refusal::Feedback { path: disk.path.clone(), folder: folder.clone() }),
        None => Ok(()),
    }
}
