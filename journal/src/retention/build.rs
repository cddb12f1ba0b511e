//! Folding into the chunk store.
//!
//! The steps, each durable before the next: the cutoff; the chunks of the new images; the manifest names them. The
//! session that put the chunks lives until then, so that no collection takes them. Dropping segments is the caller's
//! next step, whenever it likes.

use std::sync::Arc;

use thiserror::Error;
use tidemark_proto::ids::{DiskId, Lsn};
use tidemark_proto::limits::SECTOR_BYTES;

use crate::branch::BranchPoint;
use crate::error::{RetentionError, SyncError, ViewError};
use crate::image::{Image, ImageBuilder, ImageError};
use crate::store::{ChunkStore, KeyDomain, Session, StoreError};
use crate::view::ExtentKind;
use crate::wire::size;
use crate::{Change, Fold, ImageNames, Journal};

/// Bytes of a change that are read at once.
const READ_BYTES: u64 = 1 << 20;

/// Called with the bytes that were worked on since the last call, and with 0 where there was nothing to do: it may wait,
/// for the sake of others, and says whether to go on.
pub type Pace<'a> = dyn FnMut(u64) -> bool + 'a;

/// What a fold did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Folded {
    /// LSN of the base now.
    pub lsn: Lsn,
    /// Bytes that went into images.
    pub bytes: u64,
}

/// A fold did not come to its end. Nothing is lost; it can be begun again.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum FoldError {
    /// The pace said so.
    #[error("the fold was stopped")]
    Stopped,
    /// The chunk store has no space.
    #[error("the chunk store has no space for new images: free space or add some")]
    Full,
    /// The cutoff or the base cannot be changed.
    #[error(transparent)]
    Retention(#[from] RetentionError),
    /// Segments cannot be dropped.
    #[error(transparent)]
    Sync(#[from] SyncError),
    /// The log or the image below cannot be read.
    #[error("reading what is to be folded: {0}")]
    View(#[from] ViewError),
    /// An image cannot be built.
    #[error("building an image: {0}")]
    Image(ImageError),
}

impl From<ImageError> for FoldError {
    fn from(error: ImageError) -> Self {
        match error {
            ImageError::Store(StoreError::Full) => Self::Full,
            error => Self::Image(error),
        }
    }
}

impl From<StoreError> for FoldError {
    fn from(error: StoreError) -> Self {
        ImageError::from(error).into()
    }
}

/// Gives up the points of a journal below `cutoff`, as far as its pins allow, and moves its base there: to the last
/// point up to the cutoff where no gap is open. `None`: the base is there already. Takes long and blocks.
///
/// # Errors
/// See [`FoldError`].
pub fn fold_to(
    journal: &Journal,
    store: &Arc<ChunkStore>,
    domain: KeyDomain,
    cutoff: Lsn,
    now_us: u64,
    pace: &mut Pace<'_>,
) -> Result<Option<Folded>, FoldError> {
    journal.advance_cutoff(cutoff, now_us)?;
    let Some(fold) = journal.plan_fold() else { return Ok(None) };
    let below = journal.base().map(|(_, images)| images).unwrap_or_default();
    let session = store.session(domain)?;
    let mut folded = Folded { lsn: fold.lsn(), bytes: 0 };
    let mut images = ImageNames::new();
    for disk in fold.disks() {
        let below = below.iter().find(|(id, _)| *id == disk.id).map(|(_, descriptor)| descriptor);
        let below = match below {
            // What a branch begins with is read through its parent once more, and not needed from then on.
            Some(descriptor) if BranchPoint::decode(descriptor).is_some() => Below::Parent,
            Some(descriptor) => Below::Image(Image::decode(descriptor)?),
            None => Below::Nothing,
        };
        let (image, bytes) = build(&session, &fold, &below, disk.id, disk.size_bytes, pace)?;
        images.push((disk.id, image.encode()));
        folded.bytes += bytes;
    }
    store.flush()?;
    journal.set_base(fold.lsn(), images)?;
    Ok(Some(folded))
}

/// What a disk's log lies on.
enum Below {
    Nothing,
    Image(Image),
    Parent,
}

fn build(
    session: &Session,
    fold: &Fold,
    below: &Below,
    disk: DiskId,
    size_bytes: u64,
    pace: &mut Pace<'_>,
) -> Result<(Image, u64), FoldError> {
    let previous = if let Below::Image(image) = below { Some(image) } else { None };
    let mut builder = ImageBuilder::new(session, previous, disk, fold.lsn(), size_bytes)?;
    let changes: Box<dyn Iterator<Item = Result<Change, ViewError>>> = match below {
        Below::Parent => Box::new(fold.everything(disk)),
        Below::Nothing | Below::Image(_) => Box::new(fold.changes(disk)),
    };
    let mut buffer = vec![0; size(READ_BYTES)];
    let mut total = 0;
    for change in changes {
        let change = change?;
        if change.kind == ExtentKind::Zero {
            builder.zero(change.start, change.sectors)?;
            continue;
        }
        let (mut at, end) = (change.start, change.start + change.sectors);
        while at < end {
            let sectors = (end - at).min(READ_BYTES / SECTOR_BYTES);
            let bytes = sectors * SECTOR_BYTES;
            let piece = buffer.get_mut(..size(bytes)).unwrap_or_default();
            fold.read_at(disk, at, piece)?;
            builder.write(at, piece)?;
            (at, total) = (at + sectors, total + bytes);
            if !pace(bytes) {
                return Err(FoldError::Stopped);
            }
        }
    }
    if !pace(0) {
        return Err(FoldError::Stopped);
    }
    Ok((builder.finish()?, total))
}
