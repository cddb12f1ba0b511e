//! `tidemark bookmark`.

use anyhow::{Result, bail};
use serde_json::json;
use tidemark_proto::limits::NAME_MAX_CHARS;
use tidemark_proto::v1::{
    CreateBookmarkRequest, HoldBookmarkRequest, HoldInfo, ListHoldsRequest, ReleaseBookmarkRequest,
};

use crate::appliance::{Client, RetentionClient, refused};
use crate::cli::{BookmarkCommand, HoldArguments, UsageError};
use crate::moment;
use crate::output::{self, Table};
use crate::when::When;

pub(super) async fn run(
    client: Client,
    mut retention: RetentionClient,
    command: BookmarkCommand,
    json: bool,
) -> Result<()> {
    match command {
        BookmarkCommand::Create { name, vm, consistency, allow_lower, keep, .. } => {
            let vm = vm.unwrap_or_default();
            let held = keep.request(&vm, &name)?;
            let request =
                CreateBookmarkRequest { name, vm, consistency: consistency.word().to_owned(), allow_lower };
            create(client, request, json).await?;
            match held {
                // What was printed says nothing of the hold, so its failure must not go unseen.
                Some(held) => hold(&mut retention, held).await.map(|_| ()),
                None => Ok(()),
            }
        }
        BookmarkCommand::Hold { name, vm, keep } => {
            let forever =
                HoldBookmarkRequest { vm: vm.clone(), bookmark: name.clone(), until_us: 0, lock: false };
            let request = keep.request(&vm, &name)?.unwrap_or(forever);
            let held = hold(&mut retention, request).await?;
            show_holds(&[held], json)
        }
        BookmarkCommand::Release { name, vm } => {
            let request = ReleaseBookmarkRequest { vm: vm.clone(), bookmark: name.clone() };
            retention.release_bookmark(request).await.map_err(|status| refused(&status))?;
            if json {
                output::json(&json!({ "vm": vm, "name": name }))
            } else {
                output::line(&format!("bookmark:{name} of {vm} is kept no longer than the policy says."))
            }
        }
        BookmarkCommand::Holds { vm } => {
            let reply = retention.list_holds(ListHoldsRequest { vm }).await;
            show_holds(&reply.map_err(|status| refused(&status))?.into_inner().holds, json)
        }
    }
}

async fn hold(client: &mut RetentionClient, request: HoldBookmarkRequest) -> Result<HoldInfo> {
    Ok(client.hold_bookmark(request).await.map_err(|status| refused(&status))?.into_inner())
}

impl HoldArguments {
    /// What to ask for; `None` without any of the flags.
    fn request(&self, vm: &str, name: &str) -> Result<Option<HoldBookmarkRequest>> {
        let until = self.lock_until.as_ref().or(self.hold_until.as_ref());
        let until_us = match until {
            // 0 would mean without an end.
            Some(When::Time(time)) => match u64::try_from(time.as_microsecond()) {
                Ok(until_us) if until_us > 0 => until_us,
                _ => bail!(UsageError("until when is a time that is still to come".into())),
            },
            Some(_) => bail!(UsageError("until when is a time: 2030-01-01T00:00:00Z".into())),
            None if self.hold => 0,
            None => return Ok(None),
        };
        let (vm, bookmark) = (vm.to_owned(), name.to_owned());
        Ok(Some(HoldBookmarkRequest { vm, bookmark, until_us, lock: self.lock_until.is_some() }))
    }
}

fn show_holds(holds: &[HoldInfo], json: bool) -> Result<()> {
    if json {
        let shown = holds.iter().map(|hold| {
            json!({ "name": hold.name, "kind": hold.kind, "lsn": hold.lsn, "until": moment::json(hold.until_us) })
        });
        return output::json(&shown.collect::<Vec<_>>());
    }
    let mut table = Table::new(["WHEN", "KIND", "POINT", "UNTIL"]);
    for hold in holds {
        let until =
            if hold.until_us > 0 { moment::local(hold.until_us) } else { "it is released".to_owned() };
        table.row([hold.name.clone(), hold.kind.clone(), format!("lsn:{}", hold.lsn), until]);
    }
    table.print()
}

async fn create(mut client: Client, request: CreateBookmarkRequest, json: bool) -> Result<()> {
    let (name, requested, allow_lower) =
        (request.name.clone(), request.consistency.clone(), request.allow_lower);
    if name.is_empty() || name.chars().count() > NAME_MAX_CHARS || name.chars().any(char::is_control) {
        bail!(UsageError(format!(
            "a bookmark's name has 1 to {NAME_MAX_CHARS} characters and no control characters"
        )));
    }
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
            "hold_us": reply.hold_us, "points": points, "reason": reply.reason,
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
        if reply.hold_us > 0 {
            let held = std::time::Duration::from_micros(reply.hold_us);
            output::line(&format!("  writers were held for {held:.1?}"))?;
        }
        if !reply.reason.is_empty() {
            output::line(&format!("  not {requested}: {}", reply.reason))?;
        }
    }
    if reply.achieved != requested && !allow_lower && rank(&reply.achieved) < rank(&requested) {
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
