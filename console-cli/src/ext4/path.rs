//! From a path to an inode, and the content of inodes. Symbolic links are not followed.

use std::ops::ControlFlow;

use anyhow::Result;
use thiserror::Error;

use super::bytes::index;
use super::error::{damaged, unsupported};
use super::filesystem::FileSystem;
use super::inode::{Inode, Kind};
use super::mapping::Run;

/// The inode of `/`.
const ROOT: u32 = 2;
/// Parts of a path at most: PATH_MAX of the kernel, each one character long.
const COMPONENTS_MAX: usize = 2048;
/// Bytes of a symbolic link at most, as in the kernel. A longer one is refused.
const TARGET_MAX_BYTES: u64 = 4096;
/// Bytes of content that are read at once.
const PIECE_BYTES: u64 = 1 << 20;

/// A path that leads nowhere by its form.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum PathError {
    #[error("'..' in a path is not followed: write the path without it")]
    Parent,
    #[error("a path of more than {COMPONENTS_MAX} parts is not followed: write a shorter one")]
    TooLong,
}

/// The parts of a path, as typed; a slash in front makes no difference.
///
/// # Errors
/// For `..`, and for more parts than any path has.
pub(crate) fn components(path: &[u8]) -> Result<Vec<&[u8]>, PathError> {
    let parts: Vec<&[u8]> =
        path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".").collect();
    if parts.len() > COMPONENTS_MAX {
        return Err(PathError::TooLong);
    }
    if parts.contains(&b"..".as_slice()) { Err(PathError::Parent) } else { Ok(parts) }
}

/// Where a path leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Looked {
    Found(Inode),
    /// Nothing has this name in the last directory there is on the way, or that is a file.
    Missing {
        deepest: Inode,
    },
    /// A part before the last is a symbolic link.
    Link {
        component: usize,
        target: Vec<u8>,
    },
}

impl FileSystem {
    /// # Errors
    /// When it is no directory or cannot be read.
    pub(crate) fn root(&self) -> Result<Inode> {
        let root = self.inode(ROOT)?;
        if root.kind != Kind::Directory {
            return Err(damaged("its top is no directory"));
        }
        Ok(root)
    }

    /// Follows the parts of a path from the root.
    ///
    /// # Errors
    /// When what lies on the way is damaged or cannot be read.
    pub(crate) fn look(&self, parts: &[&[u8]]) -> Result<Looked> {
        self.look_through(parts, &mut |_| ())
    }

    /// The same; calls `pass` with each directory on the way.
    ///
    /// # Errors
    /// As [`FileSystem::look`].
    pub(crate) fn look_through(&self, parts: &[&[u8]], pass: &mut dyn FnMut(&Inode)) -> Result<Looked> {
        let mut inode = self.root()?;
        for (component, part) in parts.iter().enumerate() {
            match inode.kind {
                Kind::Directory => pass(&inode),
                Kind::Symlink => {
                    let target = self.target(&inode)?;
                    return Ok(Looked::Link { component: component.saturating_sub(1), target });
                }
                _ => return Ok(Looked::Missing { deepest: inode }),
            }
            let mut found = None;
            self.directory(&inode, &mut |entry| {
                if entry.name != *part {
                    return Ok(ControlFlow::Continue(()));
                }
                found = Some(entry.inode);
                Ok(ControlFlow::Break(()))
            })?;
            match found {
                Some(number) => inode = self.inode(number)?,
                None => return Ok(Looked::Missing { deepest: inode }),
            }
        }
        Ok(Looked::Found(inode))
    }

    /// What a symbolic link holds.
    ///
    /// # Errors
    /// When it is longer than a link can be, or cannot be read.
    pub(crate) fn target(&self, inode: &Inode) -> Result<Vec<u8>> {
        if let Some(short) = inode.short_target() {
            return Ok(short.to_vec());
        }
        if inode.size_bytes > TARGET_MAX_BYTES {
            return Err(damaged(format!("the link of inode {} is too long", inode.number)));
        }
        let mut target = vec![0; index(inode.size_bytes)];
        self.content(inode, &mut |offset, piece| {
            let at = index(offset);
            if let Some(part) = target.get_mut(at..at + piece.len()) {
                part.copy_from_slice(piece);
            }
            Ok(())
        })?;
        Ok(target)
    }

    /// Calls `take` with the pieces of a file by offset, without holes, none beyond its size.
    ///
    /// # Errors
    /// When it cannot be read, and those of `take`.
    pub(crate) fn content(
        &self,
        inode: &Inode,
        take: &mut dyn FnMut(u64, &[u8]) -> Result<()>,
    ) -> Result<()> {
        if inode.is_encrypted() && inode.kind == Kind::File {
            return Err(unsupported("encryption for this file, whose key only the guest has"));
        }
        if inode.is_inline() {
            let mut bytes = inode.block_area().to_vec();
            bytes.extend_from_slice(inode.inline_rest());
            bytes.truncate(index(inode.size_bytes));
            return take(0, &bytes);
        }
        let mapping = self.mapping(inode)?;
        for run in mapping.runs.iter().filter(|run| run.written) {
            self.content_run(inode.size_bytes, run, take)?;
        }
        Ok(())
    }

    fn content_run(
        &self,
        size_bytes: u64,
        run: &Run,
        take: &mut dyn FnMut(u64, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let block_bytes = self.superblock().block_bytes;
        let mut done = 0;
        while done < run.blocks {
            let offset = (run.logical + done) * block_bytes;
            let Some(left) = size_bytes.checked_sub(offset).filter(|left| *left > 0) else { break };
            let some = (PIECE_BYTES / block_bytes).min(run.blocks - done).min(left.div_ceil(block_bytes));
            let mut bytes = vec![0; index(some * block_bytes)];
            self.read_blocks(run.physical + done, &mut bytes)?;
            bytes.truncate(index(left));
            take(offset, &bytes)?;
            done += some;
        }
        Ok(())
    }
}
