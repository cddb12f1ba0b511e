//! A whole disk that can be protected.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use wildmatch::WildMatch;

use super::identity;
use super::refusal::Refusal;
use super::sysfs::{self, attribute, number};

/// A whole disk, looked at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Its device file, `/dev/vda`.
    pub path: PathBuf,
    /// What names it for good: `wwn:…`, `serial:…`, `loop:…`, `gpt:…`, `lvm:…`, `fs:…`, `mbr:…` or `place:…`.
    pub identity: String,
    /// As `dev_t` in the kernel: major << 20 | minor.
    pub device: u32,
    /// Size in sectors of 512 bytes.
    pub sectors: u64,
    /// Bytes that a direct read must be a multiple of.
    pub logical_block_bytes: u32,
    /// The device cannot be written. It can be protected all the same.
    pub read_only: bool,
    /// The device has a volatile cache, so the stream shows flushes.
    pub write_back: bool,
    /// Counts the disks that appeared since boot (`diskseq`): another number is another disk under the same name.
    pub disk_sequence: u64,
}

impl Disk {
    /// Looks at a device file and refuses what cannot be captured whole.
    ///
    /// # Errors
    /// The reason, and what to protect instead.
    pub fn inspect(path: &Path) -> Result<Self, Refusal> {
        let missing = |source| Refusal::Missing { path: path.to_owned(), source };
        let metadata = std::fs::metadata(path).map_err(missing)?;
        if !metadata.file_type().is_block_device() {
            return Err(Refusal::NotBlock(path.to_owned()));
        }
        let (major, minor) = (nix::sys::stat::major(metadata.rdev()), nix::sys::stat::minor(metadata.rdev()));
        let folder = sysfs::by_number(major, minor).ok_or_else(|| Refusal::NotBlock(path.to_owned()))?;
        if sysfs::is_partition(&folder) {
            let whole = folder.parent().map(sysfs::device_file).unwrap_or_default();
            return Err(Refusal::Partition { path: path.to_owned(), whole });
        }
        refuse_kind(path, &folder)?;
        let disk = Self::describe(&folder, major, minor);
        if disk.sectors == 0 {
            return Err(Refusal::Empty(path.to_owned()));
        }
        match duplicate(&disk) {
            Some(other) => {
                Err(Refusal::Ambiguous { path: path.to_owned(), other: other.path, identity: disk.identity })
            }
            None => Ok(disk),
        }
    }

    fn describe(folder: &Path, major: u64, minor: u64) -> Self {
        let path = PathBuf::from(sysfs::device_file(folder));
        let sectors = number(folder, "size").unwrap_or(0);
        let queue = folder.join("queue");
        Self {
            identity: identity::of(folder, &path),
            path,
            device: u32::try_from(major << 20 | minor).unwrap_or(u32::MAX),
            sectors,
            logical_block_bytes: number(&queue, "logical_block_size")
                .and_then(|n| u32::try_from(n).ok())
                .unwrap_or(512),
            read_only: number(folder, "ro") == Some(1),
            write_back: attribute(&queue, "write_cache").is_some_and(|mode| mode == "write back"),
            disk_sequence: number(folder, "diskseq").unwrap_or(0),
        }
    }

    /// Whether it is in the machine, and not another one under its number.
    #[must_use]
    pub fn is_present(&self) -> bool {
        let folder = self.sys_path();
        folder.exists() && number(&folder, "diskseq").unwrap_or(0) == self.disk_sequence
    }

    /// Its size now, in sectors; `None` when it is gone.
    #[must_use]
    pub fn present_sectors(&self) -> Option<u64> {
        number(&self.sys_path(), "size").filter(|sectors| *sectors > 0 && self.is_present())
    }

    /// Whether `protect --all` means it: a disk of the machine. Not a loop device, nor what a network block client, a
    /// user-space driver or a slot for removable media presents.
    #[must_use]
    pub fn is_of_the_machine(&self) -> bool {
        let name = self.path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let made = ["loop", "nbd", "ublk", "fd", "sr"].iter().any(|kind| name.starts_with(kind));
        !made && number(&self.sys_path(), "removable") != Some(1)
    }

    /// Whether one of the patterns (`*` any characters, `?` one) is its path, its kernel name or its identity, or it was
    /// noted under that.
    #[must_use]
    pub fn matches(&self, patterns: &[String]) -> bool {
        let path = self.path.to_string_lossy();
        let name = path.trim_start_matches("/dev/");
        patterns.iter().any(|text| {
            let pattern = WildMatch::new(text);
            let texts = [path.as_ref(), name, self.identity.as_str()];
            texts.into_iter().any(|text| pattern.matches(text)) || self.answers_to(text)
        })
    }

