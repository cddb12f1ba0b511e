//! Initial copy and resync: what is being read and what awaits its acknowledgement.

use std::collections::VecDeque;

use tidemark_proto::limits::{PIECE_BYTES, PIECE_FINE_BYTES, QUESTIONS_MAX};
use tidemark_proto::pieces::{self, HashKey, Piece, is_zero};
use tidemark_proto::v1::{BaseBlocks, WriteEntry, WriteKind};

use super::batch::Checksums;
use super::limits::{COPY_OUTSTANDING_MAX_BYTES, COPY_RANGES_MAX, READ_MAX_BYTES, REREADS_MAX};
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
    /// Whether it is asked about first, and how.
    pub hashing: Option<Hashing>,
}

impl ReadRequest {
    /// Makes what the engine wants of the range's content, and takes that only if it must be kept. It hashes: call it
    /// where the read was made, not where the engine lives.
    #[must_use]
    pub fn content(&self, read: &mut Vec<u8>) -> ReadContent {
        let Some(hashing) = &self.hashing else {
            return ReadContent { pieces: Vec::new(), blocks: Some(std::mem::take(read)) };
        };
        let pieces = pieces::cut(&hashing.key, self.start_sector, read, hashing.piece_bytes);
        ReadContent { pieces, blocks: hashing.keep.then(|| std::mem::take(read)) }
    }
}

/// How a range that is to be asked about is hashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hashing {
    /// The session's key.
    pub key: HashKey,
    /// Bytes of a piece.
    pub piece_bytes: u64,
    /// Whether the content itself is wanted, too.
    pub keep: bool,
}

/// What came of a read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadContent {
    /// Pieces to ask about.
    pub pieces: Vec<Piece>,
    /// The content, where it was asked for.
    pub blocks: Option<Vec<u8>>,
}

/// How a range travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Method {
    /// It is sent.
    Send,
    /// It is asked about and, not being kept, read again where it is not known.
    Ask,
    /// It is kept and asked about: what a template has can be named at once.
    AskKept,
    /// It is kept and asked about in small pieces; those that are not known are named or sent.
    AskFine,
}

/// Bytes of a larger piece.
#[derive(Debug, Clone, Copy)]
pub(super) struct PieceBytes(pub(super) u64);

impl Default for PieceBytes {
    fn default() -> Self {
        Self(PIECE_BYTES)
    }
}

impl Method {
    pub(super) fn hashing(self, key: Option<HashKey>, piece_bytes: PieceBytes) -> Option<Hashing> {
        let (piece_bytes, keep) = match self {
            Self::Send => return None,
            Self::Ask => (piece_bytes.0, false),
            Self::AskKept => (piece_bytes.0, true),
            Self::AskFine => (PIECE_FINE_BYTES, true),
        };
        key.map(|key| Hashing { key, piece_bytes, keep })
    }
}

#[derive(Debug)]
enum Stage {
    /// The driver reads it.
    Reading(Method),
    /// A question is on its way. Where nothing more is to be sent, the frame up to which the answer speaks settles it.
    Asked(Question),
    /// Settled by the acknowledgement of this frame.
    Carried(u64),
}

/// A question that waits for its answer.
#[derive(Debug)]
pub(super) struct Question {
    /// The last frame before it: once that is durable, so is what the answer compared with.
    pub(super) seq: u64,
    /// How its range travels.
    pub(super) method: Method,
    pub(super) pieces: Vec<Piece>,
    pub(super) blocks: Option<Vec<u8>>,
}

#[derive(Debug)]
struct Outstanding {
    token: u64,
    place: Finished,
    stage: Stage,
    /// Bytes that it holds, or has the reader hold.
    held_bytes: u64,
    /// Became dirty again since: its acknowledgement clears nothing.
    again: bool,
}

/// A range that was not known, to be read for sending.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reread {
    pub(super) place: Finished,
    pub(super) method: Method,
}

/// Ranges on their way from the disk to the journal.
#[derive(Debug, Default)]
pub(super) struct Copy {
    outstanding: Vec<Outstanding>,
    rereads: VecDeque<Reread>,
    /// Questions handed over that have no answer yet.
    unanswered: usize,
    next_token: u64,
}

