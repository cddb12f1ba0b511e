//! What lies on the protected disks: file systems, in the order in which they can be frozen, and whatever else writes.
//!
//! From each disk the walk goes up: its partitions, what holds them (LVM and other device-mapper volumes, MD), loop devices
//! over them, the file systems there, and the loop devices whose files lie in those. What lies in a file system must be
//! frozen before it: its own freeze writes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, FileType, Metadata};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::message::HELD_MAX;
use super::mounts::{self, Mount, Number, numbers};
use crate::disks::{Disk, procfs, sysfs};
use crate::gate::MAPPING_PREFIX;

/// Devices on devices on …: what lies deeper is an obstacle.
const DEPTH_MAX: u32 = 16;

/// include/uapi/linux/loop.h; the first three fields of the 232 bytes are the numbers of the file's file system, the
/// file and, if it is a device, that device.
const LOOP_GET_STATUS64: libc::Ioctl = 0x4C05;
const LOOP_INFO_WORDS: usize = 29;

/// A file system to freeze.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileSystem {
    /// Where it is mounted; one of the places.
    pub path: PathBuf,
    /// `ext4`, `xfs` …
    pub kind: String,
    /// How this process reaches it: any of these.
    pub(super) reached_by: Vec<PathBuf>,
    pub(super) number: Number,
    depth: u32,
}

/// What would have to be held for the protected disks to stand still.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// In the order of freezing.
    pub file_systems: Vec<FileSystem>,
    /// Why freezing them is not enough, for people.
    pub obstacles: Vec<String>,
}

/// Looks at what lies on the disks now.
#[must_use]
pub fn plan(disks: &[Disk]) -> Plan {
    let mut walk = Walk { mounts: mounts::all(), loops: loops(), swaps: swaps(), ..Walk::default() };
    for disk in disks {
        match std::fs::canonicalize(disk.sys_path()) {
            Ok(folder) => walk.visit(&folder, 0),
            Err(_) => walk.obstacles.push(format!("{} is gone", disk.path.display())),
        }
    }
    walk.swap_files();
    walk.raw_users();
    walk.own_log();
    walk.finish()
}

#[derive(Debug)]
struct Loop {
    folder: PathBuf,
    /// Of the file system that its file lies in.
    in_file_system: Number,
    /// When the file is a device.
    over_device: Option<Number>,
}

#[derive(Debug, Default)]
struct Walk {
    mounts: Vec<Mount>,
    loops: Vec<Loop>,
    swaps: Vec<Number>,
    /// Devices of the protected disks, each with how deep it was met.
    nodes: BTreeMap<Number, u32>,
    found: BTreeMap<Number, FileSystem>,
    obstacles: Vec<String>,
}

impl Walk {
    fn visit(&mut self, folder: &Path, depth: u32) {
        let Some(number) = sysfs::attribute(folder, "dev").and_then(|text| numbers(&text)) else { return };
        let file = sysfs::device_file(folder);
        if depth > DEPTH_MAX {
            self.obstacles.push(format!("{file} lies on too many devices"));
            return;
        }
        if self.nodes.get(&number).is_some_and(|known| *known >= depth) {
            return;
        }
        self.nodes.insert(number, depth);
        // What is mounted lies on the gate's own device, which nothing in sysfs ties to this.
        if sysfs::attribute(folder, "dm/name").is_some_and(|name| name.trim().starts_with(MAPPING_PREFIX)) {
            self.obstacles
                .push(format!("{file} is under a gate: a volume in synchronous mode is not frozen"));
        }
        let mut used = false;
        for name in sysfs::names(folder) {
            let part = folder.join(name);
            if sysfs::is_partition(&part) {
                used = true;
                self.visit(&part, depth);
            }
        }
        for holder in sysfs::names(&folder.join("holders")) {
            used = true;
            if let Ok(holder) = std::fs::canonicalize(folder.join("holders").join(holder)) {
                self.visit(&holder, depth + 1);
            }
        }
        used |= self.visit_loops(depth, |above| above.over_device == Some(number));
        let here: Vec<Mount> =
            self.mounts.iter().filter(|mount| mount.devices.contains(&number)).cloned().collect();
        used |= !here.is_empty();
        for mount in here.iter().filter(|mount| !mount.read_only) {
            self.add(mount, depth);
        }
        if self.swaps.contains(&number) {
            self.obstacles.push(format!("{file} is used as swap"));
        } else if !used && let Some(why) = claimed(&file) {
            self.obstacles.push(why);
        }
    }

