//! Inodes.

use anyhow::Result;

use super::bytes::{byte, crc32c_register, index, join, le16, le32};
use super::error::damaged;
use super::filesystem::FileSystem;

/// Bytes of an inode that every version has.
const OLD_BYTES: usize = 128;
const BLOCK_AREA: std::ops::Range<usize> = 0x28..0x64;
const CHECKSUM_LOW: usize = 0x7c;
const CHECKSUM_HIGH: usize = 0x82;

const FLAG_ENCRYPTED: u32 = 0x800;
const FLAG_EXTENTS: u32 = 0x8_0000;
/// Holds an attribute of another inode; has no name.
const FLAG_ATTRIBUTE: u32 = 0x20_0000;
const FLAG_INLINE: u32 = 0x1000_0000;

pub(super) const ATTRIBUTES_MAGIC: u32 = 0xEA02_0000;
/// The name index of `system.`.
pub(super) const ATTRIBUTE_SYSTEM: u8 = 7;

/// What an inode is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    File,
    Directory,
    Symlink,
    Fifo,
    Socket,
    CharacterDevice,
    BlockDevice,
}

impl Kind {
    fn of_mode(mode: u16) -> Option<Self> {
        match mode >> 12 {
            0x8 => Some(Self::File),
            0x4 => Some(Self::Directory),
            0xa => Some(Self::Symlink),
            0x1 => Some(Self::Fifo),
            0xc => Some(Self::Socket),
            0x2 => Some(Self::CharacterDevice),
            0x6 => Some(Self::BlockDevice),
            _ => None,
        }
    }

    /// As a directory's entry says it; `None` when it does not.
    pub(super) fn of_entry(code: u8) -> Option<Self> {
        match code & 7 {
            1 => Some(Self::File),
            2 => Some(Self::Directory),
            3 => Some(Self::CharacterDevice),
            4 => Some(Self::BlockDevice),
            5 => Some(Self::Fifo),
            6 => Some(Self::Socket),
            7 => Some(Self::Symlink),
            _ => None,
        }
    }

    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Directory => "directory",
            Self::Symlink => "symlink",
            Self::Fifo => "fifo",
            Self::Socket => "socket",
            Self::CharacterDevice => "character-device",
            Self::BlockDevice => "block-device",
        }
    }
}

/// A time of an inode, since 1970 by the guest's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct InodeTime {
    pub(crate) seconds: i64,
    pub(crate) nanoseconds: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Inode {
    pub(crate) number: u32,
    pub(crate) kind: Kind,
    /// Permissions with set-uid, set-gid and sticky.
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) size_bytes: u64,
    pub(crate) modified: InodeTime,
    pub(crate) changed: InodeTime,
    pub(crate) links: u16,
    /// Differs between two files that had the same inode one after another.
    pub(crate) generation: u32,
    /// The block of its extended attributes, or 0.
    pub(crate) attributes_block: u64,
    flags: u32,
    raw: Vec<u8>,
}

impl Inode {
    /// Whether a slot of an inode table holds a file that has a name, or had one until it was closed.
    pub(crate) fn slot_in_use(raw: &[u8]) -> bool {
        le16(raw, 0x0) != 0 && le16(raw, 0x1a) != 0
    }

    /// Whether a slot may hold a file that has no name any more and that somebody has open still. Freed ones look like it,
    /// too: the group's bitmap tells.
    pub(crate) fn slot_unlinked(raw: &[u8]) -> bool {
        le16(raw, 0x0) != 0 && le16(raw, 0x1a) == 0
    }

    /// Whether two slots differ in more than the time of the last read.
    pub(crate) fn slots_differ(one: &[u8], other: &[u8]) -> bool {
        if one == other {
            return false;
        }
        // Access time, its fraction, and the checksum over both.
        let skipped = |at: usize| {
            (0x8..0xc).contains(&at)
                || (0x8c..0x90).contains(&at)
                || (CHECKSUM_LOW..CHECKSUM_LOW + 2).contains(&at)
                || (CHECKSUM_HIGH..CHECKSUM_HIGH + 2).contains(&at)
        };
        one.len() != other.len()
            || one.iter().zip(other).enumerate().any(|(at, (one, other))| one != other && !skipped(at))
    }

