//! Where on a disk a file system lies: all of it, or a partition of a GPT or an MBR table.
//!
//! The crates for these tables want a device that can be written, and allocate what a table claims; what is needed here
//! is where partitions begin and end. A wrong table can do no more than point to something that is no file system, so
//! its checksums are not verified.

use std::sync::Arc;

use anyhow::{Result, bail};
use thiserror::Error;

use crate::cli::UsageError;
use crate::ext4::{MAGIC, MAGIC_OFFSET, Source};
use crate::size;

/// Entries of a GPT at most, eight times what tools make. Those behind are not looked at.
const GPT_ENTRIES_MAX: u32 = 1024;
/// Logical partitions of an MBR at most, as in Linux. Those behind are not looked at.
const LOGICAL_MAX: u32 = 60;
const SECTOR_BYTES: u64 = 512;
/// Sector sizes that a GPT is looked for with: it is the only table that counts in the disk's own.
const GPT_SECTOR_BYTES: [u64; 2] = [512, 4096];
const SIGNATURE_OFFSET: usize = 510;
const GPT_LVM: [u8; 16] =
    [0x79, 0xD3, 0xD6, 0xE6, 0x07, 0xF5, 0xC2, 0x44, 0xA2, 0x3C, 0x23, 0x8F, 0x2A, 0x3D, 0xF9, 0x28];

/// There is no ext4 where one was looked for.
#[derive(Debug, Error)]
#[error("{0}")]
pub(crate) struct NoFileSystem(String);

/// A partition; number 0 is the whole disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Partition {
    number: u32,
    start: u64,
    bytes: u64,
    lvm: bool,
}

/// What was chosen of a disk.
#[derive(Clone)]
pub(crate) struct Chosen {
    /// 0: the whole disk.
    pub(crate) number: u32,
    /// Where it begins on the disk.
    pub(crate) start: u64,
    pub(crate) source: Arc<dyn Source>,
}

impl std::fmt::Debug for Chosen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Chosen").field("number", &self.number).finish_non_exhaustive()
    }
}

/// Part of a disk.
struct Slice {
    disk: Arc<dyn Source>,
    partition: Partition,
}

impl Source for Slice {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let end = offset.checked_add(buffer.len() as u64);
        if end.is_none_or(|end| end > self.partition.bytes) {
            bail!("a read past the end of partition {}", self.partition.number);
        }
        self.disk.read_at(self.partition.start + offset, buffer)
    }

    fn size_bytes(&self) -> u64 {
        self.partition.bytes
    }
}

/// Finds the ext4 of a disk: in partition `wanted`, or the only one there is.
///
/// # Errors
/// When there is none or several, with what there is; when the disk cannot be read.
pub(crate) fn choose(disk: Arc<dyn Source>, name: &str, wanted: Option<u32>) -> Result<Chosen> {
    let whole = Partition { number: 0, start: 0, bytes: disk.size_bytes(), lvm: false };
    let chosen = |partition: Partition| {
        let source: Arc<dyn Source> = match partition.number {
            0 => Arc::clone(&disk),
            _ => Arc::new(Slice { disk: Arc::clone(&disk), partition }),
        };
        Chosen { number: partition.number, start: partition.start, source }
    };
    let on_whole = what(&*disk, &whole)?;
    if wanted.is_none() && on_whole == Some(EXT) {
        return Ok(chosen(whole));
    }
    let partitions = table(&*disk)?;
    let mut found = Vec::new();
    for partition in &partitions {
        found.push((partition, what(&*disk, partition)?));
    }
    let list = || {
        let words = found.iter().map(|(partition, what)| {
            format!("{}: {}, {}", partition.number, what.unwrap_or("unknown"), size::show(partition.bytes))
        });
        words.collect::<Vec<_>>().join("; ")
    };
    if let Some(wanted) = wanted {
        let Some((partition, what)) = found.iter().find(|(partition, _)| partition.number == wanted) else {
            let there = if found.is_empty() { "no partitions".to_owned() } else { list() };
            bail!(UsageError(format!("{name} has no partition {wanted} at this point: it has {there}")));
        };
        return match what {
            Some(EXT) => Ok(chosen(**partition)),
            _ => Err(refusal(&format!("partition {wanted} of {name}"), *what)),
        };
    }
    let ext: Vec<_> = found.iter().filter(|(_, what)| *what == Some(EXT)).collect();
    match (ext.as_slice(), found.len()) {
        ([(only, _)], _) => Ok(chosen(**only)),
        ([], 0) => Err(refusal(name, on_whole)),
        ([], _) => {
            let lvm = found.iter().find(|(_, what)| *what == Some(LVM));
            match lvm {
                Some((partition, what)) => {
                    Err(refusal(&format!("partition {} of {name}", partition.number), *what))
                }
                None => {
                    let what = format!("{name} holds no ext4 at this point: it has {}", list());
                    Err(NoFileSystem(what).into())
                }
            }
        }
        _ => bail!(UsageError(format!(
            "{name} has several file systems: name one with --partition ({})",
            list()
        ))),
    }
}

