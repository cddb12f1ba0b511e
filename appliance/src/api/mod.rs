//! What consoles call. Every call has passed the gate as an administrator's, or as a person's who is none and whose right each
//! call looks at; what changes something is audited.

mod access;
mod attest;
mod bookmarks;
mod clones;
mod diff;
mod doubtful;
mod exports;
mod grants;
mod history;
mod jobs;
mod objects;
mod points;
mod retention;
mod roles;
mod search;
mod set_points;
mod sets;
mod views;
mod vms;

use std::sync::Arc;

use tidemark_proto::ids::DiskId;
use tidemark_proto::limits::OBJECT_PIECE_BYTES;
use tidemark_proto::v1::console_server::Console;
use tidemark_proto::v1::{
    AdminRenewRequest, AdminRenewResponse, BookmarkReply, CreateBookmarkRequest, CreateTokenRequest,
    CreateTokenResponse, Empty, ExportsReply, ListCertificatesRequest, ListCertificatesResponse,
    ListPointsRequest, ListPointsResponse, ListTokensRequest, ListTokensResponse, ListVmsRequest,
    ListVmsResponse, OpenViewRequest, ReadViewRequest, RemoveVmRequest, RevokeCertificateRequest,
    RevokeTokenRequest, StartExportRequest, StatusReply, StopExportRequest,
};
use tonic::{Request, Response, Status};

pub use attest::AttestService;
pub(crate) use clones::CLONE_REQUEST_MAX_BYTES;
pub use clones::ClonesService;
pub use grants::GrantsService;
pub use history::HistoryService;
pub use jobs::JobsService;
pub use objects::ObjectsService;
pub use retention::RetentionService;
pub use roles::RolesService;
pub use search::SearchService;
pub use sets::SetsService;
pub(crate) use views::open_view;
pub(crate) use vms::describe as describe_vms;

use crate::catalog::CatalogError;
use crate::core::Core;
use crate::fleet::Vm;
use crate::transport::Peer;

/// Bytes of a console request at most: names, texts and a certificate request.
pub(crate) const REQUEST_MAX_BYTES: usize = 64 << 10;

/// Bytes of one message of an upload at most: a piece of content and its frame.
pub(crate) const OBJECT_MESSAGE_MAX_BYTES: usize = OBJECT_PIECE_BYTES + (64 << 10);

/// Serves consoles.
#[derive(Debug)]
pub struct ConsoleService {
    core: Arc<Core>,
}

impl ConsoleService {
    /// Serves `core`.
    #[must_use]
    pub fn new(core: Arc<Core>) -> Self {
        Self { core }
    }
}

/// The caller, as the gate left it in the request.
fn caller<T>(request: &Request<T>) -> Result<Peer, Status> {
    request.extensions().get::<Peer>().cloned().ok_or_else(|| Status::internal("the call passed no gate"))
}

/// A failed catalog call as the console sees it.
fn catalog(error: CatalogError) -> Status {
    match error {
        CatalogError::Taken(text) => Status::already_exists(text),
        error => Status::unavailable(error.to_string()),
    }
}

fn vm_named(core: &Core, name: &str) -> Result<Arc<Vm>, Status> {
    core.fleet.by_name(name).ok_or_else(|| {
        Status::not_found(format!("there is no VM named '{name}'; `tidemark vm list` shows those there are"))
    })
}

/// That a VM has, or had, a disk.
fn has_disk(vm: &Vm, disk: DiskId) -> Result<(), Status> {
    let journal = vm.log.journal().map_err(|down| Status::unavailable(down.to_string()))?;
    if journal.disks().iter().any(|known| known.id == disk) {
        return Ok(());
    }
    let text = format!("'{0}' has no {disk}; `tidemark vm show {0}` lists its disks", vm.name);
    Err(Status::not_found(text))
}

/// Work that was to go to its end and did not.
fn interrupted() -> Status {
    Status::unavailable("the appliance is ending: look with a list whether it was done, then try again")
}

/// Runs blocking work off the asynchronous threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Status> + Send + 'static,
) -> Result<T, Status> {
    tokio::task::spawn_blocking(work).await.map_err(|error| Status::internal(error.to_string()))?
}

