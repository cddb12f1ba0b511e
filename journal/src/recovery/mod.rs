//! What an unclean end of the log means.

mod decide;
mod replay;

use std::fmt;

pub use decide::{Decision, End, decide};
pub(crate) use replay::{Recovered, Tail, replay, time_before};

/// Something in the journal is not what was written, or is missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The file.
    pub file: String,
    /// First byte that cannot be trusted.
    pub offset: u64,
    /// Bytes that cannot be trusted.
    pub bytes: u64,
    /// What is wrong, for people.
    pub problem: String,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at byte {} ({} bytes): {}", self.file, self.offset, self.bytes, self.problem)
    }
}

/// What opening found and did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    /// Acknowledged content is damaged: the journal is read-only, its history ends before the damage.
    pub damage: Option<Damage>,
    /// Bytes of unacknowledged tail that were cut.
    pub cut_bytes: u64,
    /// Files that the manifest does not name, now under these names.
    pub moved_aside: Vec<String>,
    /// Frames that were read again because their segment had no leaf index yet.
    pub frames_scanned: u64,
}
