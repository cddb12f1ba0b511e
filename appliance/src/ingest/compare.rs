//! Hashes first: which pieces of a disk need not be sent.
//!
//! A question is about one place of one disk of the VM that asks, and whether it is known is answered from that VM's
//! journal alone: the hash asked about is compared with the hash of what lies at the place. Otherwise it is looked up in
//! published templates and in nothing else ([`Finder`]); what they have is offered. So an answer, and the time it takes,
//! depend on nothing that any other VM has stored.

use std::collections::VecDeque;
use std::sync::Arc;

use tidemark_journal::timeline::Timeline;
use tidemark_journal::view::{ExtentKind, View};
use tidemark_journal::{Journal, ViewError};
use tidemark_proto::ids::{DiskId, Lsn};
use tidemark_proto::limits::{QUESTIONS_MAX, SECTOR_BYTES};
use tidemark_proto::pieces::{self, HashKey, Piece, ZEROES};
use tidemark_proto::v1::{BaseBlocks, GapCause, HashAnswer, HashQuestion};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;

use super::finder::Finder;
use super::offers::{NotTaken, Offers};
use crate::templates::{Source, Templates};

/// Questions answered in one blocking call at most: 16 MiB to read, so that answers leave while more are worked on.
const ANSWERS_MAX: usize = 16;

/// A question that waits, with its pieces and what its message counts against the connection's budget.
#[derive(Debug)]
struct Waiting {
    /// It speaks of what came before it: it is answered once this frame is appended.
    after_seq: u64,
    question: HashQuestion,
    pieces: Vec<Piece>,
    permit: OwnedSemaphorePermit,
}

/// What a call of [`Questions::answered`] brings.
#[derive(Debug, Default)]
pub(super) struct Answered {
    pub(super) answers: Vec<HashAnswer>,
    /// Bytes that were asked about.
    pub(super) asked_bytes: u64,
    /// Of them, bytes that need not be sent: known or offered.
    pub(super) known_bytes: u64,
    offers: Vec<(u32, Piece, Source)>,
    finder: Option<Finder>,
}

/// The questions of one session.
#[derive(Debug)]
pub(super) struct Questions {
    /// `None` when the session's protocol knows no questions.
    key: Option<HashKey>,
    journal: Arc<Journal>,
    waiting: VecDeque<Waiting>,
    /// Questions that have no answer yet.
    open: usize,
    answering: Option<JoinHandle<Result<Answered, String>>>,
    /// Of a session that may use templates, and `None` while questions are answered.
    finder: Option<Finder>,
    offers: Offers,
}

impl Questions {
    /// With `templates`, the key is theirs.
    pub(super) fn new(
        journal: Arc<Journal>,
        key: Option<HashKey>,
        templates: Option<Arc<Templates>>,
    ) -> Self {
        let finder = templates.map(Finder::new);
        let (waiting, offers) = (VecDeque::new(), Offers::default());
        Self { key, journal, waiting, open: 0, answering: None, finder, offers }
    }

    /// The content of blocks that a frame names instead of bringing it; empty for all others.
    ///
    /// # Errors
    /// When nothing such was offered in this session, or the frame breaks a rule.
    pub(super) fn redeem(&mut self, base: &BaseBlocks) -> Result<Vec<Source>, NotTaken> {
        self.offers.take(base)
    }

    /// Takes a question that came behind frame `after_seq`.
    ///
    /// # Errors
    /// When it breaks a rule; the stream must end.
    pub(super) fn ask(
        &mut self,
        question: HashQuestion,
        after_seq: u64,
        permit: OwnedSemaphorePermit,
    ) -> Result<(), String> {
        if self.key.is_none() {
            return Err("a question by hashes in a version that has none".into());
        }
        if self.open >= QUESTIONS_MAX {
            return Err(format!("more than {QUESTIONS_MAX} questions at once"));
        }
        let pieces = pieces::read(&question).map_err(|error| error.to_string())?;
        self.open += 1;
        self.waiting.push_back(Waiting { after_seq, question, pieces, permit });
        Ok(())
    }

    /// Has those questions answered whose frames are appended.
    pub(super) fn start(&mut self, appended_seq: u64, slots: &Arc<Semaphore>) {
        let due = self.waiting.iter().take(ANSWERS_MAX).take_while(|next| next.after_seq <= appended_seq);
        let count = due.count();
        let Some(key) = self.key.filter(|_| count > 0 && self.answering.is_none()) else { return };
        let due: Vec<Waiting> = self.waiting.drain(..count).collect();
        let (journal, slots, finder) = (Arc::clone(&self.journal), Arc::clone(slots), self.finder.take());
        self.answering = Some(tokio::spawn(run(slots, move || answer(&journal, &key, due, finder))));
    }

    /// The next answers; never ready while none are worked on.
    ///
    /// # Errors
    /// When comparing ended without an answer. The stream must end: whoever asked would wait for ever.
    pub(super) async fn answered(&mut self) -> Result<Answered, String> {
        let Some(answering) = &mut self.answering else { return std::future::pending().await };
        let answered = answering.await.map_err(|error| error.to_string());
        self.answering = None;
        let mut answered = answered.flatten()?;
        self.open = self.open.saturating_sub(answered.answers.len());
        self.finder = answered.finder.take();
        for (disk, piece, source) in answered.offers.drain(..) {
            self.offers.add(disk, &piece, source);
        }
        Ok(answered)
    }

    /// Nobody waits for answers any more. What is being compared goes on to its end and only reads.
    pub(super) fn stop(&mut self) {
        if let Some(answering) = self.answering.take() {
            answering.abort();
        }
        self.waiting.clear();
    }
}

