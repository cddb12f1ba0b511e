//! Listing recovery points: windows, bookmarks, gaps.

use std::sync::Arc;

use tidemark_journal::Kept;
use tidemark_journal::timeline::{self, Timeline};
use tidemark_proto::ids::Lsn;
use tidemark_proto::limits::TEXT_MAX_BYTES;
use tidemark_proto::v1::{
    self, Gap, ListPointsRequest, ListPointsResponse, Point, Spooled, When, Window, when,
};
use tonic::Status;

use super::{blocking, catalog, vm_named};
use crate::catalog::{BookmarkRow, SpoolRow, doubts_of};
use crate::clock::now_us;
use crate::core::Core;
use crate::ingest::CRASH;
use crate::recovery::{Doubt, cause_text};
use crate::rights::{self, Right, Target};
use crate::transport::Peer;

/// Entries of each kind in one answer at most: the newest. An operator who needs more narrows the range.
const ENTRIES_MAX: usize = 10_000;

pub(super) async fn list(
    core: &Arc<Core>,
    caller: &Peer,
    request: ListPointsRequest,
) -> Result<ListPointsResponse, Status> {
    rights::require(core, caller, &[Right::Recover, Right::Mount], Target::Vm(&request.vm)).await?;
    let vm = vm_named(core, &request.vm)?;
    if request.search.len() > TEXT_MAX_BYTES {
        return Err(Status::invalid_argument("the text to search for is too long"));
    }
    let bookmarks = core.catalog.bookmarks(vm.id).await.map_err(catalog)?;
    let verifies = core.catalog.verifies_of(vm.id).await.map_err(catalog)?;
    let spools = core.catalog.spools(vm.id).await.map_err(catalog)?;
    blocking(move || {
        let journal = vm.log.journal().map_err(|down| Status::unavailable(down.to_string()))?;
        let timeline = journal.timeline();
        let now_us = now_us();
        let from = bound(request.from.as_ref(), 0, &timeline, &bookmarks, now_us)?;
        let to = bound(request.to.as_ref(), u64::MAX, &timeline, &bookmarks, now_us)?;
        let range = Range { from, to };
        let windows = timeline.windows(&[]).map_err(|error| Status::data_loss(error.to_string()))?;
        let windows = windows.iter().filter_map(|window| range.window(window)).collect();
        let search = request.search.to_lowercase();
        let kept = journal.snapshots();
        let base = journal.base().map_or(Lsn::ZERO, |(lsn, _)| lsn);
        // A bookmark whose point was folded away names nothing any more.
        let there = |lsn: Lsn| lsn >= base || kept.iter().any(|kept| kept.lsn == lsn);
        let mut points: Vec<Point> = bookmarks
            .iter()
            .filter(|row| {
                there(row.lsn())
                    && range.contains(row.lsn().0, row.time_us())
                    && row.name.to_lowercase().contains(&search)
            })
            .map(|row| point(&vm.name, row))
            .collect();
        if search.is_empty() {
            let inside = kept.iter().filter(|kept| range.contains(kept.lsn.0, kept.time_us));
            points.extend(inside.map(|kept| snapshot(&vm.name, kept)));
            points.sort_by_key(|point| point.lsn);
        }
        let gaps = timeline.gaps().iter().filter(|gap| range.touches(gap)).map(gap_info).collect();
        // Of what was folded away, doubt matters where a point stayed.
        let matters = |doubt: &Doubt| {
            doubt.to > base || kept.iter().any(|kept| doubt.from <= kept.lsn && kept.lsn < doubt.to)
        };
        let doubts = doubts_of(&timeline, &verifies)
            .into_iter()
            .filter(matters)
            .filter(|doubt| doubt.to.0 >= range.from.0 && doubt.from.0 <= range.to.0);
        let spools = spools
            .iter()
            .filter(|row| row.to_us().is_none_or(|end| end >= range.from.1) && row.from_us() <= range.to.1);
        Ok(ListPointsResponse {
            windows: newest(windows),
            points: newest(points),
            gaps: newest(gaps),
            doubts: newest(doubts.map(doubt_info).collect()),
            spools: newest(spools.map(spooled).collect()),
        })
    })
    .await
}

