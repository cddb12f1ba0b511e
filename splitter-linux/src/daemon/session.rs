//! One connection to the appliance, from hello to its end.

use std::time::Duration;

use tidemark_proto::limits::{DISKS_MAX, MESSAGE_MAX_BYTES, TEXT_MAX_BYTES};
use tidemark_proto::v1::splitter_client::SplitterClient;
use tidemark_proto::v1::{
    ApplianceMessage, Hello, NonceSaved, Ping, SplitterMessage, Welcome, appliance_message, splitter_message,
};
use tidemark_proto::version::{PROTOCOL_MAX, PROTOCOL_MIN, SYNC};
use tidemark_splitter_core::engine::{Achieved, ClockFilter, MarkerRequest};
use tokio::sync::{mpsc, watch};
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use super::boottime::now_us;
use super::command::{Ask, Command, HelloFacts};
use super::handle::Handle;
use super::{outbound, platform, renewal};
use crate::gate::Gates;
use crate::state::StateDir;
use crate::transport::{self, TransportError};

/// How long the appliance may take to answer a hello. Beyond it the connection is tried anew.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(30);
/// How often the clocks are compared once they are known; at the start ten times as often.
const PING_INTERVAL: Duration = Duration::from_secs(1);
const PING_INTERVAL_FIRST: Duration = Duration::from_millis(100);
const PINGS_FIRST: u32 = 8;
/// How often a due renewal of the certificate is looked for.
const RENEWAL_INTERVAL: Duration = Duration::from_secs(3600);
/// Bytes of a nonce at most. The appliance's have 32; a longer one is not its.
const NONCE_MAX_BYTES: usize = 256;

/// Why a session ended.
#[derive(Debug)]
pub(super) enum End {
    /// Something changed that a hello must tell.
    Restart,
    /// The splitter stops.
    Stop,
    /// The connection is gone; try again.
    Lost {
        /// Why.
        reason: String,
        /// A session had begun.
        established: bool,
    },
    /// The appliance takes nothing more until a person acts.
    Final(String),
}

fn lost(reason: impl Into<String>) -> End {
    End::Lost { reason: reason.into(), established: false }
}

/// The appliance's refusal of a call.
fn refused(status: &Status) -> End {
    match status.code() {
        Code::Unauthenticated | Code::PermissionDenied | Code::FailedPrecondition | Code::NotFound => {
            End::Final(status.message().to_owned())
        }
        _ => lost(format!("{}: {}", status.code(), status.message())),
    }
}

/// A connection in the making or at work.
pub(super) struct Session<'a> {
    state: &'a StateDir,
    worker: &'a Handle,
    gates: &'a Gates,
    restarts: &'a mut watch::Receiver<u64>,
    stopping: &'a mut watch::Receiver<bool>,
    clock: ClockFilter,
    pings: u32,
    /// The appliance records promises.
    promises: bool,
}

impl<'a> Session<'a> {
    pub(super) fn new(
        state: &'a StateDir,
        worker: &'a Handle,
        gates: &'a Gates,
        restarts: &'a mut watch::Receiver<u64>,
        stopping: &'a mut watch::Receiver<bool>,
    ) -> Self {
        Self {
            state,
            worker,
            gates,
            restarts,
            stopping,
            clock: ClockFilter::default(),
            pings: 0,
            promises: false,
        }
    }

    /// Connects, introduces this splitter and passes messages until the end.
    pub(super) async fn run(&mut self, facts: HelloFacts) -> End {
        match self.try_run(facts).await {
            Ok(end) | Err(end) => end,
        }
    }

