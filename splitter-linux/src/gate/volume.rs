//! A volume that can have a gate, or the reason why not.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::abi::Limits;
use super::error::GateError;
use super::mapper::{Mapped, Mapper, Target};
use crate::disks::sysfs::{self, attribute, number};
use crate::disks::{Disk, procfs};

/// Segments of a volume at most: beyond it the table does not fit into one reply.
const SEGMENTS_MAX: usize = 256;

/// A mapped device with what the gate needs to know of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Volume {
    pub(crate) mapped: Mapped,
    pub(crate) sectors: u64,
    /// The ublk device that it lies on now.
    pub(crate) gated_by: Option<u32>,
    /// Its table; that over the gate when it is gated.
    pub(crate) table: Vec<Target>,
}

impl Volume {
    /// Looks at a volume by its path.
    ///
    /// # Errors
    /// When it is no mapped device.
    pub(crate) fn at(mapper: &Mapper, path: &Path) -> Result<Self, GateError> {
        let metadata = std::fs::metadata(path).map_err(|_| GateError::NotMapped(path.to_owned()))?;
        let (major, minor) = (nix::sys::stat::major(metadata.rdev()), nix::sys::stat::minor(metadata.rdev()));
        let mapped = if folder_of(major, minor).join("dm").exists() {
            mapper.find_number(major, minor)?
        } else {
            None
        };
        let mapped = mapped.ok_or_else(|| GateError::NotMapped(path.to_owned()))?;
        Self::of(mapper, mapped)
    }

    /// Looks at a volume by its device-mapper name; `None` while it is not active.
    pub(crate) fn named(mapper: &Mapper, name: &str) -> Result<Option<Self>, GateError> {
        mapper.find(name)?.map(|mapped| Self::of(mapper, mapped)).transpose()
    }

    fn of(mapper: &Mapper, mapped: Mapped) -> Result<Self, GateError> {
        let table = mapper.table(&mapped.name)?;
        let sectors = table.iter().map(|target| target.sectors).sum();
        let gated_by = match table.as_slice() {
            [only] if only.kind == "linear" => ublk_number(&only.parameters),
            _ => None,
        };
        Ok(Self { mapped, sectors, gated_by, table })
    }

    /// Its folder in sysfs.
    pub(crate) fn folder(&self) -> PathBuf {
        folder_of(self.mapped.major, self.mapped.minor)
    }

    /// The name of the private mapping of its old extents.
    pub(crate) fn private_name(&self) -> String {
        private_name(&self.mapped.name)
    }

    /// Refuses what cannot be gated, given the disks under protection and the splitter's state folder.
    ///
    /// # Errors
    /// The reason, and what to do.
    pub(crate) fn check(&self, path: &Path, protected: &[Disk], state: &Path) -> Result<(), GateError> {
        let refuse = |reason: String| GateError::Unsuitable { path: path.to_owned(), reason };
        if self.mapped.name.len() > 100 || self.mapped.uuid.is_empty() {
            return Err(refuse("it has no UUID, or a name beyond 100 characters: use an LVM volume".into()));
        }
        if self.mapped.suspended {
            return Err(refuse("it is suspended: resume it first ('dmsetup resume')".into()));
        }
        if self.table.len() > SEGMENTS_MAX {
            return Err(refuse(format!("it has {} segments, more than {SEGMENTS_MAX}", self.table.len())));
        }
        if let Some(other) = self.table.iter().find(|target| target.kind != "linear") {
            return Err(refuse(format!(
                "it has a segment of kind '{}', and only linear volumes can be gated (no stripes, mirrors, snapshots, thin, cache or crypt): gate the linear volume below, or stay with mode async",
                other.kind
            )));
        }
        for leaf in sysfs::leaves(&self.folder()) {
            let name = sysfs::device_file(&leaf);
            let known = protected
                .iter()
                .any(|disk| std::fs::canonicalize(disk.sys_path()).is_ok_and(|folder| folder == leaf));
            if !known {
                return Err(refuse(format!(
                    "it lies on {name}, which is not protected: 'tidemark-splitter protect {name}' first"
                )));
            }
        }
        self.check_users(state).map_err(refuse)
    }

