//! Directories, read from their start to their end. The blocks of a hashed index look like blocks without names, so that
//! nothing of the index is needed.

use std::ops::ControlFlow;

use anyhow::Result;

use super::bytes::{byte, index, le16, le32};
use super::error::damaged;
use super::filesystem::FileSystem;
use super::inode::{Inode, Kind};
use super::mapping::{Mapping, Run};

/// An entry's fixed part.
const HEADER_BYTES: usize = 8;
/// Bytes of a directory at most: what the kernel allows without large directories, and twice that. A larger one is
/// refused.
const DIRECTORY_MAX_BYTES: u64 = 4 << 30;
/// Blocks that are read at once: 64 KiB in blocks of 4 KiB.
const BLOCKS_AT_ONCE: u64 = 16;

/// A name in a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry<'a> {
    pub(crate) name: &'a [u8],
    pub(crate) inode: u32,
    /// What the directory says it is; `None` when it does not.
    pub(crate) kind: Option<Kind>,
}

/// Takes entries one after another.
pub(crate) type Visit<'a> = &'a mut dyn FnMut(Entry<'_>) -> Result<ControlFlow<()>>;

impl FileSystem {
    /// Calls `visit` with every name of a directory but `.` and `..`, in the order of the disk.
    ///
    /// # Errors
    /// When it is none, is damaged or cannot be read, and those of `visit`.
    pub(crate) fn directory(&self, inode: &Inode, visit: Visit<'_>) -> Result<()> {
        let mut names = |entry: Entry<'_>| match entry.name {
            b"." | b".." => Ok(ControlFlow::Continue(())),
            _ => visit(entry),
        };
        if inode.is_inline() {
            return self.inline_directory(inode, &mut names);
        }
        let mapping = self.directory_mapping(inode)?;
        for run in &mapping.runs {
            if self.directory_run(inode.number, run, &mut names)?.is_break() {
                break;
            }
        }
        Ok(())
    }

    /// Where a directory's blocks lie.
    ///
    /// # Errors
    /// When it is none, or as [`FileSystem::mapping`].
    pub(crate) fn directory_mapping(&self, inode: &Inode) -> Result<Mapping> {
        if inode.kind != Kind::Directory {
            return Err(damaged(format!("inode {} should be a directory", inode.number)));
        }
        let mut mapping = self.mapping(inode)?;
        let end = inode.size_bytes.div_ceil(self.superblock().block_bytes);
        if inode.size_bytes > DIRECTORY_MAX_BYTES {
            return Err(damaged(format!("directory {} is larger than any can be", inode.number)));
        }
        mapping.runs.retain_mut(|run| {
            run.blocks = run.blocks.min(end.saturating_sub(run.logical));
            run.written && run.blocks > 0
        });
        Ok(mapping)
    }

    /// The names in some blocks of a directory, `.` and `..` among them.
    ///
    /// # Errors
    /// As [`FileSystem::directory`].
    pub(crate) fn directory_run(&self, number: u32, run: &Run, visit: Visit<'_>) -> Result<ControlFlow<()>> {
        let block_bytes = index(self.superblock().block_bytes);
        let mut done = 0;
        while done < run.blocks {
            let some = BLOCKS_AT_ONCE.min(run.blocks - done);
            let mut bytes = vec![0; index(some) * block_bytes];
            self.read_blocks(run.physical + done, &mut bytes)?;
            for block in bytes.chunks(block_bytes) {
                if entries(number, block, visit)?.is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
            done += some;
        }
        Ok(ControlFlow::Continue(()))
    }

    /// The parent's inode number first, then entries, which go on in an attribute.
    fn inline_directory(&self, inode: &Inode, visit: Visit<'_>) -> Result<()> {
        let area = inode.block_area().get(4..).unwrap_or_default();
        if entries(inode.number, area, visit)?.is_continue() {
            let _ = entries(inode.number, inode.inline_rest(), visit)?;
        }
        Ok(())
    }

    /// The directory that `inode`, a directory, lies in.
    ///
    /// # Errors
    /// When that cannot be told.
    pub(crate) fn parent(&self, inode: &Inode) -> Result<u32> {
        if inode.is_inline() {
            return Ok(le32(inode.block_area(), 0));
        }
        let mapping = self.directory_mapping(inode)?;
        let first = mapping.runs.first().filter(|run| run.logical == 0).map(|run| Run { blocks: 1, ..*run });
        let mut parent = None;
        if let Some(first) = first {
            let _ = self.directory_run(inode.number, &first, &mut |entry| {
                if entry.name == b".." {
                    parent = Some(entry.inode);
                    return Ok(ControlFlow::Break(()));
                }
                Ok(ControlFlow::Continue(()))
            })?;
        }
        parent.ok_or_else(|| damaged(format!("directory {} has no parent", inode.number)))
    }
}

/// The entries of one block.
fn entries(number: u32, block: &[u8], visit: Visit<'_>) -> Result<ControlFlow<()>> {
    let wrong = || damaged(format!("an entry of directory {number} makes no sense"));
    let mut at = 0;
    while at + HEADER_BYTES <= block.len() {
        let length = match le16(block, at + 4) {
            // Of a block of 64 KiB, which the field cannot hold.
            0 | u16::MAX if block.len() >= 1 << 16 => block.len() - at,
            length => usize::from(length),
        };
        if length < HEADER_BYTES || !length.is_multiple_of(4) || at + length > block.len() {
            return Err(wrong());
        }
        let (inode, name_bytes) = (le32(block, at), usize::from(byte(block, at + 6)));
        if inode != 0 {
            if name_bytes == 0 || HEADER_BYTES + name_bytes > length {
                return Err(wrong());
            }
            let name = block.get(at + HEADER_BYTES..at + HEADER_BYTES + name_bytes).unwrap_or_default();
            if name.contains(&b'/') || name.contains(&0) {
                return Err(wrong());
            }
            let entry = Entry { name, inode, kind: Kind::of_entry(byte(block, at + 7)) };
            if visit(entry)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        at += length;
    }
    Ok(ControlFlow::Continue(()))
}
