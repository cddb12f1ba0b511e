//! `tidemark point`.

use anyhow::Result;
use serde_json::{Value, json};
use tidemark_proto::v1::{Gap, ListPointsRequest, ListPointsResponse};

use crate::appliance::{Client, refused};
use crate::cli::PointCommand;
use crate::moment;
use crate::output::{self, Table};

pub(super) async fn run(mut client: Client, command: PointCommand, json: bool) -> Result<()> {
    let PointCommand::List { vm, from, to, search, .. } = command;
    let vm = vm.unwrap_or_default();
    let request = ListPointsRequest {
        vm,
        from: from.map(|when| when.to_proto()),
        to: to.map(|when| when.to_proto()),
        search: search.unwrap_or_default(),
    };
    let reply = client.list_points(request).await.map_err(|status| refused(&status))?.into_inner();
    if json { output::json(&to_json(&reply)) } else { show(reply) }
}

/// Why frames wait in a guest.
const SPOOL_CAUSE: &str = "the link or the appliance took less than was written";

fn to_json(reply: &ListPointsResponse) -> Value {
    let windows: Vec<_> = reply
        .windows
        .iter()
        .map(|window| {
            json!({
                "from_lsn": window.from_lsn, "to_lsn": window.to_lsn,
                "from_time": moment::json(window.from_time_us), "to_time": moment::json(window.to_time_us),
            })
        })
        .collect();
    let points: Vec<_> = reply
        .points
        .iter()
        .map(|point| {
            json!({
                "vm": point.vm, "lsn": point.lsn, "time": moment::json(point.time_us), "kind": point.kind,
                "name": point.name, "consistency": point.consistency,
            })
        })
        .collect();
    let gaps: Vec<_> = reply.gaps.iter().map(gap_json).collect();
    let doubts: Vec<_> = reply
        .doubts
        .iter()
        .map(|doubt| {
            json!({
                "from_lsn": doubt.from_lsn, "to_lsn": doubt.to_lsn, "disk": doubt.disk, "detail": doubt.detail,
            })
        })
        .collect();
    let spools: Vec<_> = reply
        .spools
        .iter()
        .map(|spool| {
            json!({
                "from_lsn": spool.from_lsn, "from_time": moment::json(spool.from_time_us),
                "to_time": moment::json(spool.to_time_us), "cause": SPOOL_CAUSE,
            })
        })
        .collect();
    json!({ "windows": windows, "points": points, "gaps": gaps, "doubts": doubts, "spools": spools })
}

pub(super) fn gap_json(gap: &Gap) -> Value {
    json!({
        "from_lsn": gap.from_lsn, "to_lsn": (gap.to_lsn > 0).then_some(gap.to_lsn),
        "from_time": moment::json(gap.from_time_us), "to_time": moment::json(gap.to_time_us),
        "cause": gap.cause, "detail": gap.detail, "disks": gap.disks,
    })
}

/// One timeline, oldest first. What a person copies from it is a WHEN.
fn show(reply: ListPointsResponse) -> Result<()> {
    let mut rows: Vec<(u64, u64, [String; 4])> = Vec::new();
    for window in reply.windows {
        let span = window.to_time_us.saturating_sub(window.from_time_us) / 1000;
        let what = format!("any write up to lsn:{} ({})", window.to_lsn, moment::length(span));
        let name = format!("lsn:{}", window.from_lsn);
        rows.push((
            window.from_lsn,
            0,
            [moment::local(window.from_time_us), "window".to_owned(), name, what],
        ));
    }
    for point in reply.points {
        let name = if point.name.is_empty() {
            format!("lsn:{}", point.lsn)
        } else {
            format!("bookmark:{}", point.name)
        };
        let what = format!("{} consistent", point.consistency);
        rows.push((point.lsn, 1, [moment::local(point.time_us), point.kind, name, what]));
    }
    for gap in reply.gaps {
        let end = if gap.to_lsn > 0 {
            format!("until {}", moment::local(gap.to_time_us))
        } else {
            "still open".to_owned()
        };
        let detail = if gap.detail.is_empty() { String::new() } else { format!(": {}", gap.detail) };
        let what = format!("no points {end}, {}{detail}", gap.cause);
        let name = format!("lsn:{}", gap.from_lsn);
        rows.push((gap.from_lsn, 2, [moment::local(gap.from_time_us), "gap".to_owned(), name, what]));
    }
    for doubt in reply.doubts {
        let what = format!("up to lsn:{} {} is in doubt: {}", doubt.to_lsn, doubt.disk, doubt.detail);
        let name = format!("lsn:{}", doubt.from_lsn);
        rows.push((doubt.from_lsn, 3, ["-".to_owned(), "doubt".to_owned(), name, what]));
    }
    for spool in reply.spools {
        let end = match spool.to_time_us {
            0 => "writes wait".to_owned(),
            end => format!("writes waited until {}", moment::local(end)),
        };
        let what = format!("{end} in the guest's spool: {SPOOL_CAUSE}");
        let name = format!("lsn:{}", spool.from_lsn);
        rows.push((spool.from_lsn, 4, [moment::local(spool.from_time_us), "spool".to_owned(), name, what]));
    }
    if rows.is_empty() {
        return output::line("No points here: widen --from and --to, or see `tidemark vm list`.");
    }
    rows.sort_by_key(|(lsn, order, _)| (*lsn, *order));
    let mut table = Table::new(["TIME", "KIND", "WHEN", ""]);
    rows.into_iter().for_each(|(_, _, row)| table.row(row));
    table.print()
}
