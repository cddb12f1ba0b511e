//! What is mounted, in every mount namespace.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::disks::{procfs, sysfs};

/// A device by its numbers.
pub(super) type Number = (u64, u64);

/// A mounted file system that lies on block devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mount {
    /// As `st_dev` of its files, except for btrfs, whose subvolumes have numbers of their own.
    pub(super) number: Number,
    /// The block devices that it lies on.
    pub(super) devices: Vec<Number>,
    /// Where it is, in its namespace: for people.
    pub(super) path: PathBuf,
    /// How this process reaches it.
    pub(super) reached_by: PathBuf,
    pub(super) kind: String,
    /// Nothing can write to it.
    pub(super) read_only: bool,
}

/// All of them; what is mounted in several places comes several times.
pub(super) fn all() -> Vec<Mount> {
    let mut seen = BTreeSet::new();
    let mut mounts = Vec::new();
    for process in std::iter::once("self".to_owned()).chain(processes()) {
        let folder = Path::new("/proc").join(&process);
        let Ok(namespace) = std::fs::read_link(folder.join("ns/mnt")) else { continue };
        if !seen.insert(namespace) {
            continue;
        }
        let text = std::fs::read(folder.join("mountinfo")).unwrap_or_default();
        let root = if process == "self" { PathBuf::from("/") } else { folder.join("root") };
        mounts.extend(String::from_utf8_lossy(&text).lines().filter_map(|line| parse(line, &root)));
    }
    mounts
}

/// The numbers of all processes.
pub(super) fn processes() -> Vec<String> {
    let names = sysfs::names(Path::new("/proc"));
    names.into_iter().filter(|name| name.bytes().all(|byte| byte.is_ascii_digit())).collect()
}

/// A line of `mountinfo` (proc(5)): `ID PARENT MAJOR:MINOR ROOT PATH OPTIONS [FIELDS…] - KIND SOURCE OPTIONS`.
fn parse(line: &str, root: &Path) -> Option<Mount> {
    let (front, back) = line.split_once(" - ")?;
    let front: Vec<&str> = front.split(' ').collect();
    let mut back = back.split(' ');
    let (kind, source, options) = (back.next()?, back.next()?, back.next().unwrap_or_default());
    let number = numbers(front.get(2)?)?;
    let path = PathBuf::from(procfs::unescape(front.get(4)?));
    let devices = match number.0 {
        0 => source_devices(kind, &procfs::unescape(source)),
        _ => vec![number],
    };
    (!devices.is_empty()).then(|| Mount {
        number,
        devices,
        reached_by: root.join(path.strip_prefix("/").unwrap_or(&path)),
        path,
        kind: kind.to_owned(),
        read_only: options.split(',').any(|option| option == "ro"),
    })
}

/// `8:1`.
pub(super) fn numbers(text: &str) -> Option<Number> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// The devices of a file system with a number of its own kind (btrfs): the one it was mounted from, and its others.
fn source_devices(kind: &str, source: &str) -> Vec<Number> {
    if !source.starts_with("/dev/") {
        return Vec::new();
    }
    let Ok(found) = std::fs::metadata(source) else { return Vec::new() };
    let number = (nix::sys::stat::major(found.rdev()), nix::sys::stat::minor(found.rdev()));
    let root = Path::new("/sys/fs").join(kind);
    let of_one = |name: &String| {
        let devices = root.join(name).join("devices");
        let of =
            |device: String| sysfs::attribute(&devices.join(device), "dev").and_then(|text| numbers(&text));
        sysfs::names(&devices).into_iter().filter_map(of).collect::<Vec<_>>()
    };
    let all = sysfs::names(&root).iter().map(of_one).find(|devices| devices.contains(&number));
    all.unwrap_or_else(|| vec![number])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_mountinfo_is_read() {
        let line =
            r"36 35 98:1 / /mnt/my\040disk rw,noatime shared:1 master:2 - ext4 /dev/sda1 rw,errors=continue";
        let mount = parse(line, Path::new("/proc/7/root")).unwrap();
        assert_eq!((mount.number, mount.devices, mount.read_only), ((98, 1), vec![(98, 1)], false));
        assert_eq!(mount.path, Path::new("/mnt/my disk"));
        assert_eq!(mount.reached_by, Path::new("/proc/7/root/mnt/my disk"));
        let line = "36 35 98:1 / /cdrom rw shared:1 - iso9660 /dev/sr0 ro";
        assert!(parse(line, Path::new("/")).unwrap().read_only);
        for nothing in
            ["1 2 0:5 / /proc rw - proc proc rw", "", "1 2 8:1 / /x", "1 2 8x1 / /x rw - ext4 a rw"]
        {
            assert_eq!(parse(nothing, Path::new("/")), None, "{nothing}");
        }
    }
}
