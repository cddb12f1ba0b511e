//! Captured writes on their way into a frame.

use tidemark_proto::limits::{CHECKSUM_PIECE_BYTES, FRAME_MAX_ENTRIES, FRAME_TARGET_BYTES};
use tidemark_proto::v1::{WriteEntry, WriteKind, Writes};

use crate::capture::{Issue, flags};

/// Bits of `WriteEntry.flags` that have a meaning; the appliance refuses others.
const FLAGS_KNOWN: u32 = flags::FUA | flags::PREFLUSH | flags::SECURE_ERASE;

/// The writes of the frame being filled. The payload is copied from the ring once; its checksums are taken from the
/// copy while that is still in the processor's cache.
#[derive(Debug, Default)]
pub(super) struct Batch {
    first_lsn: u64,
    boottime_us: u64,
    entries: Vec<WriteEntry>,
    payload: Vec<u8>,
    checksums: Checksums,
}

impl Batch {
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether a write of `bytes` still belongs into this frame.
    pub(super) fn has_room(&self, bytes: usize) -> bool {
        self.entries.is_empty()
            || (self.entries.len() < FRAME_MAX_ENTRIES
                && self.payload.len().saturating_add(bytes) <= FRAME_TARGET_BYTES)
    }

    /// Appends a write. LSNs are dense: the caller gives the one after the last.
    pub(super) fn push(&mut self, lsn: u64, disk_id: u32, issue: &Issue<'_>) {
        let time_us = issue.boottime_ns / 1000;
        if self.entries.is_empty() {
            self.first_lsn = lsn;
            self.boottime_us = time_us;
        }
        // A flush has no place, whatever the request says.
        let (start_sector, sectors) =
            if issue.kind == WriteKind::Flush { (0, 0) } else { (issue.start_sector, issue.sectors) };
        self.entries.push(WriteEntry {
            disk_id,
            kind: issue.kind.into(),
            start_sector,
            sectors,
            flags: issue.flags & FLAGS_KNOWN,
            time_delta_us: time_us.saturating_sub(self.boottime_us),
        });
        if issue.kind == WriteKind::Data {
            for part in issue.parts.iter() {
                self.checksums.append(&mut self.payload, part);
            }
        }
    }

    /// Takes the frame's content out and starts anew.
    pub(super) fn take(&mut self) -> Writes {
        let mut payload = std::mem::take(&mut self.payload);
        if payload.capacity() / 2 > payload.len() {
            // The window counts payload bytes; memory must not be twice that.
            payload.shrink_to_fit();
        }
        Writes {
            first_lsn: self.first_lsn,
            boottime_us: self.boottime_us,
            entries: std::mem::take(&mut self.entries),
            payload: payload.into(),
            crc32c: std::mem::take(&mut self.checksums).finish(),
        }
    }
}

/// CRC-32C of each [`CHECKSUM_PIECE_BYTES`] of a payload that grows.
#[derive(Debug, Default)]
pub(super) struct Checksums {
    done: Vec<u32>,
    open: u32,
    open_bytes: usize,
}

impl Checksums {
    fn append(&mut self, payload: &mut Vec<u8>, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let length = (CHECKSUM_PIECE_BYTES - self.open_bytes).min(bytes.len());
            let (piece, rest) = bytes.split_at(length);
            let start = payload.len();
            payload.extend_from_slice(piece);
            // From the copy, not from the ring: what is checked is what is sent.
            self.count(payload.get(start..).unwrap_or_default());
            bytes = rest;
        }
    }

    fn count(&mut self, piece: &[u8]) {
        self.open = crc32c::crc32c_append(self.open, piece);
        self.open_bytes += piece.len();
        if self.open_bytes == CHECKSUM_PIECE_BYTES {
            self.done.push(self.open);
            self.open = 0;
            self.open_bytes = 0;
        }
    }

    fn finish(mut self) -> Vec<u32> {
        if self.open_bytes > 0 {
            self.done.push(self.open);
        }
        self.done
    }

    /// The checksums of a whole payload.
    pub(super) fn of(payload: &[u8]) -> Vec<u32> {
        payload.chunks(CHECKSUM_PIECE_BYTES).map(crc32c::crc32c).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_of_a_payload_in_odd_pieces_are_those_of_the_whole() {
        let data: Vec<u8> = (0..20_000u32).map(|value| (value % 251) as u8).collect();
        let mut checksums = Checksums::default();
        let mut payload = Vec::new();
        for piece in data.chunks(1536) {
            checksums.append(&mut payload, piece);
        }
        assert_eq!(payload, data);
        assert_eq!(checksums.finish(), Checksums::of(&data));
    }
}
