//! Memory of the requests: one buffer a tag, made and locked before the first request.

use std::io;
use std::ptr::NonNull;

/// Buffers of one size, aligned to pages.
#[derive(Debug)]
pub(super) struct Buffers {
    address: NonNull<u8>,
    each: usize,
    count: usize,
}

// SAFETY: the memory belongs to the value, not to a thread.
unsafe impl Send for Buffers {}

impl Buffers {
    /// Maps, touches and locks them.
    pub(super) fn new(count: usize, each: usize) -> io::Result<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE | libc::MAP_LOCKED;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice replaces nothing.
        let address = unsafe { libc::mmap(std::ptr::null_mut(), count * each, protection, flags, -1, 0) };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let address = NonNull::new(address.cast()).ok_or_else(|| io::Error::other("mapped at address 0"))?;
        Ok(Self { address, each, count })
    }

    /// The buffer of a tag. Tags come from the driver, which was told how many there are: another one gets the first.
    pub(super) fn of(&self, tag: u16) -> *mut u8 {
        let index = usize::from(tag);
        let index = if index < self.count { index } else { 0 };
        // SAFETY: inside the mapping.
        unsafe { self.address.as_ptr().add(index * self.each) }
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and the ring that used it has ended before.
        unsafe { libc::munmap(self.address.as_ptr().cast(), self.each * self.count) };
    }
}
