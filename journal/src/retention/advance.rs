//! One run of retention over one journal: from the plan to images, snapshots, dropped segments and snapshots given up.
//! Each step is durable before the next; a run that ends anywhere is made up for by the next one.

use std::sync::Arc;

use tidemark_proto::ids::Lsn;

use super::build::{FoldError, Pace, fold_to};
use super::plan::{Plan, plan, window_start};
use super::policy::{Policy, Pressure};
use crate::error::RetentionError;
use crate::store::{ChunkStore, KeyDomain};
use crate::timeline::Point;
use crate::{Journal, Pin, PinKind};

/// What the locks of scheduled snapshots are named by, with the LSN behind it.
pub const SNAPSHOT_LOCK: &str = "snapshot-lock:";

/// Bytes of log that are folded at once at least, where so many are due. A disk that has less free is as good as full.
const STEP_MIN_BYTES: u64 = 256 << 20;

/// Bytes of log that are folded at once at most. Beyond it a fold saves little more: of a server's writes 69 % survive
/// 4 GiB of log on 64 GiB of disk, 89 % survive 512 MiB (`tests/bench journal`).
const STEP_MAX_BYTES: u64 = 4 << 30;

/// A step is this part of the log: so much more than its window a VM's log takes.
const STEP_LOG_DIVISOR: u64 = 16;

/// A step is this part of the free space: it needs as much before it frees any, and others write meanwhile.
const STEP_FREE_DIVISOR: u64 = 8;

/// Bytes of log that are worth a fold, and that one takes at most, of a log of `log_bytes` on a disk with `free_bytes`.
///
/// What is overwritten within a step is never copied, and what a step writes into one chunk lies together: large steps
/// cost less for each byte received.
#[must_use]
pub fn step_bytes(log_bytes: u64, free_bytes: u64) -> u64 {
    let step = (log_bytes / STEP_LOG_DIVISOR).min(free_bytes / STEP_FREE_DIVISOR);
    step.clamp(STEP_MIN_BYTES, STEP_MAX_BYTES)
}

/// Bytes of log that are folded at once while space is short: a segment at a time, so that each frees its space before the next needs any.
const STEP_SHORT_BYTES: u64 = 1;

/// What a run goes by.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    /// What is wanted.
    pub policy: Policy,
    /// The time that ages are counted from, microseconds since 1970.
    pub now_us: u64,
    /// The time that locks and holds end by. Never later than the true time: what stays too long can go later.
    pub lock_now_us: u64,
    /// Whether space is short.
    pub pressure: Pressure,
    /// Bytes of log that are folded at once at most; see [`step_bytes`].
    pub step_bytes: u64,
}

/// What is due of one journal.
#[derive(Debug, Clone)]
pub struct Due {
    /// The oldest point that the policy asks to keep in the log; `None` while it asks for all of it.
    pub target: Option<Point>,
    /// Snapshots to make and to give up.
    pub plan: Plan,
    /// Bytes of sealed segments that could be dropped once the base is at the target.
    pub foldable_bytes: u64,
    /// Time of the first LSN in them; `None`: there are none.
    pub foldable_since_us: Option<u64>,
}

/// What a run did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Advanced {
    /// The base now.
    pub base: Option<Lsn>,
    /// Bytes that went into images.
    pub folded_bytes: u64,
    /// Snapshots made.
    pub made: u64,
    /// Snapshots given up.
    pub given_up: u64,
    /// Segments dropped.
    pub segments: u64,
    /// A pin keeps more than the policy asks for, so that the run ended early.
    pub held_back: bool,
}

/// What is due, without doing any of it.
///
/// # Errors
/// When the log cannot be read.
pub fn due(journal: &Journal, terms: &Terms) -> Result<Due, FoldError> {
    let parts = journal.log_parts();
    let window_us = window_start(&terms.policy, terms.now_us, &parts, terms.pressure);
    let timeline = journal.timeline();
    let target = timeline.last_point_at(window_us).map_err(RetentionError::from)?;
    let kept: Vec<Point> =
        journal.snapshots().iter().map(|kept| Point { lsn: kept.lsn, time_us: kept.time_us }).collect();
    let lock_now_us = terms.lock_now_us.max(journal.retention_clock());
    let mut held = Vec::new();
    for pin in journal.pins() {
        let stands = pin.until_us.is_none_or(|until| lock_now_us < until);
        // Of what a clone continues its very point is enough, too: the log behind it can go.
        if stands && matches!(pin.kind, PinKind::Bookmark | PinKind::Lock | PinKind::Clone) {
            let time_us = timeline.time_of(pin.lsn).map_err(RetentionError::from)?;
            held.push(Point { lsn: pin.lsn, time_us });
        }
    }
    let base = journal.base().map(|(lsn, _)| lsn);
    let schedule = &terms.policy.schedule;
    let mut plan = plan(schedule, base, window_us, &timeline, &kept, &held).map_err(RetentionError::from)?;
    if journal.branch_point().is_some() {
        // What a branch begins with is its parent's: as a snapshot it would need the parent for ever.
        plan.stops.retain(|stop| base.is_none_or(|base| stop.lsn > base));
    }
    let folded = |lsn: Lsn| target.is_some_and(|target| lsn <= target.lsn);
    // The last sealed segment is never dropped.
    let last = parts.iter().rposition(|part| part.sealed).unwrap_or(0);
    let foldable = || parts.iter().take(last).filter(|part| part.sealed && folded(part.last_lsn));
    Ok(Due {
        target,
        plan,
        foldable_bytes: foldable().map(|part| part.bytes).sum(),
        foldable_since_us: foldable().map(|part| part.first_time_us).find(|time_us| *time_us > 0),
    })
}

