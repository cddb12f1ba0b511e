//! The superblock: geometry and features.

use anyhow::Result;

use super::bytes::{byte, crc32c_register, join, le16, le32};
use super::error::{damaged, unsupported};

/// Where the superblock begins, and how long it is, in bytes.
pub(super) const OFFSET: u64 = 1024;
pub(super) const BYTES: usize = 1024;

/// Little-endian, at [`MAGIC_OFFSET`] of the partition.
pub(crate) const MAGIC: u16 = 0xEF53;
pub(crate) const MAGIC_OFFSET: u64 = OFFSET + 0x38;

/// 64 KiB, the kernel's largest.
const BLOCK_SHIFT_MAX: u32 = 6;

/// Groups at most: 32 TiB in blocks of 4 KiB. It bounds the memory for the table of groups to some 30 MiB; more are
/// refused.
const GROUPS_MAX: u64 = 1 << 18;

/// Features without which nothing can be read.
pub(super) mod incompatible {
    pub(crate) const RECOVER: u32 = 0x4;
    pub(crate) const JOURNAL_DEVICE: u32 = 0x8;
    pub(crate) const META_BG: u32 = 0x10;
    pub(crate) const WIDE: u32 = 0x80;
    pub(crate) const CHECKSUM_SEED: u32 = 0x2000;
    pub(crate) const LARGE_DIRECTORY: u32 = 0x4000;
    /// What is understood: file types, recovery, meta groups, extents, 64 bit, MMP, flexible groups, attribute inodes,
    /// checksum seed, large directories, inline data, encryption (names and content as they are), case folding.
    pub(crate) const KNOWN: u32 = 0x2
        | 0x4
        | 0x10
        | 0x40
        | 0x80
        | 0x100
        | 0x200
        | 0x400
        | 0x2000
        | 0x4000
        | 0x8000
        | 0x1_0000
        | 0x2_0000;
}

const COMPATIBLE_JOURNAL: u32 = 0x4;
const COMPATIBLE_SPARSE_SUPER2: u32 = 0x200;
const READ_ONLY_SPARSE_SUPER: u32 = 0x1;
const READ_ONLY_GROUP_CHECKSUM: u32 = 0x10;
const READ_ONLY_CLUSTERS: u32 = 0x200;
const READ_ONLY_CHECKSUMS: u32 = 0x400;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Superblock {
    pub(crate) block_bytes: u64,
    pub(crate) blocks: u64,
    pub(crate) inodes: u32,
    pub(crate) inodes_per_group: u32,
    pub(crate) inode_bytes: u16,
    pub(crate) uuid: [u8; 16],
    pub(super) first_data_block: u64,
    pub(super) blocks_per_group: u64,
    pub(super) descriptor_bytes: u16,
    pub(super) first_meta_group: u32,
    pub(super) journal_inode: u32,
    pub(super) checksum_seed: u32,
    /// Inodes that hold what belongs to the file system itself: quotas, orphans.
    pub(crate) own_inodes: Vec<u32>,
    /// A block that hosts of a shared disk write to all the time, or 0.
    pub(crate) protection_block: u64,
    backup_groups: [u32; 2],
    compatible: u32,
    incompatible: u32,
    read_only: u32,
}

impl Superblock {
    /// Reads the 1,024 bytes at byte 1,024; `size_bytes` is what the partition has.
    ///
    /// # Errors
    /// When it is none, contradicts itself, or names features that are not read here.
    pub(super) fn parse(bytes: &[u8], size_bytes: u64) -> Result<Self> {
        if le16(bytes, 0x38) != MAGIC {
            return Err(damaged("there is no superblock"));
        }
        let block_shift = le32(bytes, 0x18);
        if block_shift > BLOCK_SHIFT_MAX {
            return Err(damaged("its block size makes no sense"));
        }
        let revision = le32(bytes, 0x4c);
        let incompatible = if revision == 0 { 0 } else { le32(bytes, 0x60) };
        let wide = incompatible & incompatible::WIDE != 0;
        let uuid: [u8; 16] = bytes.get(0x68..0x78).and_then(|uuid| uuid.try_into().ok()).unwrap_or_default();
        let seed = if incompatible & incompatible::CHECKSUM_SEED == 0 {
            crc32c_register(!0, &uuid)
        } else {
            le32(bytes, 0x270)
        };
        let own = [0x240, 0x244, 0x26c, 0x280].map(|at| le32(bytes, at));
        let superblock = Self {
            block_bytes: 1024 << block_shift,
            blocks: join(if wide { le32(bytes, 0x150) } else { 0 }, le32(bytes, 0x4)),
            inodes: le32(bytes, 0x0),
            inodes_per_group: le32(bytes, 0x28),
            inode_bytes: if revision == 0 { 128 } else { le16(bytes, 0x58) },
            uuid,
            first_data_block: le32(bytes, 0x14).into(),
            blocks_per_group: le32(bytes, 0x20).into(),
            descriptor_bytes: if wide { le16(bytes, 0xfe).max(32) } else { 32 },
            first_meta_group: le32(bytes, 0x104),
            journal_inode: le32(bytes, 0xe0),
            checksum_seed: seed,
            own_inodes: own.into_iter().filter(|inode| *inode != 0).collect(),
            protection_block: join(le32(bytes, 0x16c), le32(bytes, 0x168)),
            backup_groups: [le32(bytes, 0x24c), le32(bytes, 0x250)],
            compatible: if revision == 0 { 0 } else { le32(bytes, 0x5c) },
            incompatible,
            read_only: if revision == 0 { 0 } else { le32(bytes, 0x64) },
        };
        superblock.check(byte(bytes, 0x175), size_bytes)?;
        Ok(superblock)
    }

