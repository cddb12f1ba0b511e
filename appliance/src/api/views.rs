//! Opening views and reading from them.

use std::sync::Arc;

use bytes::Bytes;
use tidemark_journal::ViewError;
use tidemark_journal::view::{Extent, ExtentKind, View};
use tidemark_proto::ids::{DiskId, Lsn};
use tidemark_proto::limits::READ_MAX_BYTES;
use tidemark_proto::pieces::is_zero;
use tidemark_proto::v1::{
    OpenViewReply, OpenViewRequest, ReadViewRequest, ViewChunk, ViewDisk, ViewPurpose, When,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::doubtful::History;
use super::{blocking, catalog, has_disk, vm_named};
use crate::clock::now_us;
use crate::core::Core;
use crate::fleet::Vm;
use crate::recovery::{Holder, OpenedDisk, OpenedView, PointRefused, resolve};
use crate::rights::{self, Right, Target};
use crate::transport::Peer;

/// Bytes of data in one message at most: large enough that its cost vanishes, small enough that four of them are
/// nothing.
const CHUNK_MAX_BYTES: usize = 1 << 20;

/// Chunks read ahead of the network at most.
const READ_AHEAD_CHUNKS: usize = 4;

/// Messages of one call's data.
pub(super) type Chunks = ReceiverStream<Result<ViewChunk, Status>>;

/// The answer to `OpenView`: one message, then nothing, and the view is held as long as the stream is.
pub(super) type HeldView = ReceiverStream<Result<OpenViewReply, Status>>;

pub(super) async fn open(
    core: &Arc<Core>,
    caller: &Peer,
    request: OpenViewRequest,
) -> Result<HeldView, Status> {
    let right = match ViewPurpose::try_from(request.purpose) {
        Ok(ViewPurpose::Recover) => Right::Recover,
        Ok(ViewPurpose::Mount) => Right::Mount,
        Err(_) => return Err(Status::invalid_argument("this appliance does not know what the view is for")),
    };
    rights::require(core, caller, &[right], Target::Vm(&request.vm)).await?;
    let disk = optional_disk(&request.disk)?;
    let view = open_view(core, &request.vm, request.at, disk).await?;
    let (vm, vm_name) = (view.vm, view.vm_name.clone());
    let reply = OpenViewReply {
        view_id: String::new(),
        vm: view.vm_name.clone(),
        lsn: view.lsn.0,
        time_us: view.time_us,
        disks: view.disks.iter().map(view_disk).collect(),
        warnings: view.warnings.clone(),
    };
    let detail = format!("lsn:{} to {}", view.lsn, right.word());
    let holder = caller.person()?.map(|person| Holder { person: person.to_owned(), right });
    let lease =
        core.leases.hold(view, holder).map_err(|error| Status::resource_exhausted(error.to_string()))?;
    // From here on a right that is revoked ends the view.
    rights::require_still(core, caller, right, vm, &vm_name).await?;
    core.audit(&caller.role.uri(), "open view", &vm_name, &detail).await;
    let reply = OpenViewReply { view_id: lease.id().to_string(), ..reply };
    let (sender, receiver) = mpsc::channel(2);
    let (stopping, revoked) = (core.stopping.clone(), caller.revoked.clone());
    core.metrics.views.inc();
    let views = core.metrics.views.clone();
    let (ended, told) = (lease.ended(), sender.clone());
    core.tasks.spawn(async move {
        tokio::select! {
            () = hold(lease, reply, sender, stopping, revoked) => {}
            () = ended.cancelled() => {
                let _ = told.try_send(Err(Status::permission_denied("the right to this view was revoked")));
            }
        }
        views.dec();
    });
    Ok(ReceiverStream::new(receiver))
}

/// Keeps the lease until the client goes, its certificate is revoked or the appliance ends.
pub(super) async fn hold<L: Send>(
    lease: L,
    reply: OpenViewReply,
    sender: mpsc::Sender<Result<OpenViewReply, Status>>,
    stopping: tokio_util::sync::CancellationToken,
    revoked: tokio_util::sync::CancellationToken,
) {
    if sender.send(Ok(reply)).await.is_ok() {
        let end = tokio::select! {
            () = sender.closed() => None,
            () = stopping.cancelled() => Some(Status::unavailable("the appliance is shutting down")),
            () = revoked.cancelled() => Some(Status::unauthenticated("the certificate was revoked")),
        };
        if let Some(status) = end {
            let _ = sender.try_send(Err(status));
        }
    }
    drop(lease);
}

/// Opens the view of a VM at a point, of one disk or of all.
pub(crate) async fn open_view(
    core: &Arc<Core>,
    vm: &str,
    at: Option<When>,
    disk: Option<DiskId>,
) -> Result<OpenedView, Status> {
    let vm = vm_named(core, vm)?;
    let bookmarks = core.catalog.bookmarks(vm.id).await.map_err(catalog)?;
    let history = History::of(core, &vm).await?;
    blocking(move || {
        let journal = vm.log.journal().map_err(|down| Status::unavailable(down.to_string()))?;
        disk.map_or(Ok(()), |disk| has_disk(&vm, disk))?;
        let wanted: Vec<DiskId> = disk.into_iter().collect();
        let timeline = journal.timeline();
        let point = resolve(&timeline, &bookmarks, at.as_ref(), &wanted, now_us()).map_err(refused)?;
        let view = journal.view(point.lsn).map_err(|error| view_status(&error))?;
        let mut opened = describe(&vm, &journal.disks(), view, point.lsn, point.time_us);
        opened.warnings = history.doubtful(point.lsn, disk);
        match disk {
            Some(disk) if opened.disk(disk).is_none() => Err(Status::not_found(format!(
                "'{}' has no {disk} at lsn:{}; `tidemark vm show` lists its disks",
                vm.name, point.lsn
            ))),
            _ => Ok(opened),
        }
    })
    .await
}

fn describe(
    vm: &Vm,
    records: &[tidemark_journal::DiskRecord],
    view: View,
    lsn: Lsn,
    time_us: u64,
) -> OpenedView {
    let disks = view.disks().iter().map(|disk| OpenedDisk {
        id: disk.id,
        path: records
            .iter()
            .find(|record| record.id == disk.id)
            .map(|record| record.path.clone())
            .unwrap_or_default(),
        size_bytes: disk.size_bytes,
    });
    let (disks, vm_name) = (disks.collect(), vm.name.clone());
    OpenedView { disks, vm: vm.id, vm_name, lsn, time_us, view, warnings: Vec::new() }
}

fn refused(error: PointRefused) -> Status {
    match error {
        PointRefused::Unnamed => Status::invalid_argument(error.to_string()),
        PointRefused::NoBookmark(_) => Status::not_found(error.to_string()),
        PointRefused::Journal(_) => Status::data_loss(error.to_string()),
        PointRefused::NoHistory | PointRefused::Refused(_) => Status::failed_precondition(error.to_string()),
    }
}

pub(super) fn view_status(error: &ViewError) -> Status {
    let text = error.to_string();
    match error {
        ViewError::Refused(_) => Status::failed_precondition(text),
        ViewError::NoDisk { .. } => Status::not_found(text),
        ViewError::Range { .. } => Status::out_of_range(text),
        _ => Status::data_loss(text),
    }
}

fn view_disk(disk: &OpenedDisk) -> ViewDisk {
    ViewDisk { id: disk.id.to_string(), path: disk.path.clone(), size_bytes: disk.size_bytes }
}

/// A disk by its id; an empty text means every disk.
pub(super) fn optional_disk(text: &str) -> Result<Option<DiskId>, Status> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse()
        .map(Some)
        .map_err(|error: tidemark_proto::ids::InvalidId| Status::invalid_argument(error.to_string()))
}

