//! The witness: counters which the block layer keeps by itself, compared with those of the tap.
//!
//! The tap counts completed sectors before the block layer does (`blk_update_request` traces, then accounts), so the
//! sectors in `/sys/block/DISK/stat` can never be ahead of the tap's unless a completion was missed: programs are
//! skipped when they would nest in themselves on one CPU (`recursion_misses`), which the tap's second program for
//! completions makes good (`src/bpf/notes.h`), but for nesting three deep. A missed issue needs no witness: its completion names a request
//! that the reader does not know.

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tidemark_splitter_core::capture::{Slot, Witness};

use super::layout::{SlotCounters, SlotMeta};
use super::pinned::Pinned;
use super::sys;

/// Fields of `stat` (Documentation/block/stat.rst), counted from 0.
const STAT_WRITE_SECTORS: usize = 6;
const STAT_DISCARD_SECTORS: usize = 13;

/// How often a new disk is looked at for a moment without requests, and the pause between.
const QUIET_ATTEMPTS: u32 = 20;
const QUIET_PAUSE: Duration = Duration::from_millis(1);

/// The disks that are watched, and what was last said about them.
#[derive(Debug, Default)]
pub(crate) struct Witnesses {
    disks: Vec<SlotWitness>,
    reported: Option<Reported>,
}

#[derive(Debug)]
struct SlotWitness {
    slot: u16,
    sys_path: PathBuf,
}

/// The counters at the last reported mismatch: what an acceptance takes as right, so that a write missed after the
/// report is reported again.
#[derive(Debug)]
struct Reported {
    bases: Vec<(u16, Base)>,
    recursion: Vec<u64>,
    doubts: u64,
}

/// How the two counts of a disk relate.
#[derive(Debug, Clone, Copy)]
struct Base {
    stat: Sectors,
    tap: Sectors,
    exact: bool,
}

impl Witnesses {
    /// Watches a disk, in place of the one that the slot had.
    pub(crate) fn add(&mut self, slot: u16, sys_path: PathBuf) {
        self.remove(slot);
        self.disks.push(SlotWitness { slot, sys_path });
    }

