//! The splitter must not be the first victim of a machine in trouble, and must not page from a disk it protects.

use std::fs;

use nix::libc;

/// Locks touched memory and lowers the odds of being killed for memory. Each is a help, not a need: without the
/// privilege the splitter runs all the same and says so.
pub(super) fn apply() {
    // On fault: stacks and arenas that are only reserved stay unbacked.
    // SAFETY: the call takes no pointer and changes only this process' memory policy.
    let locked = unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT) };
    if locked != 0 {
        tracing::info!(error = %std::io::Error::last_os_error(), "memory is not locked");
    }
    if let Err(error) = fs::write("/proc/self/oom_score_adj", "-900") {
        tracing::info!(%error, "the out-of-memory score is not lowered");
    }
}

/// Lets the guest's own threads go first. Called before other threads start, which inherit the level.
///
/// The ring holds seconds of writing, so the splitter need not run at once, only often enough: at level 10 it has a
/// tenth of the weight of a normal thread and still a share of a busy processor, which `SCHED_IDLE` would not give it
/// and without which the ring fills. `SCHED_BATCH` changes nothing here: the worker wakes by a timer, not by writes. A
/// level that is lower already, by `nice` or the service manager, stays.
pub(super) fn yield_to_guest(level: u8) {
    // SAFETY: both calls take numbers only and concern the calling thread.
    let set = unsafe {
        let level = libc::c_int::from(level);
        libc::getpriority(libc::PRIO_PROCESS, 0) >= level
            || libc::setpriority(libc::PRIO_PROCESS, 0, level) == 0
    };
    if !set {
        tracing::info!(error = %std::io::Error::last_os_error(), "the priority is not lowered");
    }
}

/// Has the calling thread run like any program of the guest: writers wait for it. Without the privilege it stays as it is.
pub(super) fn be_prompt() {
    // SAFETY: the call takes numbers only and concerns the calling thread.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 0) };
}

/// Anonymous resident memory: all of the process but program text and the mapped ring and maps, which live in the
/// kernel anyway. 0 when unknown.
pub(super) fn resident_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line.and_then(|rest| rest.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
    kib.unwrap_or(0).saturating_mul(1024)
}