    async fn try_run(&mut self, facts: HelloFacts) -> Result<End, End> {
        let channel = self.connect().await?;
        let mut client = SplitterClient::new(channel.clone())
            .max_decoding_message_size(MESSAGE_MAX_BYTES)
            .max_encoding_message_size(MESSAGE_MAX_BYTES);
        let (outbound, messages) = outbound::channel();
        let hello = splitter_message::Body::Hello(self.hello(facts)?);
        send(&outbound.frames, hello).await?;
        let inbound = client.stream(messages).await.map_err(|status| refused(&status))?;
        let mut inbound = inbound.into_inner();
        let welcome = tokio::time::timeout(WELCOME_TIMEOUT, self.welcome(&mut inbound))
            .await
            .map_err(|_| lost("the appliance did not answer the hello"))??;
        if welcome.next_nonce.is_empty() || welcome.next_nonce.len() > NONCE_MAX_BYTES {
            return Err(lost("the appliance's welcome has no usable nonce"));
        }
        self.state.store_nonce(&welcome.next_nonce).map_err(|error| lost(error.to_string()))?;
        let frames = outbound.frames.clone();
        send(&frames, splitter_message::Body::NonceSaved(NonceSaved {})).await?;
        self.compare_clocks(&frames, &mut inbound).await?;
        self.promises = welcome.protocol >= SYNC;
        self.worker.welcome(welcome, outbound).await.map_err(lost)?;
        self.gates.connected(true, self.promises);
        match self.converse(&frames, &mut inbound, &channel).await {
            Err(End::Lost { reason, .. }) => Err(End::Lost { reason, established: true }),
            other => other,
        }
    }

    async fn connect(&mut self) -> Result<Channel, End> {
        let stored = |error: crate::state::StateError| End::Final(error.to_string());
        let identity = self.state.identity().map_err(stored)?;
        let (certificate, key) = self.state.credentials().map_err(stored)?;
        let connecting = transport::mutual(&identity.appliance, &identity.ca_pem, &certificate, &key);
        tokio::select! {
            _ = self.stopping.changed() => Err(End::Stop),
            channel = connecting => channel.map_err(|error| match error {
                TransportError::Address(_) | TransportError::Credentials(_) => End::Final(error.to_string()),
                // Also when trust fails: the appliance's clock or certificate may be about to be mended.
                TransportError::Unreachable { .. } | TransportError::Untrusted { .. } => lost(error.to_string()),
            }),
        }
    }

    fn hello(&self, facts: HelloFacts) -> Result<Hello, End> {
        let nonce = self.state.nonce().map_err(|error| lost(error.to_string()))?;
        Ok(Hello {
            protocol_min: PROTOCOL_MIN,
            protocol_max: PROTOCOL_MAX,
            software: concat!("tidemark-splitter ", env!("CARGO_PKG_VERSION")).to_owned(),
            nonce: nonce.into(),
            platform: Some(platform::read()),
            capture_id: facts.capture_id.into(),
            disks: facts.disks,
            last_acked: Some(facts.last_acked),
        })
    }

    async fn welcome(&mut self, inbound: &mut Streaming<ApplianceMessage>) -> Result<Welcome, End> {
        let message = tokio::select! {
            _ = self.stopping.changed() => return Err(End::Stop),
            message = inbound.message() => message.map_err(|status| refused(&status))?,
        };
        match message.and_then(|message| message.body) {
            Some(appliance_message::Body::Welcome(welcome)) => Ok(welcome),
            Some(appliance_message::Body::Goodbye(goodbye)) if goodbye.retry => Err(lost(goodbye.reason)),
            Some(appliance_message::Body::Goodbye(goodbye)) => Err(End::Final(goodbye.reason)),
            _ => Err(lost("the appliance did not welcome this splitter")),
        }
    }

    /// The first comparison of the clocks, before any frame: frames are stamped with it.
    async fn compare_clocks(
        &mut self,
        outbound: &mpsc::Sender<SplitterMessage>,
        inbound: &mut Streaming<ApplianceMessage>,
    ) -> Result<(), End> {
        let ping = Ping { boottime_ns: now_us().saturating_mul(1000), ..Ping::default() };
        send(outbound, splitter_message::Body::Ping(ping)).await?;
        let answer = tokio::time::timeout(WELCOME_TIMEOUT, async {
            while self.clock.is_empty() {
                let message = inbound.message().await.map_err(|status| refused(&status))?;
                let Some(body) = message.and_then(|message| message.body) else {
                    return Err(lost("the appliance closed the stream"));
                };
                self.take(body)?;
            }
            Ok(())
        });
        answer.await.map_err(|_| lost("the appliance did not answer a ping"))?
    }

