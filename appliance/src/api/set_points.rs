//! Points of sets: naming, listing and finding them.

use std::sync::Arc;
use std::time::Duration;

use tidemark_proto::limits::TEXT_MAX_BYTES;
use tidemark_proto::v1::{
    CreateSetBookmarkRequest, DivergedMember, DivergedReply, DivergedRequest, ListSetPointsRequest,
    ListSetPointsResponse, MemberGap, MissingMember, PointMember, SetBookmarkReply, SetPoint, SetWindow,
    When, when,
};
use tonic::Status;

use super::bookmarks::level_named;
use super::points::gap_info;
use super::{blocking, catalog, interrupted, vm_named};
use crate::catalog::SetPointRow;
use crate::clock::now_us;
use crate::core::Core;
use crate::recovery::rfc3339;
use crate::sets::{self, Asked, BookmarkRefused, Floors, Set, point::NotTaken};
use crate::transport::Peer;

/// Points of one answer at most: the newest. An operator who needs more narrows the range.
const POINTS_MAX: u32 = 2_000;

/// Members of all points of one answer at most: some megabytes.
const MEMBERS_MAX: usize = 20_000;

/// Gaps of one member in one answer at most: the newest.
const GAPS_MAX: usize = 1_000;

/// Points that are no further apart are one window, or those of three intervals if that is longer.
const WINDOW_LINK: Duration = Duration::from_secs(15);

/// Names the present moment of a set.
pub(super) async fn bookmark(
    core: &Arc<Core>,
    caller: &Peer,
    request: CreateSetBookmarkRequest,
) -> Result<SetBookmarkReply, Status> {
    let level = level_named(&request.consistency)?;
    let CreateSetBookmarkRequest { set, name, allow_lower, .. } = request;
    let (shared, actor) = (Arc::clone(core), caller.role.uri());
    let asked = Asked { set, name, level, allow_lower };
    // A console that goes leaves nobody held, nor a bookmark that nobody removes.
    let work = async move { sets::bookmark(&shared, &actor, asked).await };
    let row = core.tasks.to_the_end(work).await.ok_or_else(interrupted)?.map_err(refused)?;
    let warnings = sets::warnings(&row);
    Ok(SetBookmarkReply { point: Some(info(core, &row)), requested: level.word().to_owned(), warnings })
}

fn refused(error: BookmarkRefused) -> Status {
    let text = error.to_string();
    match error {
        BookmarkRefused::NoSet(_) => Status::not_found(text),
        BookmarkRefused::Name => Status::invalid_argument(text),
        BookmarkRefused::Exists(..) => Status::already_exists(text),
        BookmarkRefused::TooOften(_) => Status::resource_exhausted(text),
        BookmarkRefused::NotTaken(NotTaken::Catalog(error)) => catalog(error),
        BookmarkRefused::NotTaken(_) => Status::failed_precondition(text),
    }
}

/// A point as it is told of; members by their names of now.
pub(super) fn info(core: &Core, row: &SetPointRow) -> SetPoint {
    let name =
        |id: Option<_>, then: String| id.and_then(|id| core.fleet.get(id)).map_or(then, |vm| vm.name.clone());
    let members = row.members().into_iter().map(|member| PointMember {
        vm: name(member.vm(), member.name.clone()),
        vm_id: member.vm,
        lsn: member.lsn,
        time_us: member.time_us,
        method: member.method,
        consistency: member.consistency,
        hold_us: member.hold_us,
        error_us: member.error_us,
        reason: member.reason,
    });
    let missing = row.missing().into_iter().map(|member| MissingMember {
        vm: name(member.vm.parse().ok(), member.name),
        vm_id: member.vm,
        reason: member.reason,
    });
    SetPoint {
        id: row.id.clone(),
        set: row.set_name.clone(),
        name: row.name.clone(),
        kind: row.kind.clone(),
        time_us: row.time_us(),
        consistency: row.consistency.clone(),
        cut: row.cut.clone(),
        hold_us: row.hold_us(),
        bound_us: row.bound_us(),
        members: members.collect(),
        missing: missing.collect(),
    }
}

