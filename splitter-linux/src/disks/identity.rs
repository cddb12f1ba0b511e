//! What names a disk: something that stays when device names and controllers change.
//!
//! In order: the world-wide name, the serial number (with vendor and model), for a loop device its file, the GPT
//! identifier of the disk, the MBR signature, the identifier of the file system on the whole disk, and at last the
//! place of the controller. Places were once noted with the size, which may change; such a note still names its disk.

use std::fs::OpenOptions;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use super::reader::AlignedBuffer;
use super::sysfs::{attribute, number};

/// Bytes at the start of a disk that identify it: the btrfs superblock ends at 68 KiB.
const HEAD_BYTES: usize = 72 << 10;

/// The identity of a disk, as text: `wwn:…`, `serial:…`, `loop:…`, `gpt:…`, `mbr:…`, `fs:…`, `place:…`.
pub(crate) fn of(sys_folder: &Path, device_file: &Path) -> String {
    hardware(sys_folder)
        .or_else(|| loop_file(sys_folder))
        .or_else(|| content(&head(device_file)?))
        .unwrap_or_else(|| of_place(sys_folder))
}

/// Whether a noted identity is that of a disk.
pub(crate) fn names(noted: &str, found: &str) -> bool {
    let place_only = || {
        let (place, sectors) = noted.strip_prefix("place:")?.rsplit_once(':')?;
        (!sectors.is_empty() && sectors.bytes().all(|byte| byte.is_ascii_digit())).then_some(place)
    };
    noted == found || place_only().is_some_and(|place| found.strip_prefix("place:") == Some(place))
}

fn hardware(folder: &Path) -> Option<String> {
    let device = folder.join("device");
    if let Some(name) = attribute(folder, "wwid").or_else(|| attribute(&device, "wwid")) {
        return Some(format!("wwn:{}", one_line(&name)));
    }
    let serial = attribute(folder, "serial")
        .or_else(|| attribute(&device, "serial"))
        .or_else(|| unit_serial(&std::fs::read(device.join("vpd_pg80")).ok()?))?;
    let words: Vec<String> = ["vendor", "model"]
        .iter()
        .filter_map(|name| attribute(&device, name))
        // virtio has a number there that names the driver, not the disk.
        .filter(|value| !value.starts_with("0x"))
        .chain([serial])
        .map(|word| one_line(&word))
        .collect();
    Some(format!("serial:{}", words.join(":")))
}

/// The unit serial number page of a SCSI disk (SPC-4 §7.8.12: four bytes of header, the last two the length of the
/// text). Disks of virtual machines often have it without a world-wide name.
fn unit_serial(page: &[u8]) -> Option<String> {
    let length = usize::from(u16::from_be_bytes([*page.get(2)?, *page.get(3)?]));
    let text = String::from_utf8_lossy(page.get(4..)?.get(..length)?).into_owned();
    let text = text.trim_matches(|c: char| c.is_whitespace() || c == '\0');
    (!text.is_empty()).then(|| text.to_owned())
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join("_")
}

/// A loop device is its file: the path for people, the inode because the file may be replaced.
fn loop_file(folder: &Path) -> Option<String> {
    let path = attribute(&folder.join("loop"), "backing_file")?;
    let offset = number(&folder.join("loop"), "offset").unwrap_or(0);
    let inode = std::fs::metadata(&path).map_or(0, |metadata| metadata.ino());
    Some(format!("loop:{path}:{inode}:{offset}"))
}

/// The name of its place, whatever else names the disk: an older splitter may have noted that.
pub(crate) fn of_place(folder: &Path) -> String {
    format!("place:{}", place(folder))
}

fn place(folder: &Path) -> String {
    let place = std::fs::canonicalize(folder.join("device")).unwrap_or_else(|_| folder.to_owned());
    place.strip_prefix("/sys/devices").unwrap_or(&place).display().to_string()
}

fn head(device_file: &Path) -> Option<Vec<u8>> {
    // Past the page cache like every read of a disk; a buffered one would also leave pages behind.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(device_file).ok()?;
    let mut buffer = AlignedBuffer::new(HEAD_BYTES);
    let mut filled = 0;
    while let Some(rest) = buffer.as_mut_slice().get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(_) => return None,
        }
    }
    buffer.as_mut_slice().get(..filled).map(<[u8]>::to_vec)
}

fn uuid_at(bytes: &[u8], offset: usize) -> Option<String> {
    let id: [u8; 16] = bytes.get(offset..)?.first_chunk().copied()?;
    (id != [0; 16]).then(|| uuid::Uuid::from_bytes(id).to_string())
}

