//! A view lives at the appliance as long as its lease, a call that stays open. A broken connection ends the lease; the
//! same LSN holds the same bytes for ever, so the view is opened anew and reading goes on.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use tidemark_proto::ids::DiskId;
use tidemark_proto::limits::READ_MAX_BYTES;
use tidemark_proto::v1::{
    self, OpenViewReply, OpenViewRequest, ReadViewRequest, ViewChunk, ViewDisk, ViewPurpose,
};
use tokio::sync::Mutex;
use tokio::time::timeout;
use tonic::{Code, Status, Streaming};

use crate::appliance::{Client, refused};
use crate::output;
use crate::when::When;

/// How long one read may take, and opening a view. Beyond it the reader gets an error instead of hanging.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);
/// A lost view is opened anew at most this often; reads in between fail at once.
const REOPEN_INTERVAL: Duration = Duration::from_secs(1);

/// A run of bytes as it comes from the appliance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Piece {
    Data(Bytes),
    /// This many bytes that read as zeroes.
    Zeroes(u64),
}

impl Piece {
    pub(crate) fn length(&self) -> u64 {
        match self {
            Self::Data(data) => data.len() as u64,
            Self::Zeroes(bytes) => *bytes,
        }
    }
}

/// The volumes of one VM as of one LSN. Dropping it ends the lease.
#[derive(Debug)]
pub(crate) struct RemoteView {
    client: Client,
    lease: Mutex<Lease>,
    vm: String,
    disk: String,
    /// Of [`ViewPurpose`].
    purpose: i32,
    lsn: u64,
    time_us: u64,
    disks: Vec<ViewDisk>,
}

#[derive(Debug)]
struct Lease {
    view_id: String,
    /// Never read again: the appliance keeps the view while this is open.
    _held: Streaming<OpenViewReply>,
    /// Counts how often the view was opened.
    epoch: u64,
    reopen_tried: Option<Instant>,
}

impl RemoteView {
    /// Opens `vm` as of `at`, to recover from it: all disks, or `disk` alone.
    pub(crate) async fn open(client: &Client, vm: &str, at: &When, disk: Option<DiskId>) -> Result<Self> {
        Self::open_to(ViewPurpose::Recover, client, vm, at, disk).await
    }

    /// Opens it for a purpose: to a person who is no administrator each is granted by itself.
    pub(crate) async fn open_to(
        purpose: ViewPurpose,
        client: &Client,
        vm: &str,
        at: &When,
        disk: Option<DiskId>,
    ) -> Result<Self> {
        let (disk, purpose) = (disk.map(|disk| disk.to_string()).unwrap_or_default(), purpose.into());
        let at = Some(at.to_proto());
        let request = OpenViewRequest { vm: vm.to_owned(), at, disk: disk.clone(), purpose };
        let (description, held) = open(client, request).await.map_err(|status| refused(&status))?;
        description.warnings.iter().for_each(|warning| output::warning(warning));
        if description.disks.is_empty() {
            bail!("{vm} has no disks at this point: name a later one (see `tidemark point list {vm}`)");
        }
        for shown in &description.disks {
            // The id becomes a file name.
            shown.id.parse::<DiskId>().context("the appliance sent a disk id this version does not know")?;
        }
        Ok(Self {
            client: client.clone(),
            lease: Mutex::new(Lease {
                view_id: description.view_id,
                _held: held,
                epoch: 0,
                reopen_tried: None,
            }),
            vm: description.vm,
            disk,
            purpose,
            lsn: description.lsn,
            time_us: description.time_us,
            disks: description.disks,
        })
    }

    pub(crate) fn vm(&self) -> &str {
        &self.vm
    }

    pub(crate) fn lsn(&self) -> u64 {
        self.lsn
    }

    /// Time of the point, microseconds since 1970 by the appliance's clock.
    pub(crate) fn time_us(&self) -> u64 {
        self.time_us
    }

    pub(crate) fn disks(&self) -> &[ViewDisk] {
        &self.disks
    }