    /// Watches the slot no longer.
    pub(crate) fn remove(&mut self, slot: u16) {
        self.disks.retain(|witness| witness.slot != slot);
        if let Some(reported) = &mut self.reported {
            reported.bases.retain(|(known, _)| *known != slot);
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sectors {
    writes: u64,
    discards: u64,
}

fn numbers(path: &Path) -> io::Result<Vec<u64>> {
    let text = std::fs::read_to_string(path)?;
    text.split_whitespace().map(|word| word.parse().map_err(io::Error::other)).collect()
}

/// What the block layer says.
fn accounted(sys_path: &Path) -> io::Result<Sectors> {
    let fields = numbers(&sys_path.join("stat"))?;
    let field =
        |index: usize| fields.get(index).copied().ok_or_else(|| io::Error::other("stat has too few fields"));
    Ok(Sectors { writes: field(STAT_WRITE_SECTORS)?, discards: field(STAT_DISCARD_SECTORS)? })
}

/// Whether no write is between its issue and its accounting.
fn quiet(sys_path: &Path) -> io::Result<bool> {
    Ok(numbers(&sys_path.join("inflight"))?.get(1) == Some(&0))
}

fn counts_io(sys_path: &Path) -> bool {
    std::fs::read_to_string(sys_path.join("queue/iostats")).is_ok_and(|text| text.trim() != "0")
}

fn tapped(counters: &SlotCounters) -> Sectors {
    let load = |counter: &AtomicU64| counter.load(Ordering::Acquire);
    Sectors {
        writes: load(&counters.completed_write_sectors),
        discards: load(&counters.completed_discard_sectors),
    }
}

/// Both counts at one moment without requests in between, if there is such a moment now.
fn both_at_rest(sys_path: &Path, counters: &SlotCounters) -> io::Result<Option<(Sectors, Sectors)>> {
    let before = tapped(counters);
    if !quiet(sys_path)? {
        return Ok(None);
    }
    let stat = accounted(sys_path)?;
    let still = quiet(sys_path)? && tapped(counters) == before;
    Ok(still.then_some((stat, before)))
}

fn store_base(meta: &SlotMeta, base: Base) {
    let difference = |stat: u64, tap: u64| stat.wrapping_sub(tap);
    meta.witness_writes.store(difference(base.stat.writes, base.tap.writes), Ordering::Release);
    meta.witness_discards.store(difference(base.stat.discards, base.tap.discards), Ordering::Release);
    meta.witness_exact.store(u64::from(base.exact), Ordering::Release);
}

/// Relates the two counts of a disk which the programs see already. Exact when a moment without requests is found;
/// otherwise the tap may seem ahead by what completed in these milliseconds, until `poll` finds such a moment.
fn base(sys_path: &Path, counters: &SlotCounters) -> io::Result<Base> {
    for _ in 0..QUIET_ATTEMPTS {
        if let Some((stat, tap)) = both_at_rest(sys_path, counters)? {
            return Ok(Base { stat, tap, exact: true });
        }
        std::thread::sleep(QUIET_PAUSE);
    }
    // All that the tap counted until now is allowed for, and whatever it has not counted is in `stat` by now.
    Ok(Base { stat: accounted(sys_path)?, tap: Sectors { writes: 0, discards: 0 }, exact: false })
}

/// Begins to compare the counts of a disk.
pub(crate) fn start(sys_path: &Path, counters: &SlotCounters, meta: &SlotMeta) -> io::Result<()> {
    store_base(meta, base(sys_path, counters)?);
    Ok(())
}

/// How far `stat` is ahead of the tap, in sectors; 0 when it is not.
fn ahead(meta: &SlotMeta, stat: Sectors, tap: Sectors) -> u64 {
    let lead = |stat: u64, base: &AtomicU64, tap: u64| {
        let lead = stat.wrapping_sub(base.load(Ordering::Acquire)).wrapping_sub(tap).cast_signed();
        u64::try_from(lead).unwrap_or(0)
    };
    lead(stat.writes, &meta.witness_writes, tap.writes)
        + lead(stat.discards, &meta.witness_discards, tap.discards)
}

/// How often each completion program was skipped. A completion is lost only when both were, so the smaller of the
/// two increases bounds the losses; both also count reads and other disks.
fn recursion(pinned: &Pinned) -> io::Result<Vec<u64>> {
    pinned.objects.complete_programs.iter().map(|fd| sys::fd_info(fd.as_fd(), "recursion_misses")).collect()
}

fn skipped(pinned: &Pinned, counts: &[u64]) -> u64 {
    let Some(meta) = pinned.meta_page() else { return 0 };
    let increase =
        |(count, accepted): (&u64, &AtomicU64)| count.saturating_sub(accepted.load(Ordering::Acquire));
    counts.iter().zip(&meta.accepted_recursion).map(increase).min().unwrap_or(0)
}

/// What has the device number now may be another disk, whose writes were captured in the place of the one that is gone.
fn same_disk(sys_path: &Path, meta: &SlotMeta) -> io::Result<()> {
    let sequence = std::fs::read_to_string(sys_path.join("diskseq"))?;
    if sequence.trim().parse() == Ok(meta.disk_sequence.load(Ordering::Acquire)) {
        Ok(())
    } else {
        Err(io::Error::other("the disk was exchanged"))
    }
}

/// Compares the counters of every disk.
pub(crate) fn poll(pinned: &Pinned, witnesses: &mut Witnesses) -> io::Result<Witness> {
    let recursion = recursion(pinned)?;
    let skipped = skipped(pinned, &recursion);
    let doubts = pinned.control_page().doubts.load(Ordering::Acquire);
    let mut reported = Reported { bases: Vec::new(), recursion, doubts };
    let mut details = Vec::new();
    for SlotWitness { slot, sys_path } in &witnesses.disks {
        let (Some(meta), Some(counters)) = (pinned.slot_meta(*slot), pinned.counters(*slot)) else {
            continue;
        };
        same_disk(sys_path, meta)?;
        let exact = meta.witness_exact.load(Ordering::Acquire) != 0;
        let counted = counts_io(sys_path);
        // `stat` is read first: what completes in between only lets the tap be ahead.
        let stat = accounted(sys_path)?;
        let lead = if counted { ahead(meta, stat, tapped(counters)) } else { 0 };
        let detail = if lead > 0 {
            format!("slot {slot}: {lead} sectors completed unseen")
        } else if doubts > 0 {
            format!("slot {slot}: completions were counted in doubt {doubts} times")
        } else if skipped > 0 && !(counted && exact) {
            format!("slot {slot}: the completion program was skipped {skipped} times")
        } else {
            if counted
                && !exact
                && let Some((stat, tap)) = both_at_rest(sys_path, counters)?
            {
                store_base(meta, Base { stat, tap, exact: true });
            }
            continue;
        };
        reported.bases.push((*slot, base(sys_path, counters)?));
        details.push(detail);
    }
    if reported.bases.is_empty() {
        return Ok(Witness::Clean);
    }
    let slots = reported.bases.iter().map(|(slot, _)| Slot(*slot)).collect();
    witnesses.reported = Some(reported);
    Ok(Witness::Mismatch { slots, detail: details.join("; ") })
}

/// Takes the counters of the last reported mismatch as right.
pub(crate) fn accept(pinned: &Pinned, witnesses: &mut Witnesses) -> io::Result<()> {
    let Some(reported) = witnesses.reported.take() else { return Ok(()) };
    for (slot, base) in reported.bases {
        if let Some(meta) = pinned.slot_meta(slot) {
            store_base(meta, base);
        }
    }
    if let Some(meta) = pinned.meta_page() {
        for (accepted, count) in meta.accepted_recursion.iter().zip(reported.recursion) {
            accepted.store(count, Ordering::Release);
        }
    }
    pinned.control_page().doubts.fetch_sub(reported.doubts, Ordering::AcqRel);
    Ok(())
}
