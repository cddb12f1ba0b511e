//! Free space below the data folder. Ingest stops while a reserve is left, so that the catalog, the manifests and the
//! operator's shell still work.

use std::path::Path;

/// Bytes kept free at most: enough for the segments that 64 streams have in memory. On a small file system a
/// [`RESERVE_DIVISOR`]th is kept instead. Below it every stream ends with a Goodbye that asks to come back.
const RESERVE_MAX_BYTES: u64 = 256 << 20;

/// See [`RESERVE_MAX_BYTES`].
const RESERVE_DIVISOR: u64 = 20;

/// Ingest resumes when this many reserves are free, so that it does not flap.
const RESUME_FACTOR: u64 = 2;

/// Of the reserve the last part, of so many, is for the index of the chunk store alone; folding takes the others, and makes
/// space of them.
const FLOOR_DIVISOR: u64 = 4;

/// Low space is an alarm below this many reserves.
const LOW_FACTOR: u64 = 4;

/// How much space there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Space {
    /// Bytes this process may still write.
    pub free_bytes: u64,
    /// Bytes kept free.
    pub reserve_bytes: u64,
    /// Ingest is stopped.
    pub full: bool,
}

impl Space {
    /// Looks at the file system of `path`. `was_full` is the previous answer.
    ///
    /// # Errors
    /// When the file system cannot be asked.
    pub fn measure(path: &Path, was_full: bool) -> Result<Self, nix::Error> {
        let stat = nix::sys::statvfs::statvfs(path)?;
        let unit = stat.fragment_size();
        let free_bytes = stat.blocks_available().saturating_mul(unit);
        Ok(Self::judge(free_bytes, stat.blocks().saturating_mul(unit), was_full))
    }

    fn judge(free_bytes: u64, total_bytes: u64, was_full: bool) -> Self {
        let reserve_bytes = (total_bytes / RESERVE_DIVISOR).min(RESERVE_MAX_BYTES);
        let limit = if was_full { reserve_bytes.saturating_mul(RESUME_FACTOR) } else { reserve_bytes };
        Self { free_bytes, reserve_bytes, full: free_bytes < limit }
    }

    /// Bytes that the chunk store leaves of the reserve: its index must never meet a full disk. 64 MiB, except on a small
    /// file system.
    #[must_use]
    pub fn floor_bytes(&self) -> u64 {
        self.reserve_bytes / FLOOR_DIVISOR
    }

    /// Whether an operator should add space.
    #[must_use]
    pub fn low(&self) -> bool {
        self.free_bytes < self.reserve_bytes.saturating_mul(LOW_FACTOR)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ingest_stops_at_the_reserve_and_resumes_at_twice_of_it() {
        let total = 100 << 30;
        assert!(!Space::judge(RESERVE_MAX_BYTES, total, false).full);
        assert!(Space::judge(RESERVE_MAX_BYTES - 1, total, false).full);
        assert!(Space::judge(2 * RESERVE_MAX_BYTES - 1, total, true).full);
        assert!(!Space::judge(2 * RESERVE_MAX_BYTES, total, true).full);
        assert_eq!(Space::judge(0, 20 << 20, false).reserve_bytes, 1 << 20);
        assert_eq!(Space::judge(0, total, false).floor_bytes(), 64 << 20);
    }
}