/// Has answers worked out where it may block, once there is a slot.
async fn run(
    slots: Arc<Semaphore>,
    work: impl FnOnce() -> Answered + Send + 'static,
) -> Result<Answered, String> {
    let slot = slots.acquire_owned().await.map_err(|error| error.to_string())?;
    let work = tokio::task::spawn_blocking(move || {
        let answered = work();
        drop(slot);
        answered
    });
    work.await.map_err(|error| error.to_string())
}

fn answer(journal: &Journal, key: &HashKey, due: Vec<Waiting>, finder: Option<Finder>) -> Answered {
    let mut answered = Answered { finder, ..Answered::default() };
    for Waiting { question, pieces, permit, .. } in due {
        let (disk, line) = (DiskId(question.disk_id), Lsn(question.line_lsn));
        let view = journal.below_line(disk, line);
        let known = view.as_ref().map_or_else(
            |error| {
                tracing::debug!(%disk, %error, "nothing to compare with");
                vec![false; pieces.len()]
            },
            |view| {
                compare(view, disk, key, &pieces).unwrap_or_else(|error| {
                    // What cannot be compared is sent, which also mends what cannot be read.
                    tracing::warn!(%disk, %error, "cannot compare: it is sent again");
                    vec![false; pieces.len()]
                })
            },
        );
        // Where no line is open no block can be placed.
        let found = match answered.finder.as_mut().filter(|_| view.is_ok()) {
            Some(finder) => finder.find(key, disk, &pieces, &known),
            None => vec![None; pieces.len()],
        };
        for (piece, (known, found)) in pieces.iter().zip(known.iter().zip(&found)) {
            answered.asked_bytes += piece.bytes();
            answered.known_bytes += if *known || found.is_some() { piece.bytes() } else { 0 };
        }
        let offered: Vec<bool> = found.iter().map(Option::is_some).collect();
        answered.answers.push(pieces::offer(pieces::answer(question.id, &known), &offered));
        let offers = pieces.into_iter().zip(found);
        answered.offers.extend(offers.filter_map(|(piece, found)| Some((question.disk_id, piece, found?))));
        drop(permit);
    }
    answered
}

/// Whether each piece is what the view has at its place.
pub(super) fn compare(
    view: &View,
    disk: DiskId,
    key: &HashKey,
    asked: &[Piece],
) -> Result<Vec<bool>, ViewError> {
    let size = view.disks().iter().find(|found| found.id == disk).map_or(0, |found| found.size_bytes);
    let mut known = Vec::with_capacity(asked.len());
    let mut content = Vec::new();
    for run in asked.chunk_by(|a, b| a.end_sector() == b.start_sector) {
        let offset = run.first().map_or(0, |piece| piece.start_sector).saturating_mul(SECTOR_BYTES);
        let bytes: u64 = run.iter().map(Piece::bytes).sum();
        if offset.saturating_add(bytes) > size {
            known.extend(run.iter().map(|_| false));
            continue;
        }
        let zero = view.extents(disk, offset, bytes)?.iter().all(|extent| extent.kind == ExtentKind::Zero);
        if zero {
            known.extend(run.iter().map(|piece| piece.hash == ZEROES));
            continue;
        }
        content.resize(usize::try_from(bytes).unwrap_or(usize::MAX), 0);
        view.read_at(disk, offset, &mut content)?;
        let mut rest = content.as_slice();
        for piece in run {
            let length = usize::try_from(piece.bytes()).unwrap_or(usize::MAX).min(rest.len());
            let (found, after) = rest.split_at(length);
            rest = after;
            known.push(piece.hash == if pieces::is_zero(found) { ZEROES } else { key.hash(found) });
        }
    }
    Ok(known)
}

/// Disks with content that is worth comparing with: those whose first copy was once completed.
pub(super) fn comparable_disks(timeline: &Timeline) -> Vec<u32> {
    let copied = timeline.gaps().iter().filter(|gap| gap.to.is_some()).flat_map(|gap| gap.disks.clone());
    // Retention forgets gaps, not disks.
    let exact = timeline.horizon().map(|horizon| timeline.exact_disks(horizon.lsn)).unwrap_or_default();
    let mut disks: Vec<u32> = copied.chain(exact).map(|disk| disk.0).collect();
    disks.sort_unstable();
    disks.dedup();
    disks
}

/// Of them, those with an open gap that put the whole disk in doubt.
pub(super) fn verify_disks(timeline: &Timeline) -> Vec<u32> {
    let whole = [GapCause::CaptureRestarted as u32, GapCause::WitnessMismatch as u32];
    let open = timeline.gaps().iter().filter(|gap| gap.to.is_none() && whole.contains(&gap.cause));
    let mut disks: Vec<u32> = open.flat_map(|gap| gap.disks.iter().map(|disk| disk.0)).collect();
    let comparable = comparable_disks(timeline);
    disks.retain(|disk| comparable.contains(disk));
    disks.sort_unstable();
    disks.dedup();
    disks
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidemark_journal::Options;
    use tidemark_journal::storage::SimStorage;
    use tidemark_proto::ids::VmId;

    #[tokio::test]
    async fn a_comparison_that_ends_without_an_answer_is_told() {
        let journal =
            Journal::create(Arc::new(SimStorage::new(1)), VmId::random(), Options::default()).unwrap();
        let mut questions = Questions::new(Arc::new(journal), Some(HashKey([1; 32])), None);
        let slots = Arc::new(Semaphore::new(1));
        questions.answering = Some(tokio::spawn(run(Arc::clone(&slots), || panic!("a mistake"))));
        assert!(questions.answered().await.unwrap_err().contains("panic"));
        // Its slot is free for others, and they are answered.
        questions.answering = Some(tokio::spawn(run(slots, Answered::default)));
        assert!(questions.answered().await.unwrap().answers.is_empty());
    }
}
