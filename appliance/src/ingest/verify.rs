//! Verify on request: the splitter reads its disks again, and what it read is compared with the journal.
//!
//! A question names the LSN that it is compared at. It is answered only while a verify that an administrator asked for
//! runs, for its disks, and at no LSN from before it was asked for in this session: nothing older can be probed.

use std::collections::VecDeque;
use std::sync::Arc;

use tidemark_journal::{Journal, ViewError};
use tidemark_proto::ids::{DiskId, Lsn};
use tidemark_proto::limits::{SECTOR_BYTES, VERIFY_QUESTIONS_MAX};
use tidemark_proto::pieces::{self, HashKey, Piece};
use tidemark_proto::v1::{VerifyAnswer, VerifyQuestion, VerifyReport, VerifyRequest, appliance_message};
use tidemark_proto::version;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;

use super::compare;
use super::session::{End, Session, send};
use crate::clock::now_us;
use crate::fleet::VerifyJob;

/// A question that waits, with its pieces and what its message counts against the connection's budget.
#[derive(Debug)]
struct Waiting {
    /// It is answered once this frame is appended.
    after_seq: u64,
    id: u64,
    disk: DiskId,
    lsn: Lsn,
    pieces: Vec<Piece>,
    permit: OwnedSemaphorePermit,
}

/// What the splitter may ask about.
#[derive(Debug, Clone)]
struct Asked {
    job_id: String,
    /// Empty: every disk.
    disks: Vec<u32>,
    from: Lsn,
    /// It has ended, and nothing more may be asked for it.
    ended: bool,
}

/// The verify of one session.
#[derive(Debug)]
pub(super) struct Verifying {
    key: Option<HashKey>,
    journal: Arc<Journal>,
    asked: Option<Asked>,
    waiting: VecDeque<Waiting>,
    /// Questions that have no answer yet.
    open: usize,
    answering: Option<JoinHandle<Vec<VerifyAnswer>>>,
}

impl Verifying {
    /// `key` is `None` when the session's protocol knows no verify.
    pub(super) fn new(journal: Arc<Journal>, key: Option<HashKey>) -> Self {
        Self { key, journal, asked: None, waiting: VecDeque::new(), open: 0, answering: None }
    }

    /// Takes a question that came behind frame `after_seq`.
    ///
    /// # Errors
    /// When it breaks a rule; the stream must end.
    fn ask(
        &mut self,
        question: VerifyQuestion,
        after_seq: u64,
        permit: OwnedSemaphorePermit,
    ) -> Result<(), String> {
        let Some(question) = question.question else { return Err("a verify of nothing".into()) };
        let Some(asked) = self.asked.as_ref().filter(|asked| !asked.ended) else {
            return Err("a verify that nobody asked for".into());
        };
        if !asked.disks.is_empty() && !asked.disks.contains(&question.disk_id) {
            return Err(format!("a verify of disk-{}, which nobody asked for", question.disk_id));
        }
        if question.line_lsn < asked.from.0 {
            return Err(format!("a verify at LSN {}, from before it was asked for", question.line_lsn));
        }
        if self.open >= VERIFY_QUESTIONS_MAX {
            return Err(format!("more than {VERIFY_QUESTIONS_MAX} questions of a verify at once"));
        }
        let pieces = pieces::read(&question).map_err(|error| error.to_string())?;
        self.open += 1;
        self.waiting.push_back(Waiting {
            after_seq,
            id: question.id,
            disk: DiskId(question.disk_id),
            lsn: Lsn(question.line_lsn),
            pieces,
            permit,
        });
        Ok(())
    }

