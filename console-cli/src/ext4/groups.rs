//! Block groups: where a group's tables lie.

use anyhow::Result;

use super::bytes::{index, join, le16, le32};
use super::error::damaged;
use super::filesystem::FileSystem;

/// Set while a group's inode table was never used.
const INODES_UNUSED: u16 = 0x1;
/// Set while a group's block bitmap was never written: nothing but tables is in use.
const BLOCKS_UNUSED: u16 = 0x2;

/// One block group. Positions are blocks of the file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Group {
    pub(crate) number: u64,
    pub(crate) block_bitmap: u64,
    pub(crate) inode_bitmap: u64,
    pub(crate) inode_table: u64,
    /// Inodes from the table's start that were ever used; what lies behind may be anything.
    pub(crate) used_inodes: u32,
    pub(super) blocks_unused: bool,
}

impl FileSystem {
    /// Reads one descriptor.
    ///
    /// # Errors
    /// When there is no such group, it points outside, or it cannot be read.
    pub(crate) fn group(&self, number: u64) -> Result<Group> {
        let superblock = self.superblock();
        if number >= superblock.groups() {
            return Err(damaged(format!("there is no group {number}")));
        }
        let size = u64::from(superblock.descriptor_bytes);
        let per_block = superblock.block_bytes / size;
        let table_block = number / per_block;
        let block = self.descriptor_block(table_block);
        let mut bytes = vec![0; index(size)];
        self.read_in_block(block, index(number % per_block * size), &mut bytes)?;
        let high = |at| if superblock.wide() { le32(&bytes, at) } else { 0 };
        let place = |low, high_at| join(high(high_at), le32(&bytes, low));
        let flags = le16(&bytes, 0x12);
        let unused_high = if superblock.wide() { le16(&bytes, 0x32) } else { 0 };
        let unused = u32::from(unused_high) << 16 | u32::from(le16(&bytes, 0x1c));
        let used_inodes = match superblock.lazy_groups() {
            true if flags & INODES_UNUSED != 0 => 0,
            true => superblock.inodes_per_group.saturating_sub(unused),
            false => superblock.inodes_per_group,
        };
        let group = Group {
            number,
            block_bitmap: place(0x0, 0x20),
            inode_bitmap: place(0x4, 0x24),
            inode_table: place(0x8, 0x28),
            used_inodes,
            blocks_unused: superblock.lazy_groups() && flags & BLOCKS_UNUSED != 0,
        };
        let end = group.inode_table.checked_add(self.inode_table_blocks());
        if group.inode_table == 0 || end.is_none_or(|end| end > superblock.blocks) {
            return Err(damaged(format!("the inode table of group {number} lies outside")));
        }
        if group.block_bitmap.max(group.inode_bitmap) >= superblock.blocks {
            return Err(damaged(format!("a bitmap of group {number} lies outside")));
        }
        Ok(group)
    }

    /// Blocks of one group's inode table.
    pub(crate) fn inode_table_blocks(&self) -> u64 {
        let superblock = self.superblock();
        (u64::from(superblock.inodes_per_group) * u64::from(superblock.inode_bytes))
            .div_ceil(superblock.block_bytes)
    }

    fn descriptor_block(&self, table_block: u64) -> u64 {
        let superblock = self.superblock();
        if !superblock.meta_groups() || table_block < superblock.first_meta_group.into() {
            return superblock.home() + 1 + table_block;
        }
        let per_block = superblock.block_bytes / u64::from(superblock.descriptor_bytes);
        let group = table_block * per_block;
        let shift = if group == 0 { superblock.home() - superblock.first_data_block } else { 0 };
        superblock.group_start(group) + shift + u64::from(superblock.has_superblock(group))
    }

    /// The ranges `[start, end)` of a group that hold the file system's own tables, except its inode table.
    pub(crate) fn group_overhead(&self, group: &Group) -> Vec<(u64, u64)> {
        let superblock = self.superblock();
        let mut ranges =
            vec![(group.block_bitmap, group.block_bitmap + 1), (group.inode_bitmap, group.inode_bitmap + 1)];
        let start = superblock.group_start(group.number);
        if superblock.has_superblock(group.number) {
            let descriptors = if superblock.meta_groups() { 1 } else { superblock.descriptor_blocks() };
            // With blocks of 1 KiB in clusters, the first group begins one block before the superblock.
            let end = if group.number == 0 { superblock.home() } else { start } + 1 + descriptors;
            ranges.push((start, end));
        }
        if superblock.meta_groups() {
            // The table's blocks lie at the start of the first, second and last group of each meta group.
            ranges.push((start, start + 2));
        }
        ranges
    }

    /// A group's block bitmap; `None` where it does not stand for single blocks.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(crate) fn block_bitmap(&self, group: &Group) -> Result<Option<Vec<u8>>> {
        if self.superblock().clusters() {
            return Ok(None);
        }
        let mut bitmap = vec![0; index(self.superblock().block_bytes)];
        if !group.blocks_unused {
            self.read_block(group.block_bitmap, &mut bitmap)?;
        }
        Ok(Some(bitmap))
    }

    /// Whether a bitmap says that an inode is in use, by its place in the table.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(crate) fn inode_allocated(&self, group: &Group, place: u32) -> Result<bool> {
        let mut bits = [0];
        // The superblock has no more inodes in a group than a block has bits.
        self.read_in_block(group.inode_bitmap, index(u64::from(place / 8)), &mut bits)?;
        Ok(place < group.used_inodes && bits[0] >> (place % 8) & 1 == 1)
    }

    /// The blocks `[start, end)` of a group.
    pub(crate) fn group_range(&self, group: u64) -> (u64, u64) {
        let start = self.superblock().group_start(group);
        (start, (start + self.superblock().blocks_per_group).min(self.superblock().blocks))
    }

    /// The group that a block lies in.
    pub(crate) fn group_of_block(&self, block: u64) -> u64 {
        block.saturating_sub(self.superblock().first_data_block) / self.superblock().blocks_per_group
    }
}
