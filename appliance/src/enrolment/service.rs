//! The `Enrolment` service.

use std::sync::Arc;
use std::time::Instant;

use tidemark_proto::ids::VmId;
use tidemark_proto::limits::TEXT_MAX_BYTES;
use tidemark_proto::v1::enrolment_server::Enrolment;
use tidemark_proto::v1::{EnrolRequest, EnrolResponse};
use tonic::{Request, Response, Status};

use crate::catalog::{CatalogError, NewCertificate, TokenRow, TokenState, VmRow, secret_matches};
use crate::clock::now_us;
use crate::core::Core;
use crate::fleet::{Vm, VmLog};
use crate::pki::{Authority, AuthorityError, Issued, Role, VM_VALIDITY};
use crate::sets::reconcile;
use crate::transport::Rate;

/// Bytes of an enrolment request at most.
pub(crate) const REQUEST_MAX_BYTES: usize = 64 << 10;

/// Serves guests that have a token and no certificate yet.
#[derive(Debug)]
pub struct EnrolmentService {
    core: Arc<Core>,
    rate: Rate,
}

/// Signs a VM's certificate and says how it is to be listed. It is not accepted before it is.
///
/// # Errors
/// When the request cannot be signed.
pub fn issue_for_vm(
    authority: &Authority,
    csr_pem: &str,
    vm: VmId,
    name: &str,
    now_us: u64,
) -> Result<(Issued, NewCertificate), AuthorityError> {
    let role = Role::Vm(vm);
    let issued = authority.sign_client(csr_pem, &role, VM_VALIDITY, now_us)?;
    let listed = NewCertificate {
        serial: issued.serial.clone(),
        role: role.word(),
        vm: Some(vm),
        subject: name.to_owned(),
        issued_us: now_us,
        not_after_us: issued.not_after_us,
    };
    Ok((issued, listed))
}

impl EnrolmentService {
    /// Enrols into `core`.
    #[must_use]
    pub fn new(core: Arc<Core>) -> Self {
        Self { core, rate: Rate::new(Instant::now()) }
    }

    /// The token, if it can be used now.
    async fn token(&self, request: &EnrolRequest, now_us: u64) -> Result<TokenRow, Status> {
        let foreign = || {
            Status::permission_denied(
                "this token was not issued by this appliance, or was mistyped: \
                 copy the whole last word that `tidemark token create` printed",
            )
        };
        let stored = self.core.catalog.token(&request.token_id).await.map_err(|error| unavailable(&error))?;
        let matches = secret_matches(&request.secret, stored.as_ref().map(|row| row.secret_hash.as_str()));
        let token = stored.filter(|_| matches).ok_or_else(foreign)?;
        let again = "make a new one with `tidemark token create`";
        match token.state(now_us) {
            TokenState::Valid => Ok(token),
            TokenState::Used => Err(Status::permission_denied(format!("this token has been used: {again}"))),
            TokenState::Revoked => Err(Status::permission_denied(format!("this token was revoked: {again}"))),
            TokenState::Expired => Err(Status::permission_denied(format!("this token has expired: {again}"))),
        }
    }

    async fn enrol_new(
        &self,
        token: &TokenRow,
        request: &EnrolRequest,
        now_us: u64,
    ) -> Result<EnrolResponse, Status> {
        let (core, vm) = (&self.core, VmId::random());
        let (issued, listed) = issue(core, request, vm, &token.vm_name, now_us)?;
        let used = core.catalog.enrol(&token.id, &token.vm_name, &request.software, &listed, now_us).await;
        if !used.map_err(|error| unavailable(&error))? {
            return Err(used_meanwhile());
        }
        let dir = core.data.journal(vm);
        let (name, keeper, keys) = (token.vm_name.clone(), core.retention.keeper(), core.log_keys.clone());
        let log = tokio::task::spawn_blocking(move || {
            let log = VmLog::open(vm, &dir, keeper, keys);
            log.name_it(&name);
            log
        });
        let log = log.await.map_err(|error| Status::internal(error.to_string()))?;
        core.fleet.add(Vm::new(vm, token.vm_name.clone(), log));
        Ok(self.accept(issued, vm, &token.vm_name))
    }

