//! The `Restore` service.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tidemark_proto::ids::DiskId;
use tidemark_proto::limits::{RESTORE_PIECES_MAX, TEXT_MAX_BYTES};
use tidemark_proto::pieces::{HASH_BYTES, HashKey};
use tidemark_proto::v1::restore_reply::Reply;
use tidemark_proto::v1::restore_request::Request as Asked;
use tidemark_proto::v1::restore_server::Restore;
use tidemark_proto::v1::when::Point;
use tidemark_proto::v1::{RestoreBegin, RestoreOpened, RestoreQuestion, RestoreReply, RestoreRequest, When};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::answer::{Unanswered, answer};
use super::running::Running;
use crate::api::open_view;
use crate::catalog::{CatalogError, GrantRow, GrantState, GrantedPoint, secret_matches};
use crate::clock::now_us;
use crate::core::Core;
use crate::recovery::{OpenedView, ViewLease};
use crate::transport::Rate;

/// Bytes of one message of a restore at most: a question, or the beginning.
pub const REQUEST_MAX_BYTES: usize = RESTORE_PIECES_MAX * HASH_BYTES + TEXT_MAX_BYTES + 1024;

/// How long the first message may take: it is sent with the call.
const BEGIN_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a restore may ask nothing: its disk is slow, but not that slow. It can be run again.
const IDLE_TIMEOUT: Duration = Duration::from_secs(300);

/// Answers that wait for the network at most, 1 MiB each.
const ANSWERS_WAITING: usize = 4;

type Replies = ReceiverStream<Result<RestoreReply, Status>>;

/// Serves machines that have a grant and no certificate.
#[derive(Debug)]
pub struct RestoreService {
    core: Arc<Core>,
    rate: Rate,
}

impl RestoreService {
    /// Serves `core`.
    #[must_use]
    pub fn new(core: Arc<Core>) -> Self {
        Self { core, rate: Rate::new(Instant::now()) }
    }

    /// What the caller was granted.
    async fn judge(&self, begin: &RestoreBegin) -> Result<GrantedPoint, Status> {
        if begin.software.len() > TEXT_MAX_BYTES {
            return Err(Status::invalid_argument("the name of the software is too long"));
        }
        let foreign = || {
            Status::permission_denied(
                "this grant was not given by this appliance, or was mistyped: \
                 copy the whole last word that `tidemark grant create` printed",
            )
        };
        let stored = self.core.catalog.grant(&begin.grant_id).await.map_err(|error| unavailable(&error))?;
        let matches = secret_matches(&begin.secret, stored.as_ref().map(|row| row.secret_hash.as_str()));
        let grant = stored.filter(|_| matches).ok_or_else(foreign)?;
        let again = "make a new one with `tidemark grant create`";
        match grant.state(now_us()) {
            GrantState::Valid => GrantRow::of(&grant).ok_or_else(foreign),
            GrantState::Revoked => Err(Status::permission_denied(format!("this grant was revoked: {again}"))),
            GrantState::Expired => Err(Status::permission_denied(format!("this grant has expired: {again}"))),
        }
    }

    async fn begin(
        &self,
        address: Option<IpAddr>,
        questions: &mut Streaming<RestoreRequest>,
    ) -> Result<Session, Status> {
        if !self.rate.allow(address, Instant::now()) {
            return Err(Status::resource_exhausted("too many attempts: wait a minute and try again"));
        }
        let first = tokio::time::timeout(BEGIN_TIMEOUT, questions.message()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("a restore begins with its grant"))??;
        let Some(Asked::Begin(begin)) = first.and_then(|message| message.request) else {
            return Err(Status::invalid_argument("a restore begins with its grant"));
        };
        let of = self.judge(&begin).await?;
        let core = &self.core;
        let running = core.restores.begin(&begin.grant_id);
        let running = running.map_err(|error| Status::resource_exhausted(error.to_string()))?;
        // After `running`: a grant that is revoked from here on ends it.
        if !core.catalog.use_grant(&begin.grant_id, now_us()).await.map_err(|error| unavailable(&error))? {
            return Err(Status::permission_denied("this grant was revoked"));
        }
        let vm =
            core.fleet.get(of.vm).ok_or_else(|| Status::not_found("the VM of this grant was removed"))?;
        let at = When { point: Some(Point::Lsn(of.lsn.0)) };
        let view = open_view(core, &vm.name, Some(at), Some(of.disk)).await?;
        let lease = core.leases.hold(view.clone(), None);
        let lease = lease.map_err(|error| Status::resource_exhausted(error.to_string()))?;
        let (actor, detail) = (format!("grant {}", begin.grant_id), format!("{} lsn:{}", of.disk, of.lsn));
        core.audit(&actor, "restore", &vm.name, &detail).await;
        tracing::info!(vm = vm.name, disk = %of.disk, lsn = of.lsn.0, grant = begin.grant_id, "a restore begins");
        Ok(Session { view, disk: of.disk, key: HashKey(rand::random()), running, _lease: lease })
    }
}

