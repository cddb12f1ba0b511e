//! `tidemark object get`.

use std::fs::{File, Permissions};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result, anyhow, bail};
use indicatif::ProgressBar;
use serde_json::json;
use tempfile::NamedTempFile;
use tidemark_proto::v1::{GetObjectRequest, ObjectInfo, get_object_reply};

use super::{TRIES_MAX, broke, pause, to_json};
use crate::appliance::{ObjectsClient, refused};
use crate::cli::{GetArguments, UsageError};
use crate::{output, progress, size};

static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

pub(super) async fn run(client: ObjectsClient, arguments: &GetArguments, json: bool) -> Result<()> {
    let started = Instant::now();
    let to = &arguments.to;
    if to.is_dir() {
        bail!(UsageError(format!("{} is a folder: name a file in it", to.display())));
    }
    if to.exists() && !arguments.overwrite {
        bail!("{} exists already: name another file, or add --overwrite", to.display());
    }
    let target = Target::create(to)?;
    let bar = progress::bytes(0, &arguments.name);
    let fetched = tokio::select! {
        fetched = fetch(client, &arguments.name, target, &bar) => fetched,
        _ = tokio::signal::ctrl_c() => Err(anyhow!("interrupted: nothing was written to {}", to.display())),
    };
    bar.finish_and_clear();
    let (object, target) = fetched?;
    target.keep(to, arguments.overwrite)?;
    let seconds = started.elapsed().as_secs_f64();
    if json {
        let mut shown = to_json(&object);
        if let Some(fields) = shown.as_object_mut() {
            fields.insert("path".to_owned(), json!(to));
            fields.insert("seconds".to_owned(), json!((seconds * 1000.0).round() / 1000.0));
        }
        return output::json(&shown);
    }
    output::line(&format!(
        "{} is in {}: {}, verified, in {seconds:.1} s",
        object.name,
        to.display(),
        size::show(object.size_bytes)
    ))
}

/// A file that has its name only when it is whole.
#[derive(Debug)]
struct Target {
    file: NamedTempFile,
    hasher: blake3::Hasher,
    written: u64,
}

impl Target {
    fn create(to: &Path) -> Result<Self> {
        let parent =
            to.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
        let file = tempfile::Builder::new()
            .prefix(".tidemark-")
            .permissions(Permissions::from_mode(0o666))
            .tempfile_in(parent)
            .with_context(|| format!("write into {}", parent.display()))?;
        Ok(Self { file, hasher: blake3::Hasher::new(), written: 0 })
    }

    fn data(&mut self, data: &[u8]) -> Result<()> {
        self.hasher.update(data);
        self.file.write_all(data).map_err(explain)?;
        self.written += u64::try_from(data.len()).unwrap_or(0);
        Ok(())
    }

    /// A hole.
    fn zeroes(&mut self, bytes: u64) -> Result<()> {
        let mut left = bytes;
        while left > 0 {
            let some = usize::try_from(left).unwrap_or(usize::MAX).min(ZEROES.len());
            self.hasher.update(ZEROES.get(..some).unwrap_or_default());
            left -= u64::try_from(some).unwrap_or(left);
        }
        self.written += bytes;
        self.file.seek(SeekFrom::Start(self.written)).map_err(explain)?;
        Ok(())
    }

    /// Verifies all of it and makes it durable.
    fn verified(self, object: &ObjectInfo) -> Result<Self> {
        if self.written != object.size_bytes || self.hasher.finalize().as_bytes()[..] != object.hash[..] {
            bail!("what came is not what was put: nothing was written; look at the appliance's log");
        }
        let file = self.file.as_file();
        file.set_len(self.written).and_then(|()| file.sync_all()).map_err(explain)?;
        Ok(self)
    }

    fn keep(self, to: &Path, overwrite: bool) -> Result<()> {
        let kept = if overwrite { self.file.persist(to) } else { self.file.persist_noclobber(to) };
        kept.map_err(|error| error.error).with_context(|| format!("name the file {}", to.display()))?;
        let parent =
            to.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
        File::open(parent)
            .and_then(|folder| folder.sync_all())
            .with_context(|| format!("sync {}", parent.display()))
    }
}

fn explain(error: std::io::Error) -> anyhow::Error {
    if error.kind() == std::io::ErrorKind::StorageFull {
        anyhow!("the disk is full: free space there and run the command again")
    } else {
        anyhow::Error::new(error).context("write the file")
    }
}

/// Fetches the object; goes on by itself when the connection breaks.
async fn fetch(
    mut client: ObjectsClient,
    name: &str,
    mut target: Target,
    bar: &ProgressBar,
) -> Result<(ObjectInfo, Target)> {
    let mut known: Option<ObjectInfo> = None;
    let mut tries = 0;
    loop {
        let before = target.written;
        let request = GetObjectRequest { name: name.to_owned(), offset: before };
        let status = match client.get_object(request).await {
            Err(status) => status,
            Ok(replies) => {
                let mut replies = replies.into_inner();
                loop {
                    match replies.message().await {
                        Ok(Some(reply)) => match reply.body {
                            Some(get_object_reply::Body::Object(object)) => {
                                if known.as_ref().is_some_and(|known| known.id != object.id) {
                                    bail!("'{name}' became another object meanwhile: run the command again");
                                }
                                bar.set_length(object.size_bytes);
                                known = Some(object);
                            }
                            Some(get_object_reply::Body::Data(data)) => target.data(&data)?,
                            Some(get_object_reply::Body::ZeroBytes(bytes)) => target.zeroes(bytes)?,
                            None => {}
                        },
                        Ok(None) => break tonic::Status::unavailable(""),
                        Err(status) => break status,
                    }
                    bar.set_position(target.written);
                }
            }
        };
        if let Some(object) = known.as_ref().filter(|object| object.size_bytes == target.written) {
            let object = object.clone();
            let target = tokio::task::spawn_blocking({
                let object = object.clone();
                move || target.verified(&object)
            });
            return Ok((object, target.await.context("verify the file")??));
        }
        tries = if target.written > before { 1 } else { tries + 1 };
        if !broke(&status) || tries >= TRIES_MAX {
            return Err(refused(&status));
        }
        pause(tries).await;
    }
}
