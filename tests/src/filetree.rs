//! What a file system holds, as the kernel shows it and as `tidemark files` does: the oracle of file-level recovery.
//!
//! The kernel mounts the image of a point and replays the journal; each name is compared with kind, size, permissions,
//! owner, time of change, links, target and the hash of its content.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::disks::{LoopDisk, Mounted};

/// One name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// As in `files list --json`.
    pub kind: String,
    /// 0 for folders.
    pub size_bytes: u64,
    /// Permissions.
    pub mode: String,
    /// Owner and group.
    pub owner: (u64, u64),
    /// Exact, in UTC; empty for folders: their time follows from their names.
    pub mtime: String,
    /// Number of names; 0 for folders.
    pub links: u64,
    /// Of a link.
    pub target: Option<String>,
    /// BLAKE3 of a file's content.
    pub hash: Option<String>,
}

/// All names of a file system, by path.
pub type Tree = BTreeMap<String, Node>;

/// What the kernel shows of an image; the image is changed by the replay.
///
/// # Errors
/// When it cannot be mounted or read.
pub fn of_kernel(image: &Path, at: &Path) -> Result<Tree> {
    let disk = LoopDisk::attach(image, &[])?;
    of_device(disk.device(), at)
}

/// As [`of_kernel`], of a device.
///
/// # Errors
/// When it cannot be mounted or read.
pub fn of_device(device: &Path, at: &Path) -> Result<Tree> {
    // Written to only by the replay and by what an interrupted truncation left.
    let mounted = Mounted::mount(device, at, "ro")?;
    let mut tree = Tree::new();
    walk(mounted.path(), mounted.path(), &mut tree)?;
    Ok(tree)
}

fn walk(root: &Path, folder: &Path, tree: &mut Tree) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let metadata = fs::symlink_metadata(&path)?;
        let kind = metadata.file_type();
        let kind = match () {
            () if kind.is_dir() => "directory",
            () if kind.is_symlink() => "symlink",
            () if kind.is_fifo() => "fifo",
            () => "file",
        };
        let is_folder = kind == "directory";
        let time = jiff::Timestamp::new(metadata.mtime(), i32::try_from(metadata.mtime_nsec())?)?;
        let target = (kind == "symlink").then(|| fs::read_link(&path)).transpose()?;
        let hash = (kind == "file").then(|| fs::read(&path)).transpose()?;
        let node = Node {
            kind: kind.to_owned(),
            size_bytes: if is_folder { 0 } else { metadata.size() },
            mode: format!("{:04o}", metadata.mode() & 0o7777),
            owner: (metadata.uid().into(), metadata.gid().into()),
            mtime: if is_folder {
                String::new()
            } else {
                time.strftime("%Y-%m-%dT%H:%M:%S%.9fZ").to_string()
            },
            links: if is_folder { 0 } else { metadata.nlink() },
            target: target.map(|target| String::from_utf8_lossy(target.as_os_str().as_bytes()).into_owned()),
            hash: hash.map(|content| blake3::hash(&content).to_hex().to_string()),
        };
        let name = path.strip_prefix(root)?.to_str().context("names here are text")?;
        tree.insert(format!("/{name}"), node);
        if is_folder {
            walk(root, &path, tree)?;
        }
    }
    Ok(())
}

fn text(value: &Value, field: &str) -> Result<String> {
    value[field].as_str().map(str::to_owned).with_context(|| format!("no {field} in {value}"))
}

fn number(value: &Value, field: &str) -> Result<u64> {
    value[field].as_u64().with_context(|| format!("no {field} in {value}"))
}

