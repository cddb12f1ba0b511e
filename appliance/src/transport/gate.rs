//! Who calls: the role of the client's certificate, if it is listed and not revoked. Checked on every call; a live
//! stream holds the certificate's cancellation and ends with it.

use std::collections::HashMap;
use std::sync::{Arc, RwLock};

use tidemark_proto::ids::VmId;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::{TcpConnectInfo, TlsConnectInfo};
use tonic::{Extensions, Request, Status};

use super::method::{Method, PERSON_METHODS};
use crate::catalog::CertificateRow;
use crate::clock::now_us;
use crate::metrics::Metrics;
use crate::pki::Role;

/// The caller of an authorised call.
#[derive(Debug, Clone)]
pub struct Peer {
    /// What its certificate allows.
    pub role: Role,
    /// Serial number of the certificate.
    pub serial: String,
    /// End of its validity, microseconds since 1970.
    pub not_after_us: u64,
    /// Cancelled when the certificate is revoked.
    pub revoked: CancellationToken,
}

impl Peer {
    /// The VM whose splitter calls.
    ///
    /// # Errors
    /// `PERMISSION_DENIED` for any other role.
    pub fn vm(&self) -> Result<VmId, Status> {
        match &self.role {
            Role::Vm(vm) => Ok(*vm),
            Role::Admin(_) | Role::Person(_) => {
                Err(Status::permission_denied("this call is for splitters: it needs a VM's certificate"))
            }
        }
    }

    /// Who uses a console: the name, of an administrator or of a person who is none.
    ///
    /// # Errors
    /// `PERMISSION_DENIED` for any other role.
    pub fn name(&self) -> Result<&str, Status> {
        match &self.role {
            Role::Admin(name) | Role::Person(name) => Ok(name),
            Role::Vm(_) => Err(no_splitters()),
        }
    }

    /// The person who calls and whose rights are to be looked at; `None` for an administrator, who may do everything.
    ///
    /// # Errors
    /// `PERMISSION_DENIED` for any other role.
    pub fn person(&self) -> Result<Option<&str>, Status> {
        match &self.role {
            Role::Admin(_) => Ok(None),
            Role::Person(name) => Ok(Some(name)),
            Role::Vm(_) => Err(no_splitters()),
        }
    }

    /// Whether the caller may call a console's method at all.
    fn may_call(&self, method: Option<&Method>) -> Result<(), Status> {
        let Some(name) = self.person()? else { return Ok(()) };
        if method.is_some_and(|method| PERSON_METHODS.contains(&method.0.as_str())) {
            return Ok(());
        }
        Err(Status::permission_denied(format!(
            "'{name}' is no administrator and may only create, list and find bookmarks of sets, and recover and mount VMs, \
             as far as it was granted them: ask an administrator"
        )))
    }
}

fn no_splitters() -> Status {
    Status::permission_denied(
        "this call is for administrators: use the appliance's admin.context, not a splitter's certificate",
    )
}

/// The list of certificates in force.
#[derive(Debug)]
pub struct Gate {
    listed: RwLock<HashMap<String, CancellationToken>>,
    metrics: Arc<Metrics>,
}

impl Gate {
    /// A gate that knows the certificates of the catalog.
    #[must_use]
    pub fn new(rows: &[CertificateRow], metrics: Arc<Metrics>) -> Self {
        let listed = rows
            .iter()
            .filter(|row| !row.revoked())
            .map(|row| (row.serial.clone(), CancellationToken::new()))
            .collect();
        Self { listed: RwLock::new(listed), metrics }
    }

    /// Accepts a certificate that the catalog has just listed.
    pub fn add(&self, serial: &str) {
        if let Ok(mut listed) = self.listed.write() {
            listed.entry(serial.to_owned()).or_default();
        }
    }

    /// Refuses a certificate from now on and ends its live streams.
    pub fn revoke(&self, serial: &str) {
        let token = self.listed.write().ok().and_then(|mut listed| listed.remove(serial));
        if let Some(token) = token {
            token.cancel();
        }
    }

    /// Forgets certificates that are not in `keep`, without ending anything: they have expired.
    pub fn retain(&self, keep: impl Fn(&str) -> bool) {
        if let Ok(mut listed) = self.listed.write() {
            listed.retain(|serial, _| keep(serial));
        }
    }

    /// The caller of a request.
    ///
    /// # Errors
    /// `UNAUTHENTICATED` without a certificate in force.
    pub fn peer(&self, extensions: &Extensions) -> Result<Peer, Status> {
        self.identify(extensions).inspect_err(|_| self.metrics.rejected("certificate"))
    }

    fn identify(&self, extensions: &Extensions) -> Result<Peer, Status> {
        let certificates = extensions
            .get::<TlsConnectInfo<TcpConnectInfo>>()
            .and_then(TlsConnectInfo::peer_certs)
            .ok_or_else(|| {
                Status::unauthenticated(
                    "a client certificate is needed: enrol first, or use an admin context",
                )
            })?;
        let leaf =
            certificates.first().ok_or_else(|| Status::unauthenticated("a client certificate is needed"))?;
        let unusable = || Status::unauthenticated("the client certificate has no role here");
        let (_, leaf) = x509_parser::parse_x509_certificate(leaf).map_err(|_| unusable())?;
        let role = Role::of(&leaf).ok_or_else(unusable)?;
        let not_after_us =
            u64::try_from(leaf.validity().not_after.timestamp()).unwrap_or(0).saturating_mul(1_000_000);
        if now_us() >= not_after_us {
            return Err(Status::unauthenticated(
                "the client certificate has expired: reconnect with the renewed one",
            ));
        }
        let serial: String = leaf.raw_serial().iter().map(|byte| format!("{byte:02x}")).collect();
        let revoked = self.listed.read().ok().and_then(|listed| listed.get(&serial).cloned());
        let revoked = revoked.ok_or_else(|| {
            Status::unauthenticated(
                "the client certificate is revoked or unknown to this appliance: enrol again",
            )
        })?;
        Ok(Peer { role, serial, not_after_us, revoked })
    }

    /// An interceptor that lets administrators through, and persons to [`PERSON_METHODS`] alone, and leaves the [`Peer`] in
    /// the request. It needs the [`Method`] there.
    ///
    /// # Errors
    /// As [`Gate::peer`]; `PERMISSION_DENIED` for any other role or method.
    pub fn admit_console(&self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let peer = self.peer(request.extensions())?;
        peer.may_call(request.extensions().get()).inspect_err(|_| self.metrics.rejected("role"))?;
        request.extensions_mut().insert(peer);
        Ok(request)
    }

    /// An interceptor that lets only splitters through and leaves the [`Peer`] in the request.
    ///
    /// # Errors
    /// As [`Gate::peer`] and [`Peer::vm`].
    pub fn admit_vm(&self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let peer = self.peer(request.extensions())?;
        peer.vm().inspect_err(|_| self.metrics.rejected("role"))?;
        request.extensions_mut().insert(peer);
        Ok(request)
    }
}
