//! `tidemark files history`.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, bail};
use serde_json::{Map, Value, json};
use tidemark_proto::v1::ListPointsRequest;
use tokio::runtime::Handle;

use super::super::proof::hex;
use super::list::link_on_the_way;
use super::volume::{changed_ranges, only_disk};
use super::{facts_json, parts, rooted, time_shown};
use crate::appliance::{Client, HistoryClient, refused};
use crate::cli::{FileHistoryArguments, UsageError};
use crate::ext4::Source;
use crate::files::{Located, Moves, Pages, ReadCount, Search, Version, find_versions, path_json, shown};
use crate::output::Table;
use crate::view::RemoteView;
use crate::when::When;
use crate::{moment, output, size};

/// Bookmarks and snapshots that are looked at in any case; the newest. The rest is found by halving.
const POINTS_MAX: usize = 256;

pub(super) fn run(
    handle: Handle,
    client: Client,
    history: HistoryClient,
    arguments: &FileHistoryArguments,
    json: bool,
) -> Result<()> {
    let started = Instant::now();
    let parts = parts(&arguments.path)?;
    let vm = &arguments.volume.vm;
    let latest = handle.block_on(RemoteView::open(&client, vm, &When::Latest, arguments.volume.disk))?;
    let disk = only_disk(&latest)?.id.clone();
    drop(latest);
    let (windows, points) = timeline(&handle, &client, arguments)?;
    let mut moves =
        Remote { handle, client, history, vm: vm.clone(), disk, pages: None, there: true, at: (0, 0) };
    let search = Search {
        parts: parts.clone(),
        partition: arguments.volume.partition,
        windows,
        points,
        looks_max: usize::try_from(arguments.looks).unwrap_or(usize::MAX),
    };
    let found = find_versions(&mut moves, &search)?;
    let never = |version: &Version| matches!(version.located, Located::Absent | Located::Link { .. });
    if found.versions.iter().all(never) {
        let links = found.versions.iter().rev().find_map(|version| match &version.located {
            Located::Link { component, target } => Some(link_on_the_way(&parts, *component, target)),
            _ => None,
        });
        if let Some(link) = links {
            bail!(link);
        }
        bail!("there was no {} at any of {} points: check the path", shown(&rooted(&parts)), found.looks);
    }
    let read = moves.pages.as_ref().map_or_else(ReadCount::default, |pages| pages.count());
    if json {
        let mut head = Map::new();
        path_json(&mut head, "path", &rooted(&parts));
        let rest = json!({
            "vm": vm, "disk": moves.disk,
            "versions": found.versions.iter().map(version_json).collect::<Vec<_>>(),
            "looks": found.looks, "complete": !found.cut_short, "reads": read.reads, "read_bytes": read.bytes,
            "milliseconds": u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
        });
        head.extend(rest.as_object().cloned().unwrap_or_default());
        return output::json(&Value::Object(head));
    }
    let mut table = Table::new(["FROM", "", "TO", "", "", "WHAT", "SIZE", "MODIFIED", "BLAKE3"]);
    found.versions.iter().for_each(|version| table.row(version_row(version)));
    table.print()?;
    let cut = if found.cut_short { "; --looks ended the search: there may be more" } else { "" };
    output::line(&format!("{} points looked at, {} read{cut}", found.looks, size::show(read.bytes)))
}

/// Ranges of points, both ends included, and single points.
type Timeline = (Vec<(u64, u64)>, Vec<u64>);

/// The ranges of points to search, and single points to look at in them.
fn timeline(handle: &Handle, client: &Client, arguments: &FileHistoryArguments) -> Result<Timeline> {
    let vm = &arguments.volume.vm;
    let request = ListPointsRequest {
        vm: vm.clone(),
        from: arguments.from.as_ref().map(When::to_proto),
        to: arguments.to.as_ref().map(When::to_proto),
        search: String::new(),
    };
    let mut asking = client.clone();
    let reply = handle.block_on(asking.list_points(request)).map_err(|status| refused(&status))?.into_inner();
    // A bound that is no point itself lies between windows, which are left out where they lie outside.
    let bound = |when: &Option<When>| -> Option<u64> {
        let view = handle.block_on(RemoteView::open(client, vm, when.as_ref()?, None)).ok()?;
        Some(view.lsn())
    };
    let (first, last) = (bound(&arguments.from).unwrap_or(0), bound(&arguments.to).unwrap_or(u64::MAX));
    let mut windows: Vec<(u64, u64)> = reply
        .windows
        .iter()
        .map(|window| (window.from_lsn.max(first), window.to_lsn.min(last)))
        .filter(|(from, to)| from <= to)
        .collect();
    let inside = |lsn: u64| windows.iter().any(|(from, to)| (*from..=*to).contains(&lsn));
    let mut points: Vec<u64> =
        reply.points.iter().map(|point| point.lsn).filter(|lsn| (first..=last).contains(lsn)).collect();
    points.sort_unstable();
    points.dedup();
    let single: Vec<u64> = points.iter().copied().filter(|lsn| !inside(*lsn)).collect();
    points.retain(|lsn| inside(*lsn));
    points.drain(..points.len().saturating_sub(POINTS_MAX));
    windows.extend(single.into_iter().map(|lsn| (lsn, lsn)));
    windows.sort_unstable();
    if windows.is_empty() {
        bail!(UsageError(format!(
            "no points here: widen --from and --to, or see `tidemark point list {vm}`"
        )));
    }
    Ok((windows, points))
}