    /// The splitter must not wait for a write that waits for the splitter.
    fn check_users(&self, state: &Path) -> Result<(), String> {
        let program = std::env::current_exe().unwrap_or_default();
        let places = [
            (Path::new("/"), "the root file system"),
            (Path::new("/usr"), "/usr"),
            (Path::new("/etc"), "/etc"),
            (Path::new("/run"), "/run"),
            (state, "the splitter's state folder"),
            (program.as_path(), "the splitter's program"),
        ];
        for (place, what) in places {
            if self.carries(device_below(place)) {
                return Err(format!(
                    "it carries {what}, which the splitter itself needs to go on: put that on a volume of its own, or stay with mode async"
                ));
            }
        }
        for (swap, found) in procfs::swaps() {
            let device = if found.rdev() == 0 { device_below(&swap) } else { Some(found.rdev()) };
            if self.carries(device) {
                return Err("it is used as swap, or has a swap file: memory could not be freed while a write waits; stay with mode async".into());
            }
        }
        Ok(())
    }

    /// Whether a block device lies, at any depth, on this volume.
    fn carries(&self, device: Option<u64>) -> bool {
        let Some(device) = device else { return false };
        let me = std::fs::canonicalize(self.folder()).unwrap_or_else(|_| self.folder());
        let mut open = vec![(folder_of(nix::sys::stat::major(device), nix::sys::stat::minor(device)), 0)];
        while let Some((folder, depth)) = open.pop() {
            let Ok(folder) = std::fs::canonicalize(folder) else { continue };
            if folder == me {
                return true;
            }
            // Deeper stacks do not exist.
            if depth < 16 {
                let below = folder.join("slaves");
                open.extend(sysfs::names(&below).into_iter().map(|name| (below.join(name), depth + 1)));
            }
        }
        false
    }
}

/// How names of private mappings begin.
pub(crate) const MAPPING_PREFIX: &str = "tidemark-gate-";

pub(crate) fn private_name(volume: &str) -> String {
    format!("{MAPPING_PREFIX}{volume}")
}

fn folder_of(major: u64, minor: u64) -> PathBuf {
    PathBuf::from(format!("/sys/dev/block/{major}:{minor}"))
}

/// The number of the ublk device that a linear target lies on.
fn ublk_number(parameters: &str) -> Option<u32> {
    let (major, minor) = parameters.split_whitespace().next()?.split_once(':')?;
    let folder = sysfs::by_number(major.parse().ok()?, minor.parse().ok()?)?;
    folder.file_name()?.to_str()?.strip_prefix("ublkb")?.parse().ok()
}

/// The number of the block device below a path: that of its mount's source where this is a device (a btrfs has device
/// numbers of its own), else that of the file.
fn device_below(path: &Path) -> Option<u64> {
    let path = path.canonicalize().ok()?;
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let source = mounts
        .lines()
        .filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let point = PathBuf::from(procfs::unescape(left.split(' ').nth(4)?));
            let source = procfs::unescape(right.split(' ').nth(1).unwrap_or_default());
            path.starts_with(&point).then(|| (point.as_os_str().len(), source))
        })
        // The last of several on one place is the one that is seen.
        .max_by_key(|(length, _)| *length)?
        .1;
    let numbered = std::fs::metadata(source).ok().map(|file| file.rdev()).filter(|device| *device != 0);
    numbered.or_else(|| std::fs::metadata(&path).ok().map(|file| file.dev()))
}

/// What a device offers, as sysfs says.
pub(super) fn limits(folder: &Path) -> Limits {
    let queue = folder.join("queue");
    let get = |name: &str| number(&queue, name).unwrap_or(0);
    let word = |name: &str| u32::try_from(get(name)).unwrap_or(u32::MAX);
    let sectors = |name: &str| u32::try_from(get(name) >> 9).unwrap_or(u32::MAX);
    Limits {
        sectors: number(folder, "size").unwrap_or(0),
        logical_block_bytes: word("logical_block_size").max(512),
        physical_block_bytes: word("physical_block_size"),
        io_min_bytes: word("minimum_io_size"),
        io_opt_bytes: word("optimal_io_size"),
        write_back: attribute(&queue, "write_cache").is_some_and(|mode| mode == "write back"),
        fua: get("fua") == 1,
        rotational: get("rotational") == 1,
        discard_granularity: word("discard_granularity"),
        discard_max_sectors: sectors("discard_max_hw_bytes"),
        write_zeroes_max_sectors: sectors("write_zeroes_max_bytes"),
    }
}