fn is_at(bytes: &[u8], offset: usize, magic: &[u8]) -> bool {
    bytes.get(offset..).is_some_and(|rest| rest.starts_with(magic))
}

/// The identity in the first bytes of a disk. Formats: UEFI 2.10 §5.3 (GPT, disk GUID at 56 of the header), the MBR's
/// signature at 440, ext2/3/4 (superblock at 1024: magic at 56, UUID at 104), XFS (UUID at 32), btrfs (at 64 KiB:
/// fsid at 32, magic at 64), LVM (label in one of the first four sectors, UUID behind its header).
fn content(head: &[u8]) -> Option<String> {
    for sector_bytes in [512, 4096] {
        if is_at(head, sector_bytes, b"EFI PART") {
            let raw: [u8; 16] = head.get(sector_bytes + 56..)?.first_chunk().copied()?;
            // The first three fields of a GPT identifier are little-endian.
            return Some(format!("gpt:{}", uuid::Uuid::from_bytes_le(raw)));
        }
    }
    for sector in 0..4 {
        if is_at(head, sector * 512, b"LABELONE") {
            let id = head.get(sector * 512 + 32..sector * 512 + 64)?;
            return Some(format!("lvm:{}", String::from_utf8_lossy(id)));
        }
    }
    let file_system = if is_at(head, 1024 + 56, &[0x53, 0xef]) {
        uuid_at(head, 1024 + 104)
    } else if is_at(head, 0, b"XFSB") {
        uuid_at(head, 32)
    } else if is_at(head, 65536 + 64, b"_BHRfS_M") {
        uuid_at(head, 65536 + 32)
    } else {
        None
    };
    if let Some(id) = file_system {
        return Some(format!("fs:{id}"));
    }
    let signature: [u8; 4] = head.get(440..)?.first_chunk().copied()?;
    (is_at(head, 510, &[0x55, 0xaa]) && signature != [0; 4])
        .then(|| format!("mbr:{:08x}", u32::from_le_bytes(signature)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_noted_with_a_size_names_the_disk_that_is_there() {
        let found = "place:pci0000:00/0000:00:05.0/virtio2";
        assert!(names("place:pci0000:00/0000:00:05.0/virtio2:2097152", found));
        assert!(names(found, found));
        assert!(!names("place:pci0000:00/0000:00:05.0/virtio3:2097152", found));
        assert!(!names("place:pci0000:00/0000:00:05.0/virtio2:x", found));
        assert!(!names("serial:disk:2097152", "serial:disk"));
    }

    #[test]
    fn a_unit_serial_is_the_text_of_its_page() {
        assert_eq!(unit_serial(b"\0\x80\0\x06more  trailing").as_deref(), Some("more"));
        assert_eq!(unit_serial(b"\0\x80\0\x04\0\0  "), None);
        assert_eq!(unit_serial(b"\0\x80\0\x09short"), None);
        assert_eq!(unit_serial(b"\0\x80"), None);
    }

    #[test]
    fn each_format_names_its_disk() {
        let blank = vec![0; HEAD_BYTES];
        assert_eq!(content(&blank), None);
        assert_eq!(content(&[]), None);
        let with = |places: &[(usize, &[u8])]| {
            let mut head = blank.clone();
            for (at, bytes) in places {
                head[*at..at + bytes.len()].copy_from_slice(bytes);
            }
            content(&head)
        };
        let id: &[u8] = &(1..=16).collect::<Vec<u8>>();
        let plain = "01020304-0506-0708-090a-0b0c0d0e0f10";
        assert_eq!(
            with(&[(512, b"EFI PART"), (568, id)]).unwrap(),
            "gpt:04030201-0605-0807-090a-0b0c0d0e0f10"
        );
        assert_eq!(with(&[(1080, &[0x53, 0xef]), (1128, id)]).unwrap(), format!("fs:{plain}"));
        assert_eq!(with(&[(0, b"XFSB"), (32, id)]).unwrap(), format!("fs:{plain}"));
        assert_eq!(with(&[(65600, b"_BHRfS_M"), (65568, id)]).unwrap(), format!("fs:{plain}"));
        assert_eq!(with(&[(510, &[0x55, 0xaa]), (440, &[1, 2, 3, 4])]).unwrap(), "mbr:04030201");
        assert_eq!(with(&[(510, &[0x55, 0xaa])]), None);
    }
}