    /// Has those questions answered whose frames are appended.
    pub(super) fn start(&mut self, appended_seq: u64, slots: &Arc<Semaphore>) {
        let count = self.waiting.iter().take_while(|next| next.after_seq <= appended_seq).count();
        let Some(key) = self.key.filter(|_| count > 0 && self.answering.is_none()) else { return };
        let due: Vec<Waiting> = self.waiting.drain(..count).collect();
        let (journal, slots) = (Arc::clone(&self.journal), Arc::clone(slots));
        self.answering = Some(tokio::spawn(async move {
            let Ok(slot) = slots.acquire_owned().await else { return Vec::new() };
            let work = tokio::task::spawn_blocking(move || {
                let answers = due.into_iter().map(|waiting| answer(&journal, &key, waiting)).collect();
                drop(slot);
                answers
            });
            // Only a panic ends it otherwise, and then the session ends for want of answers.
            work.await.unwrap_or_default()
        }));
    }

    /// The next answers; never ready while none are worked on. None at all: they are lost.
    pub(super) async fn answered(&mut self) -> Vec<VerifyAnswer> {
        let Some(answering) = &mut self.answering else { return std::future::pending().await };
        let answers = answering.await.unwrap_or_default();
        self.answering = None;
        self.open = self.open.saturating_sub(answers.len());
        answers
    }

    /// Nobody waits for answers any more. What is being compared goes on to its end and only reads.
    pub(super) fn stop(&mut self) {
        if let Some(answering) = self.answering.take() {
            answering.abort();
        }
        self.waiting.clear();
    }
}

fn answer(journal: &Journal, key: &HashKey, waiting: Waiting) -> VerifyAnswer {
    let Waiting { id, disk, lsn, pieces, permit, .. } = waiting;
    let same = compared(journal, key, disk, lsn, &pieces);
    drop(permit);
    match same {
        Ok(same) => VerifyAnswer { id, same: pieces::answer(id, &same).known, problem: String::new() },
        Err(problem) => VerifyAnswer { id, problem, ..VerifyAnswer::default() },
    }
}

fn compared(
    journal: &Journal,
    key: &HashKey,
    disk: DiskId,
    lsn: Lsn,
    asked: &[Piece],
) -> Result<Vec<bool>, String> {
    let view = journal.content_at(disk, lsn).map_err(|error| error.to_string())?;
    let size_bytes = view.disks().first().map_or(0, |found| found.size_bytes);
    if asked.iter().any(|piece| piece.end_sector().saturating_mul(SECTOR_BYTES) > size_bytes) {
        return Err(format!("{disk} has another size"));
    }
    match compare::compare(&view, disk, key, asked) {
        Ok(same) => Ok(same),
        Err(ViewError::Read(error)) => {
            // What cannot be read here cannot be recovered: it differs, and is sent again.
            tracing::warn!(%disk, %error, "a verify finds the journal unreadable");
            let piece = |piece: &Piece| compare::compare(&view, disk, key, std::slice::from_ref(piece));
            Ok(asked.iter().map(|one| piece(one).is_ok_and(|same| same == [true])).collect())
        }
        Err(error) => Err(error.to_string()),
    }
}

