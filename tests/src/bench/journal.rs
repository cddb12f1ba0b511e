//! What the journal costs by itself, without guests or a network: `tests/bench journal`.

mod dedupe;
mod encryption;
mod fold;
mod ingest;
mod open;
mod read;
mod stream;

use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};

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
    /// Bytes of a round of appends, encrypted and not.
    pub append_bytes: u64,
    /// Bytes of the scaled disk that is folded.
    pub fold_disk_bytes: u64,
    /// Its rounds are divided by this.
    pub fold_divisor: u64,
    /// Bytes of files on each of ten similar disks.
    pub dedupe_bytes: u64,
}

/// What `tests/bench journal` measures.
pub const FULL: Sizes = Sizes {
    ingest_bytes: 4 << 30,
    vms: &[1, 100, 1000],
    writes: 10_000_000,
    read_bytes: 4 << 30,
    append_bytes: 128 << 20,
    fold_disk_bytes: 256 << 20,
    fold_divisor: 1,
    dedupe_bytes: 512 << 20,
};

/// Shows that it works, not what it costs.
pub const SMOKE: Sizes = Sizes {
    ingest_bytes: 64 << 20,
    vms: &[1, 20],
    writes: 100_000,
    read_bytes: 192 << 20,
    append_bytes: 8 << 20,
    fold_disk_bytes: 16 << 20,
    fold_divisor: 60,
    dedupe_bytes: 8 << 20,
};

type Step = fn(&Sizes, &Path, &mut Table) -> Result<()>;

const STEPS: [(&str, Step); 6] = [
    ("many VMs at once", ingest::measure),
    ("encryption of the log", encryption::measure),
    ("views of a long history", open::measure),
    ("reads of a view", read::measure),
    ("folding", fold::measure),
    ("ten similar disks", dedupe::measure),
];

/// Measures everything in a folder of its own below `folder`.
///
/// # Errors
/// When a journal or a file cannot be written or read.
pub fn measure(sizes: &Sizes, folder: &Path, table: &mut Table) -> Result<()> {
    for (what, step) in STEPS {
        writeln!(std::io::stdout(), "== {what}")?;
        step(sizes, folder, table).with_context(|| format!("cannot measure {what}"))?;
    }
    Ok(())
}
