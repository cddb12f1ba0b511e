//! Hashes first: questions about what was read, and what becomes of the answers.
//!
//! The appliance compares with what the journal has at the place *below the line*: the version with the highest LSN up
//! to the line's. If that is what was read, a base block of the line would change no view, so none is sent: the range
//! is settled as soon as the frames that came before the question are durable. What was captured above the line plays
//! no part; neither do blocks of the line itself, as a range is asked about only while nothing of it is on its way.
//!
//! What is not known there may be offered: a published template has it. Then a frame of the line names it by its hash, and is
//! a frame like every other otherwise: it has its number and its chain, and its acknowledgement settles the range.

use tidemark_proto::limits::SECTOR_BYTES;
use tidemark_proto::pieces::{self, Piece, ZEROES};
use tidemark_proto::v1::{HashAnswer, HashQuestion, frame::Body};

use super::copy::{Finished, Method, Question, ReadContent, Reread, named_blocks};
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
        let (seq, method) = (self.window.last_seq(), self.copy.method_of(token));
        let ReadContent { pieces, blocks } = content;
        self.questions.push_back((seq, pieces::ask(token, disk_id, place.line, &pieces)));
        self.copy.asked(token, Question { seq, method, pieces, blocks });
    }

    /// The appliance answered a question. Answers to questions of an earlier session must not be passed on.
    pub fn answered(&mut self, kernel: &Kernel<'_>, answer: &HashAnswer, now_us: u64) {
        self.now_us = now_us;
        self.look(kernel.ring);
        let Some((place, mut question)) = self.copy.answered(answer.id) else { return };
        let mut sorted = Sorted::default();
        let comparable = self.disks.get(&place.slot).is_some_and(|disk| disk.comparable);
        for (index, piece) in question.pieces.iter().enumerate() {
            if pieces::is_known(answer, index) {
                join(&mut sorted.known, piece);
                if !comparable && piece.hash == ZEROES {
                    sorted.empty_sectors += u64::from(piece.sectors);
                }
            } else if self.templates && piece.hash != ZEROES && pieces::is_offered(answer, index) {
                sorted.offered.push(*piece);
            } else {
                join(&mut sorted.unknown, piece);
            }
        }
        let asked_bytes = sorted.found_bytes().saturating_add(bytes_of(&sorted.unknown));
        if question.method != Method::AskFine
            && asked_bytes > 0
            && let Some(disk) = self.disks.get_mut(&place.slot)
        {
            disk.asking.learn(sorted.found_bytes(), asked_bytes);
        }
        match question.blocks.take() {
            Some(blocks) => self.send_rest(place, &question, &sorted, &blocks),
            None => self.read_rest(place, question.seq, &sorted),
        }
    }

    /// Settles what is known and has the rest read again: in small pieces, unless nothing at all was found.
    fn read_rest(&mut self, place: Finished, seq: u64, sorted: &Sorted) {
        self.settle_known(place, seq, sorted);
        let method = if sorted.found_bytes() == 0 { Method::Send } else { Method::AskFine };
        self.read_again(place, &sorted.unknown, method);
        self.read_again(place, &sorted.offered_runs(), Method::AskKept);
    }

    /// Names what is offered and sends what nobody has. Of a larger piece a part may be known all the same: where anything
    /// was found beside it, it is asked about once more in small ones.
    fn send_rest(&mut self, place: Finished, question: &Question, sorted: &Sorted, blocks: &[u8]) {
        if let Some(disk) = self.disks.get_mut(&place.slot) {
            disk.end_at = None;
        }
        let again = question.method == Method::AskKept && sorted.found_bytes() > 0;
        let (mut seq, mut bytes) = (question.seq, 0);
        if !again && !sorted.unknown.is_empty() {
            let data = part(blocks, &place, &sorted.unknown);
            (seq, bytes) = self.send_blocks(&place, &sorted.unknown, data);
        }
        if !sorted.offered.is_empty() {
            let data = part(blocks, &place, &sorted.offered_runs());
            let held = data.len() as u64;
            seq = self.name_blocks(&place, &sorted.offered, data);
            bytes = bytes.saturating_add(held);
        }
        if !again {
            // The last frame comes after those that the answer speaks of, and settles all.
            self.copy.carried(place, seq, bytes);
            return;
        }
        self.settle_known(place, question.seq, sorted);
        for (start, sectors) in sorted.offered_runs() {
            let range = BlockRange::of_sectors(start, sectors);
            self.copy.carried(Finished { range, ..place }, seq, sectors.saturating_mul(SECTOR_BYTES));
        }
        self.read_again(place, &sorted.unknown, Method::AskFine);
    }

    fn settle_known(&mut self, place: Finished, seq: u64, sorted: &Sorted) {
        for (start, sectors) in &sorted.known {
            let range = BlockRange::of_sectors(*start, *sectors);
            self.copy.carried(Finished { range, ..place }, seq, 0);
        }
    }

    fn read_again(&mut self, place: Finished, runs: &[(u64, u64)], method: Method) {
        for (start, sectors) in runs {
            let range = BlockRange::of_sectors(*start, *sectors);
            self.copy.reread(Reread { place: Finished { range, ..place }, method });
        }
    }

    /// Puts pieces that were offered into a frame, which keeps their content: should it have to be sent again, to another
    /// session, that travels. Returns its number.
    fn name_blocks(&mut self, place: &Finished, pieces: &[Piece], data: Vec<u8>) -> u64 {
        let id = self.disks.get(&place.slot).map_or(0, |disk| disk.id.0);
        self.push_frame(Body::Base(named_blocks(place.line, id, pieces, data)))
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

/// The pieces of a question, by what became of them.
#[derive(Debug, Default)]
struct Sorted {
    known: Vec<(u64, u64)>,
    offered: Vec<Piece>,
    unknown: Vec<(u64, u64)>,
    /// Of what is known, zeroes of a disk that was never copied: so reads what nobody wrote, and nothing is learnt of it.
    empty_sectors: u64,
}

impl Sorted {
    fn offered_runs(&self) -> Vec<(u64, u64)> {
        let mut runs = Vec::new();
        self.offered.iter().for_each(|piece| join(&mut runs, piece));
        runs
    }

    /// Bytes that need not travel because the appliance has them.
    fn found_bytes(&self) -> u64 {
        let known = bytes_of(&self.known).saturating_sub(self.empty_sectors.saturating_mul(SECTOR_BYTES));
        known.saturating_add(bytes_of(&self.offered_runs()))
    }
}

fn bytes_of(runs: &[(u64, u64)]) -> u64 {
    runs.iter().fold(0, |sum: u64, run| sum.saturating_add(run.1)).saturating_mul(SECTOR_BYTES)
}

/// The content of runs of a range that was read, one after another.
fn part(blocks: &[u8], place: &Finished, runs: &[(u64, u64)]) -> Vec<u8> {
    let first = place.range.start_sector();
    let to_bytes = |sectors: u64| usize::try_from(sectors.saturating_mul(SECTOR_BYTES)).unwrap_or(usize::MAX);
    let mut data = Vec::new();
    for (start, sectors) in runs {
        let from = to_bytes(start.saturating_sub(first));
        let until = from.saturating_add(to_bytes(*sectors)).min(blocks.len());
        data.extend_from_slice(blocks.get(from..until).unwrap_or_default());
    }
    data
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
