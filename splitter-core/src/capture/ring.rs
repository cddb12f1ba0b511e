//! The ring of captured writes: the kernel appends, one reader numbers.

use thiserror::Error;
use tidemark_proto::ids::CaptureId;

use super::Unit;

/// The reader's side of the ring.
///
/// Positions are bytes appended since the capture was loaded; they only grow and are never reused. Three of them
/// matter: the *producer* (the kernel's), the *position* up to which this reader has looked, and the *consumer* up to
/// which memory was given back. `consumer <= position <= producer <= consumer + size`.
///
/// The consumer outlives the process with the capture; the position does not. A new reader starts at the consumer.
pub trait Ring {
    /// Names this loaded capture; another value means that positions started anew.
    fn capture_id(&self) -> CaptureId;

    /// Position after the last record reserved by the kernel (it may still be being filled).
    fn producer(&self) -> u64;

    /// Position up to which memory was given back to the kernel.
    fn consumer(&self) -> u64;

    /// Position up to which records were read. Units begun before it and not finished are named by `oldest_open`.
    fn position(&self) -> u64;

    /// Bytes the ring holds.
    fn size(&self) -> u64;

    /// Position of the first record of the oldest unit of several parts whose end record was not read yet.
    fn oldest_open(&self) -> Option<u64>;

    /// Forgets every open unit. Called when the kernel is in dirty-only mode and the ring is drained: what is open
    /// then will never end, and the kernel has marked it.
    fn abandon_open(&mut self);

    /// Reads on from `position`, which must be the boundary of a record between consumer and producer.
    ///
    /// # Errors
    /// When the position is outside.
    fn seek(&mut self, position: u64) -> Result<(), RingError>;

    /// The next whole unit in the order of their ends, or `None` when the next record is not there yet. Records of
    /// open units are passed over, so `position` may grow without a unit being returned.
    ///
    /// # Errors
    /// When a record makes no sense; the engine then forces a miss, skips to the producer and reads every disk again.
    fn next(&mut self) -> Result<Option<Unit<'_>>, RingError>;

    /// Gives memory up to `position` back to the kernel. Not beyond `position()` and `oldest_open()`; going back is
    /// ignored.
    fn release(&mut self, position: u64);
}

/// The ring cannot be read on.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RingError {
    /// A record that no version of the kernel side writes.
    #[error("the ring holds a damaged record at position {position}: {detail}")]
    Damaged {
        /// Where it begins.
        position: u64,
        /// What is wrong with it.
        detail: String,
    },
    /// `seek` to a position that the ring does not hold.
    #[error("ring position {position} is outside of {consumer}..={producer}")]
    Outside {
        /// The position asked for.
        position: u64,
        /// First position held.
        consumer: u64,
        /// Last position held.
        producer: u64,
    },
}