/// A range on its way, and the line under which it was read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Finished {
    pub(super) slot: Slot,
    pub(super) range: BlockRange,
    pub(super) line: u64,
}

impl Copy {
    pub(super) fn has_room(&self, method: Method) -> bool {
        let bytes: u64 = self.outstanding.iter().map(|read| read.held_bytes).sum();
        let asks =
            |read: &&Outstanding| matches!(read.stage, Stage::Reading(method) if method != Method::Send);
        let questions = self.unanswered + self.outstanding.iter().filter(asks).count();
        bytes.saturating_add(READ_MAX_BYTES) <= COPY_OUTSTANDING_MAX_BYTES
            && self.outstanding.len() < COPY_RANGES_MAX
            && (method == Method::Send || questions < QUESTIONS_MAX)
    }

    pub(super) fn idle(&self, slot: Slot) -> bool {
        self.outstanding.iter().all(|read| read.place.slot != slot)
    }

    /// An outstanding range that touches this one, if any.
    pub(super) fn conflict(&self, slot: Slot, range: BlockRange) -> Option<BlockRange> {
        self.outstanding
            .iter()
            .map(|read| &read.place)
            .find(|place| place.slot == slot && place.range.overlaps(range))
            .map(|place| place.range)
    }

    pub(super) fn begin(
        &mut self,
        place: Finished,
        method: Method,
        size_bytes: u64,
        hashing: Option<Hashing>,
    ) -> ReadRequest {
        self.next_token += 1;
        let token = self.next_token;
        let Finished { slot, range, line } = place;
        let held_bytes = range.blocks() * BLOCK_BYTES;
        let method = if hashing.is_some() { method } else { Method::Send };
        let stage = Stage::Reading(method);
        self.outstanding.push(Outstanding { token, place, stage, held_bytes, again: false });
        let start = range.start.saturating_mul(BLOCK_BYTES);
        let end = range.end.saturating_mul(BLOCK_BYTES).min(size_bytes);
        ReadRequest {
            token,
            slot,
            start_sector: range.start_sector(),
            length_bytes: usize::try_from(end.saturating_sub(start)).unwrap_or(0),
            line_lsn: line,
            hashing,
        }
    }

    /// The blocks became dirty again: what is on its way does not count.
    pub(super) fn again(&mut self, slot: Slot, range: BlockRange) {
        for read in &mut self.outstanding {
            if read.place.slot == slot && read.place.range.overlaps(range) {
                read.again = true;
            }
        }
    }

    /// The read came back. `None` when its disk or session is gone or its blocks became dirty meanwhile.
    pub(super) fn finish(&mut self, token: u64, good: bool) -> Option<Finished> {
        let reading = |read: &Outstanding| read.token == token && matches!(read.stage, Stage::Reading(_));
        let index = self.outstanding.iter().position(reading)?;
        let read = self.outstanding.get(index)?;
        if read.again || !good {
            self.outstanding.swap_remove(index);
            return None;
        }
        Some(read.place)
    }

    fn find(&mut self, token: u64) -> Option<&mut Outstanding> {
        self.outstanding.iter_mut().find(|read| read.token == token)
    }

    /// How a range that is being read travels.
    pub(super) fn method_of(&self, token: u64) -> Method {
        let read = self.outstanding.iter().find(|read| read.token == token);
        match read.map(|read| &read.stage) {
            Some(Stage::Reading(method)) => *method,
            _ => Method::Send,
        }
    }

    /// The frame that carries a finished read, with so many bytes of it.
    pub(super) fn sent_in(&mut self, token: u64, seq: u64, bytes: u64) {
        if let Some(read) = self.find(token) {
            read.stage = Stage::Carried(seq);
            read.held_bytes = bytes;
        }
    }

    /// The question about a finished read is handed over.
    pub(super) fn asked(&mut self, token: u64, question: Question) {
        if let Some(read) = self.find(token) {
            read.held_bytes = question.blocks.as_ref().map_or(0, |blocks| blocks.len() as u64);
            read.stage = Stage::Asked(question);
            self.unanswered += 1;
        }
    }

