//! The few `bpf(2)` commands and mappings that are used beside the loader: maps created at run time, pins, links.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr::NonNull;

/// Commands of `bpf(2)` (include/uapi/linux/bpf.h).
const MAP_CREATE: libc::c_long = 0;
const MAP_LOOKUP_ELEM: libc::c_long = 1;
const MAP_UPDATE_ELEM: libc::c_long = 2;
const MAP_DELETE_ELEM: libc::c_long = 3;
const OBJ_PIN: libc::c_long = 6;
const OBJ_GET: libc::c_long = 7;
const RAW_TRACEPOINT_OPEN: libc::c_long = 17;

const MAP_TYPE_ARRAY: u32 = 2;
const F_MMAPABLE: u32 = 1 << 10;
const F_INNER_MAP: u32 = 1 << 12;

fn bpf<T>(command: libc::c_long, attributes: &mut T) -> io::Result<RawFd> {
    let size = u32::try_from(size_of::<T>()).map_err(io::Error::other)?;
    // SAFETY: `attributes` is a live, initialised structure of `size` bytes without padding that matters; the kernel
    // copies it in and dereferences only pointers which the callers below derive from live references.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    RawFd::try_from(result).map_err(io::Error::other)
}

fn owned(fd: RawFd) -> OwnedFd {
    // SAFETY: the kernel has just returned this descriptor to us and nothing else knows it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn fd_number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

/// An array map that can be mapped into memory; `inner` when it is to be a value of a map of maps.
pub(crate) fn create_array(name: &str, value_bytes: u32, entries: u32, inner: bool) -> io::Result<OwnedFd> {
    #[repr(C)]
    #[derive(Default)]
    struct Attributes {
        map_type: u32,
        key_size: u32,
        value_size: u32,
        max_entries: u32,
        map_flags: u32,
        inner_map_fd: u32,
        numa_node: u32,
        map_name: [u8; 16],
    }
    let mut map_name = [0; 16];
    for (to, from) in map_name.iter_mut().zip(name.bytes().take(15)) {
        *to = from;
    }
    let map_flags = if inner { F_MMAPABLE | F_INNER_MAP } else { F_MMAPABLE };
    let mut attributes = Attributes {
        map_type: MAP_TYPE_ARRAY,
        key_size: 4,
        value_size: value_bytes,
        max_entries: entries,
        map_flags,
        map_name,
        ..Attributes::default()
    };
    Ok(owned(bpf(MAP_CREATE, &mut attributes)?))
}

#[repr(C)]
struct Element {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

fn element(map: BorrowedFd<'_>, key: &u32, value: u64) -> Element {
    Element {
        map_fd: fd_number(map),
        padding: 0,
        key: std::ptr::from_ref(key).addr() as u64,
        value,
        flags: 0,
    }
}

/// Sets the value of a map whose keys and values are 32 bits.
pub(crate) fn map_set(map: BorrowedFd<'_>, key: u32, value: u32) -> io::Result<()> {
    let mut attributes = element(map, &key, std::ptr::from_ref(&value).addr() as u64);
    bpf(MAP_UPDATE_ELEM, &mut attributes).map(|_| ())
}

/// The value of a map whose keys and values are 32 bits.
pub(crate) fn map_get(map: BorrowedFd<'_>, key: u32) -> io::Result<Option<u32>> {
    let mut value = 0_u32;
    let mut attributes = element(map, &key, std::ptr::from_mut(&mut value).addr() as u64);
    match bpf(MAP_LOOKUP_ELEM, &mut attributes) {
        Ok(_) => Ok(Some(value)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Removes a key of 32 bits; one that is not there is fine.
pub(crate) fn map_delete(map: BorrowedFd<'_>, key: u32) -> io::Result<()> {
    match bpf(MAP_DELETE_ELEM, &mut element(map, &key, 0)) {
        Ok(_) => Ok(()),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        Err(error) => Err(error),
    }
}

#[repr(C)]
struct Object {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

/// Gives a map, program or link a name in bpffs, which keeps it alive.
pub(crate) fn pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let name = c_path(path)?;
    bpf(OBJ_PIN, &mut Object { pathname: name.as_ptr().addr() as u64, bpf_fd: fd_number(fd), file_flags: 0 })
        .map(|_| ())
}

/// Opens what is pinned there.
pub(crate) fn open_pinned(path: &Path) -> io::Result<OwnedFd> {
    let name = c_path(path)?;
    bpf(OBJ_GET, &mut Object { pathname: name.as_ptr().addr() as u64, bpf_fd: 0, file_flags: 0 }).map(owned)
}

/// Attaches a loaded `tp_btf` program; closing (and unpinning) the link detaches it.
pub(crate) fn attach(program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attributes {
        name: u64,
        prog_fd: u32,
        padding: u32,
        cookie: u64,
    }
    bpf(RAW_TRACEPOINT_OPEN, &mut Attributes { name: 0, prog_fd: fd_number(program), padding: 0, cookie: 0 })
        .map(owned)
}

/// A number that the kernel shows about a descriptor, such as `recursion_misses` of a program.
pub(crate) fn fd_info(fd: BorrowedFd<'_>, key: &str) -> io::Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()))?;
    text.lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(':')?.trim().parse().ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("the kernel does not show {key}")))
}

/// Shared memory of a map. All access goes through atomics or through slices of memory that the ring's protocol says
/// nobody writes.
#[derive(Debug)]
pub(crate) struct Mapping {
    address: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the memory belongs to the mapping, not to a thread; access to it is atomic or read-only, see the methods.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    pub(crate) fn new(fd: BorrowedFd<'_>, bytes: usize, offset: u64, writable: bool) -> io::Result<Self> {
        let protection = if writable { libc::PROT_READ | libc::PROT_WRITE } else { libc::PROT_READ };
        let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
        // SAFETY: a new mapping at an address of the kernel's choice replaces nothing.
        let address = unsafe {
            libc::mmap(std::ptr::null_mut(), bytes, protection, libc::MAP_SHARED, fd.as_raw_fd(), offset)
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let address = NonNull::new(address.cast()).ok_or_else(|| io::Error::other("mapped at address 0"))?;
        Ok(Self { address, bytes })
    }

    /// The memory as one `T`, which must consist of atomics only. `None` when it does not fit.
    pub(crate) fn at<T>(&self, offset: usize) -> Option<&T> {
        let end = offset.checked_add(size_of::<T>())?;
        (end <= self.bytes && offset.is_multiple_of(align_of::<T>()) && align_of::<T>() <= 4096).then(|| {
            // SAFETY: in bounds and aligned (mappings begin at a page). Callers pass types made of atomics, for which
            // every bit pattern is valid and for which others may write at any time.
            unsafe { self.address.add(offset).cast::<T>().as_ref() }
        })
    }

    /// The memory as consecutive `T`, each made of atomics only.
    pub(crate) fn all<T>(&self) -> &[T] {
        // SAFETY: as in `at`.
        unsafe { std::slice::from_raw_parts(self.address.as_ptr().cast::<T>(), self.bytes / size_of::<T>()) }
    }

    /// Plain bytes which the caller knows nobody writes while the slice lives.
    ///
    /// # Safety
    /// No one may write `offset..offset + length` during the lifetime of the slice.
    pub(crate) unsafe fn slice(&self, offset: usize, length: usize) -> Option<&[u8]> {
        let end = offset.checked_add(length)?;
        (end <= self.bytes).then(|| {
            // SAFETY: in bounds; not written, by the caller's promise.
            unsafe { std::slice::from_raw_parts(self.address.as_ptr().add(offset), length) }
        })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and all references to it have ended with the borrow of `self`.
        unsafe { libc::munmap(self.address.as_ptr().cast(), self.bytes) };
    }
}

/// Opens a file or directory and locks it for this process; `WouldBlock` when another process holds it.
pub(crate) fn lock(path: &Path) -> io::Result<File> {
    let file = File::open(path)?;
    // SAFETY: flock takes a descriptor and has no memory effects.
    if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(file)
}