const EXT: &str = "ext4";
const LVM: &str = "LVM";

fn refusal(place: &str, what: Option<&str>) -> anyhow::Error {
    let what = what.unwrap_or("nothing known");
    NoFileSystem(format!(
        "{place} holds {what}, and files are found in ext2, ext3 and ext4 only: use `tidemark mount` for others"
    ))
    .into()
}

/// What a partition begins with.
fn what(disk: &dyn Source, partition: &Partition) -> Result<Option<&'static str>> {
    let holds = |offset: u64, magic: &[u8]| -> Result<bool> {
        let mut bytes = vec![0; magic.len()];
        if offset + magic.len() as u64 > partition.bytes {
            return Ok(false);
        }
        disk.read_at(partition.start + offset, &mut bytes)?;
        Ok(bytes == magic)
    };
    for sector in 0..4 {
        if holds(sector * SECTOR_BYTES, b"LABELONE")? {
            return Ok(Some(LVM));
        }
    }
    let marks: [(u64, &[u8], &str); 8] = [
        (0, b"LUKS\xba\xbe", "an encrypted volume (LUKS)"),
        (0, b"XFSB", "XFS"),
        (3, b"NTFS    ", "NTFS"),
        (4096, b"\xfc\x4e\x2b\xa9", "a member of an MD array"),
        (65_600, b"_BHRfS_M", "btrfs"),
        (4086, b"SWAPSPACE2", "swap"),
        (82, b"FAT32   ", "FAT"),
        (MAGIC_OFFSET, &MAGIC.to_le_bytes(), EXT),
    ];
    for (offset, magic, name) in marks {
        if holds(offset, magic)? {
            return Ok(Some(name));
        }
    }
    Ok(partition.lvm.then_some(LVM))
}

/// The partitions of a disk; none when there is no table.
fn table(disk: &dyn Source) -> Result<Vec<Partition>> {
    let size = disk.size_bytes();
    if size < 3 * SECTOR_BYTES {
        return Ok(Vec::new());
    }
    for sector_bytes in GPT_SECTOR_BYTES {
        if let Some(partitions) = gpt(disk, size, sector_bytes)? {
            return Ok(partitions);
        }
    }
    mbr(disk, size)
}

/// A range that lies on the disk.
fn inside(number: u32, start: u64, bytes: u64, lvm: bool, size: u64) -> Option<Partition> {
    let end = start.checked_add(bytes)?;
    (start > 0 && bytes > 0 && end <= size).then_some(Partition { number, start, bytes, lvm })
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..at + N).and_then(|part| part.try_into().ok()).unwrap_or([0; N])
}

