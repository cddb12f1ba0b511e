//! What people set on a file beside its mode and owner: flags, the project, extended attributes and with them ACLs.

use anyhow::Result;

use super::bytes::{byte, index, le16, le32};
use super::filesystem::FileSystem;
use super::inode::{ATTRIBUTE_SYSTEM, Inode};

/// Flags that chattr sets, encryption, verity and case folding. Those that the kernel sets by itself when a file grows
/// (extents, a hashed index, content in the inode) are none.
const FLAGS_SET: u32 =
    0xff | 0x800 | 0x4000 | 0x8000 | 0x1_0000 | 0x2_0000 | 0x10_0000 | 0x200_0000 | 0x2000_0000 | 0x4000_0000;

/// An attribute in an inode: kind of name, name, where a large value lies, hash and value.
type Attribute<'a> = (u8, &'a [u8], u32, u32, &'a [u8]);

impl FileSystem {
    /// Whether attributes of one file differ between this file system and a later state of it.
    ///
    /// # Errors
    /// When a block cannot be read.
    pub(crate) fn attributes_differ(&self, was: &Inode, later: &Self, is: &Inode) -> Result<bool> {
        let own = |inode: &Inode| (inode.flags() & FLAGS_SET, inode.project());
        if own(was) != own(is) || attributes(was) != attributes(is) {
            return Ok(true);
        }
        if was.attributes_block == 0 || is.attributes_block == 0 {
            return Ok(was.attributes_block != is.attributes_block);
        }
        Ok(self.attributes_in_block(was)? != later.attributes_in_block(is)?)
    }

    /// The block of attributes without what changes when another file begins to share it: the number of users and the
    /// checksum.
    fn attributes_in_block(&self, inode: &Inode) -> Result<Vec<u8>> {
        let mut block = vec![0; index(self.superblock().block_bytes)];
        self.read_block(inode.attributes_block, &mut block)?;
        for range in [4..8, 16..20] {
            block.get_mut(range).into_iter().for_each(|part| part.fill(0));
        }
        Ok(block)
    }
}

/// The attributes in an inode, but content that lies there. Of damaged ones, those before the damage.
fn attributes(inode: &Inode) -> Vec<Attribute<'_>> {
    // Places of values count from behind the magic.
    let area = inode.attributes_area().get(4..).unwrap_or_default();
    let mut all = Vec::new();
    let mut at = 0;
    while at + 16 <= area.len() && le32(area, at) != 0 {
        let (name_bytes, kind) = (usize::from(byte(area, at)), byte(area, at + 1));
        let name = area.get(at + 16..at + 16 + name_bytes).unwrap_or_default();
        let (inode, bytes, hash) =
            (le32(area, at + 4), index(le32(area, at + 8).into()), le32(area, at + 12));
        let start = usize::from(le16(area, at + 2));
        let value = start.checked_add(bytes).filter(|_| inode == 0).and_then(|end| area.get(start..end));
        if !(kind == ATTRIBUTE_SYSTEM && name == b"data") {
            all.push((kind, name, inode, hash, value.unwrap_or_default()));
        }
        at += 16 + name_bytes.next_multiple_of(4);
    }
    all.sort_unstable();
    all
}
