//! The clones service: the same callers and rights as the console's.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use tidemark_proto::ids::DiskId;
use tidemark_proto::limits::{READ_MAX_BYTES, TEXT_MAX_BYTES};
use tidemark_proto::v1::clones_server::Clones;
use tidemark_proto::v1::{
    CloneInfo, CloneName, ClonesReply, CreateCloneRequest, Empty, ExportCloneRequest, ExportsReply,
    FlushCloneRequest, OpenCloneRequest, OpenViewReply, ReadViewRequest, ViewChunk, ViewDisk, VmDisk,
    WriteCloneRequest,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::views::{self, Chunks, HeldView, open_view, optional_disk};
use super::{blocking, caller};
use crate::clock::now_us;
use crate::clones::{self, Below, CloneError, CloneSource, HeldVolume};
use crate::core::Core;
use crate::fleet::Vm;
use crate::transport::Peer;

/// Bytes of data in one write at most: as a mount's write. Longer ones are refused.
const WRITE_MAX_BYTES: usize = 1 << 20;

/// Bytes of one request at most: a write, and names.
pub(crate) const CLONE_REQUEST_MAX_BYTES: usize = WRITE_MAX_BYTES + (64 << 10);

/// Serves what clones need.
#[derive(Debug)]
pub struct ClonesService {
    core: Arc<Core>,
}

impl ClonesService {
    /// Serves `core`.
    #[must_use]
    pub fn new(core: Arc<Core>) -> Self {
        Self { core }
    }
}

fn failed(error: CloneError) -> Status {
    let text = error.to_string();
    match error {
        CloneError::Name(_) | CloneError::NoTemplate(_) => Status::invalid_argument(text),
        CloneError::Object(error) => super::objects::failed(&error),
        CloneError::InUse(_) | CloneError::Pin(_) => Status::failed_precondition(text),
        CloneError::Unknown(_) => Status::not_found(text),
        CloneError::TooMany(_) => Status::resource_exhausted(text),
        CloneError::Catalog(error) => super::catalog(error),
        CloneError::Down(_) | CloneError::Files(_) | CloneError::Journal(_) => Status::unavailable(text),
    }
}

fn io_status(error: &io::Error) -> Status {
    match error.kind() {
        io::ErrorKind::StorageFull => Status::resource_exhausted(error.to_string()),
        _ => Status::data_loss(error.to_string()),
    }
}

fn clone_named(core: &Core, name: &str) -> Result<Arc<Vm>, Status> {
    let clone = core.fleet.by_name(name).filter(|vm| vm.origin.is_some());
    clone.ok_or_else(|| failed(CloneError::Unknown(name.to_owned())))
}

fn info(core: &Core, clone: &Vm) -> CloneInfo {
    let point = clone.continues();
    let parent = point.and_then(|point| core.fleet.get(point.parent));
    let mut info = CloneInfo {
        name: clone.name.clone(),
        id: clone.id.to_string(),
        lsn: point.map_or(0, |point| point.lsn.0),
        created_us: clone.origin.map_or(0, |origin| origin.created_us),
        clones: core.fleet.clones_of(clone.id).iter().map(|clone| clone.name.clone()).collect(),
        problem: clone.log.problem().unwrap_or_default(),
        held_back_bytes: core.retention.held_back(clone.id),
        ..CloneInfo::default()
    };
    if let Some(template) = clone.origin.and_then(|origin| origin.template) {
        // Its record may be lost; the content is not.
        let object = core.objects.by_id(template);
        info.template = object.map_or_else(|| template.to_string(), |object| object.name.clone());
    }
    match (&parent, point) {
        (Some(parent), _) => info.parent.clone_from(&parent.name),
        (None, Some(_)) => "what it was made from is gone".clone_into(&mut info.problem),
        (None, None) => {}
    }
    let Ok(journal) = clone.log.journal() else { return info };
    let timeline = journal.timeline();
    if let Some((base, _)) = journal.base() {
        info.time_us = timeline.time_of(base).unwrap_or(0);
    }
    if let Some(horizon) = timeline.horizon() {
        info.latest_lsn = horizon.lsn.0;
        info.latest_time_us = timeline.time_of(horizon.lsn).unwrap_or(0);
    }
    let statistics = journal.statistics();
    info.stored_bytes = statistics.segment_bytes.saturating_add(statistics.index_bytes);
    let disks = journal.disks().into_iter();
    info.disks = disks
        .map(|disk| VmDisk {
            id: disk.id.to_string(),
            path: disk.path,
            size_bytes: disk.size_bytes,
            identity: disk.identity,
            ..VmDisk::default()
        })
        .collect();
    info
}

async fn create(core: &Arc<Core>, caller: &Peer, request: CreateCloneRequest) -> Result<CloneInfo, Status> {
    let mut warnings = Vec::new();
    let (below, detail) = if request.template.is_empty() {
        let view = open_view(core, &request.vm, request.at, None).await?;
        let detail = format!("of '{}' lsn:{}", view.vm_name, view.lsn);
        warnings.clone_from(&view.warnings);
        (Below::Point(Box::new(view)), detail)
    } else if request.vm.is_empty() && request.at.is_none() {
        let detail = format!("of template '{}'", request.template);
        (Below::Template(request.template), detail)
    } else {
        return Err(Status::invalid_argument(
            "a clone is made of a VM at a point, or of a template: name one",
        ));
    };
    // A caller that goes away must not leave a clone that is durable and known to nobody.
    let (making, name) = (Arc::clone(core), request.name);
    let made = core.tasks.to_the_end(async move { clones::create(&making, &name, below).await }).await;
    let clone = made.ok_or_else(super::interrupted)?.map_err(failed)?;
    core.audit(&caller.role.uri(), "create clone", &clone.name, &detail).await;
    tracing::info!(clone = clone.name, detail, "clone made");
    let core = Arc::clone(core);
    let info = blocking(move || Ok(info(&core, &clone))).await?;
    Ok(CloneInfo { warnings, ..info })
}

async fn export(
    core: &Arc<Core>,
    caller: &Peer,
    request: ExportCloneRequest,
) -> Result<ExportsReply, Status> {
    if request.tls_addr.len() > TEXT_MAX_BYTES {
        return Err(Status::invalid_argument("the address is too long"));
    }
    let wanted = optional_disk(&request.disk)?;
    // Neither removed nor mounted before the export is listed.
    let _changing = core.clones.changing.lock().await;
    let clone = clone_named(core, &request.name)?;
    if core.clones.holds(clone.id) {
        return Err(Status::failed_precondition(format!(
            "'{}' is mounted writable: unmount it first",
            clone.name
        )));
    }
    let volume = core.clones.volume(core, &clone);
    let disks = volume.disks().map_err(|error| io_status(&error))?;
    let chosen: Vec<_> = disks.iter().filter(|disk| wanted.is_none_or(|wanted| wanted == disk.id)).collect();
    if let (Some(wanted), true) = (wanted, chosen.is_empty()) {
        return Err(Status::not_found(format!(
            "'{}' has no {wanted}: `tidemark clone list` shows its disks",
            clone.name
        )));
    }
    let lsn = clone.log.journal().map_or(0, |journal| journal.appended().lsn.0);
    let mut exports = Vec::new();
    for disk in chosen {
        let source = Arc::new(CloneSource::new(Arc::clone(&volume), disk.id, disk.size_bytes));
        let name = disk.id.to_string();
        match core.exports.start_source(&clone.name, &name, lsn, source, &request.tls_addr).await {
            Ok(started) => exports.push(started),
            Err(error) => {
                for started in &exports {
                    let _ = core.exports.stop(&started.id).await;
                }
                return Err(super::exports::failed(error));
            }
        }
    }
    core.audit(&caller.role.uri(), "start writable export", &clone.name, &request.tls_addr).await;
    Ok(ExportsReply { exports })
}

async fn open(core: &Arc<Core>, caller: &Peer, request: OpenCloneRequest) -> Result<HeldView, Status> {
    let wanted = optional_disk(&request.disk)?;
    let changing = core.clones.changing.lock().await;
    let clone = clone_named(core, &request.name)?;
    if core.exports.list().await.iter().any(|export| export.vm == clone.name) {
        let text =
            format!("'{}' is exported: `tidemark export list`, then `tidemark export stop ID`", clone.name);
        return Err(Status::failed_precondition(text));
    }
    let volume = core.clones.volume(core, &clone);
    let (log, content) = (Arc::clone(&clone.log), Arc::clone(&volume));
    let (disks, paths, lsn) = blocking(move || {
        let journal = log.writable().map_err(|down| Status::unavailable(down.to_string()))?;
        let disks = content.disks().map_err(|error| io_status(&error))?;
        Ok((disks, journal.disks(), journal.appended().lsn.0))
    })
    .await?;
    let path = |id| paths.iter().find(|record| record.id == id).map(|record| record.path.clone());
    let disks = disks.iter().filter(|disk| wanted.is_none_or(|wanted| wanted == disk.id));
    let lease = core.clones.hold(HeldVolume { id: clone.id, volume });
    let lease = lease.ok_or_else(|| {
        Status::failed_precondition(format!("'{}' is mounted writable already: unmount it first", clone.name))
    })?;
    let reply = OpenViewReply {
        view_id: lease.id().to_string(),
        vm: clone.name.clone(),
        lsn,
        time_us: now_us(),
        disks: disks
            .map(|disk| ViewDisk {
                id: disk.id.to_string(),
                path: path(disk.id).unwrap_or_default(),
                size_bytes: disk.size_bytes,
            })
            .collect(),
        warnings: Vec::new(),
    };
    drop(changing);
    core.audit(&caller.role.uri(), "open clone for writing", &clone.name, "").await;
    let (sender, receiver) = mpsc::channel(2);
    let (stopping, revoked) = (core.stopping.clone(), caller.revoked.clone());
    core.metrics.views.inc();
    let views = core.metrics.views.clone();
    core.tasks.spawn(async move {
        views::hold(lease, reply, sender, stopping, revoked).await;
        views.dec();
    });
    Ok(ReceiverStream::new(receiver))
}

fn held(core: &Core, view_id: &str) -> Result<HeldVolume, Status> {
    let id = uuid::Uuid::parse_str(view_id).map_err(|_| Status::invalid_argument("this is no view id"))?;
    core.clones.held(id).ok_or_else(|| Status::not_found("this clone is not open any more: mount it again"))
}

fn named_disk(text: &str) -> Result<DiskId, Status> {
    optional_disk(text)?.ok_or_else(|| Status::invalid_argument("a disk must be named"))
}

fn read(core: &Core, request: &ReadViewRequest) -> Result<Chunks, Status> {
    let volume = held(core, &request.view_id)?.volume;
    let disk = named_disk(&request.disk)?;
    if request.length > READ_MAX_BYTES {
        return Err(Status::invalid_argument(format!("one read is {READ_MAX_BYTES} bytes at most")));
    }
    let (offset, length) = (request.offset, request.length);
    Ok(views::chunks(move |sender: &mpsc::Sender<Result<ViewChunk, Status>>| {
        let extents = volume.extents(disk, offset, length).map_err(|error| io_status(&error))?;
        views::send_extents(&extents, |at, data| volume.read_at(disk, at, data), sender)
            .map_err(|error| io_status(&error))
    }))
}

async fn write(core: &Core, request: WriteCloneRequest) -> Result<Empty, Status> {
    let volume = held(core, &request.view_id)?.volume;
    let disk = named_disk(&request.disk)?;
    let (offset, durable) = (request.offset, request.durable);
    let (data, zero_bytes): (Bytes, u64) = (request.data, request.zero_bytes);
    if data.len() > WRITE_MAX_BYTES || (zero_bytes > 0) != data.is_empty() {
        let text = format!("one write is either zeroes or 1 to {WRITE_MAX_BYTES} bytes");
        return Err(Status::invalid_argument(text));
    }
    blocking(move || {
        let written = if zero_bytes > 0 {
            volume.zero(disk, offset, zero_bytes, true)
        } else {
            volume.write_at(disk, offset, &data)
        };
        let written = written.and_then(|()| if durable { volume.flush() } else { Ok(()) });
        written.map(|()| Empty {}).map_err(|error| io_status(&error))
    })
    .await
}

#[tonic::async_trait]
impl Clones for ClonesService {
    async fn create_clone(
        &self,
        request: Request<CreateCloneRequest>,
    ) -> Result<Response<CloneInfo>, Status> {
        let caller = caller(&request)?;
        create(&self.core, &caller, request.into_inner()).await.map(Response::new)
    }

    async fn list_clones(&self, _: Request<Empty>) -> Result<Response<ClonesReply>, Status> {
        let core = Arc::clone(&self.core);
        let describe = move || {
            let clones = core.fleet.clones();
            Ok(ClonesReply { clones: clones.iter().map(|clone| info(&core, clone)).collect() })
        };
        blocking(describe).await.map(Response::new)
    }

    async fn remove_clone(&self, request: Request<CloneName>) -> Result<Response<Empty>, Status> {
        let caller = caller(&request)?;
        let name = request.into_inner().name;
        let (core, doomed) = (Arc::clone(&self.core), name.clone());
        let removed = self.core.tasks.to_the_end(async move { clones::remove(&core, &doomed).await }).await;
        removed.ok_or_else(super::interrupted)?.map_err(failed)?;
        self.core.audit(&caller.role.uri(), "remove clone", &name, "").await;
        tracing::info!(clone = name, "clone removed");
        Ok(Response::new(Empty {}))
    }

    async fn export_clone(
        &self,
        request: Request<ExportCloneRequest>,
    ) -> Result<Response<ExportsReply>, Status> {
        let caller = caller(&request)?;
        export(&self.core, &caller, request.into_inner()).await.map(Response::new)
    }

    type OpenCloneStream = HeldView;

    async fn open_clone(
        &self,
        request: Request<OpenCloneRequest>,
    ) -> Result<Response<Self::OpenCloneStream>, Status> {
        let caller = caller(&request)?;
        open(&self.core, &caller, request.into_inner()).await.map(Response::new)
    }

    type ReadCloneStream = Chunks;

    async fn read_clone(
        &self,
        request: Request<ReadViewRequest>,
    ) -> Result<Response<Self::ReadCloneStream>, Status> {
        read(&self.core, &request.into_inner()).map(Response::new)
    }

    async fn write_clone(&self, request: Request<WriteCloneRequest>) -> Result<Response<Empty>, Status> {
        write(&self.core, request.into_inner()).await.map(Response::new)
    }

    async fn flush_clone(&self, request: Request<FlushCloneRequest>) -> Result<Response<Empty>, Status> {
        let volume = held(&self.core, &request.into_inner().view_id)?.volume;
        let flushed = move || volume.flush().map(|()| Empty {}).map_err(|error| io_status(&error));
        blocking(flushed).await.map(Response::new)
    }
}