fn unavailable(error: &CatalogError) -> Status {
    Status::unavailable(error.to_string())
}

#[tonic::async_trait]
impl Restore for RestoreService {
    type RestoreStream = Replies;

    async fn restore(
        &self,
        request: Request<Streaming<RestoreRequest>>,
    ) -> Result<Response<Self::RestoreStream>, Status> {
        let address = request.remote_addr().map(|address| address.ip());
        let mut questions = request.into_inner();
        let session = self.begin(address, &mut questions).await.inspect_err(|status| {
            self.core.metrics.rejected("grant");
            tracing::info!(?address, reason = status.message(), "a restore was refused");
        })?;
        let (sender, receiver) = mpsc::channel(ANSWERS_WAITING);
        let core = Arc::clone(&self.core);
        core.metrics.views.inc();
        self.core.tasks.spawn(async move {
            if let Err(status) = session.serve(&core, questions, &sender).await {
                let _ = sender.send(Err(status)).await;
            }
            core.metrics.views.dec();
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

/// One restore.
struct Session {
    view: OpenedView,
    disk: DiskId,
    key: HashKey,
    running: Running,
    /// What is read stays until the end.
    _lease: ViewLease,
}

impl Session {
    fn size_bytes(&self) -> u64 {
        self.view.disk(self.disk).map_or(0, |disk| disk.size_bytes)
    }

    async fn serve(
        &self,
        core: &Core,
        mut questions: Streaming<RestoreRequest>,
        sender: &mpsc::Sender<Result<RestoreReply, Status>>,
    ) -> Result<(), Status> {
        let opened = RestoreOpened {
            vm: self.view.vm_name.clone(),
            disk: self.disk.to_string(),
            lsn: self.view.lsn.0,
            time_us: self.view.time_us,
            size_bytes: self.size_bytes(),
            warnings: self.view.warnings.clone(),
            hash_key: self.key.0.to_vec().into(),
        };
        let mut reply = Reply::Opened(opened);
        loop {
            let send = sender.send(Ok(RestoreReply { reply: Some(reply) }));
            let next = async {
                send.await.ok()?;
                Some(tokio::time::timeout(IDLE_TIMEOUT, questions.message()).await)
            };
            let next = tokio::select! {
                next = next => next,
                () = sender.closed() => None,
                () = core.stopping.cancelled() => {
                    return Err(Status::unavailable("the appliance is shutting down: run it again later"));
                }
                () = self.running.revoked.cancelled() => {
                    return Err(Status::permission_denied("the grant was revoked"));
                }
            };
            let Some(next) = next else { return Ok(()) };
            let next = next.map_err(|_| Status::deadline_exceeded("nothing was asked for minutes"))??;
            reply = match next {
                None => return Ok(()),
                Some(RestoreRequest { request: Some(Asked::Question(question)) }) => {
                    Reply::Answer(self.answer(question).await?)
                }
                Some(_) => {
                    return Err(Status::invalid_argument("after its beginning a restore asks questions"));
                }
            };
        }
    }

    async fn answer(&self, question: RestoreQuestion) -> Result<tidemark_proto::v1::RestoreAnswer, Status> {
        let (view, disk, key) = (self.view.view.clone(), self.disk, self.key);
        let size_bytes = self.size_bytes();
        let answered = tokio::task::spawn_blocking(move || {
            answer(&question, size_bytes, &key, |at, buffer| view.read_at(disk, at, buffer))
        });
        answered.await.map_err(|error| Status::internal(error.to_string()))?.map_err(|error| match error {
            Unanswered::Rule(_) => Status::invalid_argument(error.to_string()),
            Unanswered::View(_) => Status::data_loss(error.to_string()),
        })
    }
}
