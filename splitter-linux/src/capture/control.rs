//! Control of the kernel side: modes and generations through the shared control page.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tidemark_proto::v1::GapCause;
use tidemark_splitter_core::capture::{Control, ControlError, KernelStatus, Mode, Witness};

use super::layout::{ControlPage, STATE_FULL};
use super::pinned::Pinned;
use super::witness::Witnesses;

/// Switches the kernel side between its modes. Several may exist; all act on the same pinned state.
#[derive(Debug)]
pub struct TapControl {
    pub(crate) pinned: Arc<Pinned>,
    pub(crate) witnesses: Witnesses,
}

/// Ends the generation, as the programs do: only from full mode, so the first cause stays.
pub(crate) fn raise(page: &ControlPage, cause: GapCause) {
    let cause_number = u64::from((cause as i32).unsigned_abs());
    let seen = page.state.load(Ordering::Acquire);
    if seen & STATE_FULL != 0
        && page
            .state
            .compare_exchange(seen, (seen & !STATE_FULL) + 2, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    {
        page.cause.store(cause_number, Ordering::Release);
    }
}

/// Full capture in the next generation, which begins at `producer`. Nothing happens when capture is full already.
pub(crate) fn restart(page: &ControlPage, producer: u64) -> u32 {
    let seen = page.state.load(Ordering::Acquire);
    if seen & STATE_FULL == 0 {
        page.generation_start.store(producer, Ordering::Release);
        // Only the holder of the lock leaves dirty-only mode, and the programs never change it: no race.
        page.state.store((seen + 2) | STATE_FULL, Ordering::Release);
    }
    generation(page)
}

fn generation(page: &ControlPage) -> u32 {
    u32::try_from(page.state.load(Ordering::Acquire) >> 1).unwrap_or(u32::MAX)
}

impl TapControl {
    pub(crate) fn page(&self) -> &ControlPage {
        self.pinned.control_page()
    }
}

impl Control for TapControl {
    fn status(&self) -> KernelStatus {
        let page = self.page();
        let state = page.state.load(Ordering::Acquire);
        let cause = i32::try_from(page.cause.load(Ordering::Acquire)).unwrap_or_default();
        KernelStatus {
            mode: if state & STATE_FULL == 0 { Mode::DirtyOnly } else { Mode::Full },
            generation: u32::try_from(state >> 1).unwrap_or(u32::MAX),
            generation_start: page.generation_start.load(Ordering::Acquire),
            cause: GapCause::try_from(cause).unwrap_or(GapCause::Unspecified),
            drops: page.misses.iter().map(|count: &AtomicU64| count.load(Ordering::Relaxed)).sum(),
        }
    }

    fn restart(&mut self) -> Result<u32, ControlError> {
        let producer = self.pinned.producer();
        if producer < self.page().generation_start.load(Ordering::Acquire) {
            let source = io::Error::other("the ring's producer position went backwards");
            return Err(ControlError { action: "restart capture", source });
        }
        Ok(restart(self.page(), producer))
    }

    fn force_miss(&mut self, cause: GapCause) -> Result<(), ControlError> {
        raise(self.page(), cause);
        Ok(())
    }

    fn witness(&mut self) -> Result<Witness, ControlError> {
        super::witness::poll(&self.pinned, &mut self.witnesses)
            .map_err(|source| ControlError { action: "read the counters of the disks", source })
    }

    fn accept_witness(&mut self) -> Result<(), ControlError> {
        super::witness::accept(&self.pinned, &mut self.witnesses)
            .map_err(|source| ControlError { action: "read the counters of the disks", source })
    }
}
