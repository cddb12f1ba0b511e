//! A splitter without a kernel: it enrols, connects and resumes as the protocol demands, and sends stamped writes that it
//! makes up. For tests of the appliance alone: they need no root, and each LSN is known to be one write.

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tidemark_proto::chain;
use tidemark_proto::ids::ChainHash;
use tidemark_proto::tls::SERVER_NAME;
use tidemark_proto::v1::console_client::ConsoleClient;
use tidemark_proto::v1::enrolment_client::EnrolmentClient;
use tidemark_proto::v1::splitter_client::SplitterClient;
use tidemark_proto::v1::{
    ApplianceMessage, CreateTokenRequest, Disk, EnrolRequest, Frame, GapCause, Heartbeat, Hello, LineEnd,
    LineStart, NonceSaved, OpenViewRequest, Platform, ReadViewRequest, SplitterMessage, StreamPosition,
    Welcome, When, WriteEntry, WriteKind, Writes, appliance_message, frame, splitter_message, when,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use crate::site::Site;
use crate::stamp::{History, Kind, Operation, SECTOR_BYTES, Stamp};

/// Frames this splitter keeps at most until they are acknowledged.
const WINDOW_FRAMES: usize = 200;
/// A message that takes longer counts as a broken connection.
const PATIENCE: Duration = Duration::from_secs(10);

/// The administrator's side: the context that the appliance wrote.
#[derive(Debug)]
pub struct Administrator {
    ca_pem: String,
    address: String,
    identity: (String, String),
}

impl Administrator {
    /// Reads the site's `admin.context`.
    ///
    /// # Errors
    /// When it is not there or not complete.
    pub fn of(site: &Site) -> Result<Self> {
        let text = std::fs::read_to_string(site.data().join("admin.context"))?;
        let context: toml::Table = text.parse()?;
        let field = |name: &str| -> Result<String> {
            let value = context.get(name).and_then(toml::Value::as_str);
            value.map(str::to_owned).with_context(|| format!("the context has no {name}"))
        };
        Ok(Self {
            ca_pem: field("ca_pem")?,
            address: site.address().to_owned(),
            identity: (field("certificate_pem")?, field("key_pem")?),
        })
    }

    /// A connection that shows the given certificate and key, or none.
    ///
    /// # Errors
    /// When the appliance does not answer.
    pub async fn channel(&self, identity: Option<(&str, &str)>) -> Result<Channel> {
        let mut tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(&self.ca_pem))
            .domain_name(SERVER_NAME);
        if let Some((certificate, key)) = identity {
            tls = tls.identity(Identity::from_pem(certificate, key));
        }
        let endpoint = Endpoint::from_shared(format!("https://{}", self.address))?.tls_config(tls)?;
        Ok(endpoint.connect_timeout(PATIENCE).connect().await?)
    }

    /// The console's service, as administrator.
    ///
    /// # Errors
    /// When the appliance does not answer.
    pub async fn console(&self) -> Result<ConsoleClient<Channel>> {
        let (certificate, key) = &self.identity;
        Ok(ConsoleClient::new(self.channel(Some((certificate, key))).await?))
    }

    /// The content of a VM's disk number `disk` (from 0) at an LSN, read from a view as `recover` and `mount` do.
    ///
    /// # Errors
    /// When the point is refused or the view cannot be read.
    pub async fn image(&self, vm: &str, disk: usize, lsn: u64) -> Result<Vec<u8>> {
        self.read(vm, disk, lsn, None).await
    }

    /// As [`Administrator::image`], `length` bytes from `offset` on.
    ///
    /// # Errors
    /// As there.
    pub async fn piece(
        &self,
        vm: &str,
        disk: usize,
        lsn: u64,
        offset: u64,
        length: usize,
    ) -> Result<Vec<u8>> {
        self.read(vm, disk, lsn, Some((offset, u64::try_from(length)?))).await
    }

    async fn read(&self, vm: &str, disk: usize, lsn: u64, piece: Option<(u64, u64)>) -> Result<Vec<u8>> {
        let mut console = self.console().await?;
        let at = Some(When { point: Some(when::Point::Lsn(lsn)) });
        let request = OpenViewRequest { vm: vm.to_owned(), at, disk: String::new(), ..<_>::default() };
        let mut lease = console.open_view(request).await?.into_inner();
        let view = lease.message().await?.context("the view is described")?;
        let disk = view.disks.get(disk).context("the view has that disk")?;
        let (offset, length) = piece.unwrap_or((0, disk.size_bytes));
        let (view_id, disk) = (view.view_id.clone(), disk.id.clone());
        let request = ReadViewRequest { view_id, disk, offset, length };
        let mut chunks = console.read_view(request).await?.into_inner();
        let mut content = Vec::with_capacity(usize::try_from(length)?);
        while let Some(chunk) = chunks.message().await? {
            content.extend_from_slice(&chunk.data);
            content.resize(content.len() + usize::try_from(chunk.zero_bytes)?, 0);
        }
        Ok(content)
    }
}

