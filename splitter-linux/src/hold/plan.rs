//! What lies on the protected disks: file systems, in the order in which they can be frozen, and whatever else writes.
//!
//! From each disk the walk goes up: its partitions, what holds them (LVM and other device-mapper volumes, MD), loop devices
//! over them, the file systems there, and the loop devices whose files lie in those. What lies in a file system must be
//! frozen before it: its own freeze writes. Where a gate lies under a volume, or the volume itself can be suspended, that
//! holds whatever is above it, and the walk ends there.

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

/// How writers may be held.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Means {
    /// By freezing file systems.
    pub freeze: bool,
    /// By suspending device-mapper volumes.
    pub suspend: bool,
    /// By gates: the names of the volumes that have one.
    pub gates: BTreeSet<String>,
}

impl Means {
    /// File systems alone: the only means by which they are clean.
    #[must_use]
    pub fn freezing() -> Self {
        Self { freeze: true, ..Self::default() }
    }
}

/// A device-mapper volume to suspend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Device-mapper's name.
    pub name: String,
    pub(super) number: Number,
}

/// What would have to be held for the protected disks to stand still.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// In the order of freezing.
    pub file_systems: Vec<FileSystem>,
    /// To be suspended.
    pub volumes: Vec<Volume>,
    /// Volumes whose gates are to hold.
    pub gates: BTreeSet<String>,
    /// Why freezing them is not enough, for people.
    pub obstacles: Vec<String>,
}

impl Plan {
    /// Whether the same would have to be held. How file systems are reached is no part of it: processes come and go.
    #[must_use]
    pub fn is_as(&self, other: &Self) -> bool {
        let file_systems =
            |plan: &Self| -> BTreeSet<Number> { plan.file_systems.iter().map(|one| one.number).collect() };
        file_systems(self) == file_systems(other)
            && (&self.volumes, &self.gates, &self.obstacles)
                == (&other.volumes, &other.gates, &other.obstacles)
    }
}

