//! How fast retention works: it has what ingest leaves.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tidemark_journal::Journal;

use crate::core::Core;
use crate::fleet::Vm;

/// Bytes of work after which it is looked at who else works: small enough that a commit never waits for more.
const LOOK_BYTES: u64 = 1 << 20;

/// How long one rest takes at most.
const REST_MAX: Duration = Duration::from_millis(250);

/// Rests as long as it worked, twice, whenever something was ingested meanwhile and there is space; ends when it is told to.
#[derive(Debug)]
pub(super) struct Pacer<'a> {
    core: &'a Core,
    vm: &'a Vm,
    journal: &'a Arc<Journal>,
    bytes: u64,
    since: Instant,
    commits: u64,
}

impl<'a> Pacer<'a> {
    pub(super) fn new(core: &'a Core, vm: &'a Vm, journal: &'a Arc<Journal>) -> Self {
        let commits = core.committer.queued();
        Self { core, vm, journal, bytes: 0, since: Instant::now(), commits }
    }

    /// As [`tidemark_journal::retention::Pace`].
    pub(super) fn go_on(&mut self, bytes: u64) -> bool {
        self.bytes += bytes;
        if bytes > 0 && self.bytes < LOOK_BYTES {
            return true;
        }
        let commits = self.core.committer.queued();
        // While space is short folding goes first: what it frees lets ingest go on at all.
        if commits != self.commits && !self.core.space.borrow().low() {
            std::thread::sleep((self.since.elapsed() * 2).min(REST_MAX));
        }
        (self.bytes, self.since, self.commits) = (0, Instant::now(), self.core.committer.queued());
        // Another journal in its place: this one failed or is being removed, and someone waits for it.
        let current = self.vm.log.journal().is_ok_and(|current| Arc::ptr_eq(&current, self.journal));
        current && !self.core.stopping.is_cancelled() && !self.core.retention.is_paused()
    }
}