/// An enrolled splitter with what a real one keeps in memory and on disk.
#[derive(Debug)]
pub struct Synthetic {
    administrator: Administrator,
    certificate: String,
    key: String,
    nonce: Vec<u8>,
    disk_sectors: u64,
    position: StreamPosition,
    unacknowledged: VecDeque<Frame>,
    /// The highest LSN that was acknowledged.
    pub acknowledged_lsn: u64,
    history: History,
}

/// An open stream.
#[derive(Debug)]
pub struct Stream {
    sender: mpsc::Sender<SplitterMessage>,
    receiver: Streaming<ApplianceMessage>,
}

impl Synthetic {
    /// Creates a token and enrols a VM with one disk.
    ///
    /// # Errors
    /// When the appliance refuses.
    pub async fn enrol(site: &Site, vm: &str, disk_sectors: u64, run: u64) -> Result<Self> {
        let administrator = Administrator::of(site)?;
        let request = CreateTokenRequest { vm_name: vm.to_owned(), ttl_seconds: 600, replace: false };
        let token = administrator.console().await?.create_token(request).await?.into_inner().token;
        let token: tidemark_proto::token::Token = token.parse()?;
        let key = rcgen::KeyPair::generate()?;
        let request = EnrolRequest {
            secret: token.secret.to_vec().into(),
            token_id: token.id,
            csr_pem: rcgen::CertificateParams::default().serialize_request(&key)?.pem()?,
            software: "tidemark-tests".to_owned(),
        };
        let channel = administrator.channel(None).await?;
        let enrolled = EnrolmentClient::new(channel).enrol(request).await?.into_inner();
        let position = StreamPosition { chain: vec![0; 32].into(), ..StreamPosition::default() };
        Ok(Self {
            administrator,
            certificate: enrolled.certificate_pem,
            key: key.serialize_pem(),
            nonce: Vec::new(),
            disk_sectors,
            position,
            unacknowledged: VecDeque::new(),
            acknowledged_lsn: 0,
            history: History { run, disk_sectors, operations: Vec::new() },
        })
    }

    /// What was sent: operation n has LSN n + 3, because a line begins at LSN 1 and ends at LSN 2.
    #[must_use]
    pub fn history(&self) -> &History {
        &self.history
    }

    /// The administrator of the same site.
    #[must_use]
    pub fn administrator(&self) -> &Administrator {
        &self.administrator
    }