/// Looks at what lies on the disks now, and how it can be held by these means.
#[must_use]
pub fn plan(disks: &[Disk], means: &Means) -> Plan {
    let means = means.clone();
    let mut walk = Walk { mounts: mounts::all(), loops: loops(), swaps: swaps(), means, ..Walk::default() };
    for disk in disks {
        match std::fs::canonicalize(disk.sys_path()) {
            Ok(folder) => walk.visit(&folder, 0),
            Err(_) => walk.obstacles.push(format!("{} is gone", disk.path.display())),
        }
    }
    walk.swap_files();
    walk.raw_users();
    walk.own_log();
    walk.btrfs();
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
    means: Means,
    mounts: Vec<Mount>,
    loops: Vec<Loop>,
    swaps: Vec<Number>,
    /// Devices of the protected disks, each with how deep it was met.
    nodes: BTreeMap<Number, u32>,
    found: BTreeMap<Number, FileSystem>,
    volumes: BTreeMap<Number, Volume>,
    gates: BTreeSet<String>,
    /// File systems above what is suspended, by number.
    above: BTreeSet<Number>,
    /// Devices above each volume that is suspended.
    over: BTreeMap<Number, BTreeSet<Number>>,
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
        if let Some(name) = sysfs::attribute(folder, "dm/name")
            && self.held_whole(name.trim(), number, &file, folder)
        {
            return;
        }
        self.nodes.insert(number, depth);
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

    /// Whether a device-mapper device holds back whatever lies above it.
    fn held_whole(&mut self, name: &str, number: Number, file: &str, folder: &Path) -> bool {
        if let Some(volume) = name.strip_prefix(MAPPING_PREFIX) {
            // What is mounted lies on the gate's own device, which nothing in sysfs ties to this.
            if self.means.gates.contains(volume) {
                self.gates.insert(volume.to_owned());
            } else {
                let why =
                    "a volume in synchronous mode is held by its gate alone, which is not asked for here";
                self.obstacles.push(format!("{file} is under a gate: {why}"));
            }
            return true;
        }
        if self.means.suspend {
            self.volumes.insert(number, Volume { name: name.to_owned(), number });
            let mut over = BTreeSet::new();
            self.look_above(folder, number, 0, &mut over);
            self.over.insert(number, over);
        }
        self.means.suspend
    }

    /// A suspended volume holds everything above it; but the machine must be able to swap while it is.
    fn look_above(&mut self, folder: &Path, number: Number, depth: u32, over: &mut BTreeSet<Number>) {
        if self.swaps.contains(&number) {
            self.obstacles.push(format!("{} is used as swap", sysfs::device_file(folder)));
        }
        let here = self.mounts.iter().filter(|mount| mount.devices.contains(&number));
        self.above.extend(here.map(|mount| mount.number));
        for holder in sysfs::names(&folder.join("holders")) {
            let Ok(holder) = std::fs::canonicalize(folder.join("holders").join(holder)) else { continue };
            let number = sysfs::attribute(&holder, "dev").and_then(|text| numbers(&text));
            if let Some(number) = number.filter(|_| depth < DEPTH_MAX) {
                over.insert(number);
                self.look_above(&holder, number, depth + 1, over);
            }
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
            if self.found.contains_key(&number) || self.above.contains(&number) {
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
            if found.is_file() && (self.found.contains_key(&number) || self.above.contains(&number)) {
                self.obstacles.push(
                    "the splitter's own log lies on what is to be held: let it log to the journal".to_owned(),
                );
                return;
            }
        }
    }

    /// Files of a btrfs have device numbers of their subvolume, which no list of mounts names: what lies in them cannot be told.
    fn btrfs(&mut self) {
        let held =
            |mount: &&Mount| self.found.contains_key(&mount.number) || self.above.contains(&mount.number);
        if !self.mounts.iter().filter(held).any(|mount| mount.kind == "btrfs") {
            return;
        }
        let swap = !swapped(|kind| kind.is_file(), MetadataExt::dev).is_empty();
        let in_files =
            self.loops.iter().any(|above| above.over_device.is_none() && above.in_file_system.0 == 0);
        if swap || in_files {
            self.obstacles.push(
                "a btrfs is to be held, and swap or a loop device lies in a file: whether in that one cannot be told"
                    .to_owned(),
            );
        }
    }

    fn finish(self) -> Plan {
        let mut file_systems: Vec<FileSystem> = self.found.into_values().collect();
        // The innermost first.
        file_systems.sort_by(|a, b| b.depth.cmp(&a.depth).then_with(|| a.path.cmp(&b.path)));
        let mut obstacles = self.obstacles;
        let mut volumes: Vec<Volume> = self.volumes.into_values().collect();
        // The topmost first: to suspend one is to wait for its I/O, which one below that is suspended would keep.
        let (all, over) = (volumes.clone(), &self.over);
        volumes.sort_by_key(|below| {
            let above = over.get(&below.number);
            all.iter().filter(|one| above.is_some_and(|above| above.contains(&one.number))).count()
        });
        if obstacles.is_empty() && file_systems.is_empty() && volumes.is_empty() && self.gates.is_empty() {
            obstacles.push("no mounted file system lies on the protected disks".to_owned());
        }
        if let Some(first) = file_systems.first().filter(|_| !self.means.freeze) {
            let path = first.path.display();
            obstacles.push(format!("{path} could only be frozen, which this point does not ask for"));
        }
        if file_systems.len() + volumes.len() > HELD_MAX {
            obstacles
                .push(format!("more than {HELD_MAX} file systems or volumes lie on the protected disks"));
        }
        Plan { file_systems, volumes, gates: self.gates, obstacles }
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
        let plan = Walk { found, means: Means::freezing(), ..Walk::default() }.finish();
        let order: Vec<_> = plan.file_systems.iter().map(|one| one.path.to_str().unwrap()).collect();
        assert_eq!(order, ["/in/a/file", "/in/a/volume", "/"]);
        assert_eq!(plan.obstacles, Vec::<String>::new());
    }

    #[test]
    fn what_could_only_be_frozen_is_an_obstacle_where_nothing_may_be() {
        let found = [((7, 1), file_system("/", 1))].into();
        let plan = Walk { found, ..Walk::default() }.finish();
        assert!(
            plan.obstacles.first().is_some_and(|why| why.starts_with("/ could only be frozen")),
            "{plan:?}"
        );
    }

    #[test]
    fn what_lies_above_is_suspended_first() {
        let volume = |minor| ((253, minor), Volume { name: format!("v{minor}"), number: (253, minor) });
        let volumes = [volume(0), volume(1), volume(2)].into();
        // 2 lies on 0, and 1 on both.
        let over = [((253, 0), [(253, 1), (253, 2)].into()), ((253, 2), [(253, 1)].into())].into();
        let plan = Walk { volumes, over, ..Walk::default() }.finish();
        let order: Vec<&str> = plan.volumes.iter().map(|volume| &volume.name[..]).collect();
        assert_eq!(order, ["v1", "v2", "v0"]);
    }

    #[test]
    fn a_volume_with_a_gate_is_held_by_it_alone() {
        let mut walk = Walk { means: Means { suspend: true, ..Means::default() }, ..Walk::default() };
        let folder = Path::new("/sys/none");
        assert!(walk.held_whole("tidemark-gate-vg-lv", (253, 1), "/dev/dm-1", folder));
        assert_eq!(walk.obstacles.len(), 1, "a gate that is not asked for");
        walk.means.gates.insert("vg-lv".to_owned());
        assert!(walk.held_whole("tidemark-gate-vg-lv", (253, 1), "/dev/dm-1", folder));
        assert!(walk.held_whole("vg-root", (253, 2), "/dev/dm-2", folder));
        walk.obstacles.clear();
        let plan = walk.finish();
        assert_eq!(plan.obstacles, Vec::<String>::new());
        assert_eq!((plan.gates.len(), plan.volumes.len()), (1, 1));
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
