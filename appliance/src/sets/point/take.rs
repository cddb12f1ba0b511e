//! From a wish to a point in the catalog.

use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tidemark_proto::v1::Consistency;
use tokio::task::JoinSet;
use uuid::Uuid;

use super::clock_cut;
use super::hold::{Held, Marker, hold, obstacle};
use super::orders::method_word;
use super::wish::{Member, Wish};
use crate::catalog::{CatalogError, MissingRow, NewSetPoint, PointMemberRow, SetPointRow};
use crate::clock::now_us;
use crate::core::Core;
use crate::ingest::{NewBookmark, store_bookmark};
use crate::sets::barrier::Placed;
use crate::sets::candidates;

/// The method of a member that nothing held.
pub(in crate::sets) const BY_CLOCK: &str = "clock";

/// Why there is no point.
#[derive(Debug, Error)]
pub enum NotTaken {
    /// No VM is in the set.
    #[error("no VM is in the set '{0}' now: `tidemark set show {0}`")]
    Empty(String),
    /// Members were not held as was asked for, or none could be placed; each is named.
    #[error("{0}")]
    NotAchieved(String),
    /// The catalog.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}

/// What came of one member.
enum Stands {
    In(PointMemberRow),
    Missing(MissingRow),
}

/// Takes a point of a set and stores it.
///
/// # Errors
/// When there is none; nothing is left behind then.
pub async fn take(core: &Arc<Core>, wish: &Wish) -> Result<SetPointRow, NotTaken> {
    let mut members = Vec::new();
    for tagged in candidates(&core.catalog, &core.fleet).await?.into_iter().filter(|vm| wish.set.has(vm)) {
        let bookmark_id = if wish.name.is_empty() { String::new() } else { Uuid::new_v4().to_string() };
        members.push(Member { vm: tagged.vm, bookmark_id });
    }
    if members.is_empty() {
        return Err(NotTaken::Empty(wish.set.name.clone()));
    }
    let held = held(&members, wish).await?;
    core.metrics.set_held(held.took);
    let at_us = held.at_us;
    let stands = place(core, &members, held).await;
    let taken = async {
        let point = judged(assemble(wish, at_us, stands), wish)?;
        core.metrics.set_point(point.cut, point.hold_us);
        let row = SetPointRow::new(point);
        core.catalog.add_set_point(&row).await?;
        name_by_clock(core, &row).await;
        Ok(row)
    };
    let taken = taken.await;
    if taken.is_err() {
        discard(core, &members).await;
    }
    taken
}

/// Holds the members, if any is to be held and could be.
async fn held(members: &[Member], wish: &Wish) -> Result<Held, NotTaken> {
    if wish.by_clock() {
        let outcomes = vec![Err("points of the set hold nobody".to_owned()); members.len()];
        return Ok(Held { outcomes, markers: Vec::new(), at_us: now_us(), took: Duration::ZERO });
    }
    let unable: Vec<String> = members
        .iter()
        .filter_map(|member| Some(format!("{}: {}", member.vm.name, obstacle(member)?)))
        .collect();
    if wish.strict() && !unable.is_empty() {
        return Err(not_achieved(wish, &unable));
    }
    Ok(hold(members, wish).await)
}

fn not_achieved(wish: &Wish, reasons: &[String]) -> NotTaken {
    NotTaken::NotAchieved(format!(
        "the level '{}' was not achieved for the set '{}', and there is no point ({}): mend that, or use --allow-lower",
        wish.level.or_crash().word(),
        wish.set.name,
        reasons.join("; ")
    ))
}

/// Finds where each member stands, all at the same time.
async fn place(core: &Arc<Core>, members: &[Member], held: Held) -> Vec<Stands> {
    let mut placing = JoinSet::new();
    let Held { outcomes, mut markers, at_us, .. } = held;
    for (number, (member, outcome)) in members.iter().zip(outcomes).enumerate() {
        let (core, member) = (Arc::clone(core), member.clone());
        let marker = markers.get_mut(number).and_then(Option::take);
        placing.spawn(async move {
            let held = outcome.is_ok();
            let stands = match outcome {
                Ok(placed) => by_marker(&member, placed, marker).await,
                Err(reason) => by_clock(&member, &reason, at_us).await,
            };
            if !held || stands.is_err() {
                // It may have placed its marker nevertheless, or still do so.
                forget(&core, &member).await;
            }
            let missing =
                |reason| MissingRow { vm: member.vm.id.to_string(), name: member.vm.name.clone(), reason };
            (number, stands.map_or_else(|reason| Stands::Missing(missing(reason)), Stands::In))
        });
    }
    let mut placed: Vec<(usize, Stands)> = Vec::new();
    while let Some(done) = placing.join_next().await {
        match done {
            Ok(done) => placed.push(done),
            Err(error) => tracing::error!(%error, "placing a member of a point ended unexpectedly"),
        }
    }
    placed.sort_by_key(|(number, _)| *number);
    placed.into_iter().map(|(_, stands)| stands).collect()
}

/// A member that was held stands at its marker, once that is durable and can be recovered. What the splitter said of its LSN is
/// not enough: it may have died before the marker arrived, and its successor counts anew from there.
async fn by_marker(
    member: &Member,
    placed: Placed,
    marker: Option<Marker>,
) -> Result<PointMemberRow, String> {
    let Placed { lsn, hold_us, method, level, reason } = placed;
    let marker = marker.ok_or("its marker was not waited for")?;
    match tokio::time::timeout(clock_cut::PATIENCE, marker).await {
        Ok(Ok(Ok(arrived))) if arrived.lsn == lsn => {}
        Ok(Ok(Ok(arrived))) => return Err(format!("its marker is at lsn:{}, not at lsn:{lsn}", arrived.lsn)),
        Ok(Ok(Err(reason))) => return Err(reason),
        Ok(Err(_)) | Err(_) => return Err("its marker did not arrive in time".to_owned()),
    }
    let time_us = clock_cut::recoverable(&member.vm, lsn).await?;
    Ok(PointMemberRow {
        vm: member.vm.id.to_string(),
        name: member.vm.name.clone(),
        lsn: lsn.0,
        time_us,
        method: method_word(method).to_owned(),
        consistency: level.word().to_owned(),
        hold_us,
        error_us: 0,
        reason,
    })
}

/// A member that was not held stands where its clock says.
async fn by_clock(member: &Member, reason: &str, at_us: u64) -> Result<PointMemberRow, String> {
    let cut = clock_cut::at_time(&member.vm, at_us).await.map_err(|late| match late == reason {
        true => late,
        false => format!("{reason}; {late}"),
    })?;
    Ok(PointMemberRow {
        vm: member.vm.id.to_string(),
        name: member.vm.name.clone(),
        lsn: cut.lsn.0,
        time_us: cut.time_us,
        method: BY_CLOCK.to_owned(),
        consistency: Consistency::Crash.word().to_owned(),
        hold_us: 0,
        error_us: cut.error_us,
        reason: reason.to_owned(),
    })
}

/// Members that have no marker get the bookmark, too, so that each of them can be recovered alone by the name.
async fn name_by_clock(core: &Core, point: &SetPointRow) {
    if point.name.is_empty() {
        return;
    }
    for member in point.members().iter().filter(|member| member.method == BY_CLOCK) {
        let (Some(vm), id) = (member.vm(), Uuid::new_v4().to_string()) else { continue };
        let (lsn, time_us, achieved) = (member.lsn(), member.time_us, Consistency::Crash);
        let bookmark = NewBookmark { id: &id, name: &point.name, lsn, time_us, achieved };
        if let Err(error) = store_bookmark(&core.catalog, vm, bookmark).await {
            tracing::error!(vm = member.name, %error, "cannot name a set's point among the bookmarks of a VM");
        }
    }
}

/// Puts the members together to what they are as a whole.
fn assemble(wish: &Wish, time_us: u64, stands: Vec<Stands>) -> NewSetPoint {
    let (mut members, mut missing) = (Vec::new(), Vec::new());
    for stands in stands {
        match stands {
            Stands::In(member) => members.push(member),
            Stands::Missing(member) => missing.push(member),
        }
    }
    let level = members.iter().filter_map(|member| Consistency::of_word(&member.consistency)).min();
    let by_clock = members.iter().filter(|member| member.method == BY_CLOCK).count();
    let cut = match by_clock {
        0 if missing.is_empty() => "barrier",
        all if all == members.len() => "clock",
        _ => "mixed",
    };
    let mut errors: Vec<u64> =
        members.iter().filter(|member| member.method == BY_CLOCK).map(|member| member.error_us).collect();
    errors.sort_unstable_by(|a, b| b.cmp(a));
    NewSetPoint {
        set: wish.set.name.clone(),
        name: wish.name.clone(),
        time_us,
        consistency: level.unwrap_or(Consistency::Crash).word(),
        cut,
        hold_us: members.iter().map(|member| member.hold_us).max().unwrap_or(0),
        // Two that are wrong in opposite directions. Who was held stood at the time itself.
        bound_us: errors.iter().take(2).fold(0, |sum, error| sum.saturating_add(*error)),
        members,
        missing,
    }
}

/// Whether it is what was asked for.
fn judged(point: NewSetPoint, wish: &Wish) -> Result<NewSetPoint, NotTaken> {
    let missing = point.missing.iter().map(|member| format!("{}: {}", member.name, member.reason));
    if point.members.is_empty() {
        let reasons: Vec<String> = missing.collect();
        return Err(NotTaken::NotAchieved(format!(
            "no member of the set '{}' can be placed ({})",
            wish.set.name,
            reasons.join("; ")
        )));
    }
    if !wish.strict() {
        return Ok(point);
    }
    let low = |member: &&PointMemberRow| {
        Consistency::of_word(&member.consistency).is_none_or(|level| level < wish.level)
    };
    let reasons: Vec<String> = missing
        .chain(point.members.iter().filter(low).map(|member| {
            let why = if member.reason.is_empty() { "it was not held so" } else { &member.reason };
            format!("{}: only {} ({why})", member.name, member.consistency)
        }))
        .collect();
    if reasons.is_empty() { Ok(point) } else { Err(not_achieved(wish, &reasons)) }
}

/// The bookmark of a member, which may still come, is not wanted.
async fn forget(core: &Core, member: &Member) {
    if member.bookmark_id.is_empty() {
        return;
    }
    // First this: whoever stores it afterwards looks here.
    member.vm.forget_bookmark(&member.bookmark_id);
    if let Err(error) = core.catalog.remove_bookmark(&member.bookmark_id).await {
        tracing::error!(vm = member.vm.name, %error, "cannot remove a bookmark of a point that was not achieved");
    }
}

/// There is no point: its members' bookmarks go, too.
async fn discard(core: &Core, members: &[Member]) {
    for member in members {
        forget(core, member).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::{Pointing, SetRow};
    use crate::sets::Set;

    fn wish(level: Consistency, allow_lower: bool) -> Wish {
        let pointing = Pointing { every_us: 0, hold: "free".into(), order: Vec::new() };
        let set = Set::of(&SetRow::new("shop".into(), &[], String::new(), 1, &pointing));
        Wish { set, name: "x".into(), level, allow_lower }
    }

    fn member(method: &str, level: &str, error_us: u64) -> Stands {
        Stands::In(PointMemberRow {
            vm: String::new(),
            name: "a".into(),
            lsn: 1,
            time_us: 1,
            method: method.into(),
            consistency: level.into(),
            hold_us: error_us / 2,
            error_us,
            reason: String::new(),
        })
    }

    fn absent() -> Stands {
        Stands::Missing(MissingRow { vm: String::new(), name: "b".into(), reason: "gone".into() })
    }

    #[test]
    fn a_point_is_a_barriers_only_if_everybody_was_held() {
        let cut = |stands| {
            let point = assemble(&wish(Consistency::Crash, false), 9, stands);
            (point.cut, point.bound_us, point.consistency)
        };
        let gate = || member("gate", "application", 0);
        assert_eq!(cut(vec![gate(), gate()]), ("barrier", 0, "application"));
        assert_eq!(cut(vec![gate(), member("freeze", "filesystem", 0)]), ("barrier", 0, "filesystem"));
        assert_eq!(cut(vec![gate(), absent()]), ("mixed", 0, "application"));
        assert_eq!(cut(vec![gate(), member("clock", "crash", 70)]), ("mixed", 70, "crash"));
        let three =
            vec![member("clock", "crash", 5), member("clock", "crash", 90), member("clock", "crash", 7)];
        assert_eq!(cut(three), ("clock", 97, "crash"));
    }

    #[test]
    fn a_level_that_was_not_achieved_names_who_did_not() {
        let stands = || vec![member("gate", "crash", 0), absent()];
        let strict = wish(Consistency::Application, false);
        let refused = judged(assemble(&strict, 9, stands()), &strict).unwrap_err().to_string();
        assert!(refused.contains("a: only crash") && refused.contains("b: gone"), "{refused}");
        let lenient = wish(Consistency::Application, true);
        assert_eq!(judged(assemble(&lenient, 9, stands()), &lenient).unwrap().missing.len(), 1);
        let nobody = judged(assemble(&lenient, 9, vec![absent()]), &lenient).unwrap_err();
        assert!(nobody.to_string().contains("no member"), "{nobody}");
    }
}