    /// Connects, checks that nothing acknowledged is missing, and sends again what was not acknowledged.
    ///
    /// # Errors
    /// When the connection fails; [`Lost`] when the appliance has forgotten an acknowledged write.
    pub async fn connect(&mut self) -> Result<Stream> {
        let channel = self.administrator.channel(Some((&self.certificate, &self.key))).await?;
        let mut client = SplitterClient::new(channel);
        let (sender, messages) = mpsc::channel(WINDOW_FRAMES * 2);
        sender.send(message(splitter_message::Body::Hello(self.hello()))).await?;
        let receiver =
            tokio::time::timeout(PATIENCE, client.stream(ReceiverStream::new(messages))).await??.into_inner();
        let mut stream = Stream { sender, receiver };
        let welcome = match stream.next().await? {
            appliance_message::Body::Welcome(welcome) => welcome,
            other => bail!("hello was answered by {other:?}"),
        };
        self.nonce = welcome.next_nonce.to_vec();
        stream.send(splitter_message::Body::NonceSaved(NonceSaved {})).await?;
        self.resume(&welcome)?;
        if self.position.seq == 0 {
            self.begin();
        }
        for frame in &self.unacknowledged {
            stream.send(splitter_message::Body::Frame(frame.clone())).await?;
        }
        Ok(stream)
    }

    /// Sends writes and heartbeats until `limit` operations exist or the connection breaks.
    ///
    /// # Errors
    /// When it breaks.
    pub async fn run(&mut self, stream: &mut Stream, limit: usize) -> Result<()> {
        while self.history.operations.len() < limit || !self.unacknowledged.is_empty() {
            if self.unacknowledged.len() < WINDOW_FRAMES && self.history.operations.len() < limit {
                let first = self.unacknowledged.len();
                self.write(8);
                self.heartbeat();
                for frame in self.unacknowledged.iter().skip(first) {
                    stream.send(splitter_message::Body::Frame(frame.clone())).await?;
                }
                while let Ok(received) = tokio::time::timeout(Duration::ZERO, stream.next()).await {
                    self.apply(received?)?;
                }
            } else {
                let received = tokio::time::timeout(PATIENCE, stream.next()).await??;
                self.apply(received)?;
            }
        }
        Ok(())
    }

    fn apply(&mut self, received: appliance_message::Body) -> Result<()> {
        match received {
            appliance_message::Body::Ack(ack) => {
                let durable = ack.durable.context("an acknowledgement has a position")?;
                self.acknowledged_lsn = self.acknowledged_lsn.max(durable.lsn);
                while self.unacknowledged.pop_front_if(|frame| frame.seq <= durable.seq).is_some() {}
                Ok(())
            }
            appliance_message::Body::Goodbye(goodbye) => bail!("goodbye: {}", goodbye.reason),
            _ => Ok(()),
        }
    }

    fn resume(&mut self, welcome: &Welcome) -> Result<()> {
        let durable = welcome.durable.as_ref().context("a welcome has a position")?;
        if durable.lsn < self.acknowledged_lsn {
            return Err(Lost { acknowledged: self.acknowledged_lsn, durable: durable.lsn }.into());
        }
        let mut chain = None;
        while let Some(frame) = self.unacknowledged.pop_front_if(|frame| frame.seq <= durable.seq) {
            chain = Some(frame.chain);
        }
        ensure!(chain.is_none_or(|chain| chain == durable.chain), "the appliance's chain is another one");
        Ok(())
    }

    fn hello(&self) -> Hello {
        Hello {
            protocol_min: 1,
            protocol_max: 1,
            software: "tidemark-tests".to_owned(),
            nonce: self.nonce.clone().into(),
            platform: Some(Platform {
                dmi_uuid: "synthetic".to_owned(),
                machine_id: "synthetic".to_owned(),
                boot_id: "synthetic".to_owned(),
                kernel: "none".to_owned(),
                hostname: "synthetic".to_owned(),
            }),
            capture_id: vec![9; 16].into(),
            disks: vec![Disk {
                identity: "synthetic-1".to_owned(),
                path: "/dev/none".to_owned(),
                size_bytes: self.disk_sectors * SECTOR_BYTES as u64,
                disk_id: 0,
            }],
            last_acked: None,
        }
    }