    /// An answer came. `None` when its range became dirty meanwhile, or nobody asked.
    pub(super) fn answered(&mut self, token: u64) -> Option<(Finished, Question)> {
        let asked = |read: &Outstanding| read.token == token && matches!(read.stage, Stage::Asked(_));
        let index = self.outstanding.iter().position(asked);
        // Of a disk that is gone nothing is left but the question.
        self.unanswered = self.unanswered.saturating_sub(1);
        let read = self.outstanding.swap_remove(index?);
        match read.stage {
            Stage::Asked(question) if !read.again => Some((read.place, question)),
            _ => None,
        }
    }

    /// A range that the acknowledgement of frame `seq` settles, which carries so many bytes of it.
    pub(super) fn carried(&mut self, place: Finished, seq: u64, held_bytes: u64) {
        let stage = Stage::Carried(seq);
        self.next_token += 1;
        self.outstanding.push(Outstanding { token: self.next_token, place, stage, held_bytes, again: false });
    }

    /// Has a range read once more. Beyond the limit the search for pending blocks finds it.
    pub(super) fn reread(&mut self, reread: Reread) {
        if self.rereads.len() < REREADS_MAX {
            self.rereads.push_back(reread);
        }
    }

    pub(super) fn next_reread(&mut self, slot: Slot) -> Option<Reread> {
        let index = self.rereads.iter().position(|reread| reread.place.slot == slot)?;
        self.rereads.remove(index)
    }

    pub(super) fn has_reread(&self, slot: Slot) -> Option<Method> {
        self.rereads.iter().find(|reread| reread.place.slot == slot).map(|reread| reread.method)
    }

    /// The session is gone, and with it the key and all answers: what was asked about is read again.
    pub(super) fn forget_questions(&mut self) {
        self.outstanding
            .retain(|read| matches!(read.stage, Stage::Reading(Method::Send) | Stage::Carried(_)));
        self.rereads.clear();
        self.unanswered = 0;
    }

    /// Nothing on its way counts any more. Reads and answers that still come are of tokens that nobody knows.
    pub(super) fn forget(&mut self) {
        *self = Self { next_token: self.next_token, unanswered: 0, ..Self::default() };
    }

    /// Ranges that an acknowledgement up to `seq` settles.
    pub(super) fn acked(&mut self, seq: u64) -> Vec<(Slot, BlockRange)> {
        let mut settled = Vec::new();
        self.outstanding.retain(|read| {
            let done = matches!(read.stage, Stage::Carried(carried) if carried <= seq);
            if done && !read.again {
                settled.push((read.place.slot, read.place.range));
            }
            !done
        });
        settled
    }

    pub(super) fn slot_of(&self, token: u64) -> Option<Slot> {
        self.outstanding.iter().find(|read| read.token == token).map(|read| read.place.slot)
    }

    pub(super) fn forget_disk(&mut self, slot: Slot) {
        self.outstanding.retain(|read| read.place.slot != slot);
        self.rereads.retain(|reread| reread.place.slot != slot);
    }
}

