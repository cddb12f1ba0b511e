//! What persons may do who are no administrators, and their certificates: administrators grant and issue them.

use std::sync::Arc;
use std::time::Duration;

use tidemark_proto::limits::NAME_MAX_CHARS;
use tidemark_proto::v1::roles_server::Roles;
use tidemark_proto::v1::{
    Empty, IssueCertificateRequest, IssueCertificateResponse, ListRightsRequest, ListRightsResponse,
    RightInfo, RightRequest,
};
use tonic::{Request, Response, Status};

use super::{caller, catalog, vm_named};
use crate::catalog::{NewCertificate, RightRow};
use crate::clock::now_us;
use crate::core::Core;
use crate::pki::{PERSON_VALIDITY, PERSON_VALIDITY_MAX, Role};
use crate::rights::{self, Right};
use crate::transport::Peer;

/// Rights at most: some for everybody in a company. More are refused.
const RIGHTS_MAX: usize = 10_000;

/// Rights of one person at most, each of which is looked at on its calls. More are refused: a right of a set is one of all
/// its VMs.
const PERSON_RIGHTS_MAX: usize = 500;

/// Serves what persons may do.
#[derive(Debug)]
pub struct RolesService {
    core: Arc<Core>,
}

impl RolesService {
    /// Serves `core`.
    #[must_use]
    pub fn new(core: Arc<Core>) -> Self {
        Self { core }
    }
}

#[tonic::async_trait]
impl Roles for RolesService {
    async fn grant_right(&self, request: Request<RightRequest>) -> Result<Response<Empty>, Status> {
        let caller = caller(&request)?;
        grant(&self.core, &caller, &request.into_inner()).await.map(Response::new)
    }

    async fn revoke_right(&self, request: Request<RightRequest>) -> Result<Response<Empty>, Status> {
        let caller = caller(&request)?;
        revoke(&self.core, &caller, &request.into_inner()).await.map(Response::new)
    }

    async fn list_rights(
        &self,
        request: Request<ListRightsRequest>,
    ) -> Result<Response<ListRightsResponse>, Status> {
        let person = request.into_inner().person;
        let rows = if person.is_empty() {
            self.core.catalog.rights().await
        } else {
            self.core.catalog.rights_of(&person).await
        };
        let rows = rows.map_err(catalog)?;
        let rights = rows.iter().filter_map(|row| describe(&self.core, row)).collect();
        Ok(Response::new(ListRightsResponse { rights }))
    }

    async fn issue_certificate(
        &self,
        request: Request<IssueCertificateRequest>,
    ) -> Result<Response<IssueCertificateResponse>, Status> {
        let caller = caller(&request)?;
        issue(&self.core, &caller, request.into_inner()).await.map(Response::new)
    }
}

/// The role of a person; whoever is named in another way can have no certificate.
fn person(name: &str) -> Result<Role, Status> {
    let role = Role::Person(name.to_owned());
    if name.len() <= NAME_MAX_CHARS && Role::from_uri(&role.uri()).is_some_and(|read| read == role) {
        return Ok(role);
    }
    Err(Status::invalid_argument(format!(
        "a person's name has 1 to {NAME_MAX_CHARS} letters (a-z, A-Z), digits and -_."
    )))
}

fn right(request: &RightRequest) -> Result<Right, Status> {
    Right::of_word(&request.right).ok_or_else(|| {
        Status::invalid_argument(format!("'{}' is no right: write bookmark, recover or mount", request.right))
    })
}

/// The row that is asked for, and its target in words.
async fn row(core: &Core, caller: &Peer, request: &RightRequest) -> Result<(RightRow, String), Status> {
    person(&request.person)?;
    let right = right(request)?;
    let (name, word, by) = (&request.person, right.word(), caller.role.uri());
    match (request.set.as_str(), request.vm.as_str()) {
        ("", "") => Err(Status::invalid_argument("a right is of a set or of a VM: name one")),
        ("", _) if right == Right::Bookmark => Err(Status::invalid_argument(
            "bookmarks are a right of a set: a set of one VM is made with `tidemark set create NAME --match name=VM`",
        )),
        ("", vm) => {
            let row = RightRow::of_vm(name, word, vm_named(core, vm)?.id, now_us(), by);
            Ok((row, format!("VM {vm}")))
        }
        (set, "") => {
            let sets = core.catalog.sets().await.map_err(catalog)?;
            if !sets.iter().any(|known| known.name == set) {
                return Err(super::sets::no_set(set));
            }
            Ok((RightRow::of_set(name, word, set, now_us(), by), format!("set {set}")))
        }
        _ => Err(Status::invalid_argument("a right is of a set or of a VM, not of both: grant two")),
    }
}