    /// Whether it is the disk that was noted under this identity: by its name, or by its place. A disk that had no name
    /// to an older splitter, or none before something was written to it, was noted by its place.
    #[must_use]
    pub fn answers_to(&self, noted: &str) -> bool {
        let by_place =
            || noted.starts_with("place:") && identity::names(noted, &identity::of_place(&self.sys_folder()));
        identity::names(noted, &self.identity) || by_place()
    }

    /// Whether both are one disk that was in the machine all the time, whatever its content names it by now.
    #[must_use]
    pub fn is_same_device(&self, other: &Self) -> bool {
        self.device == other.device && self.disk_sequence == other.disk_sequence
    }

    fn sys_folder(&self) -> PathBuf {
        self.sys_path().canonicalize().unwrap_or_else(|_| self.sys_path())
    }

    /// Its folder in sysfs.
    #[must_use]
    pub fn sys_path(&self) -> PathBuf {
        PathBuf::from(format!("/sys/dev/block/{}:{}", self.device >> 20, self.device & 0xf_ffff))
    }
}

/// Refuses what the tap cannot see whole, by what sysfs says.
fn refuse_kind(path: &Path, folder: &Path) -> Result<(), Refusal> {
    let path = path.to_owned();
    if !sysfs::names(&folder.join("slaves")).is_empty() {
        let leaves = sysfs::leaves(folder).iter().map(|leaf| sysfs::device_file(leaf)).collect();
        return Err(Refusal::Stacked { path, leaves });
    }
    // A device whose driver takes bios, not requests, has no multi-queue folder: ram, zram, pmem, dm and md without
    // members, heads of native NVMe multipath.
    if !folder.join("mq").exists() {
        let name = folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let kind = name.trim_end_matches(|c: char| c.is_ascii_digit()).to_owned();
        return Err(Refusal::Unsupported { path, kind });
    }
    if attribute(&folder.join("queue"), "zoned").is_some_and(|model| model != "none") {
        return Err(Refusal::Zoned(path));
    }
    let integrity = folder.join("integrity");
    if attribute(&integrity, "format").is_some_and(|format| format != "none") {
        return Err(Refusal::Integrity(path));
    }
    match peer_memory() {
        Some(device) => Err(Refusal::PeerMemory { path, device }),
        None => Ok(()),
    }
}

/// A device that publishes peer-to-peer memory, on kernels whose requests do not say that they use it (before 6.17).
fn peer_memory() -> Option<String> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers =
        release.split(|c: char| !c.is_ascii_digit()).map(|word| word.parse::<u32>().unwrap_or(0));
    if (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (6, 17) {
        return None;
    }
    let folder = Path::new("/sys/bus/pci/devices");
    sysfs::names(folder)
        .into_iter()
        .find(|name| number(&folder.join(name).join("p2pmem"), "published") == Some(1))
}

/// Another disk with the same identity.
fn duplicate(disk: &Disk) -> Option<Disk> {
    list().into_iter().find(|other| other.device != disk.device && other.identity == disk.identity)
}

/// What changes when a disk comes, goes or changes its medium: cheap to look at every second.
#[must_use]
pub fn fingerprint() -> Vec<(String, u64, bool)> {
    let root = Path::new("/sys/block");
    sysfs::names(root)
        .into_iter()
        .map(|name| {
            let folder = root.join(&name);
            let (sequence, size) = (number(&folder, "diskseq"), number(&folder, "size"));
            (name, sequence.unwrap_or(0), size.unwrap_or(0) > 0)
        })
        .collect()
}

/// Every whole disk with a medium that is not stacked on others.
#[must_use]
pub fn list() -> Vec<Disk> {
    let root = Path::new("/sys/block");
    sysfs::names(root)
        .iter()
        .filter_map(|name| {
            let folder = std::fs::canonicalize(root.join(name)).ok()?;
            if number(&folder, "size").unwrap_or(0) == 0 || refuse_kind(Path::new(name), &folder).is_err() {
                return None;
            }
            let numbers = attribute(&folder, "dev")?;
            let (major, minor) = numbers.split_once(':')?;
            Some(Disk::describe(&folder, major.parse().ok()?, minor.parse().ok()?))
        })
        .collect()
}

/// The disk of that identity, wherever it is now, under the identity as it was noted.
///
/// # Errors
/// When there is none, or more than one.
pub fn find(wanted: &str) -> Result<Disk, Refusal> {
    let mut matching = list().into_iter().filter(|disk| disk.answers_to(wanted));
    let disk = matching.next().ok_or_else(|| Refusal::Gone(wanted.to_owned()))?;
    match matching.next() {
        Some(other) => {
            Err(Refusal::Ambiguous { path: disk.path, other: other.path, identity: disk.identity })
        }
        None => Ok(Disk { identity: wanted.to_owned(), ..disk }),
    }
}
