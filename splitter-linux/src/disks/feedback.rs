//! Files that must not lie on a protected disk: each write to them would be captured, and so make another.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::disk::Disk;
use super::nesting::disks_below_device;
use super::refusal::Refusal;
use super::sysfs;

/// Refuses a folder that lies on a protected disk, through partitions, stacked and loop devices, or of which that cannot
/// be told: in memory, on a network, in a container's layers.
///
/// # Errors
/// [`Refusal::Feedback`], [`Refusal::NoDisk`] or [`Refusal::Missing`].
pub fn refuse_feedback(folder: &Path, protected: &[Disk]) -> Result<(), Refusal> {
    let missing = |source| Refusal::Missing { path: folder.to_owned(), source };
    // A folder that is to be made lies where the nearest one that exists does.
    let metadata = folder.ancestors().find_map(|ancestor| std::fs::metadata(ancestor).ok());
    let metadata = metadata.ok_or_else(|| missing(std::io::ErrorKind::NotFound.into()))?;
    let device = match device_folder(metadata.dev()) {
        Some(device) => device,
        None => {
            let (kind, source) = mounted(metadata.dev()).unwrap_or_default();
            let device = std::fs::metadata(&source).ok().and_then(|found| device_folder(found.rdev()));
            // File systems over several disks name one of them; the others are not known.
            device.filter(|_| kind != "btrfs").ok_or(Refusal::NoDisk { folder: folder.to_owned(), kind })?
        }
    };
    let below = disks_below_device(&device);
    match protected.iter().find(|disk| below.contains(&disk.device)) {
        Some(disk) => Err(Refusal::Feedback { folder: folder.to_owned(), disk: disk.path.clone() }),
        None => Ok(()),
    }
}

fn device_folder(device: u64) -> Option<std::path::PathBuf> {
    sysfs::by_number(nix::sys::stat::major(device), nix::sys::stat::minor(device))
}

/// Kind and source of the file system with that device number, as `/proc/self/mountinfo` has it.
fn mounted(device: u64) -> Option<(String, String)> {
    let number = format!("{}:{}", nix::sys::stat::major(device), nix::sys::stat::minor(device));
    let table = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    table.lines().rev().find_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        if mount.split(' ').nth(2)? != number {
            return None;
        }
        let mut words = kind.split(' ');
        Some((words.next()?.to_owned(), words.next()?.to_owned()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_no_place_and_a_disk_that_nobody_protects_is() {
        let error = refuse_feedback(Path::new("/proc/self"), &[]).unwrap_err();
        assert!(matches!(&error, Refusal::NoDisk { kind, .. } if kind == "proc"), "{error}");
        let folder = tempfile::tempdir().unwrap();
        let metadata = std::fs::metadata(folder.path()).unwrap();
        let Some(device) = device_folder(metadata.dev()) else { return };
        assert!(refuse_feedback(&folder.path().join("to/be/made"), &[]).is_ok());
        for below in disks_below_device(&device) {
            let disk = Disk {
                path: "/dev/protected".into(),
                identity: "serial:1".into(),
                device: below,
                sectors: 8,
                logical_block_bytes: 512,
                read_only: false,
                write_back: false,
                disk_sequence: 1,
            };
            let error = refuse_feedback(&folder.path().join("x"), &[disk]).unwrap_err();
            assert!(error.to_string().contains("/dev/protected"), "{error}");
        }
    }
}
