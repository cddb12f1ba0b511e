//! Retention: which policy each VM has, the worker that folds and thins by it, and the collections of the chunk store.
//!
//! What is kept is decided in [`tidemark_journal::retention`]; here is when, at whose cost, and by which clock.

mod clock;
mod collect;
mod effective;
mod engine;
mod holds;
mod pace;
mod policies;

pub use clock::{Jump, Now, RetentionClock, Tick};
pub use collect::{CollectError, collect};
pub(crate) use effective::forget_note;
pub use effective::{DEFAULT_POLICY, all, defined, effective, effective_of};
pub use engine::{Ran, Retention};
pub(crate) use holds::{HOLD, LOCK, bookmark_of, rebuild_held};
pub use policies::{InvalidPolicy, NamedPolicy, parse};
