//! The two passes over a disk: fetching what differs, and comparing afterwards.

use std::collections::VecDeque;

use tidemark_proto::limits::{PIECE_BYTES, QUESTION_MAX_BYTES, RESTORE_QUESTIONS_MAX};
use tidemark_proto::pieces::is_set;
use tidemark_proto::v1::{RestoreAnswer, RestoreQuestion};

use super::RestoreError;
use super::exchange::{Answers, Opened};
use super::target::{Target, failed};

/// Bytes withheld until the end: the first question, which holds every partition table and file system signature that
/// lies at a disk's start.
const HEAD_BYTES: u64 = QUESTION_MAX_BYTES;

/// What the device's first sector says meanwhile.
const NOTE: &[u8] = b"TIDEMARK: an incomplete restore. Run the same `tidemark-splitter restore` again.\n";

/// What a restore is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Comparing, and fetching what differs.
    Restoring,
    /// Reading all of it again and comparing.
    Verifying,
}

/// What differed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Fetched {
    pub(super) fetched_bytes: u64,
    pub(super) zeroed_bytes: u64,
}

/// A question that waits for its answer.
struct Asked {
    offset: u64,
    bytes: u64,
}

/// Goes over the disk once: asks about each megabyte, some ahead, and hands on the answers in order.
async fn sweep(
    answers: &mut impl Answers,
    target: &impl Target,
    opened: &Opened,
    compare_only: bool,
    mut take: impl FnMut(&Asked, &RestoreAnswer) -> Result<(), RestoreError>,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<(), RestoreError> {
    let mut waiting: VecDeque<Asked> = VecDeque::new();
    let mut next = 0;
    loop {
        while next < opened.size_bytes && waiting.len() < RESTORE_QUESTIONS_MAX {
            let bytes = QUESTION_MAX_BYTES.min(opened.size_bytes - next);
            let hashes = tokio::task::block_in_place(|| hashes(target, opened, next, bytes))?;
            answers.ask(RestoreQuestion { offset: next, hashes: hashes.into(), compare_only }).await?;
            waiting.push_back(Asked { offset: next, bytes });
            next += bytes;
        }
        let Some(asked) = waiting.pop_front() else { return Ok(()) };
        let answer = answers.answer().await?;
        if answer.offset != asked.offset {
            return Err(RestoreError::Answer("something else than it was asked"));
        }
        tokio::task::block_in_place(|| take(&asked, &answer))?;
        progress(asked.offset + asked.bytes);
    }
}

fn hashes(target: &impl Target, opened: &Opened, offset: u64, bytes: u64) -> Result<Vec<u8>, RestoreError> {
    let mut content = vec![0; to_usize(bytes)];
    target.read_at(offset, &mut content).map_err(|error| failed("read", target, &error))?;
    Ok(content.chunks(to_usize(PIECE_BYTES)).flat_map(|piece| opened.key.stand_in(piece)).collect())
}

/// Pieces of a megabyte, and lengths within one, fit any address space.
fn to_usize(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

/// One run of pieces that an answer says differ.
enum Run<'a> {
    Data(u64, &'a [u8]),
    Zeroes(u64, u64),
}

/// The runs of an answer, in order.
fn runs<'a>(asked: &Asked, answer: &'a RestoreAnswer) -> Result<Vec<Run<'a>>, RestoreError> {
    let mut runs: Vec<Run<'a>> = Vec::new();
    let (mut at, end) = (asked.offset, asked.offset + asked.bytes);
    let (mut used, mut index) = (0, 0);
    while at < end {
        let bytes = PIECE_BYTES.min(end - at);
        if is_set(&answer.differs, index) && is_set(&answer.zero, index) {
            match runs.last_mut() {
                Some(Run::Zeroes(from, length)) if *from + *length == at => *length += bytes,
                _ => runs.push(Run::Zeroes(at, bytes)),
            }
        } else if is_set(&answer.differs, index) {
            let until = used + to_usize(bytes);
            let data = answer.data.get(used..until).ok_or(RestoreError::Answer("without its data"))?;
            match runs.last_mut() {
                Some(Run::Data(from, before)) if *from + before.len() as u64 == at => {
                    *before = answer.data.get(used - before.len()..until).unwrap_or(data);
                }
                _ => runs.push(Run::Data(at, data)),
            }
            used = until;
        }
        (at, index) = (at + bytes, index + 1);
    }
    if used != answer.data.len() {
        return Err(RestoreError::Answer("with data nobody asked for"));
    }
    Ok(runs)
}

