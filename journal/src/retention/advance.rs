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

/// Bytes of log that are folded at once at most: what a fold may need of new space before it frees any. A disk that has
/// less free is as good as full.
const STEP_BYTES: u64 = 256 << 20;

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
        if stands && matches!(pin.kind, PinKind::Bookmark | PinKind::Lock) {
            let time_us = timeline.time_of(pin.lsn).map_err(RetentionError::from)?;
            held.push(Point { lsn: pin.lsn, time_us });
        }
    }
    let base = journal.base().map(|(lsn, _)| lsn);
    let schedule = &terms.policy.schedule;
    let plan = plan(schedule, base, window_us, &timeline, &kept, &held).map_err(RetentionError::from)?;
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
    let mut done = Advanced::default();
    for stop in &due.plan.stops {
        // In steps, so that the space of what was folded is free before more is needed.
        for lsn in steps(journal, stop.lsn) {
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
        for lsn in steps(journal, target.lsn) {
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

/// Where to stop on the way to a target: after each [`STEP_BYTES`] of segments.
fn steps(journal: &Journal, target: Lsn) -> Vec<Lsn> {
    let mut steps = Vec::new();
    let mut bytes = 0;
    for part in journal.log_parts().iter().filter(|part| part.sealed && part.last_lsn < target) {
        bytes += part.bytes;
        if bytes >= STEP_BYTES {
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
