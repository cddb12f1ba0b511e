//! Disks that lie on other disks: loop devices, by their files.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::disk::Disk;
use super::refusal::Refusal;
use super::sysfs;

/// Loop devices on loop devices on …: deeper is not followed.
const DEPTH_MAX: u32 = 8;

/// The whole disks (as kernel device numbers) that hold a file or folder, through partitions, device-mapper and loop
/// devices. None for file systems without a disk.
fn disks_below(path: &Path) -> Vec<u32> {
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
    if let Some(folder) = sysfs::by_number(major, minor) {
        collect_device(&folder, depth, found);
    }
}

/// The whole disks below a block device.
pub(super) fn disks_below_device(folder: &Path) -> Vec<u32> {
    let mut found = Vec::new();
    collect_device(folder, DEPTH_MAX, &mut found);
    found
}

fn collect_device(folder: &Path, depth: u32, found: &mut Vec<u32>) {
    for leaf in sysfs::leaves(folder) {
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

/// Refuses a disk that lies on a protected one, or below it: a loop device and the disk of its file. Each write would
/// be captured twice, and a resync of the inner disk would be one of the outer disk too.
///
/// # Errors
/// Which of the two to leave out.
pub fn refuse_nested(disk: &Disk, protected: &[Disk]) -> Result<(), Refusal> {
    let nested = |inner: &Disk, outer: &Disk| Refusal::Nested {
        path: disk.path.clone(),
        inner: inner.path.clone(),
        outer: outer.path.clone(),
    };
    let below = below_loop(disk);
    for other in protected.iter().filter(|other| other.device != disk.device) {
        if below.contains(&other.device) {
            return Err(nested(disk, other));
        }
        if below_loop(other).contains(&disk.device) {
            return Err(nested(other, disk));
        }
    }
    Ok(())
}

/// The disks below the file of a loop device; none for other disks.
fn below_loop(disk: &Disk) -> Vec<u32> {
    sysfs::attribute(&disk.sys_path().join("loop"), "backing_file")
        .map(|file| disks_below(Path::new(&file)))
        .unwrap_or_default()
}