    async fn converse(
        &mut self,
        outbound: &mpsc::Sender<SplitterMessage>,
        inbound: &mut Streaming<ApplianceMessage>,
        channel: &Channel,
    ) -> Result<End, End> {
        let mut next_ping = tokio::time::Instant::now();
        let mut renewals = tokio::time::interval(RENEWAL_INTERVAL);
        loop {
            tokio::select! {
                _ = self.stopping.changed() => return Ok(End::Stop),
                _ = self.restarts.changed() => return Ok(End::Restart),
                _ = renewals.tick() => {
                    if let Err(error) = renewal::renew_if_due(self.state, channel.clone()).await {
                        tracing::warn!(%error, "the certificate was not renewed; trying again in an hour");
                    }
                }
                () = tokio::time::sleep_until(next_ping) => {
                    let now = now_us();
                    // Behind a full queue the measurement would be worthless.
                    let sync = if self.promises { self.gates.promises(now) } else { Vec::new() };
                    let clock = self.clock.estimate(now);
                    let ping = Ping {
                        boottime_ns: now.saturating_mul(1000),
                        sync,
                        clock_offset_us: clock.offset_us,
                        clock_error_us: clock.error_us,
                    };
                    let message = SplitterMessage { body: Some(splitter_message::Body::Ping(ping)) };
                    if outbound.try_send(message).is_ok() {
                        self.pings = self.pings.saturating_add(1);
                    }
                    let pause = if self.pings < PINGS_FIRST { PING_INTERVAL_FIRST } else { PING_INTERVAL };
                    next_ping = tokio::time::Instant::now() + pause;
                }
                message = inbound.message() => {
                    let message = message.map_err(|status| refused(&status))?;
                    let Some(body) = message.and_then(|message| message.body) else {
                        return Err(lost("the appliance closed the stream"));
                    };
                    self.take(body)?;
                }
            }
        }
    }

    fn take(&mut self, body: appliance_message::Body) -> Result<(), End> {
        match body {
            appliance_message::Body::Ack(ack) => {
                if let Some(durable) = ack.durable {
                    self.worker.send(Command::Ack(durable));
                }
            }
            appliance_message::Body::HashAnswer(answer) => self.worker.send(Command::Answer(answer)),
            appliance_message::Body::VerifyAnswer(answer) => self.worker.send(Command::VerifyAnswer(answer)),
            appliance_message::Body::VerifyRequest(request) => {
                if request.job_id.len() > TEXT_MAX_BYTES || request.disk_ids.len() > DISKS_MAX {
                    return Err(lost("the appliance asked for an impossible verify"));
                }
                self.worker.send(Command::Verify(request));
            }
            appliance_message::Body::Pong(pong) => {
                let now = now_us();
                self.clock.sample(pong.boottime_ns / 1000, now, pong.appliance_time_us);
                self.worker.send(Command::Clock(self.clock.estimate(now)));
            }
            appliance_message::Body::MarkerRequest(request) => {
                let (wanted, allow_lower) = (request.consistency().or_crash(), request.allow_lower);
                let request = MarkerRequest {
                    request_id: request.request_id,
                    bookmark_id: request.bookmark_id,
                    name: request.name,
                    achieved: Achieved::default(),
                };
                self.worker.send(Command::Marker(Ask { request, wanted, allow_lower }));
            }
            appliance_message::Body::BarrierOrder(order) => {
                if order.name.len().max(order.bookmark_id.len()) > TEXT_MAX_BYTES {
                    return Err(lost("the appliance ordered an impossible barrier"));
                }
                self.worker.send(Command::Barrier(order));
            }
            appliance_message::Body::SetBookmarkDone(done) => {
                self.worker.send(Command::SetBookmarkDone(done));
            }
            appliance_message::Body::Goodbye(goodbye) if goodbye.retry => return Err(lost(goodbye.reason)),
            appliance_message::Body::Goodbye(goodbye) => return Err(End::Final(goodbye.reason)),
            appliance_message::Body::Welcome(_) => return Err(lost("the appliance sent a second welcome")),
        }
        Ok(())
    }
}

async fn send(outbound: &mpsc::Sender<SplitterMessage>, body: splitter_message::Body) -> Result<(), End> {
    outbound.send(SplitterMessage { body: Some(body) }).await.map_err(|_| lost("the connection broke off"))
}
