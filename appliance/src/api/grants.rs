//! Grants to restore one disk of one VM as of one point, for machines without a certificate.

use std::sync::Arc;
use std::time::Duration;

use tidemark_proto::token::TokenKind;
use tidemark_proto::v1::grants_server::Grants;
use tidemark_proto::v1::{
    CreateGrantRequest, Empty, GrantInfo, GrantReply, ListGrantsResponse, RevokeGrantRequest,
};
use tonic::{Request, Response, Status};

use super::views::{open_view, optional_disk};
use super::{caller, catalog};
use crate::catalog::{GrantRow, GrantedPoint, secret_hash};
use crate::clock::{micros, now_us};
use crate::core::Core;
use crate::enrolment::fresh;
use crate::transport::Peer;

/// How long a grant is valid unless told otherwise: long enough to boot a rescue system and type.
const TTL_DEFAULT: Duration = Duration::from_secs(60 * 60);

/// How long a grant can be valid: a restore that was begun may go on beyond it, so nothing needs more. Longer is refused.
const TTL_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// How long ended grants stay listed, for the auditor.
const KEEP_ENDED: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Serves grants: the same callers and rights as the console's.
#[derive(Debug)]
pub struct GrantsService {
    core: Arc<Core>,
}

impl GrantsService {
    /// Serves `core`.
    #[must_use]
    pub fn new(core: Arc<Core>) -> Self {
        Self { core }
    }
}

#[tonic::async_trait]
impl Grants for GrantsService {
    async fn create_grant(
        &self,
        request: Request<CreateGrantRequest>,
    ) -> Result<Response<GrantReply>, Status> {
        let caller = caller(&request)?;
        create(&self.core, &caller, request.into_inner()).await.map(Response::new)
    }

    async fn list_grants(&self, _: Request<Empty>) -> Result<Response<ListGrantsResponse>, Status> {
        let now_us = now_us();
        let rows = self.core.catalog.grants().await.map_err(catalog)?;
        let grants = rows.iter().filter_map(|row| describe(&self.core, row, now_us)).collect();
        Ok(Response::new(ListGrantsResponse { grants }))
    }

    async fn revoke_grant(&self, request: Request<RevokeGrantRequest>) -> Result<Response<Empty>, Status> {
        let caller = caller(&request)?;
        revoke(&self.core, &caller, &request.into_inner().id).await.map(Response::new)
    }
}

async fn create(core: &Arc<Core>, caller: &Peer, request: CreateGrantRequest) -> Result<GrantReply, Status> {
    let ttl = if request.ttl_seconds == 0 { TTL_DEFAULT } else { Duration::from_secs(request.ttl_seconds) };
    if ttl > TTL_MAX {
        return Err(Status::invalid_argument("a grant is valid for 24 hours at most"));
    }
    let disk = optional_disk(&request.disk)?
        .ok_or_else(|| Status::invalid_argument("a grant is for one disk: name it"))?;
    // What cannot be read now is refused now, not in the rescue system.
    let view = open_view(core, &request.vm, request.at, Some(disk)).await?;
    let size_bytes = view.disk(disk).map_or(0, |disk| disk.size_bytes);
    let of = GrantedPoint { vm: view.vm, disk, lsn: view.lsn, time_us: view.time_us, size_bytes };
    let grant = fresh(TokenKind::Grant, &core.authority);
    let now_us = now_us();
    let expires_us = now_us.saturating_add(micros(ttl));
    let row = GrantRow::new(grant.id.clone(), secret_hash(&grant.secret), of, now_us, expires_us);
    core.catalog.add_grant(&row, micros(KEEP_ENDED)).await.map_err(catalog)?;
    let detail = format!("{} {disk} lsn:{}", grant.id, view.lsn);
    core.audit(&caller.role.uri(), "create grant", &view.vm_name, &detail).await;
    Ok(GrantReply {
        grant: grant.to_string(),
        info: describe(core, &row, now_us),
        warnings: view.warnings.clone(),
    })
}

async fn revoke(core: &Core, caller: &Peer, id: &str) -> Result<Empty, Status> {
    // The row first: a crash in between must not leave it valid.
    let was_valid = core.catalog.revoke_grant(id, now_us()).await.map_err(catalog)?;
    // One that has expired may still be in use.
    let was_used = core.restores.end(id);
    if !was_valid && !was_used {
        let text = format!("there is no usable grant '{id}'; `tidemark grant list` shows all");
        return Err(Status::not_found(text));
    }
    core.audit(&caller.role.uri(), "revoke grant", id, "").await;
    Ok(Empty {})
}

/// `None` for a grant whose VM is gone.
fn describe(core: &Core, row: &GrantRow, now_us: u64) -> Option<GrantInfo> {
    let of = row.of()?;
    let vm = core.fleet.get(of.vm)?;
    Some(GrantInfo {
        id: row.id.clone(),
        vm: vm.name.clone(),
        disk: of.disk.to_string(),
        lsn: of.lsn.0,
        time_us: of.time_us,
        size_bytes: of.size_bytes,
        created_us: row.created_us(),
        expires_us: row.expires_us(),
        state: row.state(now_us).word().to_owned(),
        used_us: row.used_us(),
    })
}