async fn set_named(core: &Core, name: &str) -> Result<Set, Status> {
    let sets = sets::all(&core.catalog).await.map_err(catalog)?;
    sets.into_iter().find(|set| set.name == name).ok_or_else(|| super::sets::no_set(name))
}

/// The time that a WHEN of a set names, and the point itself where it names one.
async fn named(
    core: &Core,
    set: &str,
    when: Option<&When>,
) -> Result<Option<(u64, Option<SetPointRow>)>, Status> {
    let Some(point) = when.and_then(|when| when.point.as_ref()) else { return Ok(None) };
    Ok(Some(match point {
        when::Point::Latest(_) => (u64::MAX, None),
        when::Point::TimeUs(time_us) => (*time_us, None),
        when::Point::AgoUs(ago_us) => (now_us().saturating_sub(*ago_us), None),
        when::Point::Lsn(_) => {
            let text =
                "an LSN is one VM's and names no point of a set: use latest, a time, -15m or bookmark:NAME";
            return Err(Status::invalid_argument(text));
        }
        when::Point::Bookmark(name) => {
            let row = core.catalog.set_bookmark(set, name).await.map_err(catalog)?;
            let row = row.ok_or_else(|| {
                Status::not_found(format!(
                    "the set '{set}' has no bookmark named '{name}'; `tidemark point list --set {set}` shows those there are"
                ))
            })?;
            (row.time_us(), Some(row))
        }
    }))
}

/// The point that a WHEN names; all its members can be recovered.
pub(super) async fn find(core: &Arc<Core>, set: &str, when: Option<&When>) -> Result<SetPointRow, Status> {
    set_named(core, set).await?;
    let named = named(core, set, when).await?;
    let (time_us, bookmark) = named.ok_or_else(|| {
        Status::invalid_argument("no point is named: use latest, a time, -15m or bookmark:NAME")
    })?;
    let row = match bookmark {
        Some(row) => row,
        None => {
            let newest = core.catalog.set_points(set, 0, time_us, 1).await.map_err(catalog)?;
            newest.into_iter().next().ok_or_else(|| {
                Status::failed_precondition(format!(
                    "the set '{set}' has no point there: `tidemark point list --set {set}` shows those there are"
                ))
            })?
        }
    };
    let floors = Floors::look(core).await;
    let gone =
        |member: &&crate::catalog::PointMemberRow| member.vm().is_none_or(|vm| !floors.has(vm, member.lsn()));
    let gone: Vec<String> = row.members().iter().filter(gone).map(|member| member.name.clone()).collect();
    if gone.is_empty() {
        return Ok(row);
    }
    Err(Status::failed_precondition(format!(
        "the point of {} cannot be recovered any more: that history of {} is gone",
        rfc3339(row.time_us()),
        gone.join(", ")
    )))
}

/// Lists points, the windows that they lie in, and the members' gaps.
pub(super) async fn list(
    core: &Arc<Core>,
    request: ListSetPointsRequest,
) -> Result<ListSetPointsResponse, Status> {
    if request.search.len() > TEXT_MAX_BYTES {
        return Err(Status::invalid_argument("the text to search for is too long"));
    }
    let set = set_named(core, &request.set).await?;
    let from_us = named(core, &set.name, request.from.as_ref()).await?.map_or(0, |(time_us, _)| time_us);
    let to_us = named(core, &set.name, request.to.as_ref()).await?.map_or(u64::MAX, |(time_us, _)| time_us);
    let mut rows = core.catalog.set_points(&set.name, from_us, to_us, POINTS_MAX).await.map_err(catalog)?;
    let floors = Floors::look(core).await;
    rows.retain(|row| floors.has_any(row));
    let link_us = u64::try_from(WINDOW_LINK.max(set.every.saturating_mul(3)).as_micros()).unwrap_or(u64::MAX);
    let windows = windows(rows.iter().rev(), link_us);
    let search = request.search.to_lowercase();
    let mut points = Vec::new();
    let mut members = 0;
    for row in rows.iter().filter(|row| row.name.to_lowercase().contains(&search)) {
        let point = info(core, row);
        members += point.members.len() + point.missing.len();
        if members > MEMBERS_MAX {
            break;
        }
        points.push(point);
    }
    points.reverse();
    let gaps = gaps(core, &set, from_us, to_us).await?;
    Ok(ListSetPointsResponse { windows, points, gaps })
}