    /// The flags as they are on the disk.
    pub(super) fn flags(&self) -> u32 {
        self.flags
    }

    /// Attributes in the inode itself, from their magic on; empty when there are none.
    pub(super) fn attributes_area(&self) -> &[u8] {
        let start = OLD_BYTES + usize::from(le16(&self.raw, 0x80));
        let area = if self.raw.len() > OLD_BYTES { self.raw.get(start..) } else { None };
        area.filter(|area| le32(area, 0) == ATTRIBUTES_MAGIC).unwrap_or_default()
    }

    /// The project that a quota counts it for, where the inode is large enough to say.
    pub(super) fn project(&self) -> u32 {
        if extra_bytes(&self.raw) >= 0xa0 - OLD_BYTES { le32(&self.raw, 0x9c) } else { 0 }
    }

    pub(super) fn has_extents(&self) -> bool {
        self.flags & FLAG_EXTENTS != 0
    }

    pub(super) fn is_inline(&self) -> bool {
        self.flags & FLAG_INLINE != 0
    }

    /// Whether names and content are encrypted by the guest.
    pub(crate) fn is_encrypted(&self) -> bool {
        self.flags & FLAG_ENCRYPTED != 0
    }

    /// Whether it holds an attribute of other inodes, and so has no name.
    pub(crate) fn is_attribute(&self) -> bool {
        self.flags & FLAG_ATTRIBUTE != 0
    }

    /// Content that lies in the inode itself, when none lies in blocks.
    pub(crate) fn own_content(&self) -> Option<(&[u8], &[u8])> {
        if self.is_inline() {
            return Some((self.block_area(), self.inline_rest()));
        }
        self.short_target().map(|target| (target, [].as_slice()))
    }

    /// The 60 bytes for block numbers, extents or short content.
    pub(super) fn block_area(&self) -> &[u8] {
        self.raw.get(BLOCK_AREA).unwrap_or_default()
    }

    /// The content of a symbolic link that needs no block.
    pub(super) fn short_target(&self) -> Option<&[u8]> {
        let fits = self.kind == Kind::Symlink && !self.is_inline() && !self.has_extents();
        let length = index(self.size_bytes);
        (fits && length < self.block_area().len()).then(|| self.block_area().get(..length)).flatten()
    }

    /// The part of inline content behind the block area: the attribute `system.data`.
    pub(super) fn inline_rest(&self) -> &[u8] {
        let start = OLD_BYTES + usize::from(le16(&self.raw, 0x80));
        if le32(&self.raw, start) != ATTRIBUTES_MAGIC {
            return &[];
        }
        let first = start + 4;
        let mut at = first;
        while le32(&self.raw, at) != 0 && at + 16 <= self.raw.len() {
            let name_bytes = usize::from(byte(&self.raw, at));
            let name = self.raw.get(at + 16..at + 16 + name_bytes).unwrap_or_default();
            if byte(&self.raw, at + 1) == ATTRIBUTE_SYSTEM && name == b"data" && le32(&self.raw, at + 4) == 0
            {
                let offset = first + usize::from(le16(&self.raw, at + 2));
                let length = index(le32(&self.raw, at + 8).into());
                return offset
                    .checked_add(length)
                    .and_then(|end| self.raw.get(offset..end))
                    .unwrap_or_default();
            }
            at += 16 + name_bytes.next_multiple_of(4);
        }
        &[]
    }

    /// The start of checksums of what belongs to this inode.
    pub(super) fn checksum_register(&self, seed: u32) -> u32 {
        register(seed, self.number, &self.raw)
    }

    fn time(&self, at: usize, extra_at: usize) -> InodeTime {
        time(&self.raw, at, extra_at)
    }

    /// When it was made, where the inode is large enough to say.
    pub(crate) fn created(&self) -> Option<InodeTime> {
        (extra_bytes(&self.raw) >= 0x98 - OLD_BYTES).then(|| self.time(0x90, 0x94))
    }
}

fn extra_bytes(raw: &[u8]) -> usize {
    if raw.len() > OLD_BYTES { usize::from(le16(raw, 0x80)) } else { 0 }
}

