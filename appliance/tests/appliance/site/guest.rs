//! A splitter's side of the stream, made by hand.

use tidemark_proto::chain;
use tidemark_proto::ids::ChainHash;
use tidemark_proto::v1::splitter_client::SplitterClient;
use tidemark_proto::v1::{
    ApplianceMessage, Disk, EnrolResponse, Frame, GapCause, Goodbye, Heartbeat, Hello, LineEnd, LineStart,
    Marker, NonceSaved, Platform, SplitterMessage, StreamPosition, Welcome, WriteEntry, Writes,
    appliance_message, frame, splitter_message,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::{PATIENCE, Site};

/// The state of a splitter: what it would keep on disk and in memory.
#[derive(Clone)]
pub(crate) struct Guest {
    pub(crate) id: String,
    pub(crate) certificate: String,
    pub(crate) key: String,
    pub(crate) nonce: Vec<u8>,
    /// The newest protocol that it speaks.
    pub(crate) protocol_max: u32,
    pub(crate) platform: Platform,
    pub(crate) capture_id: [u8; 16],
    pub(crate) disks: Vec<Disk>,
    pub(crate) seq: u64,
    pub(crate) lsn: u64,
    pub(crate) generation: u64,
    pub(crate) ring: u64,
    pub(crate) chain: ChainHash,
    pub(crate) last_acked: Option<StreamPosition>,
    /// By how much its clock may be wrong, as its frames say.
    pub(crate) clock_error_us: u64,
}

/// An open stream.
pub(crate) struct Stream {
    pub(crate) welcome: Welcome,
    pub(crate) sender: mpsc::Sender<SplitterMessage>,
    pub(crate) receiver: Streaming<ApplianceMessage>,
}

fn now_us() -> u64 {
    tidemark_appliance::clock::now_us()
}

impl Guest {
    pub(crate) fn new(enrolled: EnrolResponse, key: String, disk_bytes: u64) -> Self {
        let disk =
            Disk { identity: "serial-1".into(), path: "/dev/vdb".into(), size_bytes: disk_bytes, disk_id: 0 };
        Self {
            id: enrolled.vm_id,
            certificate: enrolled.certificate_pem,
            key,
            nonce: Vec::new(),
            protocol_max: 1,
            platform: Platform {
                dmi_uuid: "dmi".into(),
                machine_id: "machine".into(),
                boot_id: "boot-1".into(),
                kernel: "6.12".into(),
                hostname: "guest".into(),
            },
            capture_id: [7; 16],
            disks: vec![disk],
            seq: 0,
            lsn: 0,
            generation: 1,
            ring: 0,
            chain: ChainHash::default(),
            last_acked: None,
            clock_error_us: 100,
        }
    }

    pub(crate) fn hello(&self) -> Hello {
        Hello {
            protocol_min: 1,
            protocol_max: self.protocol_max,
            software: "test".into(),
            nonce: self.nonce.clone().into(),
            platform: Some(self.platform.clone()),
            capture_id: self.capture_id.to_vec().into(),
            disks: self.disks.clone(),
            last_acked: self.last_acked.clone(),
        }
    }

    /// Opens a stream and sends `first`; the answer is whatever comes.
    pub(crate) async fn open(
        &self,
        site: &Site,
        first: splitter_message::Body,
    ) -> Result<(mpsc::Sender<SplitterMessage>, Streaming<ApplianceMessage>), Status> {
        let channel = site.channel(Some((&self.certificate, &self.key))).await;
        let channel = channel.map_err(|error| Status::unavailable(error.to_string()))?;
        let limit = 64 << 20;
        let mut client = SplitterClient::new(channel).max_encoding_message_size(limit);
        let (sender, receiver) = mpsc::channel(64);
        sender.send(SplitterMessage { body: Some(first) }).await.unwrap();
        let response = client.stream(ReceiverStream::new(receiver)).await?;
        Ok((sender, response.into_inner()))
    }

    /// Connects as a good splitter does: hello, nonce saved.
    pub(crate) async fn connect(&mut self, site: &Site) -> Result<Stream, Goodbye> {
        let (sender, mut receiver) =
            self.open(site, splitter_message::Body::Hello(self.hello())).await.unwrap();
        let welcome = match message(&mut receiver).await {
            Some(appliance_message::Body::Welcome(welcome)) => welcome,
            Some(appliance_message::Body::Goodbye(goodbye)) => return Err(goodbye),
            other => panic!("an answer to hello: {other:?}"),
        };
        self.nonce = welcome.next_nonce.to_vec();
        let mut stream = Stream { welcome, sender, receiver };
        stream.send(splitter_message::Body::NonceSaved(NonceSaved {})).await;
        Ok(stream)
    }

    /// Forgets what it sent beyond what the appliance has.
    pub(crate) fn resume(&mut self, welcome: &Welcome) {
        let durable = welcome.durable.clone().unwrap();
        (self.seq, self.lsn, self.ring) = (durable.seq, durable.lsn, durable.ring_position);
        self.chain = ChainHash(durable.chain.as_ref().try_into().unwrap());
    }

    /// A frame that follows the last one, with its place in the chain.
    pub(crate) fn frame(&mut self, body: frame::Body) -> Frame {
        self.seq += 1;
        self.ring += 100;
        let mut frame = Frame {
            seq: self.seq,
            generation: self.generation,
            ring_position: self.ring,
            chain: Vec::new().into(),
            // Boot times in these tests are appliance times.
            clock_offset_us: 0,
            clock_error_us: self.clock_error_us,
            backlog: None,
            body: Some(body),
        };
        self.chain = chain::next(&self.chain, &frame);
        frame.chain = self.chain.0.to_vec().into();
        frame
    }

    /// One data write.
    pub(crate) fn write(&mut self, start_sector: u64, data: Vec<u8>) -> Frame {
        self.writes(vec![(start_sector, data)])
    }

    pub(crate) fn writes(&mut self, writes: Vec<(u64, Vec<u8>)>) -> Frame {
        let first_lsn = self.lsn + 1;
        self.lsn += writes.len() as u64;
        let entry = |(start_sector, data): &(u64, Vec<u8>)| WriteEntry {
            disk_id: 1,
            kind: 1,
            start_sector: *start_sector,
            sectors: u32::try_from(data.len() / 512).unwrap(),
            flags: 0,
            time_delta_us: 0,
        };
        let entries = writes.iter().map(entry).collect();
        let payload = writes.into_iter().flat_map(|(_, data)| data).collect::<Vec<u8>>();
        let crc32c = payload.chunks(4096).map(crc32c::crc32c).collect();
        let boottime_us = now_us();
        self.frame(frame::Body::Writes(Writes {
            first_lsn,
            boottime_us,
            entries,
            payload: payload.into(),
            crc32c,
        }))
    }

    pub(crate) fn line_start(&mut self, cause: GapCause) -> Frame {
        self.lsn += 1;
        let line = LineStart {
            lsn: self.lsn,
            disk_ids: vec![1],
            gap_from_lsn: self.lsn,
            cause: cause as i32,
            detail: "test".into(),
            boottime_us: now_us(),
            dirty_bytes: 0,
        };
        self.frame(frame::Body::LineStart(line))
    }

    pub(crate) fn line_end(&mut self) -> Frame {
        self.lsn += 1;
        let line = LineEnd { lsn: self.lsn, disk_ids: vec![1], boottime_us: now_us() };
        self.frame(frame::Body::LineEnd(line))
    }

    pub(crate) fn marker(&mut self, name: &str, bookmark_id: &str, request_id: u64) -> Frame {
        self.lsn += 1;
        let marker = Marker {
            lsn: self.lsn,
            boottime_us: now_us(),
            bookmark_id: bookmark_id.into(),
            name: name.into(),
            request_id,
            ..Marker::default()
        };
        self.frame(frame::Body::Marker(marker))
    }

    pub(crate) fn heartbeat(&mut self) -> Frame {
        let status = tidemark_proto::v1::DiskStatus {
            disk_id: 1,
            state: 2,
            ..tidemark_proto::v1::DiskStatus::default()
        };
        let heartbeat = Heartbeat {
            lsn: self.lsn,
            boottime_us: now_us(),
            clean: true,
            disks: vec![status],
            ..Heartbeat::default()
        };
        self.frame(frame::Body::Heartbeat(heartbeat))
    }

    /// Sends the frames of an empty disk's initial copy and waits until they are durable.
    pub(crate) async fn protect(&mut self, stream: &mut Stream) {
        let frames = [self.line_start(GapCause::InitialCopy), self.line_end(), self.heartbeat()];
        for frame in frames {
            stream.frame(frame).await;
        }
        stream.acked(self.seq).await;
    }
}

async fn message(receiver: &mut Streaming<ApplianceMessage>) -> Option<appliance_message::Body> {
    let message = tokio::time::timeout(PATIENCE, receiver.message()).await.expect("the appliance is silent");
    message.ok().flatten().and_then(|message| message.body)
}

impl Stream {
    pub(crate) async fn send(&mut self, body: splitter_message::Body) {
        let _ = self.sender.send(SplitterMessage { body: Some(body) }).await;
    }

    pub(crate) async fn frame(&mut self, frame: Frame) {
        self.send(splitter_message::Body::Frame(frame)).await;
    }

    /// The next message; `None` when the stream has ended.
    pub(crate) async fn next(&mut self) -> Option<appliance_message::Body> {
        message(&mut self.receiver).await
    }

    /// Waits until frame `seq` is acknowledged.
    pub(crate) async fn acked(&mut self, seq: u64) -> StreamPosition {
        loop {
            match self.next().await {
                Some(appliance_message::Body::Ack(ack)) => {
                    let durable = ack.durable.unwrap();
                    if durable.seq >= seq {
                        return durable;
                    }
                }
                Some(appliance_message::Body::Pong(_)) => {}
                other => panic!("waiting for an acknowledgement: {other:?}"),
            }
        }
    }

    /// Waits for the end and its reason.
    pub(crate) async fn goodbye(&mut self) -> Goodbye {
        loop {
            match self.next().await {
                Some(appliance_message::Body::Goodbye(goodbye)) => return goodbye,
                None => panic!("the stream ended without a Goodbye"),
                Some(_) => {}
            }
        }
    }
}