fn spooled(row: &SpoolRow) -> Spooled {
    let (from_lsn, from_time_us) = (row.from_lsn().0, row.from_us());
    Spooled { from_lsn, from_time_us, to_time_us: row.to_us().unwrap_or(0) }
}

fn newest<T>(mut entries: Vec<T>) -> Vec<T> {
    let surplus = entries.len().saturating_sub(ENTRIES_MAX);
    entries.drain(..surplus);
    entries
}

/// LSN and time bounds, both inside; whichever the caller did not give is open.
struct Range {
    from: (u64, u64),
    to: (u64, u64),
}

impl Range {
    fn contains(&self, lsn: u64, time_us: u64) -> bool {
        lsn >= self.from.0 && time_us >= self.from.1 && lsn <= self.to.0 && time_us <= self.to.1
    }

    fn touches(&self, gap: &timeline::Gap) -> bool {
        let (to_lsn, to_us) = (gap.to.map_or(u64::MAX, |to| to.0), gap.to_time_us.unwrap_or(u64::MAX));
        to_lsn >= self.from.0
            && to_us >= self.from.1
            && gap.from.0 <= self.to.0
            && gap.from_time_us <= self.to.1
    }

    fn window(&self, window: &timeline::Window) -> Option<Window> {
        let touches = window.to.lsn.0 >= self.from.0
            && window.to.time_us >= self.from.1
            && window.from.lsn.0 <= self.to.0
            && window.from.time_us <= self.to.1;
        touches.then_some(Window {
            from_lsn: window.from.lsn.0,
            to_lsn: window.to.lsn.0,
            from_time_us: window.from.time_us,
            to_time_us: window.to.time_us,
        })
    }
}

/// An end of the range as LSN and time; what `when` does not name is `open`. It need not be a recovery point.
fn bound(
    when: Option<&When>,
    open: u64,
    timeline: &Timeline,
    bookmarks: &[BookmarkRow],
    now_us: u64,
) -> Result<(u64, u64), Status> {
    let Some(point) = when.and_then(|when| when.point.as_ref()) else { return Ok((open, open)) };
    Ok(match point {
        when::Point::Latest(_) => (timeline.horizon().map_or(0, |horizon| horizon.lsn.0), open),
        when::Point::Lsn(lsn) => (*lsn, open),
        when::Point::TimeUs(time_us) => (open, *time_us),
        when::Point::AgoUs(ago_us) => (open, now_us.saturating_sub(*ago_us)),
        when::Point::Bookmark(name) => {
            let row = bookmarks.iter().find(|row| row.name == *name);
            let row = row.ok_or_else(|| Status::not_found(format!("there is no bookmark named '{name}'")))?;
            (row.lsn().0, open)
        }
    })
}

fn point(vm: &str, row: &BookmarkRow) -> Point {
    Point {
        vm: vm.to_owned(),
        lsn: row.lsn().0,
        time_us: row.time_us(),
        kind: "bookmark".into(),
        name: row.name.clone(),
        consistency: row.consistency.clone(),
    }
}

fn snapshot(vm: &str, kept: &Kept) -> Point {
    Point {
        vm: vm.to_owned(),
        lsn: kept.lsn.0,
        time_us: kept.time_us,
        kind: "snapshot".into(),
        name: String::new(),
        consistency: CRASH.into(),
    }
}

fn doubt_info(doubt: Doubt) -> v1::Doubt {
    v1::Doubt {
        from_lsn: doubt.from.0,
        to_lsn: doubt.to.0,
        disk: doubt.disk.to_string(),
        detail: doubt.detail,
    }
}

pub(super) fn gap_info(gap: &timeline::Gap) -> Gap {
    Gap {
        from_lsn: gap.from.0,
        to_lsn: gap.to.map_or(0, |to| to.0),
        from_time_us: gap.from_time_us,
        to_time_us: gap.to_time_us.unwrap_or(0),
        cause: cause_text(gap.cause).to_owned(),
        detail: gap.detail.clone(),
        disks: gap.disks.iter().map(ToString::to_string).collect(),
    }
}