impl Session<'_> {
    /// Asks the splitter for the verify that is wanted, once it has sent its first frame: before that it does not know its
    /// disks yet.
    pub(super) async fn offer_verify(&mut self) -> Result<(), End> {
        let Some(job) = self.vm.verify().filter(VerifyJob::is_running) else { return Ok(()) };
        if !self.begun || self.verifying.asked.as_ref().is_some_and(|asked| asked.job_id == job.id) {
            return Ok(());
        }
        if self.verifying.key.is_none() {
            let needed = version::VERIFY;
            let reason = format!("its splitter does not know verify (protocol {needed}): upgrade it");
            if let Some(job) = self.vm.fail_verify(&job.id, reason, now_us()) {
                self.verify_ended(job);
            }
            return Ok(());
        }
        let from = self.verifying.journal.appended().lsn;
        self.verifying.asked =
            Some(Asked { job_id: job.id.clone(), disks: job.disks.clone(), from, ended: false });
        self.request_verify(VerifyRequest { job_id: job.id, disk_ids: job.disks, cancel: false }).await
    }

    async fn request_verify(&self, request: VerifyRequest) -> Result<(), End> {
        if send(self.outbound, appliance_message::Body::VerifyRequest(request)).await {
            Ok(())
        } else {
            Err(End::Left("the splitter takes no more messages".into()))
        }
    }

    pub(super) fn verify_asked(
        &mut self,
        question: VerifyQuestion,
        permit: OwnedSemaphorePermit,
    ) -> Result<(), End> {
        self.verifying.ask(question, self.received_seq, permit).map_err(End::Broken)
    }

    pub(super) async fn verify_answered(&mut self, answers: Vec<VerifyAnswer>) -> Result<(), End> {
        if answers.is_empty() {
            return Err(End::Goodbye { reason: "comparing ended unexpectedly".into(), retry: true });
        }
        for answer in answers {
            if !send(self.outbound, appliance_message::Body::VerifyAnswer(answer)).await {
                return Err(End::Left("the splitter takes no more answers".into()));
            }
        }
        Ok(())
    }

    pub(super) fn verify_reported(&mut self, report: &VerifyReport) -> Result<(), End> {
        if self.verifying.asked.is_none() {
            return Err(End::Broken("a report of a verify that nobody asked for".into()));
        }
        let Some(before) = self.vm.verify() else { return Ok(()) };
        let end_lsn = self.verifying.journal.appended().lsn;
        let ended = self.vm.follow_verify(report, end_lsn, now_us());
        let Some(after) = self.vm.verify() else { return Ok(()) };
        let grown = |count: fn(&VerifyJob) -> u64| count(&after).saturating_sub(count(&before));
        let metrics = &self.core.metrics;
        metrics.verified_bytes.get_or_create(&self.label).inc_by(grown(VerifyJob::compared_bytes));
        metrics.differing_bytes.get_or_create(&self.label).inc_by(grown(VerifyJob::differing_bytes));
        if after.is_running() && grown(VerifyJob::differing_bytes) > 0 {
            // Neither this process nor the splitter may take it along when it ends before the verify does.
            self.keep_verify(after);
        }
        if let Some(job) = ended {
            if let Some(asked) = self.verifying.asked.as_mut().filter(|asked| asked.job_id == job.id) {
                asked.ended = true;
            }
            self.verify_ended(job);
        }
        Ok(())
    }

    /// Keeps the outcome of a verify that has ended.
    fn verify_ended(&self, job: VerifyJob) {
        let (differing_bytes, compared_bytes) = (job.differing_bytes(), job.compared_bytes());
        if differing_bytes > 0 {
            tracing::error!(
                job = job.id,
                differing_bytes,
                "a verify found blocks that the journal has otherwise"
            );
        } else {
            tracing::info!(job = job.id, compared_bytes, reason = job.reason, "verify ended");
        }
        self.keep_verify(job);
    }

    fn keep_verify(&self, job: VerifyJob) {
        let (core, vm) = (Arc::clone(self.core), self.vm.id);
        let timeline = self.verifying.journal.timeline();
        self.core.tasks.spawn(async move {
            let id = job.id.clone();
            if let Err(error) = core.catalog.keep_found(vm, &timeline, job).await {
                tracing::error!(%error, job = id, "cannot keep what a verify found");
            }
        });
    }

    /// Has the splitter end the verify with a last report.
    pub(super) async fn cancel_verify(&mut self) -> Result<(), End> {
        let running = self.vm.verify().filter(VerifyJob::is_running);
        // One that it was not asked for yet ends with its answer, too.
        self.offer_verify().await?;
        let asked = self.verifying.asked.as_ref();
        let Some(job) = running.filter(|job| asked.is_some_and(|asked| asked.job_id == job.id)) else {
            return Ok(());
        };
        self.request_verify(VerifyRequest { job_id: job.id, disk_ids: job.disks, cancel: true }).await
    }
}
