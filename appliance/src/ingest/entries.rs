//! The entries and payload of a frame: from the wire to the journal's form, checked.

use std::collections::HashMap;

use tidemark_journal::frame::{Entry, EntryKind};
use tidemark_proto::ids::DiskId;
use tidemark_proto::limits::{CHECKSUM_PIECE_BYTES, FRAME_MAX_BYTES, FRAME_MAX_ENTRIES, SECTOR_BYTES};
use tidemark_proto::v1::{WriteEntry, WriteKind};

/// Bits of `WriteEntry.flags` that have a meaning.
const FLAGS_KNOWN: u32 = 0b111;

/// Checks entries and appends them to `out`. `time` gives each entry's time, in order, as microseconds since the
/// frame's. Returns the bytes of payload they take.
pub(super) fn convert(
    entries: &[WriteEntry],
    sizes: &HashMap<DiskId, u64>,
    base: bool,
    mut time: impl FnMut(u64) -> u64,
    out: &mut Vec<Entry>,
) -> Result<u64, String> {
    out.clear();
    if entries.is_empty() || entries.len() > FRAME_MAX_ENTRIES {
        return Err(format!("a frame of {} entries; 1 to {FRAME_MAX_ENTRIES} are allowed", entries.len()));
    }
    let mut payload_bytes = 0;
    for (index, entry) in entries.iter().enumerate() {
        let kind = kind(entry).ok_or_else(|| format!("entry {index} is of unknown kind {}", entry.kind))?;
        let disk = DiskId(entry.disk_id);
        match kind {
            EntryKind::Flush if base => return Err(format!("entry {index} is a flush among base blocks")),
            EntryKind::Flush if entry.sectors != 0 => {
                return Err(format!("entry {index} is a flush with sectors"));
            }
            EntryKind::Flush => {}
            _ => bounds(entry, sizes).map_err(|problem| format!("entry {index} {problem}"))?,
        }
        if entry.flags & !FLAGS_KNOWN != 0 {
            return Err(format!("entry {index} has unknown flags {:#x}", entry.flags));
        }
        let converted = Entry {
            disk,
            kind,
            start_sector: entry.start_sector,
            sectors: entry.sectors,
            flags: u16::try_from(entry.flags).unwrap_or_default(),
            time_delta_us: u32::try_from(time(entry.time_delta_us)).unwrap_or(u32::MAX),
        };
        payload_bytes += converted.payload_bytes();
        out.push(converted);
    }
    Ok(payload_bytes)
}

fn kind(entry: &WriteEntry) -> Option<EntryKind> {
    match WriteKind::try_from(entry.kind).ok()? {
        WriteKind::Unspecified => None,
        WriteKind::Data => Some(EntryKind::Data),
        WriteKind::Zeroes => Some(EntryKind::Zeroes),
        WriteKind::Discard => Some(EntryKind::Discard),
        WriteKind::Flush => Some(EntryKind::Flush),
    }
}

fn bounds(entry: &WriteEntry, sizes: &HashMap<DiskId, u64>) -> Result<(), String> {
    let disk = DiskId(entry.disk_id);
    let size = sizes.get(&disk).ok_or_else(|| format!("is for {disk}, which is not protected"))?;
    if entry.sectors == 0 {
        return Err("has no sectors".into());
    }
    let end = entry.start_sector.checked_add(u64::from(entry.sectors));
    match end.and_then(|end| end.checked_mul(SECTOR_BYTES)) {
        Some(end) if end <= *size => Ok(()),
        _ => Err(format!("ends beyond {disk}, which has {size} bytes")),
    }
}

/// Checks the payload's length and every checksum.
pub(super) fn verify_payload(payload: &[u8], expected_bytes: u64, crc32c: &[u32]) -> Result<(), String> {
    if payload.len() > FRAME_MAX_BYTES {
        return Err(format!("a payload of {} bytes; {FRAME_MAX_BYTES} are allowed", payload.len()));
    }
    if u64::try_from(payload.len()) != Ok(expected_bytes) {
        return Err(format!("a payload of {} bytes for entries of {expected_bytes}", payload.len()));
    }
    if crc32c.len() != payload.len().div_ceil(CHECKSUM_PIECE_BYTES) {
        return Err(format!("{} checksums for {} bytes of payload", crc32c.len(), payload.len()));
    }
    for (index, (piece, expected)) in payload.chunks(CHECKSUM_PIECE_BYTES).zip(crc32c).enumerate() {
        if crc32c::crc32c(piece) != *expected {
            return Err(format!("checksum {index} of the payload does not match: damaged on the way"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(change: impl FnOnce(&mut WriteEntry)) -> WriteEntry {
        let mut entry =
            WriteEntry { disk_id: 1, kind: 1, start_sector: 8, sectors: 8, flags: 0, time_delta_us: 0 };
        change(&mut entry);
        entry
    }

    fn check(entry: WriteEntry, base: bool) -> Result<u64, String> {
        convert(&[entry], &HashMap::from([(DiskId(1), 16 * 512)]), base, |delta| delta, &mut Vec::new())
    }

    #[test]
    fn entries_out_of_bounds_of_unknown_kind_disk_or_flags_are_refused() {
        assert_eq!(check(entry(|_| {}), false), Ok(4096));
        assert_eq!(check(entry(|e| e.kind = 2), true), Ok(0));
        let flush = |e: &mut WriteEntry| (e.kind, e.sectors, e.disk_id) = (4, 0, 0);
        assert_eq!(check(entry(flush), false), Ok(0));
        assert!(check(entry(flush), true).is_err());
        let bad: [fn(&mut WriteEntry); 9] = [
            |e| e.disk_id = 2,
            |e| e.disk_id = 0,
            |e| e.kind = 0,
            |e| e.kind = 9,
            |e| e.kind = 4,
            |e| e.sectors = 0,
            |e| e.start_sector = 9,
            |e| (e.start_sector, e.sectors) = (u64::MAX, u32::MAX),
            |e| e.flags = 8,
        ];
        for (index, change) in bad.into_iter().enumerate() {
            assert!(check(entry(change), false).is_err(), "case {index}");
        }
        let none = convert(&[], &HashMap::new(), false, |delta| delta, &mut Vec::new());
        assert!(none.is_err());
        let many = vec![entry(flush); FRAME_MAX_ENTRIES + 1];
        assert!(convert(&many, &HashMap::new(), false, |delta| delta, &mut Vec::new()).is_err());
    }

    #[test]
    fn payload_and_checksums_must_agree() {
        let payload = vec![7; 6144];
        let sums: Vec<u32> = payload.chunks(4096).map(crc32c::crc32c).collect();
        assert_eq!(verify_payload(&payload, 6144, &sums), Ok(()));
        assert!(verify_payload(&payload, 4096, &sums).is_err());
        assert!(verify_payload(&payload, 6144, &sums[..1]).is_err());
        let mut damaged = payload.clone();
        damaged[5000] ^= 1;
        assert!(verify_payload(&damaged, 6144, &sums).unwrap_err().contains("checksum 1"));
    }
}
