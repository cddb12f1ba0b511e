//! Freezing and thawing one file system.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// include/uapi/linux/fs.h, `_IOWR('X', 119, int)` and `_IOWR('X', 120, int)`.
const FIFREEZE: libc::Ioctl = 0xC004_5877;
const FITHAW: libc::Ioctl = 0xC004_5878;

/// Freezes the file system of an open file: what is dirty is written, then whoever writes waits.
///
/// # Errors
/// `EBUSY`: it is frozen already, by somebody else. `EOPNOTSUPP`: it cannot be frozen.
pub(super) fn freeze(file: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the call takes a descriptor and ignores its argument.
    match unsafe { libc::ioctl(file.as_raw_fd(), FIFREEZE, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Lets a frozen file system go.
///
/// # Errors
/// `EINVAL`: it was not frozen any more. After a freeze of our own that means that somebody else let it go.
pub(super) fn thaw(file: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: as above.
    match unsafe { libc::ioctl(file.as_raw_fd(), FITHAW, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Writes what is dirty, so that the freeze that follows has little to write. A failure shows at the freeze.
pub(super) fn sync(file: BorrowedFd<'_>) {
    // SAFETY: the call takes a descriptor.
    let _ = unsafe { libc::syncfs(file.as_raw_fd()) };
}

/// Marks the calling thread as one that file systems and disks wait for: memory is then never reclaimed in a way that
/// waits for a frozen file system. Without the privilege nothing changes.
pub(super) fn be_io_flusher(on: bool) {
    const PR_SET_IO_FLUSHER: libc::c_int = 57;
    // SAFETY: the call takes numbers only and concerns the calling thread.
    let _ = unsafe { libc::prctl(PR_SET_IO_FLUSHER, libc::c_ulong::from(on), 0, 0, 0) };
}
