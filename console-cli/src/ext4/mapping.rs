//! Where the content of a file lies: its extents, or for ext2 and ext3 its tree of block numbers.

use anyhow::Result;

use super::bytes::{crc32c_register, index, join, le16, le32};
use super::error::damaged;
use super::filesystem::FileSystem;
use super::inode::{Inode, Kind};

const MAGIC: u16 = 0xF30A;
const ENTRY_BYTES: usize = 12;
const DEPTH_MAX: u16 = 5;
/// Extents that are longer than this are allocated and not written: they read as zeroes.
const WRITTEN_BLOCKS_MAX: u16 = 32768;

/// Pieces of one file at most: 32 MiB of memory. A file in more pieces is refused.
const RUNS_MAX: usize = 1 << 20;
/// Blocks of one file's tree at most: those of [`RUNS_MAX`] extents, and more. Beyond it the tree is a trap.
const NODES_MAX: usize = 1 << 16;

/// Blocks that follow one another in the file and on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    /// First block in the file.
    pub(crate) logical: u64,
    /// First block of the file system.
    pub(crate) physical: u64,
    pub(crate) blocks: u64,
    /// False: it reads as zeroes.
    pub(crate) written: bool,
}

/// Where one inode's content lies. What no run covers is a hole.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Mapping {
    /// By place in the file, without overlaps.
    pub(crate) runs: Vec<Run>,
    /// Blocks of the tree itself.
    pub(crate) nodes: Vec<u64>,
}

impl Mapping {
    fn push(&mut self, run: Run) -> Result<()> {
        if let Some(last) = self.runs.last_mut() {
            if run.logical < last.logical + last.blocks {
                return Err(damaged("the pieces of a file overlap"));
            }
            let follows = last.logical + last.blocks == run.logical
                && last.physical + last.blocks == run.physical
                && last.written == run.written;
            if follows {
                last.blocks += run.blocks;
                return Ok(());
            }
        }
        if self.runs.len() >= RUNS_MAX {
            return Err(damaged(format!("a file has more than {RUNS_MAX} pieces")));
        }
        self.runs.push(run);
        Ok(())
    }

    fn node(&mut self, block: u64) -> Result<()> {
        if self.nodes.len() >= NODES_MAX {
            return Err(damaged(format!("a file's tree has more than {NODES_MAX} blocks")));
        }
        self.nodes.push(block);
        Ok(())
    }
}

impl FileSystem {
    /// Finds where an inode's content lies. Nothing lies anywhere for devices, short links and inline content.
    ///
    /// # Errors
    /// When the tree is damaged or cannot be read.
    pub(crate) fn mapping(&self, inode: &Inode) -> Result<Mapping> {
        let mut mapping = Mapping::default();
        let has_content = matches!(inode.kind, Kind::File | Kind::Directory | Kind::Symlink);
        if !has_content || inode.is_inline() || inode.short_target().is_some() {
            return Ok(mapping);
        }
        if inode.has_extents() {
            self.extents(inode, inode.block_area(), None, &mut mapping)?;
        } else {
            self.block_numbers(inode, &mut mapping)?;
        }
        Ok(mapping)
    }

    /// One node of an extent tree; `depth` is what its parent says, `None` for the root.
    fn extents(&self, inode: &Inode, node: &[u8], depth: Option<u16>, mapping: &mut Mapping) -> Result<()> {
        let wrong = |what: &str| damaged(format!("inode {}: {what}", inode.number));
        let (entries, found) = (usize::from(le16(node, 2)), le16(node, 6));
        if le16(node, 0) != MAGIC || found > DEPTH_MAX || depth.is_some_and(|depth| depth != found) {
            return Err(wrong("a block of its extents is none"));
        }
        if (entries + 1) * ENTRY_BYTES > node.len() || (entries == 0 && depth.is_some()) {
            return Err(wrong("a block of its extents counts wrongly"));
        }
        for entry in node.chunks_exact(ENTRY_BYTES).skip(1).take(entries) {
            let logical = u64::from(le32(entry, 0));
            if found > 0 {
                let child = join(le16(entry, 8).into(), le32(entry, 4));
                mapping.node(child)?;
                let mut block = vec![0; index(self.superblock().block_bytes)];
                self.read_block(child, &mut block)?;
                self.check_extents(inode, &block)?;
                self.extents(inode, &block, Some(found - 1), mapping)?;
                continue;
            }
            let length = le16(entry, 4);
            let written = length <= WRITTEN_BLOCKS_MAX;
            let blocks = u64::from(if written { length } else { length - WRITTEN_BLOCKS_MAX });
            let physical = join(le16(entry, 6).into(), le32(entry, 8));
            if blocks == 0 || physical == 0 || physical + blocks > self.superblock().blocks {
                return Err(wrong("an extent lies outside"));
            }
            mapping.push(Run { logical, physical, blocks, written })?;
        }
        Ok(())
    }

    fn check_extents(&self, inode: &Inode, block: &[u8]) -> Result<()> {
        let end = ENTRY_BYTES * (usize::from(le16(block, 4)) + 1);
        if !self.superblock().checksums() || le16(block, 0) != MAGIC {
            return Ok(());
        }
        let register = inode.checksum_register(self.superblock().checksum_seed);
        let covered = block.get(..end).unwrap_or_default();
        if end + 4 > block.len() || crc32c_register(register, covered) != le32(block, end) {
            return Err(damaged(format!("extents of inode {} have another checksum", inode.number)));
        }
        Ok(())
    }

    /// Twelve blocks, then trees of one, two and three levels.
    fn block_numbers(&self, inode: &Inode, mapping: &mut Mapping) -> Result<()> {
        let block_bytes = self.superblock().block_bytes;
        let mut walk = Numbers {
            filesystem: self,
            end: inode.size_bytes.div_ceil(block_bytes),
            logical: 0,
            per_block: block_bytes / 4,
            mapping,
        };
        for number in inode.block_area().chunks_exact(4).take(12) {
            walk.visit(le32(number, 0).into(), 0)?;
        }
        for (number, level) in inode.block_area().chunks_exact(4).skip(12).zip(1..) {
            walk.visit(le32(number, 0).into(), level)?;
        }
        Ok(())
    }
}

struct Numbers<'a> {
    filesystem: &'a FileSystem,
    /// Blocks of the file.
    end: u64,
    logical: u64,
    per_block: u64,
    mapping: &'a mut Mapping,
}

impl Numbers<'_> {
    fn visit(&mut self, number: u64, level: u32) -> Result<()> {
        if self.logical >= self.end {
            return Ok(());
        }
        if number == 0 {
            self.logical = self.logical.saturating_add(self.per_block.saturating_pow(level));
            return Ok(());
        }
        if number >= self.filesystem.superblock().blocks {
            return Err(damaged(format!("a file has block {number}, which is outside")));
        }
        if level == 0 {
            self.mapping.push(Run { logical: self.logical, physical: number, blocks: 1, written: true })?;
            self.logical += 1;
            return Ok(());
        }
        self.mapping.node(number)?;
        let mut block = vec![0; index(self.filesystem.superblock().block_bytes)];
        self.filesystem.read_block(number, &mut block)?;
        for number in block.chunks_exact(4) {
            self.visit(le32(number, 0).into(), level - 1)?;
        }
        Ok(())
    }
}
