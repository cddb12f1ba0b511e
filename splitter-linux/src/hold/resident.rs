//! The program in memory: what runs while volumes are suspended may lie on one of them.

use std::sync::Once;

/// include/uapi/asm-generic/mman-common.h, since Linux 5.14.
const MADV_POPULATE_READ: libc::c_int = 22;

/// Has every page of the program's files present, once. They stay: memory of this process is locked as it is touched. A
/// page that cannot be had is read when it is needed, and if that has to wait, the watchdog lets go.
pub(super) fn make() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
        for (start, length) in maps.lines().filter_map(mapped_file) {
            // SAFETY: reads pages of a mapping that the kernel has just named; one that is gone is refused.
            unsafe { libc::madvise(std::ptr::without_provenance_mut(start), length, MADV_POPULATE_READ) };
        }
    });
}

/// Where a file is mapped and can be read: `START-END PERMISSIONS OFFSET DEVICE INODE PATH`, proc(5). Other kinds of
/// mappings (the ring, maps of the kernel) have no path.
fn mapped_file(line: &str) -> Option<(usize, usize)> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let readable = fields.next()?.starts_with('r');
    let path = fields.nth(3)?;
    let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
    (readable && path.starts_with('/')).then_some((start, end.checked_sub(start)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_can_be_read_are_told_from_other_mappings() {
        let text = "5581e0a00000-5581e0a02000 r-xp 00000000 fe:00 1234                       /usr/bin/tidemark-splitter";
        assert_eq!(mapped_file(text), Some((0x5581_e0a0_0000, 0x2000)));
        assert_eq!(mapped_file("7f00-8000 ---p 0 fe:00 1 /usr/lib/libc.so.6"), None);
        assert_eq!(mapped_file("7f00-8000 rw-s 0 00:0e 9 anon_inode:bpf-map"), None);
        assert_eq!(mapped_file("7f00-8000 rw-p 00000000 00:00 0"), None);
        make();
    }
}
