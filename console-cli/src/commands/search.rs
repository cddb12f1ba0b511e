//! `tidemark search` and `tidemark vm tag`.

use anyhow::Result;
use serde_json::{Value, json};
use tidemark_proto::v1::{ListTagsRequest, SearchPointsRequest, SetTagRequest, Tag};

use crate::appliance::{SearchClient, refused};
use crate::cli::SearchArguments;
use crate::moment;
use crate::output::{self, Table};

pub(super) async fn run(mut client: SearchClient, arguments: SearchArguments, json: bool) -> Result<()> {
    let request = SearchPointsRequest {
        text: arguments.text.unwrap_or_default(),
        vm: arguments.vm.unwrap_or_default(),
        tag: arguments.tag.map(|(key, value)| Tag { key, value }),
        from: arguments.from.map(|when| when.to_proto()),
        to: arguments.to.map(|when| when.to_proto()),
        consistency: arguments.consistency.map(|level| level.word().to_owned()).unwrap_or_default(),
        limit: arguments.limit,
    };
    let reply = client.search_points(request).await.map_err(|status| refused(&status))?.into_inner();
    if json {
        let points = reply.points.iter().map(|point| {
            json!({
                "vm": point.vm, "lsn": point.lsn, "time": moment::json(point.time_us), "kind": point.kind,
                "name": point.name, "consistency": point.consistency,
            })
        });
        return output::json(&json!({ "points": points.collect::<Vec<_>>(), "more": reply.more }));
    }
    if reply.points.is_empty() {
        return output::line("Nothing found.");
    }
    let mut table = Table::new(["TIME", "VM", "WHEN", ""]);
    for point in reply.points {
        let when = format!("bookmark:{}", point.name);
        table.row([
            moment::local(point.time_us),
            point.vm,
            when,
            format!("{} consistent", point.consistency),
        ]);
    }
    table.print()?;
    if reply.more {
        output::line("There are more, older ones: raise --limit, or narrow the search.")
    } else {
        Ok(())
    }
}

/// Sets a tag, removes it when its value is empty, or without one shows all.
pub(super) async fn tag(
    mut client: SearchClient,
    vm: String,
    tag: Option<(String, String)>,
    json: bool,
) -> Result<()> {
    let reply = match tag {
        Some((key, value)) => client.set_tag(SetTagRequest { vm, key, value }).await,
        None => client.list_tags(ListTagsRequest { vm }).await,
    };
    let tags = reply.map_err(|status| refused(&status))?.into_inner().tags;
    if json {
        let tags: serde_json::Map<String, Value> =
            tags.into_iter().map(|tag| (tag.key, Value::String(tag.value))).collect();
        return output::json(&json!({ "tags": tags }));
    }
    if tags.is_empty() {
        return output::line("No tags.");
    }
    tags.iter().try_for_each(|tag| output::line(&format!("{}={}", tag.key, tag.value)))
}
