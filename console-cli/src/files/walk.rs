//! Everything below a directory.

use std::collections::HashSet;
use std::ops::ControlFlow;

use anyhow::{Result, bail};

use super::compare::LEVELS_MAX;
use crate::ext4::{Damaged, FileSystem, Inode, Kind};

/// Names of one directory that are sorted at most: some 10 MiB. A larger one is passed on in the order of the disk.
const SORTED_MAX: usize = 100_000;
/// Directories of one walk at most, 100 to 300 MiB with their paths. Beyond it the walk ends with an error.
const DIRECTORIES_MAX: usize = 1 << 20;
/// Bytes of the paths of directories that wait to be read at most: 256 bytes for each of [`DIRECTORIES_MAX`]. Beyond it
/// the walk ends with an error.
const WAITING_MAX_BYTES: usize = 256 << 20;

/// What a walk found.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Item<'a> {
    pub(crate) path: &'a [u8],
    pub(crate) inode: &'a Inode,
}

/// `path` with one name more.
pub(super) fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    let mut joined = path.to_vec();
    if joined.last() != Some(&b'/') {
        joined.push(b'/');
    }
    joined.extend_from_slice(name);
    joined
}

struct Walk<'a> {
    filesystem: &'a FileSystem,
    /// Directories that were met: a damaged or hostile file system may have rings.
    seen: HashSet<u32>,
    waiting: Vec<(Vec<u8>, u32)>,
    /// Bytes of the paths in `waiting`.
    waiting_bytes: usize,
    recursive: bool,
}

impl Walk<'_> {
    fn pass_on(
        &mut self,
        path: &[u8],
        number: u32,
        each: &mut dyn FnMut(Item<'_>) -> Result<()>,
    ) -> Result<()> {
        let inode = self.filesystem.inode(number)?;
        each(Item { path, inode: &inode })?;
        if self.recursive && inode.kind == Kind::Directory && self.seen.insert(number) {
            if self.seen.len() > DIRECTORIES_MAX {
                bail!("there are more than {DIRECTORIES_MAX} directories: name one of them");
            }
            if path.iter().filter(|byte| **byte == b'/').count() > LEVELS_MAX {
                return Err(Damaged("directories lie too deep in each other".to_owned()).into());
            }
            self.waiting_bytes = self.waiting_bytes.saturating_add(path.len());
            if self.waiting_bytes > WAITING_MAX_BYTES {
                bail!("the paths of directories take more than {WAITING_MAX_BYTES} bytes: name one of them");
            }
            self.waiting.push((path.to_vec(), number));
        }
        Ok(())
    }
}

/// Calls `each` with what lies in the directory `from`, whose path is `path`; with `recursive` also with all below. The
/// names of one directory follow one another.
///
/// # Errors
/// When a directory is damaged or cannot be read, when there are too many, and those of `each`.
pub(crate) fn walk(
    filesystem: &FileSystem,
    from: &Inode,
    path: &[u8],
    recursive: bool,
    each: &mut dyn FnMut(Item<'_>) -> Result<()>,
) -> Result<()> {
    let seen = HashSet::from([from.number]);
    let waiting = vec![(path.to_vec(), from.number)];
    let mut walk = Walk { filesystem, seen, waiting, waiting_bytes: path.len(), recursive };
    while let Some((path, number)) = walk.waiting.pop() {
        walk.waiting_bytes = walk.waiting_bytes.saturating_sub(path.len());
        let directory = filesystem.inode(number)?;
        let mut names: Vec<(Vec<u8>, u32)> = Vec::new();
        filesystem.directory(&directory, &mut |entry| {
            if names.len() > SORTED_MAX {
                return Ok(ControlFlow::Break(()));
            }
            names.push((entry.name.to_vec(), entry.inode));
            Ok(ControlFlow::Continue(()))
        })?;
        let first_waiting = walk.waiting.len();
        if names.len() <= SORTED_MAX {
            names.sort_unstable();
            for (name, number) in &names {
                walk.pass_on(&join(&path, name), *number, each)?;
            }
        } else {
            drop(names);
            filesystem.directory(&directory, &mut |entry| {
                walk.pass_on(&join(&path, entry.name), entry.inode, each)?;
                Ok(ControlFlow::Continue(()))
            })?;
        }
        // The first of them is the next one.
        if let Some(new) = walk.waiting.get_mut(first_waiting..) {
            new.reverse();
        }
    }
    Ok(())
}
