//! A loop device of our own, in memory, for calibration and the self-test.
//!
//! The backing file is anonymous and the device clears itself when it is closed, so a killed process leaves nothing.

use std::ffi::CStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::PathBuf;

/// Bytes of the device: room for the largest request of the self-test, and small in memory.
pub(crate) const SCRATCH_BYTES: u64 = 16 << 20;

/// include/uapi/linux/loop.h
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4C82;
const LOOP_CONFIGURE: libc::Ioctl = 0x4C0A;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
/// Another process may take the free device between the two calls.
const ATTEMPTS: u32 = 16;

/// include/uapi/linux/fs.h, `_IO(0x12, 119)`.
const BLKDISCARD: libc::Ioctl = 0x1277;

/// `struct loop_config` with its `struct loop_info64`: only the flags matter here.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info_before_flags: [u64; 5],
    info_lo_offsets: [u32; 3],
    lo_flags: u32,
    info_names: [u8; 64 + 64 + 32],
    info_init: [u64; 2],
    reserved: [u64; 8],
}

/// The device, open for direct I/O.
#[derive(Debug)]
pub(crate) struct Scratch {
    pub(crate) path: PathBuf,
    device: File,
    /// As `dev_t` inside the kernel: major << 20 | minor.
    pub(crate) kernel_device: u32,
}

impl Scratch {
    pub(crate) fn new() -> io::Result<Self> {
        let backing = memory_file(c"tidemark-scratch")?;
        backing.set_len(SCRATCH_BYTES)?;
        let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control")?;
        let mut last = io::Error::other("no free loop device");
        for _ in 0..ATTEMPTS {
            // SAFETY: this ioctl takes no argument.
            let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
            if number < 0 {
                return Err(io::Error::last_os_error());
            }
            let path = PathBuf::from(format!("/dev/loop{number}"));
            match Self::configure(&path, &backing) {
                Ok(device) => {
                    let kernel_device = kernel_device(device.metadata()?.rdev());
                    return Ok(Self { path, device, kernel_device });
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn configure(path: &PathBuf, backing: &File) -> io::Result<File> {
        let device = OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(path)?;
        let config = LoopConfig {
            fd: backing.as_raw_fd().cast_unsigned(),
            block_size: 512,
            info_before_flags: [0; 5],
            info_lo_offsets: [0; 3],
            lo_flags: LO_FLAGS_AUTOCLEAR,
            info_names: [0; 160],
            info_init: [0; 2],
            reserved: [0; 8],
        };
        // SAFETY: the structure has the size and layout of `struct loop_config`; the kernel only reads it.
        if unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, std::ptr::from_ref(&config)) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(device)
    }

    /// Writes aligned memory with direct I/O.
    pub(crate) fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.device.write_all_at(bytes, offset)
    }

    /// Writes the pieces as one request, gathered from their places in memory.
    pub(crate) fn write_gathered(&self, pieces: &[io::IoSlice<'_>], offset: u64) -> io::Result<()> {
        let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
        let written = nix::sys::uio::pwritev(&self.device, pieces, offset)?;
        let wanted: usize = pieces.iter().map(|piece| piece.len()).sum();
        if written == wanted {
            Ok(())
        } else {
            Err(io::Error::other(format!("wrote {written} of {wanted} bytes")))
        }
    }

    /// A WRITE_ZEROES request. `BLKZEROOUT` would forbid the driver to unmap, which files in memory refuse loudly.
    pub(crate) fn zero(&self, offset: u64, bytes: u64) -> io::Result<()> {
        let to_off = |value: u64| libc::off_t::try_from(value).map_err(io::Error::other);
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        // SAFETY: fallocate takes numbers only.
        if unsafe { libc::fallocate(self.device.as_raw_fd(), mode, to_off(offset)?, to_off(bytes)?) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    pub(crate) fn discard(&self, offset: u64, bytes: u64) -> io::Result<()> {
        let range = [offset, bytes];
        // SAFETY: the command reads two u64 from the pointer.
        if unsafe { libc::ioctl(self.device.as_raw_fd(), BLKDISCARD, range.as_ptr()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    pub(crate) fn flush(&self) -> io::Result<()> {
        self.device.sync_data()
    }
}

fn memory_file(name: &CStr) -> io::Result<File> {
    // SAFETY: the name is a valid C string; a new descriptor is returned.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and ours.
    Ok(File::from(unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// The kernel's own form of a device number, from that of `stat(2)`.
pub(crate) fn kernel_device(rdev: u64) -> u32 {
    let (major, minor) = (nix::sys::stat::major(rdev), nix::sys::stat::minor(rdev));
    u32::try_from(major << 20 | (minor & 0xf_ffff)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_has_the_size_of_the_kernels() {
        assert_eq!(size_of::<LoopConfig>(), 304);
        assert_eq!(std::mem::offset_of!(LoopConfig, lo_flags), 8 + 52);
    }

    #[test]
    fn device_numbers_are_in_the_kernels_form() {
        assert_eq!(kernel_device(nix::sys::stat::makedev(7, 3)), 7 << 20 | 3);
        assert_eq!(kernel_device(nix::sys::stat::makedev(259, 0x1_2345)), 259 << 20 | 0x1_2345);
    }
}