fn gpt(disk: &dyn Source, size: u64, sector_bytes: u64) -> Result<Option<Vec<Partition>>> {
    let mut header = [0; 92];
    if size < 2 * sector_bytes + header.len() as u64 {
        return Ok(None);
    }
    disk.read_at(sector_bytes, &mut header)?;
    if header.get(..8) != Some(b"EFI PART") {
        return Ok(None);
    }
    let entries_at = u64::from_le_bytes(number(&header, 72)).checked_mul(sector_bytes);
    let count = u32::from_le_bytes(number(&header, 80)).min(GPT_ENTRIES_MAX);
    let entry_bytes = u64::from(u32::from_le_bytes(number(&header, 84)));
    let mut partitions = Vec::new();
    if !(128..=4096).contains(&entry_bytes) {
        return Ok(Some(partitions));
    }
    for place in 0..count {
        let mut entry = [0; 128];
        let at = entries_at.and_then(|at| at.checked_add(u64::from(place) * entry_bytes));
        let Some(at) = at.filter(|at| at.checked_add(128).is_some_and(|end| end <= size)) else { break };
        disk.read_at(at, &mut entry)?;
        let kind: [u8; 16] = number(&entry, 0);
        let (first, last) = (u64::from_le_bytes(number(&entry, 32)), u64::from_le_bytes(number(&entry, 40)));
        let bytes = last.checked_sub(first).and_then(|sectors| sectors.checked_add(1));
        let bytes = bytes.and_then(|sectors| sectors.checked_mul(sector_bytes));
        let (Some(start), Some(bytes)) = (first.checked_mul(sector_bytes), bytes) else { continue };
        if kind != [0; 16] {
            partitions.extend(inside(place + 1, start, bytes, kind == GPT_LVM, size));
        }
    }
    Ok(Some(partitions))
}

/// One of the four entries of a boot record.
struct Record {
    kind: u8,
    start: u64,
    bytes: u64,
}

impl Record {
    fn read(sector: &[u8], place: usize) -> Self {
        let at = 446 + 16 * place;
        let sectors = |at| u64::from(u32::from_le_bytes(number(sector, at))) * SECTOR_BYTES;
        let [kind] = number(sector, at + 4);
        Self { kind, start: sectors(at + 8), bytes: sectors(at + 12) }
    }

    fn is_extended(&self) -> bool {
        matches!(self.kind, 0x05 | 0x0f | 0x85)
    }
}

