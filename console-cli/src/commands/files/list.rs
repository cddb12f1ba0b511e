//! `tidemark files list`.

use anyhow::{Result, bail};
use serde_json::{Map, Value, json};
use tokio::runtime::Handle;

use super::super::proof::hex;
use super::volume::Volume;
use super::{Lines, facts_json, parts, rooted, time_shown};
use crate::appliance::Client;
use crate::cli::ListFilesArguments;
use crate::ext4::{Inode, Kind, Looked, Replay};
use crate::files::{Facts, content_hash, path_json, shown, walk};
use crate::{moment, output};

/// Files up to this many bytes get a hash: a hole costs as much as content, and a hostile one would take for ever.
const HASHED_MAX_BYTES: u64 = 1 << 40;

pub(super) fn run(handle: Handle, client: Client, arguments: &ListFilesArguments, json: bool) -> Result<()> {
    let parts = parts(&arguments.path)?;
    let replay = if arguments.ignore_journal { Replay::Ignored } else { Replay::Committed };
    let volume = Volume::open(&handle, &client, &arguments.volume, &arguments.at, replay)?;
    let inode = found(&volume, &parts)?;
    let mut lines = Lines::default();
    if json {
        let head = json!({
            "vm": volume.view.vm(), "lsn": volume.view.lsn(), "time": moment::json(volume.view.time_us()),
            "disk": volume.disk.id, "partition": (volume.partition > 0).then_some(volume.partition),
        });
        let head = head.to_string();
        lines.push(&format!("{},\n\"entries\": [", head.trim_end_matches('}')))?;
    }
    let mut first = true;
    let mut each = |path: &[u8], inode: &Inode| -> Result<()> {
        let target = (inode.kind == Kind::Symlink).then(|| volume.filesystem.target(inode)).transpose()?;
        let hash = (arguments.blake3 && inode.kind == Kind::File && inode.size_bytes <= HASHED_MAX_BYTES)
            .then(|| content_hash(&volume.filesystem, inode))
            .transpose()?
            .map(|hash| hex(&hash));
        if json {
            let comma = if std::mem::take(&mut first) { "" } else { "," };
            lines.push(&format!("{comma}{}", entry_json(path, inode, target.as_deref(), hash)))
        } else {
            let hash = hash.map_or(String::new(), |hash| format!("{hash}  "));
            lines.push(&format!("{hash}{}", entry_text(path, inode, target.as_deref())))
        }
    };
    let path = rooted(&parts);
    if inode.kind == Kind::Directory {
        walk(&volume.filesystem, &inode, &path, arguments.recursive, &mut |item| {
            each(item.path, item.inode)
        })?;
    } else {
        each(&path, &inode)?;
    }
    lines.flush()?;
    if json { output::line("]}") } else { Ok(()) }
}

/// What a path leads to, or why it leads nowhere.
pub(super) fn found(volume: &Volume, parts: &[&[u8]]) -> Result<Inode> {
    let place = || format!("{} as of {}", volume.shown(), moment::local(volume.view.time_us()));
    match volume.filesystem.look(parts)? {
        Looked::Found(inode) => Ok(inode),
        Looked::Missing { .. } => {
            bail!("there is no {} on {}: see `tidemark files history`", shown(&rooted(parts)), place())
        }
        Looked::Link { component, target } => bail!(link_on_the_way(parts, component, &target)),
    }
}

/// Why a path through a symbolic link leads nowhere; `component` is the number of the link.
pub(super) fn link_on_the_way(parts: &[&[u8]], component: usize, target: &[u8]) -> String {
    let link = rooted(parts.get(..=component).unwrap_or(parts));
    format!("{} is a symbolic link to {}: name what it points to", shown(&link), shown(target))
}

fn entry_json(path: &[u8], inode: &Inode, target: Option<&[u8]>, hash: Option<String>) -> Value {
    let mut fields = Map::new();
    path_json(&mut fields, "path", path);
    facts_json(&mut fields, &Facts::of(inode));
    if let Some(hash) = hash {
        fields.insert("blake3".to_owned(), json!(hash));
    }
    if let Some(target) = target {
        path_json(&mut fields, "target", target);
    }
    Value::Object(fields)
}

fn entry_text(path: &[u8], inode: &Inode, target: Option<&[u8]>) -> String {
    let kind = match inode.kind {
        Kind::File => '-',
        Kind::Directory => 'd',
        Kind::Symlink => 'l',
        Kind::Fifo => 'p',
        Kind::Socket => 's',
        Kind::CharacterDevice => 'c',
        Kind::BlockDevice => 'b',
    };
    let target = target.map_or(String::new(), |target| format!(" -> {}", shown(target)));
    let owner = format!("{}:{}", inode.uid, inode.gid);
    format!(
        "{kind}{:04o}  {owner:<11}  {:>12}  {}  {}{target}",
        inode.mode,
        inode.size_bytes,
        time_shown(inode.modified),
        shown(path)
    )
}
