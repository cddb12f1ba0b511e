//! `tidemark object`.

mod get;
mod put;
mod source;

use anyhow::Result;
use serde_json::{Value, json};
use tidemark_proto::v1::{
    ChangeObjectRequest, ListObjectsRequest, ObjectInfo, ObjectTag, RemoveObjectRequest,
};
use tonic::{Code, Status};

use super::proof::hex;
use crate::appliance::{ObjectsClient, refused};
use crate::cli::{ListArguments, ObjectCommand, SetArguments};
use crate::output::{self, Table};
use crate::{moment, size};

/// Tries of an upload or a download whose connection broke, one after another without progress.
const TRIES_MAX: u32 = 5;

/// The pause before the next try; it doubles.
const PAUSE: std::time::Duration = std::time::Duration::from_millis(500);

pub(super) async fn run(mut client: ObjectsClient, command: ObjectCommand, json: bool) -> Result<()> {
    match command {
        ObjectCommand::Put(arguments) => put::run(client, &arguments, json).await,
        ObjectCommand::Get(arguments) => get::run(client, &arguments, json).await,
        ObjectCommand::List(arguments) => list(client, arguments, json).await,
        ObjectCommand::Set(arguments) => set(client, arguments, json).await,
        ObjectCommand::Remove { name } => {
            let request = RemoveObjectRequest { name: name.clone() };
            client.remove_object(request).await.map_err(|status| refused(&status))?;
            if json {
                output::json(&json!({ "name": name }))
            } else {
                output::line(&format!("{name} is removed; its space is freed by the next collection."))
            }
        }
    }
}

/// Whether the connection broke, rather than the appliance refused.
fn broke(status: &Status) -> bool {
    let transport = std::error::Error::source(status).is_some();
    matches!(status.code(), Code::Unavailable)
        || (transport && matches!(status.code(), Code::Unknown | Code::Cancelled))
}

/// Waits before try number `tries` (from 1).
async fn pause(tries: u32) {
    tokio::time::sleep(PAUSE * 2_u32.saturating_pow(tries.saturating_sub(1))).await;
}

fn tags(given: Vec<(String, String)>) -> Vec<ObjectTag> {
    given.into_iter().map(|(key, value)| ObjectTag { key, value }).collect()
}

fn to_json(object: &ObjectInfo) -> Value {
    let tags: serde_json::Map<String, Value> =
        object.tags.iter().map(|tag| (tag.key.clone(), Value::String(tag.value.clone()))).collect();
    json!({
        "name": object.name, "id": object.id, "kind": object.kind, "size_bytes": object.size_bytes,
        "blake3": hex(&object.hash), "tags": tags, "created": moment::json(object.created_us),
        "published": object.published, "hold": object.hold, "locked_until": moment::json(object.locked_until_us),
        "new_bytes": object.new_bytes,
    })
}

/// What keeps an object, in words.
fn kept(object: &ObjectInfo) -> String {
    let mut words = Vec::new();
    if object.published {
        words.push("published".to_owned());
    }
    if object.hold {
        words.push("held".to_owned());
    }
    if object.locked_until_us > 0 {
        words.push(format!("locked until {}", moment::local(object.locked_until_us)));
    }
    if words.is_empty() { "-".to_owned() } else { words.join(", ") }
}

fn shown_tags(object: &ObjectInfo) -> String {
    let words: Vec<String> = object.tags.iter().map(|tag| format!("{}={}", tag.key, tag.value)).collect();
    if words.is_empty() { "-".to_owned() } else { words.join(" ") }
}

async fn list(mut client: ObjectsClient, arguments: ListArguments, json: bool) -> Result<()> {
    let request = ListObjectsRequest {
        kind: arguments.kind.map_or(String::new(), |kind| kind.word().to_owned()),
        tags: tags(arguments.tags),
        search: arguments.search.unwrap_or_default(),
    };
    let mut replies = client.list_objects(request).await.map_err(|status| refused(&status))?.into_inner();
    let mut objects = Vec::new();
    while let Some(reply) = replies.message().await.map_err(|status| refused(&status))? {
        objects.extend(reply.objects);
    }
    if json {
        return output::json(&objects.iter().map(to_json).collect::<Vec<_>>());
    }
    let mut table = Table::new(["NAME", "KIND", "SIZE", "NEW", "CREATED", "KEPT", "TAGS"]);
    for object in &objects {
        table.row([
            object.name.clone(),
            object.kind.clone(),
            size::show(object.size_bytes),
            size::show(object.new_bytes),
            moment::local(object.created_us),
            kept(object),
            shown_tags(object),
        ]);
    }
    table.print()
}

async fn set(mut client: ObjectsClient, arguments: SetArguments, json: bool) -> Result<()> {
    let either = |yes: bool, no: bool| (yes || no).then_some(yes);
    let request = ChangeObjectRequest {
        name: arguments.name,
        published: either(arguments.publish, arguments.unpublish),
        hold: either(arguments.hold, arguments.release),
        locked_until_us: arguments.lock_until,
        set_tags: tags(arguments.tags),
        remove_tags: arguments.untags,
    };
    let object = client.change_object(request).await.map_err(|status| refused(&status))?.into_inner();
    if json {
        output::json(&to_json(&object))
    } else {
        output::line(&format!("{}  {}  {}  {}", object.name, object.kind, kept(&object), shown_tags(&object)))
    }
}
