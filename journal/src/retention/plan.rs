//! From a policy to points: where the window begins, which points on the way there become snapshots, and which snapshots
//! go. Pure functions; time is an argument.

use std::collections::{BTreeMap, BTreeSet};

use tidemark_proto::ids::Lsn;

use super::calendar::Every;
use super::policy::{Policy, Pressure, Schedule};
use crate::LogPart;
use crate::error::ReadError;
use crate::timeline::{Point, Timeline};

/// The recovery points of one VM that are still in its log.
pub trait Points {
    /// The last point at or before a time.
    ///
    /// # Errors
    /// When the log cannot be read.
    fn last_at(&self, time_us: u64) -> Result<Option<Point>, ReadError>;
}

impl Points for Timeline {
    fn last_at(&self, time_us: u64) -> Result<Option<Point>, ReadError> {
        self.last_point_at(time_us)
    }
}

/// When the any-point window begins at `now_us`: `parts` are the segments of the log, oldest first. It never begins
/// later than `window_min_us` before now, whatever the pressure.
#[must_use]
pub fn window_start(policy: &Policy, now_us: u64, parts: &[LogPart], pressure: Pressure) -> u64 {
    let wanted = now_us.saturating_sub(policy.window_us);
    let latest = now_us.saturating_sub(policy.window_min_us);
    if pressure == Pressure::Shorten {
        return latest;
    }
    let Some(most) = policy.window_bytes else { return wanted };
    let mut bytes: u64 = 0;
    let mut begins = wanted;
    for (at, part) in parts.iter().enumerate().rev() {
        bytes = bytes.saturating_add(part.bytes);
        if bytes > most {
            // It does not fit, so the window begins with the next, or now if there is none.
            let mut next = parts.iter().skip(at + 1).map(|part| part.first_time_us);
            begins = next.find(|time_us| *time_us > 0).unwrap_or(latest);
            break;
        }
    }
    begins.clamp(wanted, latest)
}

/// What is to be done on the way to a new window.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Points that become snapshots, ascending: folds stop at each of them. The present base may be the first.
    pub stops: Vec<Point>,
    /// Snapshots that nothing keeps any more.
    pub drop: Vec<Lsn>,
}

/// Plans the way from `base` (the oldest point of the log, if images lie below it) to a window that begins at
/// `window_us`. `kept` are the snapshots that there are, `held` the points that bookmarks and locks keep.
///
/// Of each kind of the schedule the last point of each of the newest periods that had points is kept; a period counts
/// once the window has left it whole.
///
/// # Errors
/// When the points cannot be read.
pub fn plan(
    schedule: &Schedule,
    base: Option<Lsn>,
    window_us: u64,
    points: &dyn Points,
    kept: &[Point],
    held: &[Point],
) -> Result<Plan, ReadError> {
    let candidates = candidates(schedule, base.unwrap_or(Lsn::ZERO), window_us, points)?;
    let mut all: BTreeMap<Lsn, u64> = kept.iter().map(|point| (point.lsn, point.time_us)).collect();
    all.extend(candidates.iter().map(|(lsn, time_us)| (*lsn, *time_us)));
    let retained = retained(schedule, window_us, &all);
    let is_kept = |lsn: &Lsn| kept.iter().any(|point| point.lsn == *lsn);
    let mut stops: BTreeMap<Lsn, u64> = candidates;
    stops.retain(|lsn, _| retained.contains(lsn) && !is_kept(lsn));
    for point in held.iter().filter(|point| point.time_us <= window_us && !is_kept(&point.lsn)) {
        if base.is_none_or(|base| point.lsn >= base) {
            stops.insert(point.lsn, point.time_us);
        }
    }
    let goes =
        |point: &&Point| !retained.contains(&point.lsn) && !held.iter().any(|held| held.lsn == point.lsn);
    Ok(Plan {
        stops: stops.into_iter().map(|(lsn, time_us)| Point { lsn, time_us }).collect(),
        drop: kept.iter().filter(goes).map(|point| point.lsn).collect(),
    })
}

/// The last points of periods that the window leaves, of each kind no more than are kept.
fn candidates(
    schedule: &Schedule,
    base: Lsn,
    window_us: u64,
    points: &dyn Points,
) -> Result<BTreeMap<Lsn, u64>, ReadError> {
    let mut found = BTreeMap::new();
    for (every, count) in Every::ALL.into_iter().zip(schedule.counts()) {
        let mut begins = every.start_of(window_us);
        for _ in 0..count {
            let Some(before) = begins.checked_sub(1) else { break };
            let Some(point) = points.last_at(before)?.filter(|point| point.lsn >= base) else { break };
            found.insert(point.lsn, point.time_us);
            begins = every.start_of(point.time_us);
        }
    }
    Ok(found)
}

/// Of snapshots by LSN, those that the schedule keeps. One that lies in a period which the window has not left takes no
/// older one's place: the last point of that period is still to come.
fn retained(schedule: &Schedule, window_us: u64, all: &BTreeMap<Lsn, u64>) -> BTreeSet<Lsn> {
    let mut retained = BTreeSet::new();
    for (every, count) in Every::ALL.into_iter().zip(schedule.counts()) {
        let mut periods = 0;
        let mut last = None;
        let open = every.start_of(window_us);
        for (lsn, time_us) in all.iter().rev() {
            let period = every.start_of(*time_us);
            if period >= open || last == Some(period) {
                continue;
            }
            if periods == count {
                break;
            }
            (periods, last) = (periods + 1, Some(period));
            retained.insert(*lsn);
        }
    }
    retained
}
