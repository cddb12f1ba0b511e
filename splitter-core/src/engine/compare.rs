//! Hashes first: questions about what was read, and what becomes of the answers.
//!
//! The appliance compares with what the journal has at the place *below the line*: the version with the highest LSN up
//! to the line's. If that is what was read, a base block of the line would change no view, so none is sent: the range
//! is settled as soon as the frames that came before the question are durable. What was captured above the line plays
//! no part; neither do blocks of the line itself, as a range is asked about only while nothing of it is on its way.

use tidemark_proto::limits::SECTOR_BYTES;
use tidemark_proto::pieces::{self, Piece};
use tidemark_proto::v1::{HashAnswer, HashQuestion};

use super::copy::{Finished, Method, Question, ReadContent, Reread};
use super::core::{Engine, Kernel};
use crate::capture::{BlockRange, Slot};

impl Engine {
    /// The next question to send. It comes behind every frame made before it.
    pub fn next_question(&mut self) -> Option<HashQuestion> {
        let (seq, _) = self.questions.front()?;
        if !self.connected || *seq > self.window.sent_seq() {
            return None;
        }
        self.questions.pop_front().map(|(_, question)| question)
    }

    /// Asks about what a read brought.
    pub(super) fn ask(&mut self, token: u64, place: &Finished, content: ReadContent) {
        let Some(disk_id) = self.disks.get(&place.slot).map(|disk| disk.id.0) else { return };
        let seq = self.window.last_seq();
        let ReadContent { pieces, blocks } = content;
        self.questions.push_back((seq, pieces::ask(token, disk_id, place.line, &pieces)));
        self.copy.asked(token, Question { seq, pieces, blocks });
    }

    /// The appliance answered a question. Answers to questions of an earlier session must not be passed on.
    pub fn answered(&mut self, kernel: &Kernel<'_>, answer: &HashAnswer, now_us: u64) {
        self.now_us = now_us;
        self.look(kernel.ring);
        let Some((place, mut question)) = self.copy.answered(answer.id) else { return };
        let (mut known, mut unknown) = (Vec::new(), Vec::new());
        for (index, piece) in question.pieces.iter().enumerate() {
            let side = if pieces::is_known(answer, index) { &mut known } else { &mut unknown };
            join(side, piece);
        }
        match question.blocks.take() {
            Some(blocks) => self.send_unknown(place, &question, &unknown, &blocks),
            None => self.read_unknown(place, question.seq, &known, &unknown),
        }
    }

    /// Settles what is known and has the rest read again: in small pieces, unless nothing at all was known.
    fn read_unknown(&mut self, place: Finished, seq: u64, known: &[(u64, u64)], unknown: &[(u64, u64)]) {
        let bytes = |runs: &[(u64, u64)]| {
            runs.iter().fold(0, |sum: u64, run| sum.saturating_add(run.1)) * SECTOR_BYTES
        };
        if let Some(disk) = self.disks.get_mut(&place.slot) {
            disk.asking.learn(bytes(known), bytes(known).saturating_add(bytes(unknown)));
        }
        for (start, sectors) in known {
            let range = BlockRange::of_sectors(*start, *sectors);
            self.copy.carried(Finished { range, ..place }, seq, 0);
        }
        let method = if known.is_empty() { Method::Send } else { Method::AskFine };
        for (start, sectors) in unknown {
            let range = BlockRange::of_sectors(*start, *sectors);
            self.copy.reread(Reread { place: Finished { range, ..place }, method });
        }
    }

    /// Sends what is not known. Its frame comes after those that the answer speaks of, and settles all.
    fn send_unknown(&mut self, place: Finished, question: &Question, unknown: &[(u64, u64)], blocks: &[u8]) {
        let first = place.range.start_sector();
        let mut data = Vec::new();
        for (start, sectors) in unknown {
            let to_bytes =
                |sectors: u64| usize::try_from(sectors.saturating_mul(SECTOR_BYTES)).unwrap_or(usize::MAX);
            let from = to_bytes(start.saturating_sub(first));
            let until = from.saturating_add(to_bytes(*sectors)).min(blocks.len());
            data.extend_from_slice(blocks.get(from..until).unwrap_or_default());
        }
        if data.is_empty() {
            self.copy.carried(place, question.seq, 0);
            return;
        }
        if let Some(disk) = self.disks.get_mut(&place.slot) {
            disk.end_at = None;
        }
        let (seq, bytes) = self.send_blocks(&place, unknown, data);
        self.copy.carried(place, seq, bytes);
    }

    /// The next range to be read again, if that is still right: not under a later line, and on the disk.
    pub(super) fn take_reread(&mut self, kernel: &Kernel<'_>, slot: Slot) -> Option<BlockRange> {
        let reread = self.copy.next_reread(slot)?;
        let disk = self.disks.get(&slot)?;
        let mut range = reread.place.range;
        range.end = range.end.min(kernel.dirty.blocks(slot));
        let stale = reread.place.line != disk.line
            || range.blocks() == 0
            || self.copy.conflict(slot, range).is_some()
            || self.inflight.blocks_reading(slot, range, disk.line);
        // What is left out here is still pending and found by the search.
        (!stale).then_some(range)
    }
}

/// Appends a piece to runs of sectors.
fn join(runs: &mut Vec<(u64, u64)>, piece: &Piece) {
    match runs.last_mut() {
        Some((start, sectors)) if *start + *sectors == piece.start_sector => {
            *sectors += u64::from(piece.sectors);
        }
        _ => runs.push((piece.start_sector, piece.sectors.into())),
    }
}
