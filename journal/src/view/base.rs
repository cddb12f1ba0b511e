//! Images below the log, as whoever keeps them gives them.

use std::fmt::Debug;

use tidemark_proto::ids::DiskId;
use tidemark_proto::limits::SECTOR_BYTES;

use super::{Extent, ExtentKind};

/// Reads images. They never change, and one that the manifest or an open view names must stay.
pub trait BaseImages: Debug + Send + Sync {
    /// Fills the buffer with the content of the image of a disk from a sector on, verified; `image` is what was given to
    /// [`crate::Journal::set_base`]. What lies beyond the image's end reads as zeroes.
    ///
    /// # Errors
    /// When it cannot be read as it was written.
    fn read(
        &self,
        disk: DiskId,
        image: &[u8],
        sector: u64,
        buffer: &mut [u8],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>>;

    /// Runs of data and zeroes that cover the sectors `[sector, sector + sectors)` of the image, in order and without
    /// holes, in bytes of the disk. Whoever knows nothing better says that all of it is data.
    ///
    /// # Errors
    /// As [`BaseImages::read`].
    fn extents(
        &self,
        _disk: DiskId,
        _image: &[u8],
        sector: u64,
        sectors: u64,
    ) -> Result<Vec<Extent>, Box<dyn std::error::Error + Send + Sync>> {
        let offset = sector.saturating_mul(SECTOR_BYTES);
        Ok(vec![Extent { offset, bytes: sectors.saturating_mul(SECTOR_BYTES), kind: ExtentKind::Data }])
    }

    /// Lets go of whatever is kept for the next read and keeps files of a journal from being removed. The next read
    /// finds it anew.
    fn let_go(&self) {}
}
