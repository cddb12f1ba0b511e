//! Certificates of recoveries: the appliance reads what it vouches for itself, whatever a console says it received.

use std::sync::Arc;

use tidemark_journal::ViewError;
use tidemark_journal::attest::{Certificate, Signer};
use tidemark_journal::view::View;
use tidemark_proto::ids::DiskId;
use tidemark_proto::v1::attest_server::Attest;
use tidemark_proto::v1::{
    CertifiedHead, CertifiedImage, CertifiedSegment, CertifyReply, CertifyRequest, RecoveryCertificate, When,
    when,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::views::{open_view, optional_disk, view_status};
use super::{blocking, caller, vm_named};
use crate::clock::now_us;
use crate::core::Core;

/// Bytes read and hashed between two messages of progress.
const STEP_BYTES: usize = 4 << 20;

/// Messages ahead of the network at most.
const MESSAGES_AHEAD: usize = 4;

/// Signs what was recovered.
#[derive(Debug)]
pub struct AttestService {
    core: Arc<Core>,
}

impl AttestService {
    /// Serves `core`.
    #[must_use]
    pub fn new(core: Arc<Core>) -> Self {
        Self { core }
    }
}

/// Messages of one call.
type Replies = ReceiverStream<Result<CertifyReply, Status>>;

#[tonic::async_trait]
impl Attest for AttestService {
    type CertifyStream = Replies;

    async fn certify(&self, request: Request<CertifyRequest>) -> Result<Response<Replies>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let disk = optional_disk(&request.disk)?;
        let disk = disk.ok_or_else(|| Status::invalid_argument("a disk must be named"))?;
        let at = When { point: Some(when::Point::Lsn(request.lsn)) };
        let opened = open_view(&self.core, &request.vm, Some(at), Some(disk)).await?;
        let detail = format!("lsn:{} {disk}", opened.lsn);
        self.core.audit(&caller.role.uri(), "certify recovery", &opened.vm_name, &detail).await;
        let vm = vm_named(&self.core, &request.vm)?;
        if vm.origin.is_some() {
            return Err(Status::failed_precondition(format!(
                "'{}' is a clone, and a certificate cannot name what a clone continues: certify the point that it was made from",
                vm.name
            )));
        }
        let lsn = opened.lsn;
        let provenance = blocking(move || {
            let journal = vm.log.journal().map_err(|down| Status::unavailable(down.to_string()))?;
            Ok(journal.provenance(disk, lsn))
        })
        .await?;
        let size_bytes = opened.disk(disk).map_or(0, |disk| disk.size_bytes);
        let (sender, receiver) = mpsc::channel(MESSAGES_AHEAD);
        let signing = Arc::clone(&self.core.signing);
        tokio::task::spawn_blocking(move || {
            let content = match hash(&opened.view, disk, size_bytes, &sender) {
                Ok(Some(content)) => content,
                Ok(None) => return,
                Err(error) => {
                    let _ = sender.blocking_send(Err(view_status(&error)));
                    return;
                }
            };
            let certificate = Certificate {
                vm: opened.vm,
                vm_name: opened.vm_name,
                disk,
                lsn: opened.lsn,
                time_us: opened.time_us,
                issued_us: now_us(),
                size_bytes,
                content,
                provenance,
            };
            let reply = match certificate.sign(signing.as_ref()) {
                Ok(signature) => Ok(CertifyReply {
                    done_bytes: size_bytes,
                    certificate: Some(message(certificate, signing.as_ref(), &signature)),
                }),
                Err(error) => Err(Status::internal(format!("the certificate cannot be signed: {error}"))),
            };
            let _ = sender.blocking_send(reply);
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

/// BLAKE3 of a disk; `None` when nobody waits for it any more.
fn hash(
    view: &View,
    disk: DiskId,
    size_bytes: u64,
    sender: &mpsc::Sender<Result<CertifyReply, Status>>,
) -> Result<Option<[u8; 32]>, ViewError> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; STEP_BYTES];
    let mut done = 0;
    while done < size_bytes {
        let bytes = usize::try_from(size_bytes - done).unwrap_or(STEP_BYTES).min(STEP_BYTES);
        let part = buffer.get_mut(..bytes).unwrap_or_default();
        view.read_at(disk, done, part)?;
        hasher.update(part);
        done += bytes as u64;
        if sender.blocking_send(Ok(CertifyReply { done_bytes: done, certificate: None })).is_err() {
            return Ok(None);
        }
    }
    Ok(Some(*hasher.finalize().as_bytes()))
}

fn message(certificate: Certificate, signer: &dyn Signer, signature: &[u8]) -> RecoveryCertificate {
    let provenance = certificate.provenance;
    let head = provenance.head;
    let segments = provenance.segments.into_iter();
    RecoveryCertificate {
        vm: certificate.vm_name,
        vm_id: certificate.vm.to_string(),
        disk: certificate.disk.to_string(),
        lsn: certificate.lsn.0,
        time_us: certificate.time_us,
        issued_us: certificate.issued_us,
        size_bytes: certificate.size_bytes,
        content: certificate.content.to_vec().into(),
        head: Some(CertifiedHead {
            segment: head.segment,
            frames: head.frames,
            seq: head.seq,
            lsn: head.lsn.0,
            time_us: head.time_us,
            hash: head.hash.to_vec().into(),
        }),
        segments: segments
            .map(|(segment, hash)| CertifiedSegment { segment, hash: hash.to_vec().into() })
            .collect(),
        image: provenance.image.map(|(lsn, root)| CertifiedImage { lsn: lsn.0, root: root.to_vec().into() }),
        public_key: signer.public_key().to_string(),
        signature: signature.to_vec().into(),
    }
}
