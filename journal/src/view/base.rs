//! Images below the log, as whoever keeps them gives them.

use std::fmt::Debug;

use tidemark_proto::ids::DiskId;

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
}
