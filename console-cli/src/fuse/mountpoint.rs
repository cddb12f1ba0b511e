//! Folders that mounts lie on: before, and how they end.

use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};

/// A mount that is busy is tried again for this long: a loop device lets go of its file a moment after its own unmount.
const BUSY_LIMIT: Duration = Duration::from_secs(3);
/// How long the serving process may take to end after its mount is gone.
const EXIT_LIMIT: Duration = Duration::from_secs(30);
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// What the source of our mounts begins with in the mount table.
const SOURCE_PREFIX: &str = "tidemark:";

/// The source in the mount table: who serves it (for `unmount`) and what it shows (for people).
pub(super) fn source_name(vm: &str, lsn: u64) -> String {
    let vm: String =
        vm.chars().map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' }).collect();
    format!("{SOURCE_PREFIX}{}:{vm}@{lsn}", std::process::id())
}

/// Makes sure that `dir` is an empty folder, and returns its absolute path.
pub(crate) fn prepare(dir: &Path) -> Result<PathBuf> {
    let shown = dir.display();
    match fs::create_dir_all(dir) {
        Err(error) if error.raw_os_error() == Some(libc::ENOTCONN) => return dead(dir),
        // What exists under this name is looked at below.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        other => other.with_context(|| format!("make folder {shown}"))?,
    }
    let path = match dir.canonicalize() {
        Err(error) if error.raw_os_error() == Some(libc::ENOTCONN) => return dead(dir),
        other => other.with_context(|| format!("find {shown}"))?,
    };
    let mut entries = match fs::read_dir(&path) {
        Err(error) if error.raw_os_error() == Some(libc::ENOTCONN) => return dead(dir),
        other => other.with_context(|| format!("{shown} is no folder that can be read"))?,
    };
    if find(&path)?.is_some() {
        bail!(
            "a point is mounted at {shown} already: end that with `tidemark unmount {shown}`, or name another folder"
        );
    }
    if entries.next().is_some() {
        bail!("{shown} is not empty: name an empty folder, or one that does not exist");
    }
    Ok(path)
}

fn dead(dir: &Path) -> Result<PathBuf> {
    let shown = dir.display();
    bail!("a mount whose process died lies at {shown}: remove it with `tidemark unmount {shown}`")
}

/// Unmounts `dir` and waits until the process that served it has ended. Returns the folder's absolute path.
pub(crate) fn unmount(dir: &Path) -> Result<PathBuf> {
    let shown = dir.display();
    let path = absolute(dir)?;
    let Some(mount) = find(&path)? else {
        bail!("nothing of tidemark is mounted at {shown}: `findmnt -t fuse` shows what is");
    };
    let server = mount.server.and_then(Process::find);
    let started = Instant::now();
    loop {
        match detach(&path) {
            Ok(()) => break,
            Err(Errno::EBUSY) if started.elapsed() < BUSY_LIMIT => std::thread::sleep(POLL_INTERVAL),
            Err(Errno::EBUSY) => bail!(
                "{shown} is in use: unmount what is mounted from its files (losetup -a, findmnt), leave it in every shell, and try again"
            ),
            Err(error) => bail!("cannot unmount {shown}: {error}: are you the user who mounted it?"),
        }
    }
    let started = Instant::now();
    while let Some(process) = &server {
        if !process.lives() {
            break;
        }
        if started.elapsed() > EXIT_LIMIT {
            bail!(
                "{shown} is unmounted, but process {} that served it has not ended: see its log",
                process.id
            );
        }
        std::thread::sleep(POLL_INTERVAL);
    }
    Ok(path)
}

/// Users other than root unmount their own FUSE mounts through its helper.
fn detach(path: &Path) -> Result<(), Errno> {
    match umount2(path, MntFlags::empty()) {
        Err(Errno::EPERM) => {}
        other => return other,
    }
    let output =
        Command::new("fusermount3").arg("-u").arg("--").arg(path).output().map_err(|_| Errno::EPERM)?;
    if output.status.success() {
        return Ok(());
    }
    let busy = String::from_utf8_lossy(&output.stderr).to_lowercase().contains("busy");
    Err(if busy { Errno::EBUSY } else { Errno::EPERM })
}