/// Runs of points of all members, from the oldest point on.
fn windows<'a>(rows: impl Iterator<Item = &'a SetPointRow>, link_us: u64) -> Vec<SetWindow> {
    let mut windows: Vec<SetWindow> = Vec::new();
    for row in rows.filter(|row| row.missing().is_empty()) {
        let time_us = row.time_us();
        match windows.last_mut() {
            Some(last) if time_us.saturating_sub(last.to_us) <= link_us => {
                (last.to_us, last.points) = (time_us, last.points + 1);
            }
            _ => windows.push(SetWindow { from_us: time_us, to_us: time_us, points: 1 }),
        }
    }
    windows
}

async fn gaps(core: &Arc<Core>, set: &Set, from_us: u64, to_us: u64) -> Result<Vec<MemberGap>, Status> {
    let members = sets::candidates(&core.catalog, &core.fleet).await.map_err(catalog)?;
    let members: Vec<_> = members.into_iter().filter(|vm| set.has(vm)).map(|vm| vm.vm).collect();
    blocking(move || {
        let mut gaps = Vec::new();
        for vm in members {
            // A journal that cannot be read has an alarm of its own.
            let Ok(journal) = vm.log.journal() else { continue };
            let timeline = journal.timeline();
            let touching = timeline.gaps().iter().rev().filter(|gap| {
                gap.from_time_us <= to_us && gap.to_time_us.is_none_or(|end_us| end_us >= from_us)
            });
            let mut own: Vec<MemberGap> = touching
                .take(GAPS_MAX)
                .map(|gap| MemberGap { vm: vm.name.clone(), gap: Some(gap_info(gap)) })
                .collect();
            own.reverse();
            gaps.extend(own);
        }
        Ok(gaps)
    })
    .await
}

/// What members have written since a point: what would contradict one of them that went back to it alone.
pub(super) async fn diverged(
    core: &Arc<Core>,
    caller: &Peer,
    request: DivergedRequest,
) -> Result<DivergedReply, Status> {
    let person = caller.person()?.is_some();
    if !request.vm.is_empty() && !person {
        vm_named(core, &request.vm)?;
    }
    let row = find(core, &request.set, request.at.as_ref()).await?;
    let point = info(core, &row);
    // A person learns of no VM outside of the set, not even whether there is one of a name.
    if !request.vm.is_empty() && person && !point.members.iter().any(|member| member.vm == request.vm) {
        return Err(Status::not_found(format!("'{}' is not in this point", request.vm)));
    }
    let mut members = Vec::new();
    for member in row.members() {
        let Some(vm) = member.vm().and_then(|vm| core.fleet.get(vm)).filter(|vm| vm.name != request.vm)
        else {
            continue;
        };
        let log = Arc::clone(&vm.log);
        let latest = blocking(move || {
            let journal = log.journal().map_err(|down| Status::unavailable(down.to_string()))?;
            let horizon = journal.timeline().horizon();
            Ok(horizon.map_or((0, 0), |horizon| (horizon.lsn.0, horizon.time_us)))
        });
        let (latest_lsn, latest_time_us) = latest.await?;
        members.push(DivergedMember {
            vm: vm.name.clone(),
            lsn: member.lsn,
            latest_lsn,
            latest_time_us,
            entries: latest_lsn.saturating_sub(member.lsn),
        });
    }
    Ok(DivergedReply { point: Some(point), members })
}
