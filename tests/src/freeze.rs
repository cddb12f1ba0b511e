//! Whether an ext4 image is as a freeze leaves it.

use std::io::Write;
use std::process::Command;

use anyhow::{Result, ensure};

/// In the superblock: feature flags that a reader must know, and the one that says that the journal must be replayed.
const INCOMPATIBLE_AT: usize = 1024 + 0x60;
const NEEDS_RECOVERY: u32 = 4;

/// The file system's journal must be replayed before anybody may look at it.
#[must_use]
pub fn needs_replay(image: &[u8]) -> bool {
    let flags = image.get(INCOMPATIBLE_AT..INCOMPATIBLE_AT + 4).and_then(|bytes| bytes.try_into().ok());
    flags.map_or(0, u32::from_le_bytes) & NEEDS_RECOVERY != 0
}

/// A full check that mends and replays nothing.
///
/// # Errors
/// What it found.
pub fn is_sound(image: &[u8]) -> Result<()> {
    let mut file = tempfile::Builder::new().prefix("tidemark-ext4-").tempfile_in("/dev/shm")?;
    file.write_all(image)?;
    let output = Command::new("e2fsck").arg("-fn").arg(file.path()).output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "e2fsck: {said}");
    Ok(())
}