/// Makes the target what the appliance has. The first megabyte is written last; if nothing differs nothing is written.
pub(super) async fn fetch(
    answers: &mut impl Answers,
    target: &mut impl Target,
    opened: &Opened,
    progress: &(dyn Fn(Phase, u64, u64) + Sync),
) -> Result<Fetched, RestoreError> {
    let target = &*target;
    let mut head = vec![0; to_usize(HEAD_BYTES.min(opened.size_bytes))];
    target.read_at(0, &mut head).map_err(|error| failed("read", target, &error))?;
    let (mut fetched, mut noted) = (Fetched::default(), false);
    let take = |asked: &Asked, answer: &RestoreAnswer| {
        let runs = runs(asked, answer)?;
        if !noted && !runs.is_empty() {
            note(target, head.len())?;
            noted = true;
        }
        for run in runs {
            let wrong = |error| failed("write", target, &error);
            match run {
                Run::Data(at, data) => {
                    fetched.fetched_bytes += data.len() as u64;
                    match head.get_mut(to_usize(at)..to_usize(at) + data.len()).filter(|_| at < HEAD_BYTES) {
                        Some(of_head) => of_head.copy_from_slice(data),
                        None => target.write_at(at, data).map_err(wrong)?,
                    }
                }
                Run::Zeroes(at, bytes) => {
                    fetched.zeroed_bytes += bytes;
                    match head
                        .get_mut(to_usize(at)..to_usize(at) + to_usize(bytes))
                        .filter(|_| at < HEAD_BYTES)
                    {
                        Some(of_head) => of_head.fill(0),
                        None => target.write_zeroes(at, bytes).map_err(wrong)?,
                    }
                }
            }
        }
        Ok(())
    };
    let told = |done| progress(Phase::Restoring, done, opened.size_bytes);
    sweep(answers, target, opened, false, take, &told).await?;
    if noted {
        let finish = || {
            target.sync()?;
            target.write_at(0, &head)?;
            target.sync()
        };
        tokio::task::block_in_place(finish).map_err(|error| failed("finish", target, &error))?;
    }
    Ok(fetched)
}

/// Says on the disk itself that it is incomplete.
fn note(target: &impl Target, head_bytes: usize) -> Result<(), RestoreError> {
    let mut head = vec![0; head_bytes];
    if let Some(start) = head.get_mut(..NOTE.len()) {
        start.copy_from_slice(NOTE);
    }
    target
        .write_at(0, &head)
        .and_then(|()| target.sync())
        .map_err(|error| failed("write", target, &error).into())
}

/// Compares the target with what the appliance has. Returns where the first difference lies, and bytes that differ.
pub(super) async fn compare(
    answers: &mut impl Answers,
    target: &impl Target,
    opened: &Opened,
    progress: &(dyn Fn(Phase, u64, u64) + Sync),
) -> Result<Option<(u64, u64)>, RestoreError> {
    let mut found: Option<(u64, u64)> = None;
    let take = |asked: &Asked, answer: &RestoreAnswer| {
        let pieces = asked.bytes.div_ceil(PIECE_BYTES);
        for index in (0..pieces).filter(|index| is_set(&answer.differs, to_usize(*index))) {
            let at = asked.offset + index * PIECE_BYTES;
            let bytes = PIECE_BYTES.min(opened.size_bytes - at);
            found = Some(found.map_or((at, bytes), |(first, sum)| (first, sum + bytes)));
        }
        Ok(())
    };
    let told = |done| progress(Phase::Verifying, done, opened.size_bytes);
    sweep(answers, target, opened, true, take, &told).await?;
    Ok(found)
}

#[cfg(test)]
mod tests;
