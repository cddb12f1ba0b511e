//! Where a stream stands after a frame.

use tidemark_proto::ids::{CaptureId, ChainHash, Generation, Lsn};

/// The end of a frame: everything up to here, and nothing beyond. The default is the position before the first frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Position {
    /// Frames so far: dense from 1, over all sessions of the VM.
    pub seq: u64,
    /// Highest LSN taken so far.
    pub lsn: Lsn,
    /// The ring that `ring_position` belongs to.
    pub capture_id: CaptureId,
    /// Ring byte position after the last record that is covered.
    pub ring_position: u64,
    /// The stream's chain hash after this frame, as the splitter computed it and the appliance checked it.
    pub chain: ChainHash,
    /// Capture generation of the frame.
    pub generation: Generation,
}
