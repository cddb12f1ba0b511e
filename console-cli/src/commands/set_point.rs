//! Points of sets: naming, listing, finding, and what going back to one of them alone means.

use anyhow::{Result, bail};
use serde_json::{Value, json};
use tidemark_proto::v1::{
    CreateSetBookmarkRequest, DivergedReply, DivergedRequest, Empty, FindSetPointRequest,
    ListSetPointsRequest, ListSetPointsResponse, SetPoint,
};

use super::point::gap_json;
use crate::appliance::{SetsClient, refused};
use crate::cli::UsageError;
use crate::moment;
use crate::output::{self, Table};
use crate::when::When;

/// A WHEN that names a point of a set: not an LSN.
///
/// # Errors
/// A usage error for an LSN.
fn of_set(when: &When) -> Result<&When> {
    match when {
        When::Lsn(_) => bail!(UsageError(
            "an LSN is one VM's and names no point of a set: use latest, a time, -15m or bookmark:NAME"
                .into()
        )),
        when => Ok(when),
    }
}

/// `bookmark create NAME --set SET`.
pub(super) async fn bookmark(
    mut client: SetsClient,
    request: CreateSetBookmarkRequest,
    json: bool,
) -> Result<()> {
    let reply = client.create_set_bookmark(request).await.map_err(|status| refused(&status))?.into_inner();
    let point = reply.point.unwrap_or_default();
    reply.warnings.iter().for_each(|warning| output::warning(warning));
    if json {
        let points: Vec<Value> = point
            .members
            .iter()
            .map(|member| {
                let time = moment::json(member.time_us);
                json!({ "vm": member.vm, "branch": "", "lsn": member.lsn, "time": time })
            })
            .collect();
        let mut shown = to_json(&point);
        if let Value::Object(fields) = &mut shown {
            fields.insert("requested".into(), json!(reply.requested));
            fields.insert("achieved".into(), json!(point.consistency));
            fields.insert("points".into(), json!(points));
        }
        return output::json(&shown);
    }
    output::line(&format!(
        "bookmark:{}  {}  {}  {}  {}",
        point.name,
        point.set,
        moment::local(point.time_us),
        point.consistency,
        cut(&point)
    ))?;
    for member in &point.members {
        output::line(&format!("  {}  lsn:{}  {}", member.vm, member.lsn, member.method))?;
    }
    if point.hold_us > 0 {
        let held = std::time::Duration::from_micros(point.hold_us);
        output::line(&format!("  writers were held for {held:.1?} at most"))?;
    }
    Ok(())
}

/// How a point was cut, for people.
fn cut(point: &SetPoint) -> String {
    let bound = std::time::Duration::from_micros(point.bound_us);
    let partial = if point.missing.is_empty() { "" } else { ", partial" };
    match (point.cut.as_str(), point.bound_us) {
        (cut, 0) => format!("{cut}{partial}"),
        (cut, _) => format!("{cut} (apart by {bound:.1?} at most){partial}"),
    }
}

/// As programs read it.
pub(super) fn to_json(point: &SetPoint) -> Value {
    let members: Vec<Value> = point
        .members
        .iter()
        .map(|member| {
            json!({
                "vm": member.vm, "lsn": member.lsn, "time": moment::json(member.time_us), "method": member.method,
                "consistency": member.consistency, "hold_us": member.hold_us, "error_us": member.error_us,
                "reason": member.reason,
            })
        })
        .collect();
    let missing: Vec<Value> =
        point.missing.iter().map(|member| json!({ "vm": member.vm, "reason": member.reason })).collect();
    json!({
        "id": point.id, "set": point.set, "name": point.name, "kind": point.kind,
        "time": moment::json(point.time_us), "consistency": point.consistency, "cut": point.cut,
        "hold_us": point.hold_us, "bound_us": point.bound_us, "partial": !point.missing.is_empty(),
        "members": members, "missing": missing,
    })
}