/// The absolute path without touching the last component: a dead mount answers no question about itself.
fn absolute(dir: &Path) -> Result<PathBuf> {
    let dir = std::path::absolute(dir).with_context(|| format!("find {}", dir.display()))?;
    if let Ok(path) = dir.canonicalize() {
        return Ok(path);
    }
    let name = dir.file_name().with_context(|| format!("{} names no folder", dir.display()))?;
    let parent = dir.parent().unwrap_or(Path::new("/"));
    Ok(parent.canonicalize().with_context(|| format!("find {}", parent.display()))?.join(name))
}

/// One of our mounts in the mount table.
#[derive(Debug, PartialEq, Eq)]
struct OurMount {
    /// The process that serves it, or served it.
    server: Option<i32>,
}

fn find(path: &Path) -> Result<Option<OurMount>> {
    let table = fs::read("/proc/self/mountinfo").context("read the mount table")?;
    Ok(find_in(&table, path))
}

/// Line format: proc(5). The fifth field is the folder; after the separator ` - ` come type and source.
fn find_in(table: &[u8], path: &Path) -> Option<OurMount> {
    let mut found = None;
    for line in table.split(|byte| *byte == b'\n') {
        let mut fields = line.split(|byte| *byte == b' ');
        let Some(folder) = fields.nth(4) else { continue };
        if unescape(folder) != path.as_os_str().as_bytes() {
            continue;
        }
        let mut rest = fields.skip_while(|field| *field != b"-").skip(1);
        let (Some(kind), Some(source)) = (rest.next(), rest.next()) else { continue };
        let source = String::from_utf8(unescape(source)).unwrap_or_default();
        // The last mount on a folder is the one that is seen.
        found = source
            .strip_prefix(SOURCE_PREFIX)
            .filter(|_| kind.starts_with(b"fuse"))
            .map(|name| OurMount { server: name.split(':').next().and_then(|id| id.parse().ok()) });
    }
    found
}

/// The mount table writes space, tab, line feed and backslash as three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let octal = (*first == b'\\').then(|| after.first_chunk::<3>()).flatten();
        let value = octal
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match value {
            Some(value) => {
                out.push(value);
                rest = after.get(3..).unwrap_or_default();
            }
            None => {
                out.push(*first);
                rest = after;
            }
        }
    }
    std::ffi::OsString::from_vec(out).into_vec()
}

/// A process that cannot be mistaken for a later one of the same id.
#[derive(Debug)]
struct Process {
    id: i32,
    start: String,
}

impl Process {
    fn find(id: i32) -> Option<Self> {
        Self::start_of(id).map(|start| Self { id, start })
    }

    fn lives(&self) -> bool {
        Self::start_of(self.id).is_some_and(|start| start == self.start)
    }

    /// The start time of a running `tidemark`; nothing for a zombie, whose files are closed already.
    fn start_of(id: i32) -> Option<String> {
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
        let (name, rest) = stat.rsplit_once(')')?;
        let mut fields = rest.split_whitespace();
        let state = fields.next()?;
        (name.ends_with("(tidemark") && !matches!(state, "Z" | "X"))
            .then(|| fields.nth(18).map(str::to_owned))
            .flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_mounts_are_found_in_the_table() {
        let table = b"22 1 0:5 / / rw - ext4 /dev/vda rw\n\
            30 22 0:40 / /mnt/a\\040b rw,nosuid shared:7 - fuse tidemark:123:web-1@77 rw,user_id=0\n\
            31 22 0:41 / /mnt/other rw - fuse.sshfs host:/ rw\n\
            32 22 0:42 / /mnt/hidden rw - fuse tidemark:5:x@1 rw\n\
            33 32 0:43 / /mnt/hidden rw - tmpfs tidemark:6:x@1 rw\nbroken";
        assert_eq!(find_in(table, Path::new("/mnt/a b")), Some(OurMount { server: Some(123) }));
        assert_eq!(find_in(table, Path::new("/mnt/other")), None);
        assert_eq!(find_in(table, Path::new("/mnt/hidden")), None);
        assert_eq!(find_in(table, Path::new("/mnt")), None);
    }

    #[test]
    fn names_of_vms_cannot_break_the_table() {
        let name = source_name("a,b c\n:\\", 7);
        assert!(name.ends_with(":a_b_c___@7"), "{name}");
    }

    #[test]
    fn a_folder_with_content_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        assert!(prepare(&folder.path().join("new/deeper")).is_ok());
        assert!(prepare(folder.path()).unwrap_err().to_string().contains("not empty"));
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(prepare(&file).is_err());
        assert!(unmount(folder.path()).unwrap_err().to_string().contains("nothing of tidemark"));
    }
}