    fn visit_loops(&mut self, depth: u32, lies_there: impl Fn(&Loop) -> bool) -> bool {
        let above: Vec<PathBuf> =
            self.loops.iter().filter(|above| lies_there(above)).map(|above| above.folder.clone()).collect();
        for folder in &above {
            self.visit(folder, depth + 1);
        }
        !above.is_empty()
    }

    fn add(&mut self, mount: &Mount, depth: u32) {
        let known = self.found.entry(mount.number).or_insert_with(|| FileSystem {
            path: mount.path.clone(),
            kind: mount.kind.clone(),
            reached_by: Vec::new(),
            number: mount.number,
            depth,
        });
        known.depth = known.depth.max(depth);
        if !known.reached_by.contains(&mount.reached_by) {
            known.reached_by.push(mount.reached_by.clone());
        }
        self.visit_loops(depth, |above| above.in_file_system == mount.number);
    }

    /// What is swapped out goes past the file system that its file lies in.
    fn swap_files(&mut self) {
        for (path, number) in swapped(|kind| kind.is_file(), MetadataExt::dev) {
            if self.found.contains_key(&number) {
                self.obstacles.push(format!("{path} is used as swap"));
            }
        }
    }

    /// Processes that can write to one of the devices past any file system.
    fn raw_users(&mut self) {
        let own = std::process::id().to_string();
        let mut told = BTreeSet::new();
        for process in mounts::processes().into_iter().filter(|process| *process != own) {
            let folder = Path::new("/proc").join(&process);
            for descriptor in sysfs::names(&folder.join("fd")) {
                let link = folder.join("fd").join(&descriptor);
                // By the link's text first: asking a file of a dead server for its number would wait for ever.
                let is_device = std::fs::read_link(&link).is_ok_and(|target| target.starts_with("/dev"));
                let Some(found) = is_device.then(|| std::fs::metadata(&link).ok()).flatten() else {
                    continue;
                };
                let number = (nix::sys::stat::major(found.rdev()), nix::sys::stat::minor(found.rdev()));
                let ours = found.file_type().is_block_device() && self.nodes.contains_key(&number);
                if ours && is_writing(&folder.join("fdinfo").join(&descriptor)) && told.insert(number) {
                    let name = sysfs::attribute(&folder, "comm").unwrap_or_default();
                    let name: String = name.chars().filter(|c| !c.is_control()).collect();
                    let device = std::fs::read_link(&link).unwrap_or_default();
                    self.obstacles.push(format!("{name} (process {process}) writes to {}", device.display()));
                }
            }
        }
    }

    /// The worker may log while a file system is held; it must not wait for it.
    fn own_log(&mut self) {
        for stream in ["1", "2"] {
            let Ok(found) = std::fs::metadata(Path::new("/proc/self/fd").join(stream)) else { continue };
            let number = (nix::sys::stat::major(found.dev()), nix::sys::stat::minor(found.dev()));
            if found.is_file()
                && let Some(below) = self.found.get(&number)
            {
                let path = below.path.display();
                self.obstacles
                    .push(format!("the splitter's own log lies on {path}: let it log to the journal"));
                return;
            }
        }
    }

    fn finish(self) -> Plan {
        let mut file_systems: Vec<FileSystem> = self.found.into_values().collect();
        // The innermost first.
        file_systems.sort_by(|a, b| b.depth.cmp(&a.depth).then_with(|| a.path.cmp(&b.path)));
        let mut obstacles = self.obstacles;
        if file_systems.is_empty() && obstacles.is_empty() {
            obstacles.push("no mounted file system lies on the protected disks".to_owned());
        }
        if file_systems.len() > HELD_MAX {
            obstacles.push(format!("more than {HELD_MAX} file systems lie on the protected disks"));
        }
        Plan { file_systems, obstacles }
    }
}