/// Bytes of sealed log that stay only because a clone needs an earlier point, by the pin's name: of each what would go
/// without it. Its point becomes a snapshot when the window leaves it, so that this is a lasting amount only where a gap
/// was open at the point.
#[must_use]
pub fn held_back(journal: &Journal, due: &Due) -> Vec<(String, u64)> {
    let Some(target) = due.target else { return Vec::new() };
    let parts = journal.log_parts();
    let snapshots = journal.snapshots();
    let last = parts.iter().rposition(|part| part.sealed).unwrap_or(0);
    let bytes = |pin: &Pin| -> u64 {
        if snapshots.iter().any(|kept| kept.lsn == pin.lsn) {
            return 0;
        }
        let sealed = parts.iter().take(last).filter(|part| part.sealed);
        sealed
            .filter(|part| part.last_lsn > pin.lsn && part.last_lsn <= target.lsn)
            .map(|part| part.bytes)
            .sum()
    };
    let pins = journal.pins().into_iter().filter(|pin| pin.kind == PinKind::Clone);
    pins.map(|pin| (pin.name.clone(), bytes(&pin))).collect()
}

/// Does what is due. Takes long and blocks; see [`Pace`].
///
/// # Errors
/// See [`FoldError`]. What was done until then is done.
pub fn advance(
    journal: &Journal,
    store: &Arc<ChunkStore>,
    domain: KeyDomain,
    terms: &Terms,
    pace: &mut Pace<'_>,
) -> Result<Advanced, FoldError> {
    let due = due(journal, terms)?;
    let step = if terms.pressure == Pressure::Shorten { STEP_SHORT_BYTES } else { terms.step_bytes };
    let mut done = Advanced::default();
    for stop in &due.plan.stops {
        // In steps, so that the space of what was folded is free before more is needed.
        for lsn in steps(journal, stop.lsn, step) {
            fold(journal, store, domain, lsn, terms, pace, &mut done)?;
            done.segments += journal.drop_folded()?;
        }
        fold(journal, store, domain, stop.lsn, terms, pace, &mut done)?;
        if done.base != Some(stop.lsn) {
            // A lease, a clone or a replica needs the log from an earlier point on.
            done.held_back = true;
            break;
        }
        if terms.policy.lock_us > 0 {
            lock_snapshot(journal, stop.lsn, terms)?;
        }
        journal.keep_base()?;
        done.made += 1;
        done.segments += journal.drop_folded()?;
    }
    if let Some(target) = due.target.filter(|_| !done.held_back) {
        for lsn in steps(journal, target.lsn, step) {
            fold(journal, store, domain, lsn, terms, pace, &mut done)?;
            done.segments += journal.drop_folded()?;
        }
        fold(journal, store, domain, target.lsn, terms, pace, &mut done)?;
        done.held_back = done.base.is_some_and(|base| base < target.lsn);
    }
    done.segments += journal.drop_folded()?;
    if done.made == due.plan.stops.len() as u64 {
        for lsn in due.plan.drop {
            match journal.drop_snapshot(lsn, terms.lock_now_us) {
                Ok(()) => done.given_up += 1,
                // It was pinned since the plan.
                Err(RetentionError::Locked { .. } | RetentionError::Held { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(done)
}

/// Where to stop on the way to a target: after each so many bytes of segments.
fn steps(journal: &Journal, target: Lsn, step_bytes: u64) -> Vec<Lsn> {
    let mut steps = Vec::new();
    let mut bytes = 0;
    for part in journal.log_parts().iter().filter(|part| part.sealed && part.last_lsn < target) {
        bytes += part.bytes;
        if bytes >= step_bytes {
            steps.push(part.last_lsn);
            bytes = 0;
        }
    }
    steps
}

fn fold(
    journal: &Journal,
    store: &Arc<ChunkStore>,
    domain: KeyDomain,
    cutoff: Lsn,
    terms: &Terms,
    pace: &mut Pace<'_>,
    done: &mut Advanced,
) -> Result<(), FoldError> {
    if let Some(folded) = fold_to(journal, store, domain, cutoff, terms.lock_now_us, pace)? {
        done.folded_bytes += folded.bytes;
    }
    done.base = journal.base().map(|(lsn, _)| lsn);
    Ok(())
}

/// Locks the point of a snapshot that is about to be made: first the lock, so that no crash leaves one without.
fn lock_snapshot(journal: &Journal, lsn: Lsn, terms: &Terms) -> Result<(), RetentionError> {
    let name = format!("{SNAPSHOT_LOCK}{lsn}");
    if journal.pins().iter().any(|pin| pin.name == name) {
        return Ok(());
    }
    let now_us = terms.lock_now_us.max(journal.retention_clock());
    let until_us = Some(now_us.saturating_add(terms.policy.lock_us));
    journal.put_pin(Pin { name, kind: PinKind::Lock, lsn, until_us }, now_us)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_follow_the_log_and_shrink_with_the_space() {
        assert_eq!(step_bytes(1 << 30, 1 << 40), STEP_MIN_BYTES);
        assert_eq!(step_bytes(32 << 30, 1 << 40), 2 << 30);
        assert_eq!(step_bytes(1 << 40, 1 << 40), STEP_MAX_BYTES);
        assert_eq!(step_bytes(1 << 40, 8 << 30), 1 << 30);
        assert_eq!(step_bytes(1 << 40, 0), STEP_MIN_BYTES);
    }
}
