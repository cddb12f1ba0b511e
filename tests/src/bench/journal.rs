//! What the journal costs by itself, without guests or a network: `tests/bench journal`.

mod ingest;
mod open;
mod read;
mod stream;

use std::path::Path;

use anyhow::Result;

use super::Table;

pub use stream::{MIB, as_f64};

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// Bytes of payload for each number of VMs.
    pub ingest_bytes: u64,
    /// How many VMs write at the same time.
    pub vms: &'static [usize],
    /// Sector-sized writes in the history of the large disk.
    pub writes: u64,
    /// Bytes of 4 KiB writes in the history that is read.
    pub read_bytes: u64,
}

/// What `tests/bench journal` measures.
pub const FULL: Sizes =
    Sizes { ingest_bytes: 4 << 30, vms: &[1, 100, 1000], writes: 10_000_000, read_bytes: 4 << 30 };

/// Shows that it works, not what it costs.
pub const SMOKE: Sizes =
    Sizes { ingest_bytes: 64 << 20, vms: &[1, 20], writes: 100_000, read_bytes: 192 << 20 };

/// Measures everything in a folder of its own below `folder`.
///
/// # Errors
/// When a journal or a file cannot be written or read.
pub fn measure(sizes: &Sizes, folder: &Path, table: &mut Table) -> Result<()> {
    ingest::measure(sizes, folder, table)?;
    open::measure(sizes, folder, table)?;
    read::measure(sizes, folder, table)
}
