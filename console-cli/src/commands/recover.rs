//! `tidemark recover`.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, anyhow, bail};
use serde_json::{Value, json};
use tidemark_proto::v1::ViewDisk;

use super::certificate;
use super::certificate_file::Shown;
use super::set_point;
use crate::appliance::{AttestClient, Client, SetsClient};
use crate::cli::{RecoverArguments, UsageError};
use crate::output;
use crate::restore::{DeviceTarget, FileTarget, Identity, Target, restore};
use crate::view::RemoteView;
use crate::when::When;
use crate::{moment, progress, size};

pub(super) async fn run(
    client: Client,
    attest: AttestClient,
    mut sets: SetsClient,
    arguments: &RecoverArguments,
    json: bool,
) -> Result<()> {
    check_destination(arguments)?;
    let mut done = Vec::new();
    let mut certificates = Vec::new();
    if let Some(set) = &arguments.set {
        let point = set_point::find(&mut sets, set, &arguments.at).await?;
        for member in &point.members {
            let folder = member_folder(&arguments.to, &member.vm)?;
            let view = RemoteView::open(&client, &member.vm, &When::Lsn(member.lsn), None).await?;
            recover_view(view, &folder, &attest, arguments, json, (&mut done, &mut certificates)).await?;
        }
    } else {
        let vm = arguments.vm.as_deref().unwrap_or_default();
        let view = RemoteView::open(&client, vm, &arguments.at, arguments.disk).await?;
        set_point::warn_of_divergence(&mut sets, view.vm(), &arguments.at, view.lsn()).await;
        recover_view(view, &arguments.to, &attest, arguments, json, (&mut done, &mut certificates)).await?;
    }
    if let Some(file) = &arguments.certificate {
        certificate::write(file, &certificates)?;
        if !json {
            output::line(&format!("The certificate is in {}.", file.display()))?;
        }
    }
    if json { output::json(&done) } else { Ok(()) }
}

/// Where a member of a set goes: a folder of its name, and never another.
fn member_folder(to: &Path, vm: &str) -> Result<PathBuf> {
    let mut parts = Path::new(vm).components();
    match (parts.next(), parts.next()) {
        (Some(Component::Normal(name)), None) if name == vm => Ok(to.join(vm)),
        _ => bail!("the name of '{vm}' is none of a folder: recover that VM alone, with `--at lsn:…`"),
    }
}

/// Recovers all disks of a view.
async fn recover_view(
    view: RemoteView,
    to: &Path,
    attest: &AttestClient,
    arguments: &RecoverArguments,
    json: bool,
    (done, certificates): (&mut Vec<Value>, &mut Vec<Shown>),
) -> Result<()> {
    let view = Arc::new(view);
    if arguments.disk.is_none() {
        fs::create_dir_all(to).with_context(|| format!("make folder {}", to.display()))?;
    }
    for disk in view.disks() {
        let path = match arguments.disk {
            Some(_) => to.to_path_buf(),
            None => to.join(format!("{}.raw", disk.id)),
        };
        let one = tokio::select! {
            one = recover_disk(&view, disk, &path, arguments.overwrite) => one?,
            _ = tokio::signal::ctrl_c() => {
                bail!("interrupted: {} is incomplete and marked so; run the command again to continue", path.display());
            }
        };
        if !json {
            output::line(&format!(
                "{} of {} as of {} (lsn:{}) is in {}: {} in {} s",
                disk.id,
                view.vm(),
                moment::local(view.time_us()),
                view.lsn(),
                path.display(),
                size::show(disk.size_bytes),
                one["seconds"]
            ))?;
        }
        done.push(one);
        if arguments.certificate.is_some() {
            certificates.push(certificate::of(attest, &view, disk, &path).await?);
        }
    }
    Ok(())
}

/// Finds out before anything is read what cannot work.
fn check_destination(arguments: &RecoverArguments) -> Result<()> {
    let to = &arguments.to;
    let Ok(metadata) = fs::metadata(to) else { return Ok(()) };
    match arguments.disk {
        None if !metadata.is_dir() => bail!(UsageError(format!(
            "{} is no folder: name one for all disks, or one disk with --disk",
            to.display()
        ))),
        Some(disk) if metadata.is_dir() => bail!(UsageError(format!(
            "{} is a folder: name a file in it, such as {}",
            to.display(),
            to.join(format!("{disk}.raw")).display()
        ))),
        _ => Ok(()),
    }
}

async fn recover_disk(
    view: &Arc<RemoteView>,
    disk: &ViewDisk,
    path: &Path,
    overwrite: bool,
) -> Result<Value> {
    let started = Instant::now();
    let identity = Identity {
        vm: view.vm().to_owned(),
        disk: disk.id.clone(),
        lsn: view.lsn(),
        size_bytes: disk.size_bytes,
    };
    let target = open_target(path.to_owned(), identity, overwrite).await?;
    let bar = progress::bytes(disk.size_bytes, &disk.id);
    let restored = restore(view, disk, target, &bar).await;
    bar.finish_and_clear();
    let restored = restored.with_context(|| format!("restore {}", path.display())).map_err(explain)?;
    let milliseconds = started.elapsed().as_millis();
    Ok(json!({
        "vm": view.vm(), "disk": disk.id, "lsn": view.lsn(), "time": moment::json(view.time_us()),
        "bytes": disk.size_bytes, "seconds": (u64::try_from(milliseconds).unwrap_or(u64::MAX) as f64) / 1000.0,
        "path": path, "data_bytes": restored.data_bytes, "resumed_bytes": restored.resumed_bytes,
    }))
}

async fn open_target(path: PathBuf, identity: Identity, overwrite: bool) -> Result<Arc<dyn Target>> {
    tokio::task::spawn_blocking(move || -> Result<Arc<dyn Target>> {
        match fs::metadata(&path) {
            Ok(metadata) if metadata.file_type().is_block_device() => {
                Ok(Arc::new(DeviceTarget::open(&path, &identity)?))
            }
            Ok(metadata) if !metadata.is_file() => {
                bail!("{} is neither a file nor a block device: name another destination", path.display())
            }
            _ if path.starts_with("/dev") && !path.exists() => {
                bail!("{} does not exist: see lsblk for the devices of this machine", path.display())
            }
            _ => Ok(Arc::new(FileTarget::open(&path, identity, overwrite)?)),
        }
    })
    .await
    .context("open the destination")?
}

/// A full disk is what a tired person sees most: say what helps.
fn explain(error: anyhow::Error) -> anyhow::Error {
    let full = error.chain().any(|cause| {
        cause
            .downcast_ref::<std::io::Error>()
            .is_some_and(|error| error.kind() == std::io::ErrorKind::StorageFull)
    });
    if full { anyhow!("{error:#}: free space there and run the command again to continue") } else { error }
}
