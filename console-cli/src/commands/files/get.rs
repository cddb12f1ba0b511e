//! `tidemark files get`.

use std::fs::{self, File, FileTimes, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, fchown};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, anyhow, bail};
use serde_json::{Map, Value, json};
use tempfile::NamedTempFile;
use tidemark_proto::pieces::is_zero;
use tokio::runtime::Handle;

use super::list::found;
use super::volume::Volume;
use super::{facts_json, parts, rooted};
use crate::appliance::Client;
use crate::cli::{GetFileArguments, UsageError};
use crate::ext4::{Inode, InodeTime, Kind, Replay};
use crate::files::{Facts, path_json, shown};
use crate::{moment, output, size};

/// Content is looked through for zeroes in pieces of this many bytes, the usual block of a file system.
const HOLE_BYTES: usize = 4096;
/// What is kept of a mode. Set-uid and set-gid would give rights here to who owned the guest.
const MODE_KEPT: u32 = 0o777;

pub(super) async fn run(client: Client, arguments: GetFileArguments, json: bool) -> Result<()> {
    let to = &arguments.to;
    if to.is_dir() {
        bail!(UsageError(format!("{} is a folder: name a file in it", to.display())));
    }
    if fs::symlink_metadata(to).is_ok() && !arguments.overwrite {
        bail!("{} exists already: name another file, or add --overwrite", to.display());
    }
    let handle = Handle::current();
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let mut work = tokio::task::spawn_blocking(move || get(&handle, &client, &arguments, json, &stopped));
    tokio::select! {
        done = &mut work => done.context("read the file system")?,
        _ = tokio::signal::ctrl_c() => {
            // The unnamed file goes with the work that wrote it.
            stop.store(true, Ordering::SeqCst);
            work.await.context("read the file system")?
        }
    }
}

fn get(
    handle: &Handle,
    client: &Client,
    arguments: &GetFileArguments,
    json: bool,
    stop: &AtomicBool,
) -> Result<()> {
    let started = Instant::now();
    let (to, parts) = (&arguments.to, parts(&arguments.path)?);
    let volume = Volume::open(handle, client, &arguments.volume, &arguments.at, Replay::Committed)?;
    let inode = found(&volume, &parts)?;
    let name = shown(&rooted(&parts));
    match inode.kind {
        Kind::File => {}
        Kind::Symlink => bail!(
            "{name} is a symbolic link to {}: name what it points to",
            shown(&volume.filesystem.target(&inode)?)
        ),
        Kind::Directory => bail!("{name} is a folder: get its files one by one, or use `tidemark mount`"),
        other => bail!("{name} is a {}: only files can be restored", other.word()),
    }
    let parent =
        to.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    let file = tempfile::Builder::new()
        .prefix(".tidemark-")
        .tempfile_in(parent)
        .with_context(|| format!("write into {}", parent.display()))?;
    write(&volume, &inode, &file, stop).map_err(explain)?;
    if stop.load(Ordering::SeqCst) {
        bail!("interrupted: nothing was written to {}", to.display());
    }
    let kept = if arguments.overwrite { file.persist(to) } else { file.persist_noclobber(to) };
    kept.map_err(|error| error.error).with_context(|| format!("name the file {}", to.display()))?;
    File::open(parent)
        .and_then(|folder| folder.sync_all())
        .with_context(|| format!("sync {}", parent.display()))?;
    report(&volume, &inode, arguments, &rooted(&parts), started, json)
}

/// Writes content and attributes, and makes them durable.
fn write(volume: &Volume, inode: &Inode, file: &NamedTempFile, stop: &AtomicBool) -> Result<()> {
    let file = file.as_file();
    file.set_len(inode.size_bytes).context("make the file as long as it was")?;
    volume.filesystem.content(inode, &mut |offset, piece| {
        if stop.load(Ordering::SeqCst) {
            bail!("interrupted: nothing was written");
        }
        for (at, part) in (offset..).step_by(HOLE_BYTES).zip(piece.chunks(HOLE_BYTES)) {
            if !is_zero(part) {
                file.write_all_at(part, at).context("write the file")?;
            }
        }
        Ok(())
    })?;
    if nix::unistd::geteuid().is_root() {
        fchown(file, Some(inode.uid), Some(inode.gid)).context("give the file its owner")?;
    }
    file.set_permissions(Permissions::from_mode(u32::from(inode.mode) & MODE_KEPT))
        .context("give the file its permissions")?;
    if let Some(modified) = system_time(inode.modified) {
        file.set_times(FileTimes::new().set_modified(modified)).context("give the file its time")?;
    }
    file.sync_all().context("make the file durable")
}

fn system_time(time: InodeTime) -> Option<SystemTime> {
    let fraction = Duration::from_nanos(time.nanoseconds.into());
    let whole = Duration::from_secs(time.seconds.unsigned_abs());
    let base = if time.seconds < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(whole)
    } else {
        SystemTime::UNIX_EPOCH.checked_add(whole)
    };
    base?.checked_add(fraction)
}

fn explain(error: anyhow::Error) -> anyhow::Error {
    let full = error.chain().any(|cause| {
        cause
            .downcast_ref::<std::io::Error>()
            .is_some_and(|error| error.kind() == std::io::ErrorKind::StorageFull)
    });
    if full { anyhow!("the disk is full: free space there and run the command again") } else { error }
}

fn report(
    volume: &Volume,
    inode: &Inode,
    arguments: &GetFileArguments,
    path: &[u8],
    started: Instant,
    json: bool,
) -> Result<()> {
    let seconds = started.elapsed().as_secs_f64();
    let view = &volume.view;
    if !json {
        return output::line(&format!(
            "{} as of {} (lsn:{}) is in {}: {} in {seconds:.1} s",
            shown(path),
            moment::local(view.time_us()),
            view.lsn(),
            arguments.to.display(),
            size::show(inode.size_bytes)
        ));
    }
    let mut fields = Map::new();
    path_json(&mut fields, "path", path);
    facts_json(&mut fields, &Facts::of(inode));
    let rest = json!({
        "vm": view.vm(), "disk": volume.disk.id, "partition": (volume.partition > 0).then_some(volume.partition),
        "lsn": view.lsn(), "time": moment::json(view.time_us()),
        "read_bytes": volume.pages.count().bytes, "seconds": (seconds * 1000.0).round() / 1000.0,
    });
    fields.extend(rest.as_object().cloned().unwrap_or_default());
    path_json(&mut fields, "to", arguments.to.as_os_str().as_bytes());
    output::json(&Value::Object(fields))
}