async fn grant(core: &Arc<Core>, caller: &Peer, request: &RightRequest) -> Result<Empty, Status> {
    let (row, target) = row(core, caller, request).await?;
    let known = core.catalog.rights().await.map_err(catalog)?;
    if known.len() >= RIGHTS_MAX {
        return Err(Status::failed_precondition(format!("there are {RIGHTS_MAX} rights, which is the most")));
    }
    if known.iter().filter(|known| known.person == row.person).count() >= PERSON_RIGHTS_MAX {
        let text = format!("'{}' has {PERSON_RIGHTS_MAX} rights, which is the most: grant sets", row.person);
        return Err(Status::failed_precondition(text));
    }
    // One that is there stays as it is: whoever grants it again has what was wanted.
    if core.catalog.grant_right(&row).await.map_err(catalog)? {
        let detail = format!("{} {target}", row.word);
        core.audit(&caller.role.uri(), "grant right", &row.person, &detail).await;
    }
    Ok(Empty {})
}

async fn revoke(core: &Arc<Core>, caller: &Peer, request: &RightRequest) -> Result<Empty, Status> {
    let (row, target) = row(core, caller, request).await?;
    if !core.catalog.revoke_right(&row).await.map_err(catalog)? {
        return Err(Status::not_found(format!(
            "'{0}' has no right to {1} {target}; `tidemark role list {0}` shows those there are",
            row.person, row.word
        )));
    }
    rights::end_uncovered(core).await.map_err(catalog)?;
    let detail = format!("{} {target}", row.word);
    core.audit(&caller.role.uri(), "revoke right", &row.person, &detail).await;
    Ok(Empty {})
}

/// `None` for a right of a VM that is gone.
fn describe(core: &Core, row: &RightRow) -> Option<RightInfo> {
    let vm = match row.set() {
        Some(_) => String::new(),
        None => core.fleet.get(row.vm()?)?.name.clone(),
    };
    Some(RightInfo {
        person: row.person.clone(),
        right: row.word.clone(),
        set: row.set().unwrap_or_default().to_owned(),
        vm,
        granted_us: row.granted_us(),
        granted_by: row.granted_by.clone(),
    })
}

async fn issue(
    core: &Arc<Core>,
    caller: &Peer,
    request: IssueCertificateRequest,
) -> Result<IssueCertificateResponse, Status> {
    let role = person(&request.person)?;
    let validity = match request.validity_seconds {
        0 => PERSON_VALIDITY,
        seconds => Duration::from_secs(seconds),
    };
    if validity > PERSON_VALIDITY_MAX {
        let days = PERSON_VALIDITY_MAX.as_secs() / 86_400;
        return Err(Status::invalid_argument(format!("a certificate is valid for {days} days at most")));
    }
    rights::require_any(core, &request.person).await?;
    let now_us = now_us();
    let issued = core
        .authority
        .sign_client(&request.csr_pem, &role, validity, now_us)
        .map_err(|error| Status::invalid_argument(error.to_string()))?;
    let listed = NewCertificate {
        serial: issued.serial.clone(),
        role: role.word(),
        vm: None,
        subject: request.person.clone(),
        issued_us: now_us,
        not_after_us: issued.not_after_us,
    };
    core.catalog.add_certificate(&listed).await.map_err(catalog)?;
    core.gate.add(&issued.serial);
    core.audit(&caller.role.uri(), "issue certificate", &request.person, &issued.serial).await;
    Ok(IssueCertificateResponse {
        certificate_pem: issued.pem,
        ca_pem: core.authority.pem().to_owned(),
        serial: issued.serial,
        not_after_us: issued.not_after_us,
    })
}