/// Blocks as a frame's body: runs of zero blocks travel without payload. `runs` are the first sector and the sectors of
/// what lies in `data` one after another; only the last may end within a block.
pub(super) fn base_blocks(line_lsn: u64, disk_id: u32, runs: &[(u64, u64)], mut data: Vec<u8>) -> BaseBlocks {
    let mut entries: Vec<WriteEntry> = Vec::new();
    let (mut zero_blocks, mut at) = (0_usize, 0_usize);
    for (start_sector, sectors) in runs {
        let until = at.saturating_add(usize::try_from(sectors * 512).unwrap_or(usize::MAX)).min(data.len());
        let mut sector = *start_sector;
        for block in data.get(at..until).unwrap_or_default().chunks(block_bytes()) {
            let kind = if is_zero(block) { WriteKind::Zeroes } else { WriteKind::Data };
            let sectors = u32::try_from(block.len() / 512).unwrap_or(0);
            match entries.last_mut() {
                Some(last)
                    if last.kind == i32::from(kind)
                        && last.start_sector + u64::from(last.sectors) == sector =>
                {
                    last.sectors += sectors;
                }
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
        at = until;
    }
    if zero_blocks > 0 {
        squeeze(&mut data);
    }
    let crc32c = Checksums::of(&data);
    BaseBlocks { line_lsn, entries, payload: data.into(), crc32c, ..BaseBlocks::default() }
}

/// Pieces that were offered as a frame's body, each an entry of its own with its hash. `data` is their content, one after
/// another.
pub(super) fn named_blocks(line_lsn: u64, disk_id: u32, pieces: &[Piece], data: Vec<u8>) -> BaseBlocks {
    let entry = |piece: &Piece| WriteEntry {
        disk_id,
        kind: WriteKind::Data.into(),
        start_sector: piece.start_sector,
        sectors: piece.sectors,
        flags: 0,
        time_delta_us: 0,
    };
    let hashes: Vec<u8> = pieces.iter().flat_map(|piece| piece.hash).collect();
    let crc32c = Checksums::of(&data);
    let entries = pieces.iter().map(entry).collect();
    BaseBlocks { line_lsn, entries, payload: data.into(), crc32c, hashes: hashes.into() }
}

fn block_bytes() -> usize {
    usize::try_from(BLOCK_SECTORS * 512).unwrap_or(usize::MAX)
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
        let base = base_blocks(7, 1, &[(80, 41)], data);
        let runs: Vec<_> = base.entries.iter().map(|run| (run.kind, run.start_sector, run.sectors)).collect();
        assert_eq!(runs, [(2, 80, 8), (1, 88, 8), (2, 96, 16), (1, 112, 9)]);
        assert_eq!(base.payload.len(), 2 * 4096 + 512);
        assert_eq!((base.payload[17], base.payload[4096], base.payload[8192]), (1, 2, 3));
        assert_eq!(base.crc32c.len(), 3);
        let zero = base_blocks(7, 1, &[(0, 16)], vec![0; 8192]);
        assert!(zero.payload.is_empty() && zero.crc32c.is_empty() && zero.entries.len() == 1);
    }

    #[test]
    fn runs_that_lie_apart_are_entries_of_their_own() {
        let mut data = vec![5; 4 * 4096];
        data[4096..8192].fill(0);
        let base = base_blocks(7, 1, &[(8, 16), (64, 8), (72, 8)], data);
        let runs: Vec<_> = base.entries.iter().map(|run| (run.kind, run.start_sector, run.sectors)).collect();
        assert_eq!(runs, [(1, 8, 8), (2, 16, 8), (1, 64, 16)]);
        assert_eq!(base.payload.len(), 3 * 4096);
    }

    #[test]
    fn blocks_dirty_again_are_not_settled_by_the_acknowledgement_of_their_older_content() {
        let slot = Slot(0);
        let mut copy = Copy::default();
        let mut begin = |start, end| {
            let place = Finished { slot, range: BlockRange { start, end }, line: 5 };
            copy.begin(place, Method::Send, 1 << 20, None).token
        };
        let (first, second) = (begin(0, 4), begin(4, 8));
        for (token, seq) in [(first, 1), (second, 2)] {
            assert!(copy.finish(token, true).is_some());
            copy.sent_in(token, seq, 4 * 4096);
        }
        copy.again(slot, BlockRange { start: 3, end: 4 });
        assert_eq!(copy.acked(2), [(slot, BlockRange { start: 4, end: 8 })]);
        assert!(copy.idle(slot));
    }

    #[test]
    fn ranges_that_are_known_are_bounded_until_they_are_acknowledged() {
        let mut copy = Copy::default();
        let mut ranges = 0;
        while copy.has_room(Method::Ask) {
            let range = BlockRange { start: 2 * ranges, end: 2 * ranges + 1 };
            copy.carried(Finished { slot: Slot(0), range, line: 5 }, ranges, 0);
            ranges += 1;
        }
        assert_eq!(ranges, COPY_RANGES_MAX as u64);
        assert!(!copy.has_room(Method::Send));
        assert_eq!(copy.acked(9).len(), 10);
        assert!(copy.has_room(Method::Send));
    }
}
