//! A clone's present content at the appliance, read and written over gRPC.
//!
//! It is held by a call that stays open. When that call ends (the appliance was restarted, the connection broke), what was
//! written and not flushed may be lost, so nothing goes on as if nothing had happened: every later call fails, until
//! somebody mounts the clone again.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use tidemark_proto::ids::DiskId;
use tidemark_proto::v1::{
    FlushCloneRequest, OpenCloneRequest, OpenViewReply, ReadViewRequest, ViewDisk, WriteCloneRequest,
};
use tokio::time::timeout;
use tonic::{Code, Status, Streaming};

use super::remote::{Piece, collect};
use crate::appliance::{ClonesClient, refused};

/// How long one call may take. Beyond it the clone counts as lost.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);

/// The disks of one clone, to read and write. Dropping it lets others mount the clone.
#[derive(Debug)]
pub(crate) struct RemoteClone {
    client: ClonesClient,
    description: OpenViewReply,
    /// Never read again: the appliance keeps the clone open while this is.
    _held: Streaming<OpenViewReply>,
    /// A call failed in a way that leaves unknown what was written.
    lost: AtomicBool,
}

impl RemoteClone {
    /// Opens a clone: all disks, or `disk` alone. `None`: there is no clone of that name.
    pub(crate) async fn open(
        client: &ClonesClient,
        name: &str,
        disk: Option<DiskId>,
    ) -> Result<Option<Self>> {
        let disk = disk.map(|disk| disk.to_string()).unwrap_or_default();
        let request = OpenCloneRequest { name: name.to_owned(), disk };
        let open = async {
            let mut held = client.clone().open_clone(request).await?.into_inner();
            let description =
                held.message().await?.ok_or_else(|| Status::unavailable("the clone closed at once"))?;
            Ok((description, held))
        };
        let opened = timeout(CALL_TIMEOUT, open).await.unwrap_or_else(|_| Err(Status::deadline_exceeded("")));
        let (description, held) = match opened {
            Ok(opened) => opened,
            // An older appliance has no clones, and clones are written by administrators alone: for everybody else it is a
            // VM like others, with an overlay.
            Err(status)
                if matches!(status.code(), Code::NotFound | Code::Unimplemented | Code::PermissionDenied) =>
            {
                return Ok(None);
            }
            Err(status) => return Err(refused(&status)),
        };
        if description.disks.is_empty() {
            bail!("'{name}' has no such disk: `tidemark clone list --json` shows its disks");
        }
        for shown in &description.disks {
            // The id becomes a file name.
            shown.id.parse::<DiskId>().context("the appliance sent a disk id this version does not know")?;
        }
        Ok(Some(Self { client: client.clone(), description, _held: held, lost: AtomicBool::new(false) }))
    }

    /// Name, newest LSN, time and disks when it was opened.
    pub(crate) fn description(&self) -> &OpenViewReply {
        &self.description
    }

    fn disk(&self, index: usize) -> Result<&ViewDisk> {
        self.description.disks.get(index).context("no such disk")
    }

    /// Runs a call; after one that failed without a clear answer, none is made any more.
    async fn call<T>(&self, call: impl Future<Output = Result<T, Status>>) -> Result<T> {
        if self.lost.load(Ordering::SeqCst) {
            bail!("the clone was lost, and what was not flushed may be: unmount it and mount it again");
        }
        let answer = timeout(CALL_TIMEOUT, call).await.unwrap_or_else(|_| Err(Status::deadline_exceeded("")));
        answer.map_err(|status| {
            if !matches!(status.code(), Code::ResourceExhausted | Code::InvalidArgument | Code::OutOfRange) {
                self.lost.store(true, Ordering::SeqCst);
            }
            refused(&status)
        })
    }

    /// Reads a range of disk number `index`. The pieces add up to `length`.
    pub(crate) async fn read(&self, index: usize, offset: u64, length: u64) -> Result<Vec<Piece>> {
        let view_id = self.description.view_id.clone();
        let request = ReadViewRequest { view_id, disk: self.disk(index)?.id.clone(), offset, length };
        let mut client = self.client.clone();
        self.call(async move { collect(client.read_clone(request).await?.into_inner(), length).await }).await
    }

    /// Writes bytes, or with empty `data` this many zeroes.
    pub(crate) async fn write(&self, index: usize, offset: u64, data: Bytes, zero_bytes: u64) -> Result<()> {
        let request = WriteCloneRequest {
            view_id: self.description.view_id.clone(),
            disk: self.disk(index)?.id.clone(),
            offset,
            data,
            zero_bytes,
            durable: false,
        };
        let mut client = self.client.clone();
        self.call(async move { client.write_clone(request).await.map(drop) }).await
    }

    /// Makes durable what was written.
    pub(crate) async fn flush(&self) -> Result<()> {
        let request = FlushCloneRequest { view_id: self.description.view_id.clone() };
        let mut client = self.client.clone();
        self.call(async move { client.flush_clone(request).await.map(drop) }).await
    }
}
