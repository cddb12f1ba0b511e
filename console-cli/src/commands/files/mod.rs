//! `tidemark files`.

mod diff;
mod get;
mod history;
mod list;
mod volume;

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::{Map, Value, json};
use tokio::runtime::Handle;

use crate::appliance::{Client, HistoryClient};
use crate::cli::{FilesCommand, UsageError};
use crate::ext4::{InodeTime, components};
use crate::files::Facts;
use crate::output;

pub(super) async fn run(
    client: Client,
    history: HistoryClient,
    command: FilesCommand,
    json: bool,
) -> Result<()> {
    let handle = Handle::current();
    match command {
        FilesCommand::Get(arguments) => get::run(client, arguments, json).await,
        FilesCommand::List(arguments) => blocking(move || list::run(handle, client, &arguments, json)).await,
        FilesCommand::Diff(arguments) => {
            blocking(move || diff::run(handle, client, history, &arguments, json)).await
        }
        FilesCommand::History(arguments) => {
            blocking(move || history::run(handle, client, history, &arguments, json)).await
        }
    }
}

/// Reading a file system waits for the appliance again and again: it has a thread of its own.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.context("read the file system")?
}

/// The parts of a path from the command line.
fn parts(path: &Path) -> Result<Vec<&[u8]>> {
    match components(path.as_os_str().as_bytes()) {
        Ok(parts) => Ok(parts),
        Err(error) => bail!(UsageError(error.to_string())),
    }
}

/// The path that parts lead to.
fn rooted(parts: &[&[u8]]) -> Vec<u8> {
    if parts.is_empty() {
        return b"/".to_vec();
    }
    parts.iter().flat_map(|part| [b"/".as_slice(), part].concat()).collect()
}

fn timestamp(time: InodeTime) -> Option<Timestamp> {
    Timestamp::new(time.seconds, i32::try_from(time.nanoseconds).ok()?).ok()
}

/// A guest's time, exact, in UTC.
fn time_json(time: InodeTime) -> Option<String> {
    timestamp(time).map(|time| time.strftime("%Y-%m-%dT%H:%M:%S%.9fZ").to_string())
}

/// A guest's time for people.
fn time_shown(time: InodeTime) -> String {
    let zoned = timestamp(time).map(|time| time.to_zoned(TimeZone::system()));
    zoned.map_or_else(|| "-".to_owned(), |time| time.strftime("%Y-%m-%dT%H:%M:%S%:z").to_string())
}

/// What is told of a file, as fields of JSON.
fn facts_json(fields: &mut Map<String, Value>, facts: &Facts) {
    let mut put = |key: &str, value: Value| drop(fields.insert(key.to_owned(), value));
    put("type", json!(facts.kind.word()));
    put("size_bytes", json!(facts.size_bytes));
    put("mode", json!(format!("{:04o}", facts.mode)));
    put("uid", json!(facts.uid));
    put("gid", json!(facts.gid));
    put("mtime", json!(time_json(facts.modified)));
    put("inode", json!(facts.inode));
    put("links", json!(facts.links));
}

/// Lines for standard output, written some at a time: there may be millions.
#[derive(Debug, Default)]
struct Lines(String);

impl Lines {
    /// Bytes that are held back at most.
    const HELD_BYTES: usize = 64 << 10;

    fn push(&mut self, line: &str) -> Result<()> {
        if !self.0.is_empty() {
            self.0.push('\n');
        }
        self.0.push_str(line);
        if self.0.len() > Self::HELD_BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<()> {
        if self.0.is_empty() { Ok(()) } else { output::line(&std::mem::take(&mut self.0)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_a_guest_are_exact_or_absent() {
        let time = |seconds, nanoseconds| time_json(InodeTime { seconds, nanoseconds });
        assert_eq!(time(1, 5), Some("1970-01-01T00:00:01.000000005Z".to_owned()));
        assert_eq!(time(-1, 0), Some("1969-12-31T23:59:59.000000000Z".to_owned()));
        assert_eq!(time(1, 1_000_000_000), None);
        assert_eq!(time_shown(InodeTime { seconds: i64::MAX, nanoseconds: 0 }), "-");
    }
}
