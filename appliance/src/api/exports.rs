//! NBD exports, by the export server.

use std::sync::Arc;

use tidemark_proto::limits::TEXT_MAX_BYTES;
use tidemark_proto::v1::{Empty, ExportsReply, StartExportRequest};
use tonic::Status;

use super::views::{open_view, optional_disk};
use crate::core::Core;
use crate::export::ExportError;
use crate::rights::{self, Right, Target};
use crate::transport::Peer;

pub(super) async fn start(
    core: &Arc<Core>,
    caller: &Peer,
    request: StartExportRequest,
) -> Result<ExportsReply, Status> {
    if request.tls_addr.len() > TEXT_MAX_BYTES {
        return Err(Status::invalid_argument("the address is too long"));
    }
    rights::require(core, caller, &[Right::Mount], Target::Vm(&request.vm)).await?;
    let disk = optional_disk(&request.disk)?;
    let view = open_view(core, &request.vm, request.at, disk).await?;
    let (vm, person) = (view.vm, caller.person()?);
    let detail = format!("lsn:{} {}", view.lsn, request.tls_addr);
    let warnings = view.warnings.clone();
    let mut exports = core.exports.start(view, disk, &request.tls_addr, person).await.map_err(failed)?;
    // From here on a right that is revoked ends them.
    if let Err(refused) = rights::require_still(core, caller, Right::Mount, vm, &request.vm).await {
        for export in &exports {
            let _ = core.exports.stop(&export.id).await;
        }
        return Err(refused);
    }
    if let Some(first) = exports.first_mut() {
        first.warnings = warnings;
    }
    core.audit(&caller.role.uri(), "start export", &request.vm, &detail).await;
    Ok(ExportsReply { exports })
}

pub(super) async fn stop(core: &Arc<Core>, caller: &Peer, id: &str) -> Result<Empty, Status> {
    core.exports.stop_of(caller.person()?, id).await.map_err(failed)?;
    core.audit(&caller.role.uri(), "stop export", id, "").await;
    Ok(Empty {})
}

pub(super) fn failed(error: ExportError) -> Status {
    match error {
        ExportError::NotFound(text) => Status::not_found(text),
        ExportError::Invalid(text) => Status::invalid_argument(text),
        ExportError::Failed(text) => Status::unavailable(text),
    }
}
