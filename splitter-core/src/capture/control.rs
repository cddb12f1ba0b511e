//! Control of the kernel side: modes, generations, the witness.

use thiserror::Error;
use tidemark_proto::v1::GapCause;

use super::Slot;

/// How the kernel side treats writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Every write goes into the ring.
    Full,
    /// Something was missed: writes of all disks only mark the dirty maps, at issue and at completion, until
    /// [`Control::restart`].
    DirtyOnly,
}

/// What the kernel side says about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KernelStatus {
    /// Present mode.
    pub mode: Mode,
    /// Raised by the first drop, inside the program that dropped, before the write reaches the hardware.
    pub generation: u32,
    /// Ring position (the producer's) at the last [`Control::restart`], or at load. Kept with the capture.
    pub generation_start: u64,
    /// Why the mode is dirty-only; why it last was.
    pub cause: GapCause,
    /// Requests not captured since the capture was loaded.
    pub drops: u64,
}

/// Whether the independent counters agree that nothing was missed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Witness {
    /// They do.
    Clean,
    /// They do not: writes of these disks were missed without a drop being counted.
    Mismatch {
        /// Disks that may lack writes.
        slots: Vec<Slot>,
        /// The counters, for people.
        detail: String,
    },
}

/// The kernel side, as far as user space controls it.
pub trait Control {
    /// Present status. Cheap: called every few hundred microseconds.
    fn status(&self) -> KernelStatus;

    /// Back to full capture. Called only in dirty-only mode with the ring drained (`position == producer`). Records
    /// written from now on carry the returned generation, which no earlier record has; `generation_start` becomes
    /// the producer position.
    ///
    /// # Errors
    /// When the kernel refuses; the mode stays dirty-only and the engine tries again.
    fn restart(&mut self) -> Result<u32, ControlError>;

    /// Enters dirty-only mode as if a drop had happened, with this cause. On return no write that begins later is
    /// put into the ring.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn force_miss(&mut self, cause: GapCause) -> Result<(), ControlError>;

    /// Compares the counters. A mismatch is reported again at every call, and by every later process, until
    /// [`Control::accept_witness`].
    ///
    /// # Errors
    /// When a counter cannot be read; the poll then counts as not clean.
    fn witness(&mut self) -> Result<Witness, ControlError>;

    /// Takes the counters of the mismatch last reported as right: not the present ones, a write missed since then
    /// must be reported again. Called when the gap of that mismatch is durable.
    ///
    /// # Errors
    /// When the new base cannot be stored; the mismatch then comes again.
    fn accept_witness(&mut self) -> Result<(), ControlError>;
}

/// The kernel side refused a request.
#[derive(Debug, Error)]
#[error("cannot {action}: {source}")]
pub struct ControlError {
    /// What was tried, as "verb object".
    pub action: &'static str,
    /// Why it failed.
    #[source]
    pub source: std::io::Error,
}
