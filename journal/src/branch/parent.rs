//! What lies below a branch: its parent as of one point.

use std::error::Error;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use tidemark_proto::ids::{DiskId, Lsn};
use tidemark_proto::limits::SECTOR_BYTES;

use super::BranchPoint;
use crate::view::{BaseImages, Extent, View};
use crate::wire::size;

/// Reads that one view of the parent serves before the next is opened. A view keeps what it reads alive: the index in
/// memory of segments that have one on disk by now, files that nothing else needs any more. See
/// [`BaseImages::let_go`] for one that is not read.
const READS_PER_VIEW: u32 = 4096;

type Failure = Box<dyn Error + Send + Sync>;

/// Opens views of the parent.
type Open = dyn Fn(Lsn) -> Result<View, Failure> + Send + Sync;

/// The parent of a branch as of the point where it begins. The parent must be pinned there.
pub struct ParentView {
    point: BranchPoint,
    open: Box<Open>,
    view: Mutex<Option<(View, u32)>>,
}

impl fmt::Debug for ParentView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ParentView").field("point", &self.point).finish_non_exhaustive()
    }
}

impl ParentView {
    /// `open` gives views of the parent at an LSN; it is called from time to time, from any thread.
    pub fn new(
        point: BranchPoint,
        open: impl Fn(Lsn) -> Result<View, Failure> + Send + Sync + 'static,
    ) -> Self {
        Self { point, open: Box::new(open), view: Mutex::default() }
    }

    fn view(&self) -> Result<View, Failure> {
        let mut kept = self.view.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((view, left)) = kept.as_mut()
            && *left > 0
        {
            *left -= 1;
            return Ok(view.clone());
        }
        let view = (self.open)(self.point.lsn)?;
        *kept = Some((view.clone(), READS_PER_VIEW));
        Ok(view)
    }

    /// The view, the disk in it, and how many bytes it has there.
    fn disk(&self, disk: DiskId, descriptor: &[u8]) -> Result<(View, DiskId, u64), Failure> {
        let (point, of) = BranchPoint::decode(descriptor)
            .ok_or_else(|| format!("{disk} does not continue a point of another journal"))?;
        if point != self.point {
            let Self { point: own, .. } = self;
            let (lsn, parent) = (point.lsn, point.parent);
            return Err(format!(
                "{disk} continues lsn:{lsn} of {parent}, not lsn:{} of {}",
                own.lsn, own.parent
            )
            .into());
        }
        let view = self.view()?;
        let found = view.disks().iter().find(|found| found.id == of).copied();
        let found = found.ok_or_else(|| format!("the parent has no {of} at lsn:{}", point.lsn))?;
        Ok((view, of, found.size_bytes))
    }
}

impl BaseImages for ParentView {
    fn read(&self, disk: DiskId, image: &[u8], sector: u64, buffer: &mut [u8]) -> Result<(), Failure> {
        let (view, of, end) = self.disk(disk, image)?;
        let offset = sector.saturating_mul(SECTOR_BYTES);
        let inside = size(end.saturating_sub(offset)).min(buffer.len());
        let (content, beyond) = buffer.split_at_mut_checked(inside).unwrap_or_default();
        beyond.fill(0);
        if !content.is_empty() {
            view.read_at(of, offset, content)?;
        }
        Ok(())
    }

    fn extents(&self, disk: DiskId, image: &[u8], sector: u64, sectors: u64) -> Result<Vec<Extent>, Failure> {
        let (view, of, end) = self.disk(disk, image)?;
        let (offset, bytes) = (sector.saturating_mul(SECTOR_BYTES), sectors.saturating_mul(SECTOR_BYTES));
        let inside = end.saturating_sub(offset).min(bytes);
        let mut extents = if inside > 0 { view.extents(of, offset, inside)? } else { Vec::new() };
        extents.extend(Extent::zeroes_beyond(offset, inside, bytes));
        Ok(extents)
    }

    fn let_go(&self) {
        *self.view.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}
