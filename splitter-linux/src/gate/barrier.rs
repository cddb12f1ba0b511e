//! Holding everything for a moment: the exact barrier of a consistency set.
//!
//! While a barrier holds, a gate takes no request further, reads included, and completes none. Deadlines are kept by the
//! gate's own process: it releases by itself when the holder is late or dead, and says so.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tidemark_proto::limits::HOLD_MAX_MS;

use super::error::GateError;
use super::page::Page;
use crate::daemon::now_us;

/// Longest hold that may be asked for.
pub const HOLD_MAX: Duration = Duration::from_millis(HOLD_MAX_MS as u64);
const POLL: Duration = Duration::from_micros(200);
/// How long a gate may take to close: it does so between two requests. Others stand still meanwhile.
const CLOSE_MAX_US: u64 = 500_000;

/// Volumes that are held. Dropping it releases them.
#[derive(Debug)]
pub struct Hold {
    pages: Vec<Arc<Page>>,
    deadline_us: u64,
    held_since_us: u64,
}

fn broken(what: &str) -> GateError {
    GateError::NotStarted(format!("the barrier was not held: {what}"))
}

impl Hold {
    /// Holds the volumes of these pages, until [`Hold::release`] or for `at_most`. When it returns, all of them hold.
    ///
    /// # Errors
    /// When one does not answer before the deadline; none is held then.
    pub(crate) fn begin(pages: Vec<Arc<Page>>, at_most: Duration) -> Result<Self, GateError> {
        let at_most = at_most.min(HOLD_MAX);
        let deadline_us = now_us().saturating_add(u64::try_from(at_most.as_micros()).unwrap_or(u64::MAX));
        let mut hold = Self { pages, deadline_us, held_since_us: 0 };
        for page in &hold.pages {
            page.words().barrier.store(deadline_us, Ordering::SeqCst);
            page.wake_gate();
        }
        let close_us = deadline_us.min(now_us().saturating_add(CLOSE_MAX_US));
        for page in &hold.pages {
            while page.words().barrier_held.load(Ordering::SeqCst) != deadline_us {
                if now_us() >= close_us {
                    return Err(broken("a gate did not answer in time"));
                }
                std::thread::sleep(POLL);
            }
        }
        hold.held_since_us = now_us();
        Ok(hold)
    }

    /// Releases, and tells for how many microseconds all were held.
    ///
    /// # Errors
    /// When one was released before: at the deadline, or because its process died.
    pub fn release(self) -> Result<u64, GateError> {
        let held = |page: &Arc<Page>| {
            page.words().barrier_held.load(Ordering::SeqCst) == self.deadline_us
                && page.words().barrier_broken.load(Ordering::SeqCst) != self.deadline_us
        };
        let whole = self.pages.iter().all(held);
        // Judged first, timed last: what is held at the judgement was held all the time until then.
        let held_us = now_us().saturating_sub(self.held_since_us);
        if whole { Ok(held_us) } else { Err(broken("a gate released by itself")) }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        for page in &self.pages {
            let word = &page.words().barrier;
            // Another barrier may have followed.
            let _ = word.compare_exchange(self.deadline_us, 0, Ordering::SeqCst, Ordering::SeqCst);
            page.wake_gate();
        }
    }
}

/// Holds every gate of a splitter for a while, without the splitter: for tests and for hands. Returns the time in
/// microseconds that all were held.
///
/// # Errors
/// When a gate does not begin to hold or let go before the end, and when there is no gate.
pub fn hold_all(
    capture: &str,
    volumes: &[String],
    hold: Duration,
    at_most: Duration,
) -> Result<u64, GateError> {
    if volumes.is_empty() {
        return Err(broken("no volume is in synchronous mode"));
    }
    let open = |name: &String| Page::open(&super::page::folder(capture, name)).map(Arc::new);
    let pages = volumes.iter().map(open).collect::<Result<Vec<_>, _>>()?;
    let held = Hold::begin(pages, at_most)?;
    std::thread::sleep(hold);
    held.release()
}
