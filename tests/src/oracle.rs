//! Oracle 1 against a whole installation: views of random points are judged by the workload's log.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::site::{PointList, Site};
use crate::stamp::{Checker, History};
use crate::synthetic::Administrator;

/// A bookmark is durable after one commit and one heartbeat; a busy machine takes longer.
const POINT_TIMEOUT: Duration = Duration::from_secs(30);

/// What a series of points showed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Judged {
    /// Points read and allowed.
    pub points: usize,
    /// Of those, how many were compared with one exact list of writes.
    pub exact: usize,
    /// Fewest writes any of them must contain.
    pub fewest: u64,
    /// Most.
    pub most: u64,
}

/// How to judge.
#[derive(Debug, Clone)]
pub struct Judge<'a> {
    /// The installation.
    pub site: &'a Site,
    /// The VM.
    pub vm: &'a str,
    /// Number of its disk, from 0.
    pub disk: usize,
    /// The workload's log.
    pub history: &'a History,
    /// Queue depth 1 and no write larger than a request: one LSN per write, so the list of writes is known exactly.
    pub exact: bool,
}

impl Judge<'_> {
    /// Judges `count` random points up to `marker`, a bookmark placed after the last write: of all windows, or with
    /// `exact` of the last one, in which the list of writes is known; and the ends of each window. At `marker` itself
    /// every completed write must be there.
    ///
    /// # Errors
    /// The first point that is not allowed, with its LSN.
    pub fn random_points(&self, count: usize, seed: u64, marker: u64) -> Result<Judged> {
        self.site.wait_point(self.vm, marker, POINT_TIMEOUT)?;
        let list = self.site.points(self.vm)?;
        let checker = Checker::new(self.history);
        let anchor = self.anchor(&list, marker)?;
        let lsns = choose(&list, count, seed, anchor.unwrap_or(0), marker)?;
        // Two at a time: one is read while the other is judged.
        let halves: Vec<Vec<u64>> =
            (0..2).map(|half| lsns.iter().copied().skip(half).step_by(2).collect()).collect();
        let results: Vec<Result<Judged>> = std::thread::scope(|scope| {
            let workers: Vec<_> = halves
                .iter()
                .map(|lsns| scope.spawn(|| self.series(&checker, lsns, anchor, marker)))
                .collect();
            workers
                .into_iter()
                .map(|worker| worker.join().unwrap_or_else(|_| bail!("the judge panicked")))
                .collect()
        });
        let mut judged = Judged { fewest: u64::MAX, ..Judged::default() };
        for result in results {
            let part = result?;
            judged.points += part.points;
            judged.exact += part.exact;
            judged.fewest = judged.fewest.min(part.fewest);
            judged.most = judged.most.max(part.most);
        }
        Ok(judged)
    }

    /// Judges one point that must contain every completed write.
    ///
    /// # Errors
    /// When it does not.
    pub fn complete_point(&self, lsn: u64) -> Result<()> {
        self.site.wait_point(self.vm, lsn, POINT_TIMEOUT)?;
        let image = views()?.block_on(Administrator::of(self.site)?.image(self.vm, self.disk, lsn))?;
        Checker::new(self.history).check(&image, u64::MAX).with_context(|| format!("at LSN {lsn}"))?;
        Ok(())
    }

    /// From where on a point at LSN p holds exactly `operations - (marker - 1 - p)` writes: the start of the window that
    /// `marker` is in.
    fn anchor(&self, list: &PointList, marker: u64) -> Result<Option<u64>> {
        let window = list.windows.iter().find(|window| window.from_lsn <= marker && marker <= window.to_lsn);
        let window = window.with_context(|| format!("the marker {marker} is in no window of {list:?}"))?;
        Ok(self.exact.then_some(window.from_lsn))
    }

    fn series(&self, checker: &Checker, lsns: &[u64], anchor: Option<u64>, marker: u64) -> Result<Judged> {
        let mut judged = Judged { fewest: u64::MAX, ..Judged::default() };
        let mut floor = 0;
        let (runtime, administrator) = (views()?, Administrator::of(self.site)?);
        for lsn in lsns.iter().copied() {
            let image = runtime.block_on(administrator.image(self.vm, self.disk, lsn));
            let image = image.with_context(|| format!("the view at LSN {lsn}"))?;
            let known = if lsn == marker { u64::MAX } else { floor };
            let verdict = checker.check(&image, known).with_context(|| format!("at LSN {lsn}"))?;
            if lsn != marker {
                floor = verdict.frontier;
            }
            if anchor.is_some_and(|anchor| anchor <= lsn) {
                // The marker takes an LSN and changes nothing: the writes end right before it.
                let behind = (marker - 1).saturating_sub(lsn);
                let operations = self.history.operations.len() as u64;
                let prefix = operations.checked_sub(behind).context("more LSNs than writes")?;
                checker.check_prefix(&image, prefix).with_context(|| format!("at LSN {lsn}"))?;
                judged.exact += 1;
            }
            judged.points += 1;
            judged.fewest = judged.fewest.min(verdict.must_contain);
            judged.most = judged.most.max(verdict.must_contain);
        }
        Ok(judged)
    }
}

/// Views are read over the console's service: hundreds of points would spend their time in starting programs.
fn views() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

/// Random LSNs of the windows from `from` to `marker`, with the ends of each window, in order.
fn choose(list: &PointList, count: usize, seed: u64, from: u64, marker: u64) -> Result<Vec<u64>> {
    let mut windows: Vec<(u64, u64)> = list
        .windows
        .iter()
        .map(|window| (window.from_lsn, window.to_lsn.min(marker)))
        .filter(|(from, to)| from <= to)
        .collect();
    let mut lsns: std::collections::BTreeSet<u64> =
        windows.iter().flat_map(|(from, to)| [*from, *to]).collect();
    windows.retain(|(start, _)| *start >= from);
    let total: u64 = windows.iter().map(|(from, to)| to - from + 1).sum();
    ensure!(total >= count as u64, "only {total} points in {list:?}, {count} wanted");
    let mut random = StdRng::seed_from_u64(seed);
    while lsns.len() < count {
        let mut at = random.random_range(0..total);
        for (from, to) in &windows {
            let length = to - from + 1;
            if at < length {
                lsns.insert(from + at);
                break;
            }
            at -= length;
        }
    }
    Ok(lsns.into_iter().collect())
}
