//! The `Splitter` service: who may open a stream, and renewing a certificate.

use std::sync::Arc;

use tidemark_proto::v1::splitter_server::Splitter;
use tidemark_proto::v1::{ApplianceMessage, RenewRequest, RenewResponse, SplitterMessage};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use tracing::Instrument;

use super::session;
use crate::clock::now_us;
use crate::core::Core;
use crate::enrolment::issue_for_vm;
use crate::transport::Peer;

/// Messages to a splitter that wait at most. They are small; a splitter that does not read them is cut off.
const OUTBOUND_MAX: usize = 64;

/// Serves splitters.
#[derive(Debug)]
pub struct SplitterService {
    core: Arc<Core>,
}

impl SplitterService {
    /// Serves the VMs of `core`.
    #[must_use]
    pub fn new(core: Arc<Core>) -> Self {
        Self { core }
    }
}

#[tonic::async_trait]
impl Splitter for SplitterService {
    type StreamStream = ReceiverStream<Result<ApplianceMessage, Status>>;

    async fn stream(
        &self,
        request: Request<Streaming<SplitterMessage>>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        let peer = peer(&request)?;
        let id = peer.vm()?;
        let vm = self
            .core
            .fleet
            .get(id)
            .ok_or_else(|| Status::not_found("this VM has been removed: enrol again"))?;
        let (sender, receiver) = mpsc::channel(OUTBOUND_MAX);
        let span = tracing::info_span!("stream", vm = %vm.name);
        let core = Arc::clone(&self.core);
        let task = session::run(core, vm, peer, request.into_inner(), sender).instrument(span);
        self.core.tasks.spawn(task);
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<RenewResponse>, Status> {
        let peer = peer(&request)?;
        let id = peer.vm()?;
        let row = self.core.catalog.vm(id).await.map_err(|error| Status::unavailable(error.to_string()))?;
        let row = row.ok_or_else(|| Status::not_found("this VM has been removed: enrol again"))?;
        if let Some(reason) = row.quarantine {
            return Err(Status::failed_precondition(format!(
                "the VM is quarantined ({reason}): enrol it again"
            )));
        }
        let csr = request.into_inner().csr_pem;
        let (issued, new) = issue_for_vm(&self.core.authority, &csr, id, &row.name, now_us())
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        self.core
            .catalog
            .add_certificate(&new)
            .await
            .map_err(|error| Status::unavailable(error.to_string()))?;
        if peer.revoked.is_cancelled() {
            // Revoked meanwhile: the new certificate must not outlive the revocation of the one that asked for it.
            let revoked = self.core.catalog.revoke_certificate(&issued.serial, now_us()).await;
            revoked.map_err(|error| Status::unavailable(error.to_string()))?;
            return Err(Status::unauthenticated("the client certificate was revoked: enrol again"));
        }
        self.core.gate.add(&issued.serial);
        tracing::info!(vm = %row.name, serial = %issued.serial, "certificate renewed");
        Ok(Response::new(RenewResponse {
            certificate_pem: issued.pem,
            ca_pem: self.core.authority.pem().to_owned(),
        }))
    }
}

/// The caller, as the gate left it in the request.
fn peer<T>(request: &Request<T>) -> Result<Peer, Status> {
    request.extensions().get::<Peer>().cloned().ok_or_else(|| Status::internal("the call passed no gate"))
}
