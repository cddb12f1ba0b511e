//! The timeline as it stood when it was asked for.

use std::sync::Arc;

use tidemark_proto::ids::{DiskId, Lsn};

use super::{Gap, History, Horizon, Marker, Point, Refused, RefusedCause, TimelineError, Window};
use crate::error::ReadError;
use crate::journal::Runs;
use crate::records::Kept;
use crate::view::Source;

/// A snapshot of what can be recovered, of what is durable only. Cheap to take and to clone.
#[derive(Debug, Clone)]
pub struct Timeline {
    history: Arc<History>,
    horizon: Option<Horizon>,
    runs: Arc<Runs>,
    source: Arc<Source>,
}

impl Timeline {
    pub(crate) fn new(
        history: Arc<History>,
        horizon: Option<Horizon>,
        runs: Arc<Runs>,
        source: Arc<Source>,
    ) -> Self {
        Self { history, horizon, runs, source }
    }

    /// The newest durable clean heartbeat; `None` before the first.
    #[must_use]
    pub fn horizon(&self) -> Option<Horizon> {
        self.horizon
    }

    /// All gaps, in the order in which their lines began.
    #[must_use]
    pub fn gaps(&self) -> &[Gap] {
        &self.history.gaps
    }

    /// LSN of the line that a disk's first copy lies above; `None` for a disk that has none.
    #[must_use]
    pub fn first_line(&self, disk: DiskId) -> Option<Lsn> {
        self.history.disks.get(&disk)?.first_line
    }

    /// The newest gap that an LSN lies in, of any disk.
    #[must_use]
    pub fn gap_around(&self, lsn: Lsn) -> Option<&Gap> {
        self.gaps().iter().rev().find(|gap| gap.from <= lsn && gap.to.is_none_or(|to| lsn < to))
    }

    /// All markers, by LSN.
    #[must_use]
    pub fn markers(&self) -> &[Marker] {
        &self.history.markers
    }

    /// Disks with an open gap, by id.
    #[must_use]
    pub fn open_gap_disks(&self) -> Vec<DiskId> {
        self.history.open_disks()
    }

    /// The snapshot at an LSN below the log.
    fn kept_at(&self, lsn: Lsn) -> Option<&Kept> {
        let below = self.history.floor.is_some_and(|floor| lsn < floor.lsn);
        self.runs.kept.get(&lsn).filter(|_| below).map(|snapshot| snapshot.kept.as_ref())
    }

    /// Disks that are exact at an LSN, by id.
    #[must_use]
    pub fn exact_disks(&self, lsn: Lsn) -> Vec<DiskId> {
        if let Some(kept) = self.kept_at(lsn) {
            return kept.disks.iter().map(|disk| disk.id).collect();
        }
        let known =
            self.history.disks.iter().filter(|(_, disk)| disk.first_line.is_some_and(|line| line <= lsn));
        known.map(|(id, _)| *id).filter(|id| self.gap_at(lsn, *id).is_none()).collect()
    }

    /// Whether a disk was protected by then, exact or not.
    pub(crate) fn knows(&self, disk: DiskId, lsn: Lsn) -> bool {
        self.history.disks.get(&disk).is_some_and(|disk| disk.first_line.is_some_and(|line| line <= lsn))
    }

    /// Bytes a disk has at the end of the stream, durable or not; `None` before its first size.
    #[must_use]
    pub fn newest_size(&self, disk: DiskId) -> Option<u64> {
        let disk = self.history.disks.get(&disk)?;
        disk.sizes.last().map(|(_, size)| *size)
    }

    pub(crate) fn size_at(&self, disk: DiskId, lsn: Lsn) -> u64 {
        self.history.disks.get(&disk).map_or(0, |disk| disk.size_at(lsn))
    }

    fn gap_at(&self, lsn: Lsn, disk: DiskId) -> Option<&Gap> {
        let at =
            |gap: &&Gap| gap.from <= lsn && gap.to.is_none_or(|to| lsn < to) && gap.disks.contains(&disk);
        self.history.gaps.iter().rev().find(at)
    }

