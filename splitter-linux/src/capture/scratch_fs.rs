//! A file system for the scratch device whose only purpose is to be mounted and listed: the kernel then looks at its
//! folder's block through a buffer again and again, and reports each look but the first as `block_touch_buffer`.
//!
//! It is an ext2 of revision 0 in 1 KiB blocks (Documentation/filesystems/ext4/): superblock in block 1, group
//! descriptor in 2, the root folder in 3, so in the first page of the device, then bitmaps and the inode table.

use std::io;
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::scratch::Scratch;
use crate::disks::AlignedBuffer;

const BLOCK_BYTES: usize = 1024;
const BLOCKS: u32 = 64;
const BLOCKS_PER_GROUP: u32 = 8192;
const INODES: u32 = 16;
const INODE_BYTES: usize = 128;
const DESCRIPTOR: usize = 2;
const FOLDER: u8 = 3;
const BLOCK_BITMAP: u32 = 4;
const INODE_BITMAP: u32 = 5;
const INODE_TABLE: u32 = 6;
const IMAGE_BYTES: usize = 8 * BLOCK_BYTES;

/// Drivers that read it.
const DRIVERS: [&str; 2] = ["ext4", "ext2"];
/// The first listing fills the cache of buffers; a later one may run on another CPU, which has its own.
const LISTINGS: u32 = 64;

struct Image<'a>(&'a mut [u8]);

impl Image<'_> {
    fn put(&mut self, at: usize, bytes: &[u8]) {
        if let Some(place) = self.0.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    }

    fn words(&mut self, at: usize, words: &[u32]) {
        for (index, word) in words.iter().enumerate() {
            self.put(at + index * 4, &word.to_le_bytes());
        }
    }
}

fn build(bytes: &mut [u8]) {
    let mut image = Image(bytes);
    let superblock = BLOCK_BYTES;
    // inodes, blocks, reserved, free blocks, free inodes, first data block, block and fragment size
    image.words(superblock, &[INODES, BLOCKS, 0, 0, 0, 1, 0, 0, BLOCKS_PER_GROUP, BLOCKS_PER_GROUP, INODES]);
    // no limit of mounts, magic, clean, continue at errors
    image.put(superblock + 54, &[0xff, 0xff, 0x53, 0xef, 1, 0, 1, 0]);
    image.words(DESCRIPTOR * BLOCK_BYTES, &[BLOCK_BITMAP, INODE_BITMAP, INODE_TABLE]);
    let folder = usize::from(FOLDER) * BLOCK_BYTES;
    // inode 2, length of the entry, length of the name, the name; the second entry fills the block
    image.put(folder, &[2, 0, 0, 0, 12, 0, 1, 0, b'.']);
    image.put(folder + 12, &[2, 0, 0, 0, 0xf4, 3, 2, 0, b'.', b'.']);
    // the root is inode 2, the second of the table: mode, size, links, sectors, first block
    let root = 6 * BLOCK_BYTES + INODE_BYTES;
    image.put(root, &[0xed, 0x41, 0, 0, 0, 4]);
    image.put(root + 26, &[2, 0, 2]);
    image.put(root + 40, &[FOLDER]);
}

/// Mounts the device and lists its folder until the event was seen.
pub(crate) fn touch_buffers(scratch: &Scratch, seen: impl Fn() -> bool) -> io::Result<()> {
    let mut image = AlignedBuffer::new(IMAGE_BYTES);
    build(image.as_mut_slice());
    scratch.write(image.as_slice(), 0)?;
    let target = tempfile::tempdir()?;
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_SILENT | MsFlags::MS_NOEXEC | MsFlags::MS_NOSUID;
    let mounted =
        |driver: &&str| mount(Some(&scratch.path), target.path(), Some(*driver), flags, None::<&str>).is_ok();
    if !DRIVERS.iter().any(mounted) {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "the kernel mounts neither ext4 nor ext2"));
    }
    let listed = list(target.path(), seen);
    umount2(target.path(), MntFlags::MNT_DETACH)?;
    listed
}

fn list(folder: &Path, seen: impl Fn() -> bool) -> io::Result<()> {
    for _ in 0..LISTINGS {
        std::fs::read_dir(folder)?.for_each(drop);
        if seen() {
            break;
        }
    }
    Ok(())
}
