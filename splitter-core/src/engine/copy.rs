//! Initial copy and resync: what is being read and what awaits its acknowledgement.

use tidemark_proto::v1::{BaseBlocks, WriteEntry, WriteKind};

use super::batch::Checksums;
use super::limits::{COPY_OUTSTANDING_MAX_BYTES, READ_MAX_BYTES};
use crate::capture::{BLOCK_BYTES, BLOCK_SECTORS, BlockRange, Slot};

/// A range that the driver should read, directly from the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadRequest {
    /// Names this read in [`super::Engine::read_done`].
    pub token: u64,
    /// The disk.
    pub slot: Slot,
    /// First sector.
    pub start_sector: u64,
    /// Bytes, a multiple of 512 and at most [`READ_MAX_BYTES`].
    pub length_bytes: usize,
    /// The line under which the blocks are placed.
    pub line_lsn: u64,
}

#[derive(Debug, Clone, Copy)]
struct Outstanding {
    token: u64,
    slot: Slot,
    range: BlockRange,
    line: u64,
    /// The frame that carries it, once read.
    seq: Option<u64>,
    /// Became dirty again since: its acknowledgement clears nothing.
    again: bool,
}

/// Ranges on their way from the disk to the journal.
#[derive(Debug, Default)]
pub(super) struct Copy {
    outstanding: Vec<Outstanding>,
    next_token: u64,
}

/// A read that came back and is still wanted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Finished {
    pub(super) slot: Slot,
    pub(super) range: BlockRange,
    pub(super) line: u64,
}

impl Copy {
    pub(super) fn has_room(&self) -> bool {
        let bytes: u64 = self.outstanding.iter().map(|read| read.range.blocks() * BLOCK_BYTES).sum();
        bytes.saturating_add(READ_MAX_BYTES) <= COPY_OUTSTANDING_MAX_BYTES
    }

    pub(super) fn idle(&self, slot: Slot) -> bool {
        self.outstanding.iter().all(|read| read.slot != slot)
    }

    /// End of an outstanding range that touches this one, if any.
    pub(super) fn conflict(&self, slot: Slot, range: BlockRange) -> Option<BlockRange> {
        self.outstanding
            .iter()
            .find(|read| read.slot == slot && read.range.overlaps(range))
            .map(|read| read.range)
    }

    pub(super) fn begin(&mut self, slot: Slot, range: BlockRange, line: u64, size_bytes: u64) -> ReadRequest {
        self.next_token += 1;
        let token = self.next_token;
        self.outstanding.push(Outstanding { token, slot, range, line, seq: None, again: false });
        let start = range.start.saturating_mul(BLOCK_BYTES);
        let end = range.end.saturating_mul(BLOCK_BYTES).min(size_bytes);
        ReadRequest {
            token,
            slot,
            start_sector: range.start_sector(),
            length_bytes: usize::try_from(end.saturating_sub(start)).unwrap_or(0),
            line_lsn: line,
        }
    }

    /// The blocks became dirty again: what is on its way does not count.
    pub(super) fn again(&mut self, slot: Slot, range: BlockRange) {
        for read in &mut self.outstanding {
            if read.slot == slot && read.range.overlaps(range) {
                read.again = true;
            }
        }
    }

    /// The read came back. `None` when its disk is gone or its blocks became dirty meanwhile.
    pub(super) fn finish(&mut self, token: u64, good: bool) -> Option<Finished> {
        let index = self.outstanding.iter().position(|read| read.token == token && read.seq.is_none())?;
        let read = *self.outstanding.get(index)?;
        if read.again || !good {
            self.outstanding.swap_remove(index);
            return None;
        }
        Some(Finished { slot: read.slot, range: read.range, line: read.line })
    }

    /// The frame that carries a finished read.
    pub(super) fn sent_in(&mut self, token: u64, seq: u64) {
        if let Some(read) = self.outstanding.iter_mut().find(|read| read.token == token) {
            read.seq = Some(seq);
        }
    }

    /// Ranges that an acknowledgement up to `seq` settles.
    pub(super) fn acked(&mut self, seq: u64) -> Vec<(Slot, BlockRange)> {
        let mut settled = Vec::new();
        self.outstanding.retain(|read| {
            let done = read.seq.is_some_and(|sent| sent <= seq);
            if done && !read.again {
                settled.push((read.slot, read.range));
            }
            !done
        });
        settled
    }