    /// Whether an LSN is a point, looking at it alone.
    fn judge(&self, lsn: Lsn, disks: &[DiskId]) -> Result<(), RefusedCause> {
        if self.horizon.is_none_or(|horizon| lsn > horizon.lsn) {
            return Err(RefusedCause::AfterLatest);
        }
        if let Some(kept) = self.kept_at(lsn) {
            let known = |disk: &DiskId| kept.disks.iter().any(|kept| kept.id == *disk);
            return if disks.iter().all(known) { Ok(()) } else { Err(RefusedCause::BeforeHistory) };
        }
        if self.history.floor.is_some_and(|floor| lsn < floor.lsn) {
            return Err(if self.runs.kept.range(..lsn).next().is_some() {
                RefusedCause::Folded
            } else {
                RefusedCause::BeforeHistory
            });
        }
        let mut any = false;
        for (id, disk) in &self.history.disks {
            let known = disk.first_line.is_some_and(|line| line <= lsn);
            if if disks.is_empty() { !known } else { !disks.contains(id) } {
                continue;
            }
            if !known {
                return Err(RefusedCause::BeforeHistory);
            }
            if let Some(gap) = self.gap_at(lsn, *id) {
                return Err(RefusedCause::Gap(gap.cause));
            }
            any = true;
        }
        if any && disks.iter().all(|disk| self.history.disks.contains_key(disk)) {
            Ok(())
        } else {
            Err(RefusedCause::BeforeHistory)
        }
    }

    /// Runs of good LSNs, both ends inside. The answer can change only where a gap or a disk begins or a gap ends.
    fn runs_of_points(&self, disks: &[DiskId]) -> Vec<(Lsn, Lsn)> {
        let Some(horizon) = self.horizon else { return Vec::new() };
        // Only a branch of images begins at 0.
        let first = self.history.floor.map_or(1, |floor| floor.lsn.0);
        let mut edges: Vec<u64> = vec![first];
        edges.extend(
            self.history.gaps.iter().flat_map(|gap| [Some(gap.from.0), gap.to.map(|to| to.0)]).flatten(),
        );
        edges.extend(self.history.disks.values().filter_map(|disk| disk.first_line.map(|line| line.0)));
        edges.retain(|edge| *edge >= first && *edge <= horizon.lsn.0);
        edges.sort_unstable();
        edges.dedup();
        let ends = edges.iter().skip(1).map(|next| next - 1).chain([horizon.lsn.0]);
        let mut runs: Vec<(Lsn, Lsn)> = Vec::new();
        for (from, to) in edges.iter().zip(ends).filter(|(from, _)| self.judge(Lsn(**from), disks).is_ok()) {
            match runs.last_mut() {
                Some((_, last)) if last.0 + 1 == *from => *last = Lsn(to),
                _ => runs.push((Lsn(*from), Lsn(to))),
            }
        }
        runs
    }

    /// Runs of points at which all of `disks` are exact; no disks = every disk that is known by then.
    ///
    /// # Errors
    /// When the times cannot be read.
    pub fn windows(&self, disks: &[DiskId]) -> Result<Vec<Window>, ReadError> {
        let runs = self.runs_of_points(disks);
        runs.into_iter()
            .map(|(from, to)| Ok(Window { from: self.point(from)?, to: self.point(to)? }))
            .collect()
    }

    fn point(&self, lsn: Lsn) -> Result<Point, ReadError> {
        Ok(Point { lsn, time_us: self.time_of(lsn)? })
    }

    fn refuse(&self, lsn: Lsn, disks: &[DiskId], cause: RefusedCause) -> TimelineError {
        let runs = self.runs_of_points(disks);
        // `lsn` itself may be a point: then the question was about a time after it.
        let before = runs.iter().rev().find(|(from, _)| *from <= lsn).map(|(_, to)| (*to).min(lsn));
        let after = runs.iter().find(|(from, _)| *from > lsn).map(|(from, _)| *from);
        // A snapshot may be nearer.
        let good = |lsn: &&Lsn| self.kept_at(**lsn).is_some() && self.judge(**lsn, disks).is_ok();
        let before = before.max(self.runs.kept.range(..=lsn).map(|(lsn, _)| lsn).rev().find(good).copied());
        let kept_after = self.runs.kept.range(lsn.next()..).map(|(lsn, _)| lsn).find(good).copied();
        let after = kept_after.or(after);
        let point = |lsn: Option<Lsn>| lsn.map(|lsn| self.point(lsn)).transpose();
        match (point(before), point(after)) {
            (Ok(before), Ok(after)) => TimelineError::Refused(Box::new(Refused { cause, before, after })),
            (Err(error), _) | (_, Err(error)) => error.into(),
        }
    }

    /// Whether all of `disks` are exact at `lsn`; no disks = every disk that is known by then.
    ///
    /// # Errors
    /// [`TimelineError::Refused`] with the nearest points, when it is not.
    pub fn check(&self, lsn: Lsn, disks: &[DiskId]) -> Result<(), TimelineError> {
        self.judge(lsn, disks).map_err(|cause| self.refuse(lsn, disks, cause))
    }