fn time(raw: &[u8], at: usize, extra_at: usize) -> InodeTime {
    let low = i64::from(le32(raw, at).cast_signed());
    let extra = if extra_bytes(raw) >= extra_at + 4 - OLD_BYTES { le32(raw, extra_at) } else { 0 };
    InodeTime { seconds: low + (i64::from(extra & 3) << 32), nanoseconds: extra >> 2 }
}

fn register(seed: u32, number: u32, raw: &[u8]) -> u32 {
    let register = crc32c_register(seed, &number.to_le_bytes());
    crc32c_register(register, raw.get(0x64..0x68).unwrap_or_default())
}

/// Whether the checksum of an inode holds; with its upper half where it has one.
fn checksum_holds(seed: u32, number: u32, raw: &[u8]) -> bool {
    let has_high = extra_bytes(raw) >= CHECKSUM_HIGH + 2 - OLD_BYTES;
    let mut copy = raw.to_vec();
    let mut clear = |at: usize| copy.get_mut(at..at + 2).into_iter().for_each(|part| part.fill(0));
    clear(CHECKSUM_LOW);
    if has_high {
        clear(CHECKSUM_HIGH);
    }
    let found = crc32c_register(register(seed, number, raw), &copy);
    let low = u32::from(le16(raw, CHECKSUM_LOW));
    if has_high { found == low | u32::from(le16(raw, CHECKSUM_HIGH)) << 16 } else { found & 0xFFFF == low }
}

impl FileSystem {
    /// Reads an inode that is in use.
    ///
    /// # Errors
    /// When there is no such inode, it is free or damaged, or it cannot be read.
    pub(crate) fn inode(&self, number: u32) -> Result<Inode> {
        let raw = self.inode_slot(number)?;
        self.parse_inode(number, raw)
    }

    /// The bytes of an inode's slot, whatever they are.
    ///
    /// # Errors
    /// When there is no such inode or it cannot be read.
    pub(crate) fn inode_slot(&self, number: u32) -> Result<Vec<u8>> {
        let superblock = self.superblock();
        if number == 0 || number > superblock.inodes {
            return Err(damaged(format!("something names inode {number}, which does not exist")));
        }
        let group = self.group(self.group_of_inode(number))?;
        let size = u64::from(superblock.inode_bytes);
        let at = u64::from((number - 1) % superblock.inodes_per_group) * size;
        let block = group.inode_table + at / superblock.block_bytes;
        let mut raw = vec![0; usize::from(superblock.inode_bytes)];
        self.read_in_block(block, index(at % superblock.block_bytes), &mut raw)?;
        Ok(raw)
    }

    /// The group whose table holds an inode.
    pub(crate) fn group_of_inode(&self, number: u32) -> u64 {
        u64::from(number.saturating_sub(1) / self.superblock().inodes_per_group)
    }

    /// An inode from its slot.
    ///
    /// # Errors
    /// When it is free or damaged.
    pub(crate) fn parse_inode(&self, number: u32, raw: Vec<u8>) -> Result<Inode> {
        let superblock = self.superblock();
        let mode = le16(&raw, 0x0);
        // The journal's inode and the like have no name, and some have no links.
        if mode == 0 {
            return Err(damaged(format!("something names inode {number}, which is free")));
        }
        if superblock.checksums() && !checksum_holds(superblock.checksum_seed, number, &raw) {
            return Err(damaged(format!("inode {number} has another checksum")));
        }
        let kind =
            Kind::of_mode(mode).ok_or_else(|| damaged(format!("inode {number} is of no known kind")))?;
        let has_high_size = kind == Kind::File || superblock.large_directories();
        let high_size = if has_high_size { le32(&raw, 0x6c) } else { 0 };
        let wide = |high, low| u32::from(le16(&raw, high)) << 16 | u32::from(le16(&raw, low));
        Ok(Inode {
            number,
            kind,
            mode: mode & 0o7777,
            uid: wide(0x78, 0x2),
            gid: wide(0x7a, 0x18),
            size_bytes: join(high_size, le32(&raw, 0x4)),
            modified: time(&raw, 0x10, 0x88),
            changed: time(&raw, 0xc, 0x84),
            links: le16(&raw, 0x1a),
            generation: le32(&raw, 0x64),
            attributes_block: join(le16(&raw, 0x76).into(), le32(&raw, 0x68)),
            flags: le32(&raw, 0x20),
            raw,
        })
    }
}
