//! Images below the log, as whoever keeps them gives them.

use std::fmt::Debug;

use tidemark_proto::ids::DiskId;

/// Runs of sectors that read as zeroes: first sector and sectors, ascending and apart.
pub type Zeroes = Vec<(u64, u64)>;

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

    /// Of the sectors `[sector, sector + sectors)` those that are known to read as zeroes without reading them. To name
    /// none is always right.
    ///
    /// # Errors
    /// As [`BaseImages::read`].
    fn zeroes(
        &self,
        disk: DiskId,
        image: &[u8],
        sector: u64,
        sectors: u64,
    ) -> Result<Zeroes, Box<dyn std::error::Error + Send + Sync>> {
        let _ = (disk, image, sector, sectors);
        Ok(Zeroes::new())
    }
}
