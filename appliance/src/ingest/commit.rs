//! Group commit: all journals that took something are made durable together, on a short tick.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{COMMIT_PARALLEL, COMMIT_TICK_MS};
use crate::fleet::VmLog;
use crate::metrics::Metrics;

/// The coordinator's mailbox.
#[derive(Debug, Default)]
pub struct Committer {
    dirty: Mutex<Vec<Arc<VmLog>>>,
    some: Notify,
    urgent: Notify,
    queued: AtomicU64,
}

impl Committer {
    /// The journal has appended content to be made durable; `urgent` when someone waits for it.
    pub fn dirty(&self, log: &Arc<VmLog>, urgent: bool) {
        if log.queue() {
            self.queued.fetch_add(1, Ordering::Relaxed);
            if let Ok(mut dirty) = self.dirty.lock() {
                dirty.push(Arc::clone(log));
            }
            self.some.notify_one();
        }
        if urgent {
            self.urgent.notify_one();
        }
    }

    /// How often a journal was queued since the start: grows as long as something is ingested.
    #[must_use]
    pub fn queued(&self) -> u64 {
        self.queued.load(Ordering::Relaxed)
    }

    /// Commits until `stop`; what is queued by then is still made durable.
    pub async fn run(self: Arc<Self>, metrics: Arc<Metrics>, stop: CancellationToken) {
        let tick = Duration::from_millis(COMMIT_TICK_MS);
        let slots = Arc::new(Semaphore::new(COMMIT_PARALLEL));
        let mut last = Instant::now();
        loop {
            let stopping = tokio::select! {
                () = self.some.notified() => false,
                () = stop.cancelled() => true,
            };
            let wait = tick.saturating_sub(last.elapsed());
            if !stopping && !wait.is_zero() {
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    () = self.urgent.notified() => {}
                    () = stop.cancelled() => {}
                }
            }
            last = Instant::now();
            let logs = self.dirty.lock().map(|mut dirty| std::mem::take(&mut *dirty)).unwrap_or_default();
            commit(logs, &slots, &metrics).await;
            if stopping {
                return;
            }
        }
    }
}

async fn commit(logs: Vec<Arc<VmLog>>, slots: &Arc<Semaphore>, metrics: &Arc<Metrics>) {
    let mut running = JoinSet::new();
    for log in logs {
        let Ok(slot) = Arc::clone(slots).acquire_owned().await else { return };
        let metrics = Arc::clone(metrics);
        running.spawn_blocking(move || {
            let start = Instant::now();
            log.sync();
            metrics.committed(start.elapsed());
            drop(slot);
            // Not awaited: building an index must not hold up the next commit.
            tokio::task::spawn_blocking(move || log.maintain());
        });
    }
    while let Some(done) = running.join_next().await {
        if let Err(error) = done {
            tracing::error!(%error, "a commit ended unexpectedly");
        }
    }
}
