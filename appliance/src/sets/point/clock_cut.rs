//! Where a member stands that was not held: at its last write up to a time, by its own clock.

use std::sync::Arc;
use std::time::Duration;

use tidemark_journal::timeline::Timeline;
use tidemark_proto::ids::Lsn;
use tokio::time::Instant;

use crate::fleet::Vm;

/// How long to wait until a member's stream has come so far that its place is known, and can be recovered: many heartbeats,
/// and the round trip of a stream that is busy. Who is further behind is missing from the point.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// How often a journal is looked at that gets no commits: none should come in between.
const IDLE_INTERVAL: Duration = Duration::from_millis(200);

/// A place of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cut {
    pub(super) lsn: Lsn,
    /// Appliance time of that, microseconds since 1970.
    pub(super) time_us: u64,
    /// By how much the member's clock may have been wrong.
    pub(super) error_us: u64,
}

/// The last write of a VM at or before a time of the appliance.
pub(super) async fn at_time(vm: &Arc<Vm>, at_us: u64) -> Result<Cut, String> {
    if vm.session().is_none() {
        return Err("its splitter is not connected".to_owned());
    }
    let before_us = vm.live().clock_error_us;
    let found = once(vm, move |timeline| {
        if timeline.horizon().is_none_or(|horizon| horizon.time_us < at_us) {
            return None;
        }
        let found = timeline.at_time(at_us, &[]).map_err(|error| error.to_string());
        Some(found.and_then(|lsn| Ok((lsn, timeline.time_of(lsn).map_err(|error| error.to_string())?))))
    })
    .await;
    let (lsn, time_us) = found.unwrap_or_else(|| {
        Err("its stream is behind: it did not tell in time what it had written by then".to_owned())
    })?;
    let Some(error_us) = before_us.max(vm.live().clock_error_us) else {
        return Err("how wrong its clock may be is not known".to_owned());
    };
    Ok(Cut { lsn, time_us, error_us })
}

/// Waits until a VM can be recovered to an LSN. Gives its time, microseconds since 1970.
pub(super) async fn recoverable(vm: &Arc<Vm>, lsn: Lsn) -> Result<u64, String> {
    let found = once(vm, move |timeline| {
        if timeline.horizon().is_none_or(|horizon| horizon.lsn < lsn) {
            return None;
        }
        let checked = timeline.check(lsn, &[]).map_err(|error| error.to_string());
        Some(checked.and_then(|()| timeline.time_of(lsn).map_err(|error| error.to_string())))
    })
    .await;
    found.unwrap_or_else(|| Err(format!("its lsn:{lsn} was not confirmed in time")))
}

/// Waits until a timeline has an answer, for [`PATIENCE`] at most.
async fn once<T: Send + 'static>(
    vm: &Arc<Vm>,
    ask: impl Fn(&Timeline) -> Option<Result<T, String>> + Clone + Send + 'static,
) -> Option<Result<T, String>> {
    let deadline = Instant::now() + PATIENCE;
    let mut durable = vm.log.watch();
    loop {
        // What is committed from here on is looked at again.
        durable.mark_unchanged();
        let (log, ask) = (Arc::clone(&vm.log), ask.clone());
        let asked = tokio::task::spawn_blocking(move || match log.journal() {
            Ok(journal) => ask(&journal.timeline()),
            Err(down) => Some(Err(down.to_string())),
        });
        let answer = asked.await.unwrap_or_else(|error| Some(Err(error.to_string())));
        if answer.is_some() || Instant::now() >= deadline {
            return answer;
        }
        let soon = deadline.min(Instant::now() + IDLE_INTERVAL);
        // The log is there as long as the VM is.
        let _ = tokio::time::timeout_at(soon, durable.changed()).await;
    }
}