pub(super) fn read(core: &Arc<Core>, caller: &Peer, request: ReadViewRequest) -> Result<Chunks, Status> {
    let id = uuid::Uuid::parse_str(&request.view_id)
        .map_err(|_| Status::invalid_argument("this is no view id"))?;
    let view = core.leases.get(id, caller.person()?);
    let view = view.ok_or_else(|| Status::not_found("this view has ended: open it again"))?;
    let disk =
        optional_disk(&request.disk)?.ok_or_else(|| Status::invalid_argument("a disk must be named"))?;
    let size =
        view.disk(disk).ok_or_else(|| Status::not_found(format!("the view has no {disk}")))?.size_bytes;
    if request.length > READ_MAX_BYTES {
        return Err(Status::invalid_argument(format!("one read is {READ_MAX_BYTES} bytes at most")));
    }
    let end = request.offset.checked_add(request.length).filter(|end| *end <= size);
    let end =
        end.ok_or_else(|| Status::out_of_range(format!("the read ends beyond the disk's {size} bytes")))?;
    let content = move |sender: &_| {
        read_range(&view.view, disk, request.offset, end, sender).map_err(|error| view_status(&error))
    };
    Ok(chunks(content))
}

/// The messages that `content` sends, from a thread that may block.
pub(super) fn chunks(
    content: impl FnOnce(&mpsc::Sender<Result<ViewChunk, Status>>) -> Result<(), Status> + Send + 'static,
) -> Chunks {
    let (sender, receiver) = mpsc::channel(READ_AHEAD_CHUNKS);
    tokio::task::spawn_blocking(move || {
        if let Err(status) = content(&sender) {
            let _ = sender.blocking_send(Err(status));
        }
    });
    ReceiverStream::new(receiver)
}