/// A view that moves through history.
struct Remote {
    handle: Handle,
    client: Client,
    history: HistoryClient,
    vm: String,
    disk: String,
    pages: Option<Arc<Pages>>,
    /// Whether the disk is there at the present point.
    there: bool,
    /// The point that the pages are of, and its time.
    at: (u64, u64),
}

impl Moves for Remote {
    fn move_to(&mut self, lsn: u64) -> Result<u64> {
        if self.at.0 == lsn && self.there {
            return Ok(self.at.1);
        }
        let view = self.handle.block_on(RemoteView::open(&self.client, &self.vm, &When::Lsn(lsn), None))?;
        let time_us = view.time_us();
        let disk = view.disks().iter().find(|disk| disk.id == self.disk);
        self.there = disk.is_some();
        let Some(size_bytes) = disk.map(|disk| disk.size_bytes) else { return Ok(time_us) };
        let view = Arc::new(view);
        match &self.pages {
            None => {
                let pages = Pages::new(view, &self.disk, size_bytes, self.handle.clone());
                self.pages = Some(Arc::new(pages));
            }
            Some(pages) => {
                let points = (self.at.0, lsn);
                let changed = changed_ranges(&self.handle, &self.history, &self.vm, &self.disk, points)?;
                pages.move_to(view, size_bytes, &changed);
            }
        }
        self.at = (lsn, time_us);
        Ok(time_us)
    }

    fn disk(&self) -> Option<Arc<dyn Source>> {
        let pages = self.pages.as_ref().filter(|_| self.there)?;
        let source: Arc<dyn Source> = Arc::<Pages>::clone(pages);
        Some(source)
    }
}

fn version_json(version: &Version) -> Value {
    let mut fields = Map::new();
    let mut put = |key: &str, value: Value| drop(fields.insert(key.to_owned(), value));
    put("from_lsn", json!(version.from.0));
    put("from_time", json!(moment::json(version.from.1)));
    put("to_lsn", json!(version.to.0));
    put("to_time", json!(moment::json(version.to.1)));
    put("exact", json!(version.exact));
    put("after_lsn", json!(version.after_lsn));
    match &version.located {
        Located::Absent | Located::Link { .. } => put("present", json!(false)),
        Located::Unreadable(why) => {
            put("present", Value::Null);
            put("why", json!(why));
        }
        Located::Present { facts, hash } => {
            put("present", json!(true));
            put("blake3", json!(hash.map(|hash| hex(&hash))));
            facts_json(&mut fields, facts);
        }
    }
    Value::Object(fields)
}

fn version_row(version: &Version) -> [String; 9] {
    let begun = match (version.exact, version.after_lsn) {
        (true, _) => "exact".to_owned(),
        (false, Some(after)) => format!("after lsn:{after}"),
        (false, None) => "or before".to_owned(),
    };
    let (what, size, modified, hash) = match &version.located {
        Located::Absent | Located::Link { .. } => {
            ("absent".to_owned(), String::new(), String::new(), String::new())
        }
        Located::Unreadable(_) => ("unreadable".to_owned(), String::new(), String::new(), String::new()),
        Located::Present { facts, hash } => (
            facts.kind.word().to_owned(),
            facts.size_bytes.to_string(),
            time_shown(facts.modified),
            hash.map_or("-".to_owned(), |hash| hex(hash.get(..8).unwrap_or_default())),
        ),
    };
    let lsn = |lsn: u64| format!("lsn:{lsn}");
    [
        moment::local(version.from.1),
        lsn(version.from.0),
        moment::local(version.to.1),
        lsn(version.to.0),
        begun,
        what,
        size,
        modified,
        hash,
    ]
}