    fn check(&self, checksum_kind: u8, size_bytes: u64) -> Result<()> {
        let unknown = self.incompatible & !incompatible::KNOWN;
        if unknown & incompatible::JOURNAL_DEVICE != 0 {
            return Err(unsupported("a journal on a device of its own, or is one"));
        }
        if unknown != 0 {
            return Err(unsupported(format!("features unknown to this version (0x{unknown:x})")));
        }
        if self.checksums() && checksum_kind != 1 {
            return Err(unsupported("checksums other than CRC32C"));
        }
        let bits = self.block_bytes * 8;
        let inode_bytes = u64::from(self.inode_bytes);
        let sane = self.blocks > self.first_data_block
            && self.first_data_block <= 1
            && self.blocks.checked_mul(self.block_bytes).is_some_and(|bytes| bytes <= size_bytes)
            && (1..=bits * 1024).contains(&self.blocks_per_group)
            && (1..=bits).contains(&self.inodes_per_group.into())
            && inode_bytes.is_power_of_two()
            && (128..=self.block_bytes).contains(&inode_bytes)
            && u64::from(self.descriptor_bytes) <= self.block_bytes
            && self.descriptor_bytes.is_power_of_two();
        if !sane {
            return Err(damaged("the superblock's numbers contradict each other or the partition's size"));
        }
        if self.groups() > GROUPS_MAX {
            return Err(unsupported(format!("more than {GROUPS_MAX} block groups")));
        }
        if u64::from(self.inodes) > self.groups() * u64::from(self.inodes_per_group) {
            return Err(damaged("it counts more inodes than its groups have"));
        }
        Ok(())
    }

    /// Whether inodes, extents and groups carry checksums.
    pub(super) fn checksums(&self) -> bool {
        self.read_only & READ_ONLY_CHECKSUMS != 0
    }

    /// Whether groups say which part of their tables was never written.
    pub(super) fn lazy_groups(&self) -> bool {
        self.read_only & (READ_ONLY_CHECKSUMS | READ_ONLY_GROUP_CHECKSUM) != 0
    }

    /// Whether a bit of a bitmap stands for several blocks.
    pub(super) fn clusters(&self) -> bool {
        self.read_only & READ_ONLY_CLUSTERS != 0
    }

    pub(super) fn has_journal(&self) -> bool {
        self.compatible & COMPATIBLE_JOURNAL != 0
    }

    /// Whether the kernel would replay the journal when it mounts.
    pub(super) fn needs_recovery(&self) -> bool {
        self.incompatible & incompatible::RECOVER != 0
    }

    pub(super) fn large_directories(&self) -> bool {
        self.incompatible & incompatible::LARGE_DIRECTORY != 0
    }

    pub(super) fn meta_groups(&self) -> bool {
        self.incompatible & incompatible::META_BG != 0
    }

    pub(super) fn wide(&self) -> bool {
        self.descriptor_bytes >= 64
    }

    /// The block that holds the first superblock.
    pub(super) fn home(&self) -> u64 {
        OFFSET / self.block_bytes
    }

    /// Number of block groups.
    pub(crate) fn groups(&self) -> u64 {
        (self.blocks - self.first_data_block).div_ceil(self.blocks_per_group)
    }

    /// The first block of a group.
    pub(super) fn group_start(&self, group: u64) -> u64 {
        self.first_data_block + group * self.blocks_per_group
    }

    /// Whether a group begins with a copy of the superblock.
    pub(super) fn has_superblock(&self, group: u64) -> bool {
        if group == 0 {
            return true;
        }
        if self.compatible & COMPATIBLE_SPARSE_SUPER2 != 0 {
            return self.backup_groups.iter().any(|backup| u64::from(*backup) == group);
        }
        let power = |base: u64| {
            let mut number = base;
            while number < group {
                number *= base;
            }
            number == group
        };
        self.read_only & READ_ONLY_SPARSE_SUPER == 0
            || group == 1
            || (group % 2 == 1 && [3, 5, 7].into_iter().any(power))
    }

    /// Blocks that the table of groups takes, where it lies in one piece.
    pub(super) fn descriptor_blocks(&self) -> u64 {
        self.groups().div_ceil(self.block_bytes / u64::from(self.descriptor_bytes))
    }

    /// Whether two points show the same file system with the same places for everything.
    pub(crate) fn same_layout(&self, other: &Self) -> bool {
        let layout = |one: &Self| {
            let sizes = (one.block_bytes, one.inodes_per_group, one.inode_bytes, one.blocks_per_group);
            (one.uuid, sizes, one.first_data_block, one.descriptor_bytes)
        };
        layout(self) == layout(other)
    }
}