#[tonic::async_trait]
impl Console for ConsoleService {
    async fn create_token(
        &self,
        request: Request<CreateTokenRequest>,
    ) -> Result<Response<CreateTokenResponse>, Status> {
        let caller = caller(&request)?;
        access::create_token(&self.core, &caller, request.into_inner()).await.map(Response::new)
    }

    async fn list_tokens(
        &self,
        _: Request<ListTokensRequest>,
    ) -> Result<Response<ListTokensResponse>, Status> {
        access::list_tokens(&self.core).await.map(Response::new)
    }

    async fn revoke_token(&self, request: Request<RevokeTokenRequest>) -> Result<Response<Empty>, Status> {
        let caller = caller(&request)?;
        access::revoke_token(&self.core, &caller, &request.into_inner().id).await.map(Response::new)
    }

    async fn list_certificates(
        &self,
        _: Request<ListCertificatesRequest>,
    ) -> Result<Response<ListCertificatesResponse>, Status> {
        access::list_certificates(&self.core).await.map(Response::new)
    }

    async fn revoke_certificate(
        &self,
        request: Request<RevokeCertificateRequest>,
    ) -> Result<Response<Empty>, Status> {
        let caller = caller(&request)?;
        access::revoke_certificate(&self.core, &caller, &request.into_inner().serial).await.map(Response::new)
    }

    async fn renew_admin(
        &self,
        request: Request<AdminRenewRequest>,
    ) -> Result<Response<AdminRenewResponse>, Status> {
        let caller = caller(&request)?;
        access::renew_admin(&self.core, &caller, &request.into_inner().csr_pem).await.map(Response::new)
    }

    async fn list_vms(&self, request: Request<ListVmsRequest>) -> Result<Response<ListVmsResponse>, Status> {
        vms::list(&self.core, &request.into_inner().name).await.map(Response::new)
    }

    async fn remove_vm(&self, request: Request<RemoveVmRequest>) -> Result<Response<Empty>, Status> {
        let caller = caller(&request)?;
        vms::remove(&self.core, &caller, &request.into_inner().name).await.map(Response::new)
    }

    async fn create_bookmark(
        &self,
        request: Request<CreateBookmarkRequest>,
    ) -> Result<Response<BookmarkReply>, Status> {
        let caller = caller(&request)?;
        bookmarks::create(&self.core, &caller, request.into_inner()).await.map(Response::new)
    }

    async fn list_points(
        &self,
        request: Request<ListPointsRequest>,
    ) -> Result<Response<ListPointsResponse>, Status> {
        let caller = caller(&request)?;
        points::list(&self.core, &caller, request.into_inner()).await.map(Response::new)
    }

    type OpenViewStream = views::HeldView;

    async fn open_view(
        &self,
        request: Request<OpenViewRequest>,
    ) -> Result<Response<Self::OpenViewStream>, Status> {
        let caller = caller(&request)?;
        views::open(&self.core, &caller, request.into_inner()).await.map(Response::new)
    }

    type ReadViewStream = views::Chunks;

    async fn read_view(
        &self,
        request: Request<ReadViewRequest>,
    ) -> Result<Response<Self::ReadViewStream>, Status> {
        let caller = caller(&request)?;
        views::read(&self.core, &caller, request.into_inner()).map(Response::new)
    }

    async fn start_export(
        &self,
        request: Request<StartExportRequest>,
    ) -> Result<Response<ExportsReply>, Status> {
        let caller = caller(&request)?;
        exports::start(&self.core, &caller, request.into_inner()).await.map(Response::new)
    }

    async fn list_exports(&self, request: Request<Empty>) -> Result<Response<ExportsReply>, Status> {
        let exports = self.core.exports.list_of(caller(&request)?.person()?).await;
        Ok(Response::new(ExportsReply { exports }))
    }

    async fn stop_export(&self, request: Request<StopExportRequest>) -> Result<Response<Empty>, Status> {
        let caller = caller(&request)?;
        exports::stop(&self.core, &caller, &request.into_inner().id).await.map(Response::new)
    }

    async fn status(&self, _: Request<Empty>) -> Result<Response<StatusReply>, Status> {
        vms::status(&self.core).await.map(Response::new)
    }
}