/// `point list --set SET`.
pub(super) async fn list(
    mut client: SetsClient,
    set: String,
    (from, to): (Option<When>, Option<When>),
    search: Option<String>,
    json: bool,
) -> Result<()> {
    let bound = |when: Option<When>| when.map(|when| of_set(&when).map(When::to_proto)).transpose();
    let request =
        ListSetPointsRequest { set, from: bound(from)?, to: bound(to)?, search: search.unwrap_or_default() };
    let reply = client.list_set_points(request).await.map_err(|status| refused(&status))?.into_inner();
    if json { output::json(&list_json(&reply)) } else { show(reply) }
}

fn list_json(reply: &ListSetPointsResponse) -> Value {
    let windows: Vec<Value> = reply
        .windows
        .iter()
        .map(|window| {
            json!({
                "from_time": moment::json(window.from_us), "to_time": moment::json(window.to_us),
                "points": window.points,
            })
        })
        .collect();
    let gaps: Vec<Value> = reply
        .gaps
        .iter()
        .map(|member| {
            let mut gap = gap_json(&member.gap.clone().unwrap_or_default());
            if let Value::Object(fields) = &mut gap {
                fields.insert("vm".into(), json!(member.vm));
            }
            gap
        })
        .collect();
    let points: Vec<Value> = reply.points.iter().map(to_json).collect();
    json!({ "windows": windows, "points": points, "gaps": gaps })
}

fn show(reply: ListSetPointsResponse) -> Result<()> {
    let mut rows: Vec<(u64, u8, [String; 4])> = Vec::new();
    for window in reply.windows {
        let span = moment::length(window.to_us.saturating_sub(window.from_us) / 1000);
        let (at, what) =
            (moment::local(window.from_us), format!("{} points of all members, {span}", window.points));
        rows.push((window.from_us, 0, [at.clone(), "window".to_owned(), at, what]));
    }
    for point in reply.points {
        let at = moment::local(point.time_us);
        let name = if point.name.is_empty() { at.clone() } else { format!("bookmark:{}", point.name) };
        let missing: Vec<&str> = point.missing.iter().map(|member| member.vm.as_str()).collect();
        let missing =
            if missing.is_empty() { String::new() } else { format!(", without {}", missing.join(" ")) };
        let what = format!("{} consistent, {}{missing}", point.consistency, cut(&point));
        rows.push((point.time_us, 1, [at, point.kind, name, what]));
    }
    for member in reply.gaps {
        let gap = member.gap.unwrap_or_default();
        let end = match gap.to_lsn {
            0 => "still open".to_owned(),
            _ => format!("until {}", moment::local(gap.to_time_us)),
        };
        let what = format!("{} has no points {end}, {}", member.vm, gap.cause);
        let at = moment::local(gap.from_time_us);
        rows.push((gap.from_time_us, 2, [at, "gap".to_owned(), "-".to_owned(), what]));
    }
    if rows.is_empty() {
        return output::line("No points here: widen --from and --to, or see `tidemark set show`.");
    }
    rows.sort_by_key(|(time, order, _)| (*time, *order));
    let mut table = Table::new(["TIME", "KIND", "WHEN", ""]);
    rows.into_iter().for_each(|(_, _, row)| table.row(row));
    table.print()
}

/// The point of a set that a WHEN names. What a person should know of it goes to standard error.
///
/// # Errors
/// When there is none, or a member of it cannot be recovered any more.
pub(super) async fn find(client: &mut SetsClient, set: &str, at: &When) -> Result<SetPoint> {
    let at = Some(of_set(at)?.to_proto());
    let request = FindSetPointRequest { set: set.to_owned(), at };
    let point = client.find_set_point(request).await.map_err(|status| refused(&status))?.into_inner();
    for member in &point.missing {
        output::warning(&format!("{} is not in this point: {}", member.vm, member.reason));
    }
    if point.bound_us > 0 {
        output::warning(&format!("the point is by clocks: {}", cut(&point)));
    }
    Ok(point)
}