    /// A line over a disk of zeroes: nothing to copy.
    fn begin(&mut self) {
        let line = LineStart {
            lsn: 1,
            disk_ids: vec![1],
            gap_from_lsn: 1,
            cause: GapCause::InitialCopy.into(),
            boottime_us: now_us(),
            ..LineStart::default()
        };
        self.push(frame::Body::LineStart(line));
        self.push(frame::Body::LineEnd(LineEnd { lsn: 2, disk_ids: vec![1], boottime_us: now_us() }));
        self.position.lsn = 2;
    }

    fn write(&mut self, count: u64) {
        let mut entries = Vec::new();
        let mut payload = Vec::new();
        let first_lsn = self.position.lsn + 1;
        for _ in 0..count {
            let sequence = self.history.operations.len() as u64;
            // A walk that comes back to the same sectors.
            let sectors = 1 + sequence * 7 % 8;
            let start_sector = sequence.wrapping_mul(2_654_435_761) % (self.disk_sectors - sectors);
            for sector in start_sector..start_sector + sectors {
                let mut bytes = [0; SECTOR_BYTES];
                Stamp { run: self.history.run, sequence, sector, time_us: 0 }.encode(&mut bytes);
                payload.extend_from_slice(&bytes);
            }
            let kind = WriteKind::Data.into();
            let words = u32::try_from(sectors).unwrap_or(1);
            entries.push(WriteEntry {
                disk_id: 1,
                kind,
                start_sector,
                sectors: words,
                ..WriteEntry::default()
            });
            let (submitted, completed) = (Some(2 * sequence + 1), Some(2 * sequence + 2));
            let kind = Kind::Data;
            self.history.operations.push(Operation {
                sequence,
                kind,
                start_sector,
                sectors,
                submitted,
                completed,
            });
            self.position.lsn += 1;
        }
        let crc32c = payload.chunks(4096).map(crc32c::crc32c).collect();
        let boottime_us = now_us();
        self.push(frame::Body::Writes(Writes {
            first_lsn,
            boottime_us,
            entries,
            payload: payload.into(),
            crc32c,
        }));
    }

    fn heartbeat(&mut self) {
        let lsn = self.position.lsn;
        self.push(frame::Body::Heartbeat(Heartbeat {
            lsn,
            boottime_us: now_us(),
            clean: true,
            ..Heartbeat::default()
        }));
    }

    fn push(&mut self, body: frame::Body) {
        self.position.seq += 1;
        self.position.ring_position += 4096;
        let mut frame = Frame {
            seq: self.position.seq,
            generation: 1,
            ring_position: self.position.ring_position,
            clock_error_us: 100,
            body: Some(body),
            ..Frame::default()
        };
        let mut before = ChainHash::default();
        before.0.copy_from_slice(&self.position.chain);
        self.position.chain = chain::next(&before, &frame).0.to_vec().into();
        frame.chain = self.position.chain.clone();
        self.unacknowledged.push_back(frame);
    }
}

impl Stream {
    async fn send(&mut self, body: splitter_message::Body) -> Result<()> {
        tokio::time::timeout(PATIENCE, self.sender.send(message(body))).await??;
        Ok(())
    }

    async fn next(&mut self) -> Result<appliance_message::Body> {
        let message = self.receiver.message().await?.context("the stream ended")?;
        message.body.context("a message has a body")
    }
}

/// An acknowledged write is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lost {
    /// What had been acknowledged.
    pub acknowledged: u64,
    /// What the appliance has.
    pub durable: u64,
}

impl std::fmt::Display for Lost {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "LSN {} was acknowledged, but only {} is there", self.acknowledged, self.durable)
    }
}

impl std::error::Error for Lost {}

fn message(body: splitter_message::Body) -> SplitterMessage {
    SplitterMessage { body: Some(body) }
}

fn now_us() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_micros()).unwrap_or(u64::MAX)
}
