//! Tokens and certificates.

use std::time::Duration;

use tidemark_proto::v1::{
    AdminRenewResponse, CertificateInfo, CreateTokenRequest, CreateTokenResponse, Empty,
    ListCertificatesResponse, ListTokensResponse, TokenInfo,
};
use tonic::Status;

use super::catalog;
use crate::catalog::NewCertificate;
use crate::clock::now_us;
use crate::core::Core;
use crate::enrolment::{TokenError, create_token as make_token};
use crate::pki::{ADMIN_VALIDITY, PERSON_VALIDITY, PERSON_VALIDITY_MAX, PERSON_WORD};
use crate::rights;
use crate::transport::Peer;

pub(super) async fn create_token(
    core: &Core,
    caller: &Peer,
    request: CreateTokenRequest,
) -> Result<CreateTokenResponse, Status> {
    if core.fleet.by_name(&request.vm_name).is_some_and(|vm| vm.origin.is_some()) {
        return Err(Status::invalid_argument(format!(
            "'{}' is a clone, and takes no splitter's stream: use another name",
            request.vm_name
        )));
    }
    let made = make_token(
        &core.catalog,
        &core.authority,
        &request.vm_name,
        request.ttl_seconds,
        request.replace,
        now_us(),
    );
    let made = made.await.map_err(|error| match error {
        TokenError::Invalid(text) => Status::invalid_argument(text),
        TokenError::Catalog(error) => catalog(error),
    })?;
    core.audit(&caller.role.uri(), "create token", &request.vm_name, &made.token.id).await;
    Ok(CreateTokenResponse { token: made.token.to_string(), id: made.token.id, expires_us: made.expires_us })
}

pub(super) async fn list_tokens(core: &Core) -> Result<ListTokensResponse, Status> {
    let now_us = now_us();
    let tokens = core.catalog.tokens().await.map_err(catalog)?;
    let tokens = tokens.into_iter().map(|row| TokenInfo {
        state: row.state(now_us).word().to_owned(),
        created_us: row.created_us(),
        expires_us: row.expires_us(),
        id: row.id,
        vm_name: row.vm_name,
    });
    Ok(ListTokensResponse { tokens: tokens.collect() })
}

pub(super) async fn revoke_token(core: &Core, caller: &Peer, id: &str) -> Result<Empty, Status> {
    if !core.catalog.revoke_token(id, now_us()).await.map_err(catalog)? {
        return Err(Status::not_found(format!(
            "there is no usable token '{id}'; `tidemark token list` shows all"
        )));
    }
    core.audit(&caller.role.uri(), "revoke token", id, "").await;
    Ok(Empty {})
}

pub(super) async fn list_certificates(core: &Core) -> Result<ListCertificatesResponse, Status> {
    let rows = core.catalog.certificates().await.map_err(catalog)?;
    let certificates = rows.into_iter().map(|row| CertificateInfo {
        not_after_us: row.not_after_us(),
        issued_us: row.issued_us(),
        revoked: row.revoked(),
        serial: row.serial,
        role: row.role,
        subject: row.subject,
    });
    Ok(ListCertificatesResponse { certificates: certificates.collect() })
}

pub(super) async fn revoke_certificate(core: &Core, caller: &Peer, serial: &str) -> Result<Empty, Status> {
    // The list first: a crash in between must not leave it accepted.
    if !core.catalog.revoke_certificate(serial, now_us()).await.map_err(catalog)? {
        return Err(Status::not_found(format!(
            "there is no certificate '{serial}'; `tidemark cert list` shows all"
        )));
    }
    core.gate.revoke(serial);
    // Exports have credentials of their own. Those of another certificate of the person end as well: it starts them again.
    let rows = core.catalog.certificates().await.map_err(catalog)?;
    if let Some(row) = rows.iter().find(|row| row.serial == serial && row.role == PERSON_WORD) {
        core.exports.end_unless(&row.subject, |_| false).await;
    }
    core.audit(&caller.role.uri(), "revoke certificate", serial, "").await;
    tracing::info!(serial, "certificate revoked");
    Ok(Empty {})
}

/// Renews the certificate of whoever calls, of the same role: an administrator's for a year, a person's for as long as the
/// one that it shows was issued for.
pub(super) async fn renew_admin(
    core: &Core,
    caller: &Peer,
    csr_pem: &str,
) -> Result<AdminRenewResponse, Status> {
    let now_us = now_us();
    let validity = match caller.person()? {
        None => ADMIN_VALIDITY,
        Some(person) => {
            rights::require_any(core, person).await?;
            issued_for(core, &caller.serial).await?
        }
    };
    let issued = core
        .authority
        .sign_client(csr_pem, &caller.role, validity, now_us)
        .map_err(|error| Status::invalid_argument(error.to_string()))?;
    let listed = NewCertificate {
        serial: issued.serial.clone(),
        role: caller.role.word(),
        vm: None,
        subject: caller.name()?.to_owned(),
        issued_us: now_us,
        not_after_us: issued.not_after_us,
    };
    core.catalog.add_certificate(&listed).await.map_err(catalog)?;
    core.gate.add(&issued.serial);
    core.audit(&caller.role.uri(), "renew certificate", &issued.serial, "").await;
    Ok(AdminRenewResponse { certificate_pem: issued.pem, ca_pem: core.authority.pem().to_owned() })
}

/// How long a person's certificate was issued for.
async fn issued_for(core: &Core, serial: &str) -> Result<Duration, Status> {
    let rows = core.catalog.certificates().await.map_err(catalog)?;
    let row = rows.iter().find(|row| row.serial == serial);
    let validity = row.map_or(PERSON_VALIDITY, |row| {
        // Its end is stored in whole seconds.
        let seconds = row.not_after_us().saturating_sub(row.issued_us()).div_ceil(1_000_000);
        Duration::from_secs(seconds)
    });
    Ok(validity.min(PERSON_VALIDITY_MAX))
}
