//! Opening what the data folder holds, and completing the catalog from it.

use std::sync::Arc;

use anyhow::Context;
use tidemark_journal::retention::ImageKeeper;
use tidemark_journal::storage::OsStorage;

use crate::catalog::Catalog;
use crate::clock::now_us;
use crate::data_dir::DataDir;
use crate::fleet::{Fleet, LogKeys, Vm, VmLog};
use crate::images::Images;
use crate::ingest::rebuild_bookmarks;
use crate::master_key;
use crate::objects::{ObjectRoots, Objects};
use crate::packs::{self, ObjectFolder};
use crate::pki::Authority;
use crate::retention::{RetentionClock, Tick, rebuild_held};
use crate::settings::Settings;
use crate::space::Space;

/// Opens the chunk store, with the master key and the packs from where the settings say.
pub(super) async fn open_images(
    data: &DataDir,
    settings: &Settings,
    authority: &Authority,
) -> anyhow::Result<(Images, Option<Arc<ObjectFolder>>)> {
    let (dir, local) = (data.store(), data.packs());
    let secret = match master_key::pending(data)? {
        Some(record) => {
            let finished = master_key::finish(data, &record, &mut |_| true).await;
            let finished = finished.context("going on with a change of the master key")?;
            let source = &finished.source;
            if finished.unreadable.is_empty() {
                tracing::info!(%source, logs = finished.logs, "a change of the master key was finished");
            } else {
                let unreadable = finished.unreadable.join(", ");
                tracing::error!(%source, unreadable, "{}", master_key::UNFINISHED);
            }
            if *source != settings.master_key {
                tracing::warn!(%source, "the master key comes from another source now: say so with --master-key");
            }
            finished.secret
        }
        None => settings.master_key.load(&data.store_key(), Images::exist(&dir)).await?,
    };
    let packs = settings.packs.clone();
    let floor_bytes = Space::measure(data.root(), false).context("measuring free space")?.floor_bytes();
    let appliance: String = authority.sha256().iter().map(|byte| format!("{byte:02x}")).collect();
    let runtime = tokio::runtime::Handle::current();
    let opened = tokio::task::spawn_blocking(move || {
        let local = Arc::new(OsStorage::create(local)?);
        let packs = packs::open(&packs, local, &dir, &appliance, runtime, now_us())?;
        Ok::<_, anyhow::Error>((Images::open_with(&dir, packs.folder, &secret, floor_bytes)?, packs.objects))
    });
    opened.await.context("opening the chunk store")?.context("opening the chunk store")
}

/// Opens the objects, keeps their chunks from collections, and completes the catalog from their records.
pub(super) async fn open_objects(
    data: &DataDir,
    images: &Images,
    catalog: &Catalog,
) -> anyhow::Result<Arc<Objects>> {
    let folder = data.objects();
    let opened = tokio::task::spawn_blocking(move || Objects::open(&folder)).await;
    let objects = Arc::new(opened.context("opening the objects")?.context("opening the objects")?);
    images.add_roots(Arc::new(ObjectRoots::new(Arc::clone(images.store()), Arc::clone(&objects))));
    catalog.replace_objects(&objects.list()).await?;
    Ok(objects)
}

/// Opens the journals of all VMs that the catalog or the data folder knows, and completes the catalog from them.
pub(super) async fn open_fleet(
    data: &DataDir,
    catalog: &Catalog,
    keeper: &Arc<ImageKeeper>,
    keys: &LogKeys,
) -> anyhow::Result<Fleet> {
    let mut known: Vec<_> = catalog.vms().await?.into_iter().map(|row| (row.vm(), Some(row.name))).collect();
    for vm in data.vms()? {
        if !known.iter().any(|(id, _)| *id == vm) {
            known.push((vm, None));
        }
    }
    let opening: Vec<_> = known
        .into_iter()
        .map(|(id, name)| {
            let (dir, keeper, keys) = (data.journal(id), Arc::clone(keeper), keys.clone());
            (id, name, tokio::task::spawn_blocking(move || VmLog::open(id, &dir, keeper, keys)))
        })
        .collect();
    let fleet = Fleet::default();
    let now_us =
        RetentionClock::load(&data.retention_clock(), &Tick::now(), 0).observe(&Tick::now()).locks_us;
    for (id, name, log) in opening {
        let log = log.await.context("opening a journal")?;
        let name = match name {
            Some(name) => {
                let (log, name) = (Arc::clone(&log), name.clone());
                let noted = tokio::task::spawn_blocking(move || {
                    log.name_it(&name);
                    name
                });
                noted.await.context("opening a journal")?
            }
            None => adopt(catalog, id, &log).await?,
        };
        if let Ok(journal) = log.journal() {
            let rebuilt = rebuild_bookmarks(catalog, id, &journal.timeline()).await?;
            let held = rebuild_held(catalog, id, &journal, now_us).await?;
            if rebuilt + held > 0 {
                tracing::info!(vm = name, rebuilt, held, "bookmarks copied from the journal to the catalog");
            }
        }
        fleet.add(Vm::new(id, name, log));
    }
    Ok(fleet)
}

/// What an administrator asked for before the last end goes on with the VM's next session.
pub(super) async fn resume_verifies(fleet: &Fleet, catalog: &Catalog) -> anyhow::Result<()> {
    for row in catalog.running_verifies().await? {
        if let Some(vm) = row.vm().and_then(|vm| fleet.get(vm))
            && let Err(older) = vm.begin_verify(row.job())
        {
            tracing::warn!(vm = vm.name, job = row.id, older, "two verifies of one VM: the older goes on");
            let reason = format!("another verify of the VM was running: {older}");
            catalog.keep_verify(&row.job().failed(&reason, now_us())).await?;
        }
    }
    Ok(())
}

/// The latest time that a journal has given something up at.
pub(super) fn retention_clock(fleet: &Fleet) -> u64 {
    let journals = fleet.all().into_iter().filter_map(|vm| vm.log.journal().ok());
    journals.map(|journal| journal.retention_clock()).max().unwrap_or(0)
}

/// Lists a VM of which only the journal is left. Its credentials are gone, so it must be enrolled again.
async fn adopt(catalog: &Catalog, id: tidemark_proto::ids::VmId, log: &VmLog) -> anyhow::Result<String> {
    let reason = "the catalog was lost: its journal is here, its credentials are not";
    let fallback = format!("vm-{id}");
    let name = log.noted_name().unwrap_or_else(|| fallback.clone());
    tracing::warn!(vm = name, %id, "a journal without a catalog entry: the VM must be enrolled again");
    match catalog.rebuild_vm(id, &name, reason, now_us()).await {
        Ok(()) => Ok(name),
        Err(crate::catalog::CatalogError::Taken(_)) => {
            catalog.rebuild_vm(id, &fallback, reason, now_us()).await?;
            Ok(fallback)
        }
        Err(error) => Err(error.into()),
    }
}
