//! The chain hash of a stream: each frame's hash covers the one before it and all of its own content, the payload
//! through its checksums. Two splitters that share a past and then differ (a reverted snapshot, a clone) have different
//! chains from their first different frame on, so a resumed stream shows a fork before any of it is taken.
//!
//! Input, integers little-endian: previous chain (32 bytes), seq u64, generation u64, body tag u8, then per body:
//! - 10 writes: first LSN u64, boot time u64, entry count u32, entries, checksum count u32, checksums u32 each
//! - 11 base: line LSN u64, entry count u32, entries, checksum count u32, checksums
//! - 12 line start: LSN, gap-from LSN, boot time u64 each, cause u32, disk count u32, disks u32 each
//! - 13 line end: LSN, boot time, disk count u32, disks
//! - 14 marker: LSN, boot time, bookmark id (length u32, bytes), name (length u32, bytes); not its level, which older
//!   versions do not have
//! - 15 heartbeat: LSN, boot time, clean u8
//! - 16 resize: LSN, disk u32, size u64, boot time u64
//!
//! Entry: disk u32, kind u32, start sector u64, sectors u32, flags u32, time delta u64.

use crate::ids::ChainHash;
use crate::v1::{Frame, WriteEntry, frame::Body};

/// The chain after `frame`, given the chain before it. The frame's own `chain` and ring position do not take part:
/// the position belongs to one capture, the content to the VM.
#[must_use]
pub fn next(previous: &ChainHash, frame: &Frame) -> ChainHash {
    let mut input = Input(blake3::Hasher::new());
    input.bytes(&previous.0);
    input.u64(frame.seq);
    input.u64(frame.generation);
    match &frame.body {
        None => input.u8(0),
        Some(Body::Writes(writes)) => {
            input.u8(10);
            input.u64(writes.first_lsn);
            input.u64(writes.boottime_us);
            input.entries(&writes.entries);
            input.list(&writes.crc32c);
        }
        Some(Body::Base(base)) => {
            input.u8(11);
            input.u64(base.line_lsn);
            input.entries(&base.entries);
            input.list(&base.crc32c);
        }
        Some(Body::LineStart(line)) => {
            input.u8(12);
            input.u64(line.lsn);
            input.u64(line.gap_from_lsn);
            input.u64(line.boottime_us);
            input.u32(line.cause.cast_unsigned());
            input.list(&line.disk_ids);
        }
        Some(Body::LineEnd(line)) => {
            input.u8(13);
            input.u64(line.lsn);
            input.u64(line.boottime_us);
            input.list(&line.disk_ids);
        }
        Some(Body::Marker(marker)) => {
            input.u8(14);
            input.u64(marker.lsn);
            input.u64(marker.boottime_us);
            input.text(&marker.bookmark_id);
            input.text(&marker.name);
        }
        Some(Body::Heartbeat(heartbeat)) => {
            input.u8(15);
            input.u64(heartbeat.lsn);
            input.u64(heartbeat.boottime_us);
            input.u8(u8::from(heartbeat.clean));
        }
        Some(Body::Resize(resize)) => {
            input.u8(16);
            input.u64(resize.lsn);
            input.u32(resize.disk_id);
            input.u64(resize.size_bytes);
            input.u64(resize.boottime_us);
        }
    }
    ChainHash(*input.0.finalize().as_bytes())
}

struct Input(blake3::Hasher);

impl Input {
    fn bytes(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }
    fn u8(&mut self, value: u8) {
        self.bytes(&[value]);
    }
    fn u32(&mut self, value: u32) {
        self.bytes(&value.to_le_bytes());
    }
    fn u64(&mut self, value: u64) {
        self.bytes(&value.to_le_bytes());
    }
    fn length(&mut self, length: usize) {
        // Longer than any message may be; saturating keeps the function total.
        self.u32(u32::try_from(length).unwrap_or(u32::MAX));
    }
    fn text(&mut self, text: &str) {
        self.length(text.len());
        self.bytes(text.as_bytes());
    }
    fn list(&mut self, list: &[u32]) {
        self.length(list.len());
        for value in list {
            self.u32(*value);
        }
    }
    fn entries(&mut self, entries: &[WriteEntry]) {
        self.length(entries.len());
        for entry in entries {
            self.u32(entry.disk_id);
            self.u32(entry.kind.cast_unsigned());
            self.u64(entry.start_sector);
            self.u32(entry.sectors);
            self.u32(entry.flags);
            self.u64(entry.time_delta_us);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::Writes;

    fn frame() -> Frame {
        Frame {
            seq: 3,
            generation: 1,
            body: Some(Body::Writes(Writes {
                first_lsn: 9,
                boottime_us: 5,
                entries: vec![WriteEntry {
                    disk_id: 1,
                    kind: 1,
                    start_sector: 8,
                    sectors: 8,
                    flags: 0,
                    time_delta_us: 2,
                }],
                payload: vec![0; 4096].into(),
                crc32c: vec![0x1234_5678],
            })),
            ..Frame::default()
        }
    }

    #[test]
    fn every_field_of_the_content_changes_the_chain_and_the_position_does_not() {
        let reference = next(&ChainHash::default(), &frame());
        let mut moved = frame();
        moved.ring_position = 77;
        assert_eq!(next(&ChainHash::default(), &moved), reference);
        assert_ne!(next(&ChainHash([1; 32]), &frame()), reference);
        let changes: [fn(&mut Frame); 2] = [|frame| frame.seq += 1, |frame| frame.generation += 1];
        for change in changes {
            let mut other = frame();
            change(&mut other);
            assert_ne!(next(&ChainHash::default(), &other), reference);
        }
        let changes: [fn(&mut Writes); 5] = [
            |writes| writes.first_lsn += 1,
            |writes| writes.entries[0].start_sector += 1,
            |writes| writes.entries[0].time_delta_us += 1,
            |writes| writes.crc32c[0] ^= 1,
            |writes| writes.entries.clear(),
        ];
        for change in changes {
            let mut other = frame();
            if let Some(Body::Writes(writes)) = &mut other.body {
                change(writes);
            }
            assert_ne!(next(&ChainHash::default(), &other), reference);
        }
    }
}