    async fn enrol_again(
        &self,
        token: &TokenRow,
        row: &VmRow,
        request: &EnrolRequest,
        now_us: u64,
    ) -> Result<EnrolResponse, Status> {
        let (core, vm) = (&self.core, row.vm());
        let (issued, listed) = issue(core, request, vm, &row.name, now_us)?;
        if !core.catalog.enrol_again(&token.id, &listed, now_us).await.map_err(|error| unavailable(&error))? {
            return Err(used_meanwhile());
        }
        let listed = core.catalog.certificates().await.map_err(|error| unavailable(&error))?;
        for certificate in
            listed.iter().filter(|certificate| certificate.vm() == Some(vm) && certificate.revoked())
        {
            core.gate.revoke(&certificate.serial);
        }
        if let Some(live) = core.fleet.get(vm) {
            live.close_session("the VM was enrolled again", false);
        }
        Ok(self.accept(issued, vm, &row.name))
    }

    fn accept(&self, issued: Issued, vm: VmId, name: &str) -> EnrolResponse {
        self.core.gate.add(&issued.serial);
        tracing::info!(vm = name, serial = %issued.serial, "VM enrolled");
        EnrolResponse {
            certificate_pem: issued.pem,
            ca_pem: self.core.authority.pem().to_owned(),
            vm_id: vm.to_string(),
            vm_name: name.to_owned(),
        }
    }
}

#[tonic::async_trait]
impl Enrolment for EnrolmentService {
    async fn enrol(&self, request: Request<EnrolRequest>) -> Result<Response<EnrolResponse>, Status> {
        let address = request.remote_addr().map(|address| address.ip());
        let outcome = if self.rate.allow(address, Instant::now()) {
            self.judge(request.into_inner()).await
        } else {
            Err(Status::resource_exhausted("too many enrolment attempts: wait a minute and try again"))
        };
        outcome.map(Response::new).inspect_err(|status| {
            self.core.metrics.rejected("enrolment");
            tracing::info!(?address, reason = status.message(), "enrolment refused");
        })
    }
}

impl EnrolmentService {
    async fn judge(&self, request: EnrolRequest) -> Result<EnrolResponse, Status> {
        if request.software.len() > TEXT_MAX_BYTES {
            return Err(Status::invalid_argument("the name of the software is too long"));
        }
        let now_us = now_us();
        let token = self.token(&request, now_us).await?;
        // No clone takes the name meanwhile.
        let _changing = self.core.clones.changing.lock().await;
        if self.core.fleet.by_name(&token.vm_name).is_some_and(|vm| vm.origin.is_some()) {
            return Err(Status::already_exists(format!(
                "a clone is named '{0}': `tidemark clone remove {0}`, or use another name",
                token.vm_name
            )));
        }
        let existing =
            self.core.catalog.vm_by_name(&token.vm_name).await.map_err(|error| unavailable(&error))?;
        let response = match (existing, token.replaces()) {
            (None, false) => self.enrol_new(&token, &request, now_us).await?,
            (Some(row), true) => self.enrol_again(&token, &row, &request, now_us).await?,
            (Some(row), false) => {
                let text = format!(
                    "a VM named '{0}' is enrolled: `tidemark token create --vm {0} --replace`",
                    row.name
                );
                return Err(Status::already_exists(text));
            }
            (None, true) => {
                let text = format!("the VM '{}' was removed: make a token without --replace", token.vm_name);
                return Err(Status::not_found(text));
            }
        };
        let action = if token.replaces() { "enrol again" } else { "enrol" };
        self.core.audit(&format!("token {}", token.id), action, &token.vm_name, &request.software).await;
        reconcile(&self.core, "the VM was enrolled").await;
        Ok(response)
    }
}

fn issue(
    core: &Core,
    request: &EnrolRequest,
    vm: VmId,
    name: &str,
    now_us: u64,
) -> Result<(Issued, NewCertificate), Status> {
    issue_for_vm(&core.authority, &request.csr_pem, vm, name, now_us)
        .map_err(|error| Status::invalid_argument(error.to_string()))
}

fn used_meanwhile() -> Status {
    Status::permission_denied("this token has been used: make a new one with `tidemark token create`")
}

fn unavailable(error: &CatalogError) -> Status {
    match error {
        CatalogError::Taken(text) => Status::already_exists(text.clone()),
        error => Status::unavailable(error.to_string()),
    }
}
