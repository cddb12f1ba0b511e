//! The FUSE side: one folder, one file per disk, no other names.

use std::ffi::OsStr;
use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    KernelConfig, LockOwner, OpenAccMode, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEmpty,
    ReplyEntry, ReplyOpen, ReplyWrite, Request, TimeOrNow, WriteFlags,
};

use super::cache::Fetch;
use super::disk::MountedDisk;

/// Names and sizes never change while mounted.
const FOREVER: Duration = Duration::from_secs(24 * 3600);
/// Bytes of one write request at most; larger writes come in parts.
const WRITE_BYTES: u32 = 1 << 20;
/// Requests that the kernel keeps waiting in the background (read-ahead, asynchronous I/O of loop devices).
const BACKGROUND_REQUESTS: u16 = 64;
/// Inode of the first disk; 1 is the folder.
const FIRST_INODE: u64 = 2;
/// Bytes in a block of `st_blocks`.
const STAT_BLOCK_BYTES: u64 = 512;

/// The mounted folder.
#[derive(Debug)]
pub(super) struct ViewFolder<F> {
    pub(super) disks: Vec<MountedDisk<F>>,
    /// Time of the point: what the files show as their time.
    pub(super) time: SystemTime,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

impl<F: Fetch> ViewFolder<F> {
    fn disk(&self, inode: INodeNo) -> Option<&MountedDisk<F>> {
        usize::try_from(inode.0.checked_sub(FIRST_INODE)?).ok().and_then(|index| self.disks.get(index))
    }

    fn attributes(&self, inode: INodeNo) -> Option<FileAttr> {
        let base = FileAttr {
            ino: inode,
            size: 0,
            blocks: 0,
            atime: self.time,
            mtime: self.time,
            ctime: self.time,
            crtime: UNIX_EPOCH,
            kind: FileType::Directory,
            perm: 0o500,
            nlink: 2,
            uid: self.uid,
            gid: self.gid,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        };
        if inode == INodeNo::ROOT {
            return Some(base);
        }
        let disk = self.disk(inode)?;
        Some(FileAttr {
            size: disk.size_bytes,
            blocks: disk.size_bytes.div_ceil(STAT_BLOCK_BYTES),
            kind: FileType::RegularFile,
            perm: if disk.writable() { 0o600 } else { 0o400 },
            nlink: 1,
            ..base
        })
    }
}

/// What went wrong as the caller sees it; anything without a number is an I/O error.
fn errno(error: &io::Error) -> Errno {
    Errno::from_i32(error.raw_os_error().unwrap_or(libc::EIO))
}

impl<F: Fetch> Filesystem for ViewFolder<F> {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Refused values leave the defaults, which work as well.
        let _ = config.set_max_write(WRITE_BYTES);
        let _ = config.set_max_background(BACKGROUND_REQUESTS);
        Ok(())
    }

    /// The last chance to make changes durable that are to stay.
    fn destroy(&mut self) {
        for disk in &self.disks {
            // Whoever needed to know has called fsync; the cause is in the log.
            let _ = disk.flush();
        }
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = self.disks.iter().zip(FIRST_INODE..).find(|(disk, _)| OsStr::new(&disk.name) == name);
        match found.and_then(|(_, inode)| self.attributes(INodeNo(inode))) {
            Some(attributes) if parent == INodeNo::ROOT => reply.entry(&FOREVER, &attributes, Generation(0)),
            _ => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _request: &Request, inode: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        match self.attributes(inode) {
            Some(attributes) => reply.attr(&FOREVER, &attributes),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn setattr(
        &self,
        _request: &Request,
        inode: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let Some(attributes) = self.attributes(inode) else { return reply.error(Errno::ENOENT) };
        // Times are taken and forgotten; a disk keeps its size, its owner and its mode.
        if size.is_some_and(|size| size != attributes.size)
            || mode.is_some()
            || uid.is_some()
            || gid.is_some()
        {
            return reply.error(Errno::EPERM);
        }
        reply.attr(&FOREVER, &attributes);
    }

    fn open(&self, _request: &Request, inode: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        match self.disk(inode) {
            None => reply.error(Errno::EISDIR),
            Some(disk) if !disk.writable() && flags.acc_mode() != OpenAccMode::O_RDONLY => {
                reply.error(Errno::EROFS)
            }
            // Nobody changes the content behind the kernel's back: its cache stays good from one opening to the next.
            Some(_) => reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE),
        }
    }

    fn read(
        &self,
        _request: &Request,
        inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let Some(disk) = self.disk(inode) else { return reply.error(Errno::EISDIR) };
        match disk.read(offset, u64::from(size)) {
            Ok(data) => reply.data(&data),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn write(
        &self,
        _request: &Request,
        inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let Some(disk) = self.disk(inode) else { return reply.error(Errno::EISDIR) };
        match disk.write(offset, data) {
            Ok(()) => reply.written(u32::try_from(data.len()).unwrap_or(u32::MAX)),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn fallocate(
        &self,
        _request: &Request,
        inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let Some(disk) = self.disk(inode) else { return reply.error(Errno::EISDIR) };
        let zeroing = mode & (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE) != 0;
        if !zeroing {
            return reply.error(Errno::EOPNOTSUPP);
        }
        // A hole may be punched across the end of a file.
        let length = length.min(disk.size_bytes.saturating_sub(offset));
        match if length > 0 { disk.zero(offset, length) } else { Ok(()) } {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn fsync(
        &self,
        _request: &Request,
        inode: INodeNo,
        _handle: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        match self.disk(inode).map_or(Ok(()), MountedDisk::flush) {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn flush(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        _owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn readdir(
        &self,
        _request: &Request,
        inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        if inode != INodeNo::ROOT {
            return reply.error(Errno::ENOTDIR);
        }
        let dots = [(1, FileType::Directory, "."), (1, FileType::Directory, "..")];
        let files = self
            .disks
            .iter()
            .zip(FIRST_INODE..)
            .map(|(disk, inode)| (inode, FileType::RegularFile, disk.name.as_str()));
        for ((inode, kind, name), next) in dots.into_iter().chain(files).zip(1..) {
            if next > offset && reply.add(INodeNo(inode), next, kind, name) {
                break;
            }
        }
        reply.ok();
    }
}