fn node(entry: &Value) -> Result<Node> {
    let kind = text(entry, "type")?;
    let is_folder = kind == "directory";
    Ok(Node {
        size_bytes: if is_folder { 0 } else { number(entry, "size_bytes")? },
        mode: text(entry, "mode")?,
        owner: (number(entry, "uid")?, number(entry, "gid")?),
        mtime: if is_folder { String::new() } else { text(entry, "mtime")? },
        links: if is_folder { 0 } else { number(entry, "links")? },
        target: entry["target"].as_str().map(str::to_owned),
        hash: entry["blake3"].as_str().map(str::to_owned),
        kind,
    })
}

/// What `files list --recursive --blake3 --json` printed.
///
/// # Errors
/// When it is no such list.
pub fn of_list(printed: &Value) -> Result<Tree> {
    let entries = printed["entries"].as_array().with_context(|| format!("no entries in {printed}"))?;
    let mut tree = Tree::new();
    for entry in entries {
        let path = text(entry, "path")?;
        ensure!(tree.insert(path.clone(), node(entry)?).is_none(), "{path} is listed twice");
    }
    Ok(tree)
}

/// Where two trees differ, at most some; a time from `since` on (RFC 3339) is not compared: it is the kernel's, which
/// finished an interrupted truncation when it mounted.
#[must_use]
pub fn differences(kernel: &Tree, found: &Tree, since: &str) -> Vec<String> {
    let mut all = Vec::new();
    let paths: std::collections::BTreeSet<&String> = kernel.keys().chain(found.keys()).collect();
    for path in paths {
        match (kernel.get(path), found.get(path)) {
            (Some(right), Some(is)) => {
                let mut right = right.clone();
                if right.mtime.as_str() >= since && !right.mtime.is_empty() {
                    right.mtime.clone_from(&is.mtime);
                }
                if right != *is {
                    all.push(format!("{path}: {right:?} is shown as {is:?}"));
                }
            }
            (Some(_), None) => all.push(format!("{path} is missing")),
            _ => all.push(format!("{path} should not be there")),
        }
    }
    all
}

/// A tree after what `files diff --json` says happened to it. Where content changed, its hash is taken from `later`: a
/// comparison does not say what it became, but has to say that it did.
///
/// # Errors
/// When the changes make no sense for this tree.
pub fn apply(before: &Tree, printed: &Value, later: &Tree) -> Result<Tree> {
    let changes = printed["changes"].as_array().with_context(|| format!("no changes in {printed}"))?;
    let mut renames: Vec<(String, String)> = Vec::new();
    let mut tree = before.clone();
    for change in changes {
        let path = text(change, "path")?;
        match text(change, "kind")?.as_str() {
            "removed" => {
                ensure!(tree.remove(&path).is_some(), "{path} was removed and never there");
            }
            "renamed" => renames.push((text(change, "from_path")?, path)),
            _ => {}
        }
    }
    let mut moved = Tree::new();
    for (path, node) in tree {
        // The longest that fits: what was renamed out of a renamed folder says so itself.
        let fits = renames.iter().filter(|(from, _)| {
            path.strip_prefix(from.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        });
        let path = match fits.max_by_key(|(from, _)| from.len()) {
            Some((from, to)) => format!("{to}{}", &path[from.len()..]),
            None => path,
        };
        ensure!(moved.insert(path.clone(), node).is_none(), "two names became {path}");
    }
    for change in changes {
        let (path, kind) = (text(change, "path")?, text(change, "kind")?);
        if kind == "removed" {
            continue;
        }
        let mut new = node(change)?;
        let right = later.get(&path);
        new.target = right.and_then(|right| right.target.clone());
        let what: Vec<&str> =
            change["what"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let known = moved.get(&path);
        if kind == "added" && known.is_some() {
            bail!("{path} was added and is there already");
        }
        if kind != "added" && known.is_none() {
            bail!("{path} was {kind} and was never there");
        }
        let content = kind == "added" || what.contains(&"content") || what.contains(&"replaced");
        new.hash = match content {
            true => right.and_then(|right| right.hash.clone()),
            false => known.and_then(|known| known.hash.clone()),
        };
        moved.insert(path, new);
    }
    Ok(moved)
}
