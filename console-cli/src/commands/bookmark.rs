//! `tidemark bookmark`.

use anyhow::{Result, bail};
use serde_json::json;
use tidemark_proto::limits::NAME_MAX_CHARS;
use tidemark_proto::v1::CreateBookmarkRequest;

use crate::appliance::{Client, refused};
use crate::cli::{BookmarkCommand, UsageError};
use crate::moment;
use crate::output;

pub(super) async fn run(mut client: Client, command: BookmarkCommand, json: bool) -> Result<()> {
    let BookmarkCommand::Create { name, vm, consistency, allow_lower } = command;
    if name.is_empty() || name.chars().count() > NAME_MAX_CHARS || name.chars().any(char::is_control) {
        bail!(UsageError(format!(
            "a bookmark's name has 1 to {NAME_MAX_CHARS} characters and no control characters"
        )));
    }
    let requested = consistency.word();
    let request = CreateBookmarkRequest { name, vm, consistency: requested.to_owned(), allow_lower };
    let reply = client.create_bookmark(request).await.map_err(|status| refused(&status))?.into_inner();
    if json {
        let points: Vec<_> = reply
            .points
            .iter()
            .map(|point| {
                json!({ "vm": point.vm, "branch": point.branch, "lsn": point.lsn, "time": moment::json(point.time_us) })
            })
            .collect();
        output::json(&json!({
            "name": reply.name, "id": reply.id, "requested": reply.requested, "achieved": reply.achieved,
            "hold_us": reply.hold_us, "points": points,
        }))?;
    } else {
        for point in &reply.points {
            output::line(&format!(
                "bookmark:{}  {}  lsn:{}  {}  {}",
                reply.name,
                point.vm,
                point.lsn,
                moment::local(point.time_us),
                reply.achieved
            ))?;
        }
    }
    if reply.achieved != requested && !allow_lower && rank(&reply.achieved) < rank(requested) {
        bail!(
            "the point is only {} consistent, not {requested}: accept that with --allow-lower",
            reply.achieved
        );
    }
    Ok(())
}

fn rank(level: &str) -> usize {
    ["crash", "filesystem", "application"].iter().position(|known| *known == level).map_or(0, |rank| rank + 1)
}
