//! Reads ext2, ext3 and ext4 as they are at a point of a disk: without mounting, without root, without writing.
//!
//! An image of a running guest has a journal that nobody replayed. [`journal::Overlay`] says where the newest committed copy of
//! each block lies in it, and every read goes through that, so that what is read is what the kernel would find after a
//! replay. The layout is that of the kernel's documentation (`Documentation/filesystems/ext4`); every number comes from
//! a guest and is checked before it is used.

mod attributes;
mod bytes;
mod directory;
mod error;
mod filesystem;
mod groups;
mod inode;
mod journal;
mod mapping;
mod path;
mod superblock;
#[cfg(test)]
mod tests;

pub(crate) use directory::Entry;
pub(crate) use error::{Damaged, Unsupported};
pub(crate) use filesystem::{FileSystem, Replay, Source};
pub(crate) use groups::Group;
pub(crate) use inode::{Inode, InodeTime, Kind};
pub(crate) use mapping::{Mapping, Run};
pub(crate) use path::{Looked, components};
pub(crate) use superblock::{MAGIC, MAGIC_OFFSET};