/// `set diverged`.
pub(super) async fn diverged(
    client: &mut SetsClient,
    set: String,
    at: &When,
    vm: Option<String>,
    json: bool,
) -> Result<()> {
    let request =
        DivergedRequest { set, at: Some(of_set(at)?.to_proto()), vm: vm.clone().unwrap_or_default() };
    let reply = client.diverged(request).await.map_err(|status| refused(&status))?.into_inner();
    if json {
        return output::json(&diverged_json(&reply));
    }
    let mut table = Table::new(["VM", "IN THE POINT", "NOW", "WRITTEN SINCE"]);
    for member in &reply.members {
        table.row([
            member.vm.clone(),
            format!("lsn:{}", member.lsn),
            format!("lsn:{} {}", member.latest_lsn, moment::local(member.latest_time_us)),
            format!("{} entries", member.entries),
        ]);
    }
    table.print()?;
    output::line(&meaning(&reply, vm.as_deref()))
}

fn diverged_json(reply: &DivergedReply) -> Value {
    let members: Vec<Value> = reply
        .members
        .iter()
        .map(|member| {
            json!({
                "vm": member.vm, "lsn": member.lsn, "latest_lsn": member.latest_lsn,
                "latest_time": moment::json(member.latest_time_us), "entries": member.entries,
            })
        })
        .collect();
    json!({ "point": reply.point.as_ref().map(to_json), "members": members })
}

/// One sentence of what it means to go back to the point with one VM alone.
fn meaning(reply: &DivergedReply, vm: Option<&str>) -> String {
    let since: Vec<&str> =
        reply.members.iter().filter(|member| member.entries > 0).map(|member| member.vm.as_str()).collect();
    let who = vm.unwrap_or("one of them");
    if since.is_empty() {
        return format!("No other member has written since: {who} alone at this point contradicts nothing.");
    }
    format!(
        "{} may know of things that {who} at this point does not: recover all of the set with --set, unless you know better.",
        since.join(", ")
    )
}

/// Says on standard error what it means that a VM goes back alone to a bookmark that is one of a set's.
pub(super) async fn warn_of_divergence(client: &mut SetsClient, vm: &str, at: &When, lsn: u64) {
    let When::Bookmark(_) = at else { return };
    // An older appliance knows no sets; the recovery itself has all it needs.
    let Ok(sets) = client.list_sets(Empty {}).await else { return };
    for set in
        sets.into_inner().sets.into_iter().filter(|set| set.members.iter().any(|member| member.vm == vm))
    {
        let request = DivergedRequest { set: set.name.clone(), at: Some(at.to_proto()), vm: vm.to_owned() };
        let Ok(reply) = client.diverged(request).await.map(tonic::Response::into_inner) else { continue };
        let members = reply.point.iter().flat_map(|point| &point.members);
        if members.into_iter().any(|member| member.vm == vm && member.lsn == lsn) {
            let since: Vec<String> =
                reply.members.iter().map(|member| format!("{} {}", member.vm, member.entries)).collect();
            output::warning(&format!(
                "this is a point of the set {}; entries written since by the others: {}. {}",
                set.name,
                since.join(", "),
                meaning(&reply, Some(vm))
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidemark_proto::v1::{DivergedMember, MissingMember};

    #[test]
    fn a_cut_by_clocks_says_its_bound_and_a_partial_one_that_it_is() {
        let mut point = SetPoint { cut: "barrier".into(), ..SetPoint::default() };
        assert_eq!(cut(&point), "barrier");
        (point.cut, point.bound_us) = ("clock".into(), 1500);
        point.missing.push(MissingMember { vm: "a".into(), ..MissingMember::default() });
        assert_eq!(cut(&point), "clock (apart by 1.5ms at most), partial");
        assert!(to_json(&point)["partial"].as_bool().unwrap());
    }

    #[test]
    fn who_has_written_since_is_named() {
        let member =
            |vm: &str, entries| DivergedMember { vm: vm.into(), entries, ..DivergedMember::default() };
        let mut reply = DivergedReply { point: None, members: vec![member("b", 0), member("c", 7)] };
        let said = meaning(&reply, Some("a"));
        assert!(said.starts_with("c may know") && said.contains("a at this point"), "{said}");
        reply.members.pop();
        assert!(meaning(&reply, None).starts_with("No other member"));
    }

    #[test]
    fn an_lsn_names_no_point_of_a_set() {
        assert!(of_set(&When::Lsn(7)).unwrap_err().is::<UsageError>());
        assert!(of_set(&When::Latest).is_ok());
    }
}