fn mbr(disk: &dyn Source, size: u64) -> Result<Vec<Partition>> {
    let mut sector = [0; 512];
    disk.read_at(0, &mut sector)?;
    let mut partitions = Vec::new();
    if sector.get(SIGNATURE_OFFSET..) != Some(&[0x55, 0xAA]) {
        return Ok(partitions);
    }
    let mut extended = None;
    for (place, shown) in (0..4).zip(1..) {
        let record = Record::read(&sector, place);
        if record.is_extended() {
            extended = Some(record.start);
        } else if record.kind != 0 {
            partitions.extend(inside(shown, record.start, record.bytes, record.kind == 0x8e, size));
        }
    }
    // A chain of records: a partition relative to its record, and the next record relative to the first.
    let Some(first) = extended else { return Ok(partitions) };
    let mut at = first;
    for shown in 5..5 + LOGICAL_MAX {
        if at.checked_add(SECTOR_BYTES).is_none_or(|end| end > size) {
            break;
        }
        disk.read_at(at, &mut sector)?;
        if sector.get(SIGNATURE_OFFSET..) != Some(&[0x55, 0xAA]) {
            break;
        }
        let (record, next) = (Record::read(&sector, 0), Record::read(&sector, 1));
        partitions.extend(inside(shown, at + record.start, record.bytes, record.kind == 0x8e, size));
        if !next.is_extended() || next.start == 0 {
            break;
        }
        at = first + next.start;
    }
    Ok(partitions)
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    struct Bytes(Vec<u8>);

    impl Source for Bytes {
        fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
            let at = usize::try_from(offset)?;
            let part = self.0.get(at..at + buffer.len()).ok_or_else(|| anyhow!("outside"))?;
            buffer.copy_from_slice(part);
            Ok(())
        }
        fn size_bytes(&self) -> u64 {
            self.0.len() as u64
        }
    }

    const SIZE: usize = 8 << 20;

    fn ext(disk: &mut [u8], start: usize) {
        disk[start + 1080..start + 1082].copy_from_slice(&MAGIC.to_le_bytes());
    }

    fn record(disk: &mut [u8], at: usize, place: usize, kind: u8, start: u32, sectors: u32) {
        let entry = at + 446 + 16 * place;
        disk[entry + 4] = kind;
        disk[entry + 8..entry + 12].copy_from_slice(&start.to_le_bytes());
        disk[entry + 12..entry + 16].copy_from_slice(&sectors.to_le_bytes());
        disk[at + 510..at + 512].copy_from_slice(&[0x55, 0xAA]);
    }

    fn chosen(disk: Vec<u8>, wanted: Option<u32>) -> Result<(u32, u64, u64)> {
        let chosen = choose(Arc::new(Bytes(disk)), "disk-1", wanted)?;
        Ok((chosen.number, chosen.start, chosen.source.size_bytes()))
    }

    #[test]
    fn a_whole_disk_a_primary_and_a_logical_partition_are_found() {
        let mut disk = vec![0; SIZE];
        ext(&mut disk, 0);
        assert_eq!(chosen(disk, None).unwrap(), (0, 0, SIZE as u64));
        let mut disk = vec![0; SIZE];
        record(&mut disk, 0, 0, 0x82, 64, 64);
        record(&mut disk, 0, 1, 0x05, 2048, 8192);
        record(&mut disk, 2048 * 512, 0, 0x83, 64, 1024);
        record(&mut disk, 2048 * 512, 1, 0x05, 4096, 4096);
        record(&mut disk, (2048 + 4096) * 512, 0, 0x83, 64, 512);
        ext(&mut disk, (2048 + 4096 + 64) * 512);
        assert_eq!(chosen(disk.clone(), None).unwrap(), (6, (2048 + 4096 + 64) * 512, 512 * 512));
        ext(&mut disk, (2048 + 64) * 512);
        let several = chosen(disk.clone(), None).unwrap_err().to_string();
        assert!(several.contains("--partition (1: unknown") && several.contains("5: ext4"), "{several}");
        assert_eq!(chosen(disk.clone(), Some(5)).unwrap().0, 5);
        assert!(chosen(disk, Some(9)).unwrap_err().is::<UsageError>());
    }

    #[test]
    fn a_gpt_is_read_in_sectors_of_either_size_and_others_are_named() {
        for sector in [512_usize, 4096] {
            let mut disk = vec![0; SIZE];
            record(&mut disk, 0, 0, 0xee, 1, u32::MAX);
            disk[sector..sector + 8].copy_from_slice(b"EFI PART");
            disk[sector + 72] = 2;
            disk[sector + 80] = 128;
            disk[sector + 84] = 128;
            for (place, first, last) in [(0, 256_u64, 511_u64), (2, 512, 1023)] {
                let at = 2 * sector + place * 128;
                disk[at] = 7;
                disk[at + 32..at + 40].copy_from_slice(&first.to_le_bytes());
                disk[at + 40..at + 48].copy_from_slice(&last.to_le_bytes());
            }
            ext(&mut disk, 512 * sector);
            let (sector, lvm) = (sector as u64, 256 * sector);
            assert_eq!(chosen(disk.clone(), None).unwrap(), (3, 512 * sector, 512 * sector));
            disk[lvm + 512..lvm + 520].copy_from_slice(b"LABELONE");
            let refused = chosen(disk.clone(), Some(1)).unwrap_err().to_string();
            assert!(refused.contains("partition 1 of disk-1 holds LVM"), "{refused}");
        }
        let mut disk = vec![0; SIZE];
        disk[..4].copy_from_slice(b"XFSB");
        assert!(chosen(disk, None).unwrap_err().to_string().contains("disk-1 holds XFS"));
        assert!(chosen(vec![0; SIZE], None).unwrap_err().to_string().contains("nothing known"));
    }

    #[test]
    fn tables_that_lie_end_and_stay_on_the_disk() {
        let mut disk = vec![0; SIZE];
        record(&mut disk, 0, 0, 0x05, 2048, 8192);
        // The chain comes back to itself.
        record(&mut disk, 2048 * 512, 0, 0x83, u32::MAX, u32::MAX);
        record(&mut disk, 2048 * 512, 1, 0x05, 0, 1);
        assert!(chosen(disk.clone(), None).is_err());
        record(&mut disk, 2048 * 512, 1, 0x05, 1, 1);
        record(&mut disk, 2049 * 512, 1, 0x05, 1, 1);
        assert!(chosen(disk.clone(), None).is_err());
        disk[512..520].copy_from_slice(b"EFI PART");
        disk[512 + 72..512 + 88].fill(0xff);
        assert!(chosen(disk, None).is_err());
    }
}