    /// The last LSN at or before a time, if it is a recovery point of `disks` and no gap lies between it and the time.
    ///
    /// # Errors
    /// [`TimelineError::Refused`] with the nearest points, when there is none.
    pub fn at_time(&self, time_us: u64, disks: &[DiskId]) -> Result<Lsn, TimelineError> {
        let latest = self.horizon.map_or(Lsn::ZERO, |horizon| horizon.lsn);
        let lsn = self.last_lsn_at(time_us)?.min(latest);
        let before_all = lsn == Lsn::ZERO && !self.begins_at_zero(time_us);
        if before_all
            && let Some(snapshot) = self.runs.kept.values().rev().find(|kept| kept.kept.time_us <= time_us)
        {
            // Nothing was written between a snapshot's point and its `until_us`.
            let lsn = snapshot.kept.lsn;
            if time_us < snapshot.kept.until_us {
                self.check(lsn, disks)?;
                return Ok(lsn);
            }
            return Err(self.refuse(lsn, disks, RefusedCause::Folded));
        }
        if self.horizon.is_none_or(|horizon| time_us > horizon.time_us.max(self.time_of_or_zero(horizon.lsn)))
        {
            return Err(self.refuse(latest, disks, RefusedCause::AfterLatest));
        }
        if before_all {
            return Err(match self.refuse(lsn, disks, RefusedCause::BeforeHistory) {
                // LSN 0, where it is a point, comes after the time.
                TimelineError::Refused(refused) => {
                    let after = refused.before.or(refused.after);
                    TimelineError::Refused(Box::new(Refused { before: None, after, ..*refused }))
                }
                error => error,
            });
        }
        self.check(lsn, disks)?;
        // What was missed lies between the last good point and the line that says so.
        if time_us > self.time_of(lsn)?
            && let Err(cause @ RefusedCause::Gap(_)) = self.judge(lsn.next(), disks)
        {
            return Err(self.refuse(lsn, disks, cause));
        }
        Ok(lsn)
    }

    /// The last point at or before a time at which all disks known by then are exact, in the log or at its floor:
    /// snapshots below do not count.
    ///
    /// # Errors
    /// When the times cannot be read.
    pub fn last_point_at(&self, time_us: u64) -> Result<Option<Point>, ReadError> {
        let Some(horizon) = self.horizon else { return Ok(None) };
        let lsn = self.last_lsn_at(time_us)?.min(horizon.lsn);
        let runs = self.runs_of_points(&[]);
        let found = runs.iter().rev().find(|(from, _)| *from <= lsn).map(|(_, to)| (*to).min(lsn));
        found.map(|lsn| self.point(lsn)).transpose()
    }

    /// Whether LSN 0 is a point at that time: the beginning of a branch of images.
    fn begins_at_zero(&self, time_us: u64) -> bool {
        self.history.floor.is_some_and(|floor| floor.lsn == Lsn::ZERO && floor.time_us <= time_us)
    }

    fn time_of_or_zero(&self, lsn: Lsn) -> u64 {
        self.time_of(lsn).unwrap_or(0)
    }

    fn last_lsn_at(&self, time_us: u64) -> Result<Lsn, ReadError> {
        for run in self.runs.segments.iter().rev() {
            let summary = run.summary();
            if summary.first_lsn > 0 && summary.first_time_us <= time_us {
                return Ok(self.source.lsn_at(run, time_us)?.unwrap_or(Lsn(summary.first_lsn)));
            }
        }
        // The floor's own segment may have been dropped.
        let floor = self.history.floor.filter(|floor| floor.time_us <= time_us);
        Ok(floor.map_or(Lsn::ZERO, |floor| floor.lsn))
    }

    /// When an LSN was captured, microseconds since the epoch by the appliance's clock; not decreasing by LSN; 0 for an
    /// LSN that was never taken.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn time_of(&self, lsn: Lsn) -> Result<u64, ReadError> {
        for run in self.runs.segments.iter().rev() {
            let summary = run.summary();
            if summary.first_lsn > 0 && summary.first_lsn <= lsn.0 && lsn.0 <= summary.last_lsn {
                return Ok(self.source.time(run, lsn)?.unwrap_or(0));
            }
        }
        let kept = self.kept_at(lsn).map(|kept| kept.time_us);
        Ok(kept
            .or(self.history.floor.filter(|floor| floor.lsn == lsn).map(|floor| floor.time_us))
            .unwrap_or(0))
    }
}