    pub(super) fn slot_of(&self, token: u64) -> Option<Slot> {
        self.outstanding.iter().find(|read| read.token == token).map(|read| read.slot)
    }

    pub(super) fn forget_disk(&mut self, slot: Slot) {
        self.outstanding.retain(|read| read.slot != slot);
    }
}

/// The blocks of a read as a frame's body: runs of zero blocks travel without payload.
pub(super) fn base_blocks(line_lsn: u64, disk_id: u32, start_sector: u64, mut data: Vec<u8>) -> BaseBlocks {
    let mut entries: Vec<WriteEntry> = Vec::new();
    let mut sector = start_sector;
    let mut zero_blocks = 0_usize;
    for block in data.chunks(block_bytes()) {
        let kind = if is_zero(block) { WriteKind::Zeroes } else { WriteKind::Data };
        let sectors = u32::try_from(block.len() / 512).unwrap_or(0);
        match entries.last_mut() {
            Some(last) if last.kind == i32::from(kind) => last.sectors += sectors,
            _ => entries.push(WriteEntry {
                disk_id,
                kind: kind.into(),
                start_sector: sector,
                sectors,
                flags: 0,
                time_delta_us: 0,
            }),
        }
        zero_blocks += usize::from(kind == WriteKind::Zeroes);
        sector += u64::from(sectors);
    }
    if zero_blocks > 0 {
        squeeze(&mut data);
    }
    let crc32c = Checksums::of(&data);
    BaseBlocks { line_lsn, entries, payload: data.into(), crc32c }
}

fn block_bytes() -> usize {
    usize::try_from(BLOCK_SECTORS * 512).unwrap_or(usize::MAX)
}

fn is_zero(block: &[u8]) -> bool {
    // Words, not bytes: this runs over every block of the disk.
    let (head, words, tail) = (block.chunks_exact(8), block.len() / 8, block.len() % 8);
    let rest = block.get(words * 8..words * 8 + tail).unwrap_or_default();
    head.fold(0, |sum, word| sum | <[u8; 8]>::try_from(word).map_or(1, u64::from_ne_bytes)) == 0
        && rest.iter().all(|byte| *byte == 0)
}

/// Removes zero blocks, moving the others together.
fn squeeze(data: &mut Vec<u8>) {
    let mut kept = 0;
    let mut at = 0;
    while at < data.len() {
        let end = at.saturating_add(block_bytes()).min(data.len());
        if !data.get(at..end).is_none_or(is_zero) {
            data.copy_within(at..end, kept);
            kept += end - at;
        }
        at = end;
    }
    data.truncate(kept);
    data.shrink_to_fit();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_blocks_travel_without_payload() {
        let mut data = vec![0; 5 * 4096 + 512];
        data[4096 + 17] = 1;
        data[4 * 4096] = 2;
        data[5 * 4096] = 3;
        let base = base_blocks(7, 1, 80, data);
        let runs: Vec<_> = base.entries.iter().map(|run| (run.kind, run.start_sector, run.sectors)).collect();
        assert_eq!(runs, [(2, 80, 8), (1, 88, 8), (2, 96, 16), (1, 112, 9)]);
        assert_eq!(base.payload.len(), 2 * 4096 + 512);
        assert_eq!((base.payload[17], base.payload[4096], base.payload[8192]), (1, 2, 3));
        assert_eq!(base.crc32c.len(), 3);
        let zero = base_blocks(7, 1, 0, vec![0; 8192]);
        assert!(zero.payload.is_empty() && zero.crc32c.is_empty() && zero.entries.len() == 1);
    }

    #[test]
    fn blocks_dirty_again_are_not_settled_by_the_acknowledgement_of_their_older_content() {
        let slot = Slot(0);
        let mut copy = Copy::default();
        let first = copy.begin(slot, BlockRange { start: 0, end: 4 }, 5, 1 << 20).token;
        let second = copy.begin(slot, BlockRange { start: 4, end: 8 }, 5, 1 << 20).token;
        for (token, seq) in [(first, 1), (second, 2)] {
            assert!(copy.finish(token, true).is_some());
            copy.sent_in(token, seq);
        }
        copy.again(slot, BlockRange { start: 3, end: 4 });
        assert_eq!(copy.acked(2), [(slot, BlockRange { start: 4, end: 8 })]);
        assert!(copy.idle(slot));
    }
}