/// Sends `[offset, end)` of a view in order; stops early when the receiver goes.
fn read_range(
    view: &View,
    disk: DiskId,
    offset: u64,
    end: u64,
    sender: &mpsc::Sender<Result<ViewChunk, Status>>,
) -> Result<(), ViewError> {
    let extents = view.extents(disk, offset, end.saturating_sub(offset))?;
    send_extents(&extents, |at, data| view.read_at(disk, at, data), sender)
}

/// Sends extents in order, their data by `read`; stops early when the receiver goes.
pub(super) fn send_extents<E>(
    extents: &[Extent],
    read: impl Fn(u64, &mut [u8]) -> Result<(), E>,
    sender: &mpsc::Sender<Result<ViewChunk, Status>>,
) -> Result<(), E> {
    let mut zero_bytes = 0;
    for extent in extents {
        if extent.kind == ExtentKind::Zero {
            zero_bytes += extent.bytes;
            continue;
        }
        for (at, bytes) in pieces(extent) {
            let mut data = vec![0; bytes];
            read(at, &mut data)?;
            if is_zero(&data) {
                zero_bytes += u64::try_from(bytes).unwrap_or(0);
                continue;
            }
            if !send_zeroes(&mut zero_bytes, sender) || !send(Bytes::from(data), sender) {
                return Ok(());
            }
        }
    }
    send_zeroes(&mut zero_bytes, sender);
    Ok(())
}

fn pieces(extent: &Extent) -> impl Iterator<Item = (u64, usize)> {
    let (mut at, end) = (extent.offset, extent.offset.saturating_add(extent.bytes));
    std::iter::from_fn(move || {
        let left = usize::try_from(end.saturating_sub(at)).unwrap_or(usize::MAX);
        let bytes = left.min(CHUNK_MAX_BYTES);
        let piece = (bytes > 0).then_some((at, bytes));
        at = at.saturating_add(u64::try_from(bytes).unwrap_or(u64::MAX));
        piece
    })
}

fn send_zeroes(zero_bytes: &mut u64, sender: &mpsc::Sender<Result<ViewChunk, Status>>) -> bool {
    let run = std::mem::take(zero_bytes);
    run == 0 || sender.blocking_send(Ok(ViewChunk { data: Bytes::new(), zero_bytes: run })).is_ok()
}

fn send(data: Bytes, sender: &mpsc::Sender<Result<ViewChunk, Status>>) -> bool {
    sender.blocking_send(Ok(ViewChunk { data, zero_bytes: 0 })).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_an_extent_once() {
        let extent = Extent { offset: 7, bytes: (2 << 20) + 5, kind: ExtentKind::Data };
        let pieces: Vec<_> = pieces(&extent).collect();
        assert_eq!(pieces, [(7, 1 << 20), (7 + (1 << 20), 1 << 20), (7 + (2 << 20), 5)]);
    }
}