/// Why a device without any known user must not be taken for idle. To ask for it exclusively is the only way to learn that
/// the kernel uses it for something else (an external journal, an exported volume); it is given back at once.
fn claimed(file: &str) -> Option<String> {
    let open = File::options().read(true).custom_flags(libc::O_EXCL | libc::O_NONBLOCK).open(file);
    match open {
        Ok(_) => None,
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
            Some(format!("{file} is in use, not by a mounted file system"))
        }
        // No medium, or a device of no size, like an extended partition of some kinds.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOMEDIUM | libc::ENXIO)) => None,
        Err(error) => Some(format!("{file} cannot be looked at: {error}")),
    }
}

fn is_writing(info: &Path) -> bool {
    let text = std::fs::read_to_string(info).unwrap_or_default();
    let flags = text.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|octal| i32::from_str_radix(octal.trim(), 8).ok());
    flags.is_some_and(|flags| flags & libc::O_ACCMODE != libc::O_RDONLY)
}

/// All loop devices with a file.
fn loops() -> Vec<Loop> {
    let root = Path::new("/sys/block");
    let names = sysfs::names(root).into_iter().filter(|name| name.starts_with("loop"));
    names.filter_map(|name| describe_loop(&root.join(name))).collect()
}

fn describe_loop(folder: &Path) -> Option<Loop> {
    if !folder.join("loop").exists() {
        return None;
    }
    let folder = std::fs::canonicalize(folder).ok()?;
    let device = File::open(sysfs::device_file(&folder)).ok()?;
    let mut info = [0_u64; LOOP_INFO_WORDS];
    // SAFETY: the kernel writes a `struct loop_info64`, which has the size of the array.
    let asked = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_GET_STATUS64, info.as_mut_ptr()) };
    let [in_file_system, _, device, ..] = info;
    (asked == 0).then(|| Loop {
        folder,
        in_file_system: decode(in_file_system),
        over_device: (device != 0).then(|| decode(device)),
    })
}

/// The kernel's form of a device number for user space: twelve bits of major between twenty of minor.
fn decode(number: u64) -> Number {
    ((number & 0xf_ff00) >> 8, (number & 0xff) | ((number >> 12) & 0xf_ff00))
}

/// Devices used as swap.
fn swaps() -> Vec<Number> {
    let devices = swapped(|kind| kind.is_block_device(), MetadataExt::rdev);
    devices.into_iter().map(|(_, number)| number).collect()
}

/// What is used as swap and of that kind, with one of its numbers.
fn swapped(of_kind: impl Fn(FileType) -> bool, number: impl Fn(&Metadata) -> u64) -> Vec<(String, Number)> {
    let swaps = procfs::swaps().into_iter().filter(|(_, found)| of_kind(found.file_type()));
    let numbered = |(path, found): (PathBuf, Metadata)| {
        let number = number(&found);
        let number = (nix::sys::stat::major(number), nix::sys::stat::minor(number));
        (path.display().to_string(), number)
    };
    swaps.map(numbered).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file_system(path: &str, depth: u32) -> FileSystem {
        let number = (7, u64::from(depth));
        FileSystem { path: path.into(), kind: "ext4".into(), reached_by: vec![path.into()], number, depth }
    }

    #[test]
    fn the_innermost_is_frozen_first() {
        let found = [file_system("/", 1), file_system("/in/a/file", 3), file_system("/in/a/volume", 2)];
        let found = found.map(|one| (one.number, one)).into();
        let plan = Walk { found, ..Walk::default() }.finish();
        let order: Vec<_> = plan.file_systems.iter().map(|one| one.path.to_str().unwrap()).collect();
        assert_eq!(order, ["/in/a/file", "/in/a/volume", "/"]);
        assert_eq!(plan.obstacles, Vec::<String>::new());
    }

    #[test]
    fn disks_without_a_file_system_are_not_called_frozen() {
        let plan = Walk::default().finish();
        assert!(plan.file_systems.is_empty() && plan.obstacles.len() == 1, "{plan:?}");
    }

    #[test]
    fn numbers_are_decoded_as_the_kernel_codes_them() {
        for (major, minor) in [(8, 1), (7, 255), (253, 256), (259, 1_000_000)] {
            let coded = (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12);
            assert_eq!(decode(coded), (major, minor));
        }
    }
}
