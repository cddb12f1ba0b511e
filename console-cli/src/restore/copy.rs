//! Moves the bytes of one disk from a view to a target: several reads on the way at once, the writes of the ones before
//! beside them, and checkpoints in between.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, Result};
use indicatif::ProgressBar;
use tidemark_proto::v1::ViewDisk;
use tokio::task::{JoinHandle, JoinSet};

use super::Target;
use crate::view::{Piece, RemoteView};

/// Bytes of one read: large enough that a round trip does not matter.
const READ_BYTES: u64 = 8 << 20;
/// Reads on the way at once; each has one write behind it. With [`READ_BYTES`] this bounds the memory of a restore to
/// 64 MiB.
const READS_AT_ONCE: usize = 4;
/// Bytes between checkpoints: what an interrupted restore repeats at most.
const CHECKPOINT_BYTES: u64 = 1 << 30;

/// What a restore did.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Restored {
    /// Bytes that came over the wire; the rest of the disk reads as zeroes or was there from an interrupted run.
    pub(crate) data_bytes: u64,
    /// The prefix that an interrupted run had left.
    pub(crate) resumed_bytes: u64,
}

/// Copies `disk`, from where the target's earlier run stopped, and finishes the target.
pub(crate) async fn restore(
    view: &Arc<RemoteView>,
    disk: &ViewDisk,
    target: Arc<dyn Target>,
    bar: &ProgressBar,
) -> Result<Restored> {
    let resumed_bytes = target.done_bytes();
    bar.set_position(resumed_bytes);
    bar.reset_eta();
    let mut restored = Restored { resumed_bytes, ..Restored::default() };
    let mut start = resumed_bytes;
    let mut checkpoint = Background::default();
    while start < disk.size_bytes {
        let end = start.saturating_add(CHECKPOINT_BYTES).min(disk.size_bytes);
        restored.data_bytes += copy_range(view, &disk.id, start..end, &target, bar).await?;
        // It becomes durable while the next range is copied.
        checkpoint.wait().await?;
        if end < disk.size_bytes {
            let target = Arc::clone(&target);
            checkpoint.start(move || target.checkpoint(end));
        }
        start = end;
    }
    blocking(move || target.finish()).await?;
    Ok(restored)
}

/// Copies one range with several workers; returns the bytes of data.
async fn copy_range(
    view: &Arc<RemoteView>,
    disk: &str,
    range: std::ops::Range<u64>,
    target: &Arc<dyn Target>,
    bar: &ProgressBar,
) -> Result<u64> {
    let next = Arc::new(AtomicU64::new(range.start));
    let mut workers = JoinSet::new();
    for _ in 0..READS_AT_ONCE {
        let (view, target, next) = (Arc::clone(view), Arc::clone(target), Arc::clone(&next));
        let (disk, bar, end) = (disk.to_owned(), bar.clone(), range.end);
        workers.spawn(async move {
            let mut data_bytes = 0;
            let mut writing = Background::default();
            loop {
                let offset = next.fetch_add(READ_BYTES, Ordering::Relaxed);
                if offset >= end {
                    return writing.wait().await.map(|bytes| data_bytes + bytes);
                }
                let length = READ_BYTES.min(end - offset);
                let pieces = view.read(&disk, offset, length).await.with_context(|| {
                    format!("read {disk} at byte {offset}; run the command again to continue")
                })?;
                data_bytes += writing.wait().await?;
                let (target, bar) = (Arc::clone(&target), bar.clone());
                writing.start(move || {
                    let bytes = write(&*target, offset, &pieces)?;
                    target.start_writeback(offset, length)?;
                    bar.inc(length);
                    Ok(bytes)
                });
            }
        });
    }
    let mut data_bytes = 0;
    // The first failure drops the set, which stops the other workers.
    while let Some(worker) = workers.join_next().await {
        data_bytes += worker.context("a restore worker ended")??;
    }
    Ok(data_bytes)
}

/// One piece of blocking work that goes on while its owner does something else.
struct Background<T>(Option<JoinHandle<Result<T>>>);

impl<T> Default for Background<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T: Default + Send + 'static> Background<T> {
    /// The work before must have been waited for.
    fn start(&mut self, work: impl FnOnce() -> Result<T> + Send + 'static) {
        self.0 = Some(tokio::task::spawn_blocking(work));
    }

    /// Waits for the work that was started, if there is any.
    async fn wait(&mut self) -> Result<T> {
        match self.0.take() {
            Some(work) => work.await.context("a restore worker ended")?,
            None => Ok(T::default()),
        }
    }
}

fn write(target: &dyn Target, offset: u64, pieces: &[Piece]) -> Result<u64> {
    let mut at = offset;
    let mut data_bytes = 0;
    for piece in pieces {
        match piece {
            Piece::Data(data) => {
                target.write_at(at, data)?;
                data_bytes += piece.length();
            }
            Piece::Zeroes(length) => target.write_zeroes(at, *length)?,
        }
        at += piece.length();
    }
    Ok(data_bytes)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.context("a restore worker ended")?
}