    /// Reads `length` bytes at byte `offset` of `disk`, at most [`READ_MAX_BYTES`]. The pieces add up to `length`.
    pub(crate) async fn read(&self, disk: &str, offset: u64, length: u64) -> Result<Vec<Piece>> {
        if length > READ_MAX_BYTES {
            bail!("a read of {length} bytes exceeds the limit of {READ_MAX_BYTES}");
        }
        let (view_id, epoch) = self.current().await;
        match self.read_once(view_id, disk, offset, length).await {
            Ok(pieces) => Ok(pieces),
            Err(status) if lost(&status) => {
                self.reopen(epoch).await.map_err(|status| refused(&status))?;
                let (view_id, _) = self.current().await;
                self.read_once(view_id, disk, offset, length).await.map_err(|status| refused(&status))
            }
            Err(status) => Err(refused(&status)),
        }
    }

    async fn current(&self) -> (String, u64) {
        let lease = self.lease.lock().await;
        (lease.view_id.clone(), lease.epoch)
    }

    async fn read_once(
        &self,
        view_id: String,
        disk: &str,
        offset: u64,
        length: u64,
    ) -> Result<Vec<Piece>, Status> {
        let request = ReadViewRequest { view_id, disk: disk.to_owned(), offset, length };
        let read =
            async { collect(self.client.clone().read_view(request).await?.into_inner(), length).await };
        timeout(CALL_TIMEOUT, read).await.unwrap_or_else(|_| Err(Status::deadline_exceeded("")))
    }

    /// Opens the view anew, unless somebody did since `epoch`.
    async fn reopen(&self, epoch: u64) -> Result<(), Status> {
        let mut lease = self.lease.lock().await;
        if lease.epoch != epoch {
            return Ok(());
        }
        if lease.reopen_tried.is_some_and(|tried| tried.elapsed() < REOPEN_INTERVAL) {
            return Err(Status::unavailable(
                "the appliance cannot be reached; the view is opened again when it can",
            ));
        }
        lease.reopen_tried = Some(Instant::now());
        let at = v1::When { point: Some(v1::when::Point::Lsn(self.lsn)) };
        let (vm, disk) = (self.vm.clone(), self.disk.clone());
        let request = OpenViewRequest { vm, at: Some(at), disk, purpose: self.purpose };
        let (description, held) = open(&self.client, request).await?;
        if description.lsn != self.lsn || description.disks != self.disks {
            return Err(Status::data_loss(
                "the appliance no longer has this view: it describes other disks now",
            ));
        }
        *lease = Lease { view_id: description.view_id, _held: held, epoch: epoch + 1, reopen_tried: None };
        Ok(())
    }
}

/// The pieces of one read; they must add up to `length`.
pub(super) async fn collect(mut chunks: Streaming<ViewChunk>, length: u64) -> Result<Vec<Piece>, Status> {
    let mut pieces = Vec::new();
    let mut left = length;
    while let Some(chunk) = chunks.message().await? {
        for piece in [Piece::Data(chunk.data), Piece::Zeroes(chunk.zero_bytes)] {
            if piece.length() > 0 {
                left = left
                    .checked_sub(piece.length())
                    .ok_or_else(|| Status::data_loss("the appliance sent more than was asked for"))?;
                pieces.push(piece);
            }
        }
    }
    if left > 0 { Err(Status::unavailable("the appliance sent less than was asked for")) } else { Ok(pieces) }
}

/// Whether the view may be gone while its history is not.
fn lost(status: &Status) -> bool {
    matches!(status.code(), Code::NotFound | Code::Unavailable | Code::Cancelled | Code::Unknown)
}

async fn open(
    client: &Client,
    request: OpenViewRequest,
) -> Result<(OpenViewReply, Streaming<OpenViewReply>), Status> {
    let open = async {
        let mut held = client.clone().open_view(request).await?.into_inner();
        let description =
            held.message().await?.ok_or_else(|| Status::unavailable("the view closed at once"))?;
        Ok((description, held))
    };
    timeout(CALL_TIMEOUT, open).await.unwrap_or_else(|_| Err(Status::deadline_exceeded("")))
}
