//! `tidemark files diff`.

use std::time::Instant;

use anyhow::{Result, bail};
use serde_json::{Map, Value, json};
use tokio::runtime::Handle;

use super::list::link_on_the_way;
use super::volume::{Volume, changed_ranges};
use super::{Lines, facts_json, parts, rooted, time_json};
use crate::appliance::{Client, HistoryClient};
use crate::cli::{DiffFilesArguments, UsageError, VolumeArguments};
use crate::ext4::{Kind, Looked, Replay};
use crate::files::{Change, ChangeKind, Compared, compare, path_json, shown};
use crate::{moment, output, size};

pub(super) fn run(
    handle: Handle,
    client: Client,
    history: HistoryClient,
    arguments: &DiffFilesArguments,
    json: bool,
) -> Result<()> {
    let started = Instant::now();
    let parts = parts(&arguments.path)?;
    let from = Volume::open(&handle, &client, &arguments.volume, &arguments.from, Replay::Committed)?;
    let same = VolumeArguments {
        partition: (from.partition > 0).then_some(from.partition).or(arguments.volume.partition),
        ..arguments.volume.clone()
    };
    let to = Volume::open(&handle, &client, &same, &arguments.to, Replay::Committed)?;
    if from.view.lsn() > to.view.lsn() {
        bail!(UsageError(format!(
            "--from (lsn:{}) is later than --to (lsn:{}): exchange them",
            from.view.lsn(),
            to.view.lsn()
        )));
    }
    if from.disk.id != to.disk.id || from.partition != to.partition || !from.same_place(&to) {
        bail!(
            "the file system lies elsewhere at the later point: see what each has with `tidemark files list`"
        );
    }
    check_path(&from, &to, &parts)?;
    let points = (from.view.lsn(), to.view.lsn());
    let changed = changed_ranges(&handle, &history, to.view.vm(), &to.disk.id, points)?;
    let compared = compare(&from.filesystem, &to.filesystem, &to.within(&changed), &parts)?;
    let milliseconds = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    if json {
        return as_json(&from, &to, &compared, milliseconds);
    }
    as_text(&from, &to, &compared, milliseconds)
}

/// Refuses a path that leads to nothing at both points.
fn check_path(from: &Volume, to: &Volume, parts: &[&[u8]]) -> Result<()> {
    let looked = (from.filesystem.look(parts)?, to.filesystem.look(parts)?);
    match looked {
        (Looked::Found(_), _) | (_, Looked::Found(_)) => Ok(()),
        (Looked::Link { component, target }, _) | (_, Looked::Link { component, target }) => {
            bail!(link_on_the_way(parts, component, &target))
        }
        (Looked::Missing { .. }, Looked::Missing { .. }) => {
            bail!(
                "there is no {} on {} at either point: see `tidemark files history`",
                shown(&rooted(parts)),
                to.shown()
            )
        }
    }
}

/// Reads and bytes from the appliance, of both points.
fn read(from: &Volume, to: &Volume) -> (u64, u64) {
    let (one, other) = (from.pages.count(), to.pages.count());
    (one.reads + other.reads, one.bytes + other.bytes)
}

fn as_json(from: &Volume, to: &Volume, compared: &Compared, milliseconds: u64) -> Result<()> {
    let point = |volume: &Volume| {
        let view = &volume.view;
        json!({ "vm": view.vm(), "lsn": view.lsn(), "time": moment::json(view.time_us()) })
    };
    let (reads, read_bytes) = read(from, to);
    let head = json!({
        "from": point(from), "to": point(to), "disk": to.disk.id,
        "partition": (to.partition > 0).then_some(to.partition), "nameless": compared.nameless,
        "touched_inodes": compared.touched_inodes, "searched_groups": compared.searched_groups,
        "read_directories": compared.read_directories, "reads": reads, "read_bytes": read_bytes,
        "milliseconds": milliseconds,
    });
    let head = head.to_string();
    let mut lines = Lines::default();
    lines.push(&format!("{},\n\"changes\": [", head.trim_end_matches('}')))?;
    for (place, change) in compared.changes.iter().enumerate() {
        let comma = if place == 0 { "" } else { "," };
        lines.push(&format!("{comma}{}", change_json(change)))?;
    }
    lines.flush()?;
    output::line("]}")
}

fn change_json(change: &Change) -> Value {
    let mut fields = Map::new();
    fields.insert("kind".to_owned(), json!(change.kind.word()));
    path_json(&mut fields, "path", &change.path);
    if let Some(from) = &change.from_path {
        path_json(&mut fields, "from_path", from);
    }
    if let Some(facts) = change.after.or(change.before) {
        facts_json(&mut fields, &facts);
    }
    if let (Some(was), Some(_)) = (change.before, change.after) {
        fields.insert("from_size_bytes".to_owned(), json!(was.size_bytes));
        fields.insert("from_mtime".to_owned(), json!(time_json(was.modified)));
        fields.insert("what".to_owned(), json!(change.what));
    }
    Value::Object(fields)
}

fn as_text(from: &Volume, to: &Volume, compared: &Compared, milliseconds: u64) -> Result<()> {
    let mut lines = Lines::default();
    let point = |volume: &Volume| {
        let view = &volume.view;
        format!("{} as of {} (lsn:{})", view.vm(), moment::local(view.time_us()), view.lsn())
    };
    lines.push(&format!("from {}\nto   {}", point(from), point(to)))?;
    for change in &compared.changes {
        lines.push(&change_text(change))?;
    }
    if compared.nameless > 0 {
        lines.push(&format!(
            "{} changed files have no name in any folder: recover the disk and run e2fsck on it",
            compared.nameless
        ))?;
    }
    let (reads, bytes) = read(from, to);
    lines.push(&format!(
        "{} changes on {}; {} read in {reads} reads, {}",
        compared.changes.len(),
        to.shown(),
        size::show(bytes),
        moment::length(milliseconds)
    ))?;
    lines.flush()
}

fn change_text(change: &Change) -> String {
    let slash = |facts: Option<crate::files::Facts>| {
        if facts.is_some_and(|facts| facts.kind == Kind::Directory) { "/" } else { "" }
    };
    let mut text = format!("{:<8}  ", change.kind.word());
    if let Some(from) = &change.from_path {
        text.push_str(&format!("{}{} -> ", shown(from), slash(change.before)));
    }
    text.push_str(&format!("{}{}", shown(&change.path), slash(change.after.or(change.before))));
    let bytes = |facts: Option<crate::files::Facts>| {
        facts.filter(|facts| facts.kind == Kind::File).map(|facts| size::show(facts.size_bytes))
    };
    let sizes = match (change.kind, bytes(change.before), bytes(change.after)) {
        (ChangeKind::Changed | ChangeKind::Renamed, Some(was), Some(is)) if was != is => {
            Some(format!("{was} -> {is}"))
        }
        (_, was, is) => is.or(was),
    };
    let what = (!change.what.is_empty()).then(|| change.what.join(", "));
    for part in sizes.into_iter().chain(what) {
        text.push_str(&format!("  {part}"));
    }
    text
}
