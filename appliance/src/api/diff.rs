//! What differs between two points, of one VM or of two.

use std::sync::Arc;

use tidemark_journal::ViewError;
use tidemark_journal::changed::Changes;
use tidemark_journal::view::View;
use tidemark_proto::ids::DiskId;
use tidemark_proto::v1::{DiffDisk, DiffHead, DiffPoint, DiffRange, DiffReply, DiffRequest};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::views::{open_view, optional_disk, view_status};
use super::{blocking, vm_named};
use crate::core::Core;
use crate::recovery::OpenedView;
use crate::transport::Peer;

/// Ranges in one message at most: some 20 KiB, so that the first ones arrive soon and millions cost little each.
const RANGES_PER_MESSAGE: usize = 1024;

/// Messages ahead of the network at most.
const MESSAGES_AHEAD: usize = 4;

/// Messages of one call.
pub(super) type Differences = ReceiverStream<Result<DiffReply, Status>>;

pub(super) async fn diff(
    core: &Arc<Core>,
    caller: &Peer,
    request: DiffRequest,
) -> Result<Differences, Status> {
    let disk = optional_disk(&request.disk)?;
    let other = if request.other.is_empty() { &request.vm } else { &request.other };
    let from = open_view(core, &request.vm, request.from, disk).await?;
    let to = open_view(core, other, request.to, disk).await?;
    let same_vm = from.vm == to.vm;
    if same_vm && from.lsn > to.lsn {
        return Err(Status::invalid_argument(format!(
            "--from (lsn:{}) is later than --to (lsn:{}): exchange them",
            from.lsn, to.lsn
        )));
    }
    let detail = format!("lsn:{} to '{}' lsn:{}", from.lsn, to.vm_name, to.lsn);
    core.audit(&caller.role.uri(), "compare points", &from.vm_name, &detail).await;
    let disks = disks(&from, &to, disk);
    let head = DiffHead { from: Some(point(&from)), to: Some(point(&to)), disks };
    let ids: Vec<DiskId> = head.disks.iter().filter_map(|disk| disk.id.parse().ok()).collect();
    let vm = vm_named(core, &request.vm)?;
    let changes = blocking(move || {
        if !same_vm {
            let both = |disk: &DiskId| Changes::of_contents(*disk, from.view.clone(), to.view.clone());
            return Ok(ids.iter().map(|disk| (*disk, both(disk))).collect::<Vec<_>>());
        }
        let journal = vm.log.journal().map_err(|down| Status::unavailable(down.to_string()))?;
        let changed = |disk: &DiskId| Ok((*disk, journal.changed(*disk, from.lsn, to.lsn)?));
        ids.iter().map(changed).collect::<Result<_, ViewError>>().map_err(|error| view_status(&error))
    })
    .await?;
    let (sender, receiver) = mpsc::channel(MESSAGES_AHEAD);
    tokio::task::spawn_blocking(move || {
        let first = DiffReply { head: Some(head), ..DiffReply::default() };
        if sender.blocking_send(Ok(first)).is_err() {
            return;
        }
        for (disk, changes) in changes {
            match send(disk, changes, &sender) {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    let _ = sender.blocking_send(Err(view_status(&error)));
                    return;
                }
            }
        }
    });
    Ok(ReceiverStream::new(receiver))
}

/// Sends one disk's ranges; false when nobody listens any more.
fn send(
    disk: DiskId,
    changes: Changes,
    sender: &mpsc::Sender<Result<DiffReply, Status>>,
) -> Result<bool, ViewError> {
    let mut ranges = Vec::new();
    let message = |ranges| Ok(DiffReply { head: None, disk: disk.to_string(), ranges });
    for changed in changes {
        let changed = changed?;
        ranges.push(DiffRange { offset: changed.offset, bytes: changed.bytes });
        if ranges.len() == RANGES_PER_MESSAGE
            && sender.blocking_send(message(std::mem::take(&mut ranges))).is_err()
        {
            return Ok(false);
        }
    }
    Ok(ranges.is_empty() || sender.blocking_send(message(ranges)).is_ok())
}

fn point(view: &OpenedView) -> DiffPoint {
    DiffPoint { vm: view.vm_name.clone(), lsn: view.lsn.0, time_us: view.time_us }
}

/// The disks of either point, by id. Of one VM those of the later point alone are compared: a removed disk has no later
/// content.
fn disks(from: &OpenedView, to: &OpenedView, only: Option<DiskId>) -> Vec<DiffDisk> {
    let size =
        |view: &View, id| view.disks().iter().find(|disk| disk.id == id).map_or(0, |disk| disk.size_bytes);
    let wanted = to.disks.iter().filter(|disk| only.is_none_or(|only| only == disk.id));
    let shown = wanted.map(|disk| DiffDisk {
        id: disk.id.to_string(),
        path: disk.path.clone(),
        from_bytes: size(&from.view, disk.id),
        to_bytes: disk.size_bytes,
    });
    shown.collect()
}
