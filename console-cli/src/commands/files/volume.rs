//! Opening the file system that a command names.

use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use tidemark_proto::ids::DiskId;
use tidemark_proto::v1::when::Point;
use tidemark_proto::v1::{DiffRequest, ViewDisk, When as ProtoWhen};
use tokio::runtime::Handle;

use crate::appliance::{Client, HistoryClient, refused};
use crate::cli::{UsageError, VolumeArguments};
use crate::ext4::{FileSystem, Replay, Source};
use crate::files::{Pages, Ranges, choose};
use crate::view::RemoteView;
use crate::when::When;

/// A file system at a point.
#[derive(Debug)]
pub(super) struct Volume {
    pub(super) view: Arc<RemoteView>,
    pub(super) disk: ViewDisk,
    /// 0: the whole disk.
    pub(super) partition: u32,
    /// Where the partition begins and how long it is.
    start: u64,
    bytes: u64,
    pub(super) pages: Arc<Pages>,
    pub(super) filesystem: FileSystem,
}

impl Volume {
    /// Opens a view and the file system in it. Blocking.
    pub(super) fn open(
        handle: &Handle,
        client: &Client,
        arguments: &VolumeArguments,
        at: &When,
        replay: Replay,
    ) -> Result<Self> {
        let view = Arc::new(handle.block_on(RemoteView::open(client, &arguments.vm, at, arguments.disk))?);
        let disk = only_disk(&view)?.clone();
        let pages = Arc::new(Pages::new(Arc::clone(&view), &disk.id, disk.size_bytes, handle.clone()));
        let source: Arc<dyn Source> = Arc::<Pages>::clone(&pages);
        let chosen = choose(source, &disk.id, arguments.partition)?;
        let bytes = chosen.source.size_bytes();
        let filesystem = FileSystem::open(chosen.source, replay)?;
        Ok(Self { view, disk, partition: chosen.number, start: chosen.start, bytes, pages, filesystem })
    }

    /// The part of a disk's ranges that lies in this partition, from its start on.
    pub(super) fn within(&self, disk: &Ranges) -> Ranges {
        let parts = disk.within(self.start, self.start.saturating_add(self.bytes));
        Ranges::of(parts.map(|(start, end)| (start - self.start, end - self.start)).collect())
    }

    /// Whether both lie in the same bytes of their disks.
    pub(super) fn same_place(&self, other: &Self) -> bool {
        self.start == other.start
    }

    /// How people read which one it is.
    pub(super) fn shown(&self) -> String {
        match self.partition {
            0 => self.disk.id.clone(),
            number => format!("{} partition {number}", self.disk.id),
        }
    }
}

/// The disk of a view, when there is no choice.
pub(super) fn only_disk(view: &RemoteView) -> Result<&ViewDisk> {
    match view.disks() {
        [only] => Ok(only),
        several => {
            let ids: Vec<&str> = several.iter().map(|disk| disk.id.as_str()).collect();
            bail!(UsageError(format!(
                "{} has several disks: name one with --disk ({})",
                view.vm(),
                ids.join(", ")
            )))
        }
    }
}

/// The bytes of a disk that differ between two points. Blocking.
pub(super) fn changed_ranges(
    handle: &Handle,
    client: &HistoryClient,
    vm: &str,
    disk: &str,
    (from, to): (u64, u64),
) -> Result<Ranges> {
    let disk: DiskId = disk.parse().context("the appliance sent a disk id this version does not know")?;
    let at = |lsn| Some(ProtoWhen { point: Some(Point::Lsn(lsn)) });
    let request = DiffRequest {
        vm: vm.to_owned(),
        from: at(from.min(to)),
        to: at(from.max(to)),
        other: String::new(),
        disk: disk.to_string(),
    };
    handle.block_on(async {
        let mut client = client.clone();
        let mut replies = client.diff(request).await.map_err(|status| refused(&status))?.into_inner();
        let mut ranges = Ranges::default();
        while let Some(reply) = replies.message().await.map_err(|status| refused(&status))? {
            for range in reply.ranges {
                ranges.push(range.offset, range.offset.saturating_add(range.bytes));
            }
        }
        Ok(ranges)
    })
}
