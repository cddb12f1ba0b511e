//! Starting to write what has been handed to the kernel.
//!
//! The kernel keeps written pages for up to half a minute. A restore that leaves them there writes nothing while it
//! reads, and then waits for everything at its last sync.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// Starts writing `[offset, offset + length)` of a file or device, and does not wait for it.
///
/// # Errors
/// Those of the device. A file system that cannot do it is none: the sync at the end writes all.
pub(super) fn start(file: &File, offset: u64, length: u64) -> io::Result<()> {
    let (Ok(offset), Ok(length)) = (offset.try_into(), length.try_into()) else { return Ok(()) };
    // SAFETY: the descriptor is open for the whole call; the call takes no pointer.
    let code =
        unsafe { libc::sync_file_range(file.as_raw_fd(), offset, length, libc::SYNC_FILE_RANGE_WRITE) };
    if code == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EINVAL | libc::ENOSYS | libc::ESPIPE | libc::EOPNOTSUPP) => Ok(()),
        _ => Err(error),
    }
}
