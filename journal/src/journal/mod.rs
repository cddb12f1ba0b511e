//! The journal of one VM, open. Locks, in the order in which they may be taken: `merging`, `sealing`, `syncing`, `log`,
//! `manifest`, the rest. `merging` and `sealing` are held for long, `syncing` only as long as a commit takes.

mod append;
mod attest;
mod below;
mod branch;
mod compared;
mod fold;
mod kept;
mod keys;
mod merge;
mod open;
mod pins;
mod rules;
mod runs;
mod sync;

use std::fmt::Display;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use tidemark_proto::ids::{DiskId, Lsn, VmId};

pub(crate) use append::push_event;
pub use fold::{Change, Fold};
pub use kept::LiveImages;
use merge::Merging;
pub(crate) use open::{is_listed, read_file, read_manifest};
use runs::next_generation;
pub(crate) use runs::{MemorySegment, Node, Run, Runs, Snapshot};

use crate::attest::{Head, StatementKind};
use crate::changed::{Between, Changes, gather};
use crate::error::{AppendError, ViewError};
use crate::manifest::{DiskState, ManifestLog, Record, State};
use crate::options::limits::{NOTE_KEY_MAX_BYTES, NOTE_VALUE_MAX_BYTES};
use crate::storage::{Storage, StorageFile, StorageLock};
use crate::timeline::{History, Horizon, Timeline, TimelineError};
use crate::view::{Source, View, ViewDisk};
use crate::{DiskRecord, Options, Position, Statistics};

/// The journal of one VM. All methods take `&self`; it may be shared between threads.
///
/// Dropping it without [`Journal::close`] loses nothing that was synced; the next opening only reads more.
#[derive(Debug)]
pub struct Journal {
    storage: Arc<dyn Storage>,
    options: Options,
    vm: VmId,
    key: [u8; 32],
    source: Arc<Source>,
    /// Why nothing can be written, if so.
    read_only: Option<String>,
    poisoned: AtomicBool,
    written_bytes: AtomicU64,
    frames: AtomicU64,
    /// Segments of older programs below this ordinal are hashed, or cannot be.
    old_hashed: AtomicU64,
    /// Those that could not be hashed.
    unhashed: Mutex<Vec<(u64, String)>>,
    merging: Mutex<Merging>,
    /// Whoever waits for `merging` wants it soon: a merge in progress is given up.
    stop_merging: AtomicBool,
    sealing: Mutex<()>,
    dropped: Mutex<Dropped>,
    syncing: Mutex<()>,
    log: Mutex<Log>,
    manifest: Mutex<Manifest>,
    published: RwLock<Published>,
    runs: RwLock<Arc<Runs>>,
    live: LiveImages,
    _lock: Option<Box<dyn StorageLock>>,
}

/// The manifest, or what was read of it when nothing can be written.
#[derive(Debug)]
enum Manifest {
    Writer(Box<ManifestLog>),
    Reader(Box<State>),
}

impl Manifest {
    fn state(&self) -> &State {
        match self {
            Self::Writer(log) => log.state(),
            Self::Reader(state) => state,
        }
    }
}

/// The end of the log, as appended.
#[derive(Debug)]
struct Log {
    position: Position,
    history: Arc<History>,
    horizon: Option<Horizon>,
    open: Option<OpenSegment>,
    /// Segments that were closed since the last sync began.
    unsynced: Vec<(Arc<dyn StorageFile>, Arc<MemorySegment>)>,
    /// Names were added since the last sync began, and the manifest names them.
    names_unsynced: bool,
    last_hash: [u8; 32],
    /// What `last_hash` is over: a segment, and how many of its frames.
    place: (u64, u64),
    /// Heads that get a statement once they are durable.
    heads: Vec<(StatementKind, Head)>,
    floor_us: u64,
    writer_generation: u64,
    head: Vec<u8>,
    /// The last encrypted payload and its checksums: kept for their space.
    sealed: (Vec<u8>, Vec<u32>),
    /// Payloads encrypted since the journal was opened.
    attempts: u64,
}

/// What the manifest does not name any more, and views may still read.
#[derive(Debug, Default)]
struct Dropped {
    segments: Vec<Run>,
    nodes: Vec<Arc<Node>>,
}

/// The segment that frames go to.
#[derive(Debug)]
struct OpenSegment {
    file: Arc<dyn StorageFile>,
    segment: Arc<MemorySegment>,
    length: u64,
    next_ordinal: u64,
    unsynced: bool,
    /// What its header names.
    data_key: u32,
}

/// What is durable.
#[derive(Debug, Clone)]
struct Published {
    position: Position,
    history: Arc<History>,
    horizon: Option<Horizon>,
    head: Head,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere leaves state that was updated last, after everything that can fail.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Journal {
    /// Whose journal it is.
    #[must_use]
    pub fn vm(&self) -> VmId {
        self.vm
    }

    /// Why nothing can be appended, if the journal was opened read-only or is damaged.
    #[must_use]
    pub fn read_only(&self) -> Option<&str> {
        self.read_only.as_deref()
    }

    /// End of what was appended.
    #[must_use]
    pub fn appended(&self) -> Position {
        lock(&self.log).position
    }

    /// End of what is durable.
    #[must_use]
    pub fn durable(&self) -> Position {
        self.published().position
    }

    fn published(&self) -> Published {
        self.published.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn runs(&self) -> Arc<Runs> {
        Arc::clone(&self.runs.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn set_runs(&self, change: impl FnOnce(&mut Runs)) {
        let mut runs = self.runs.write().unwrap_or_else(PoisonError::into_inner);
        let mut changed = runs.as_ref().clone();
        change(&mut changed);
        changed.generation = next_generation();
        *runs = Arc::new(changed);
    }

    /// Adds a disk, or changes what is known of one, durably.
    ///
    /// # Errors
    /// As [`Journal::append`].
    pub fn put_disk(&self, disk: DiskRecord) -> Result<(), AppendError> {
        if disk.id.0 == 0 || disk.identity.len().max(disk.path.len()) > NOTE_KEY_MAX_BYTES {
            return Err(AppendError::Invalid(
                "the disk has no id, or its identity or path is too long".to_owned(),
            ));
        }
        let _syncing = lock(&self.syncing);
        let mut log = lock(&self.log);
        let known = lock(&self.manifest).state().disks.get(&disk.id.0).cloned();
        if known.as_ref().is_some_and(|known| known.record == disk) {
            return Ok(());
        }
        let mut sizes = known.map(|known| known.sizes).unwrap_or_default();
        let from = if sizes.is_empty() { Lsn::ZERO } else { log.position.lsn.next() };
        if sizes.last().is_none_or(|(_, size)| *size != disk.size_bytes) {
            sizes.push((from, disk.size_bytes));
        }
        let size = (from, disk.size_bytes);
        let id = disk.id;
        // The log stays locked: no frame of this disk may come before it is known, none after with an older size.
        self.put_record(&Record::Disk(DiskState { record: disk, sizes }))?;
        let add = |history: &mut Arc<History>| {
            let disk = Arc::make_mut(history).disks.entry(id).or_default();
            if disk.size_at(Lsn(u64::MAX)) != size.1 {
                disk.sizes.push(size);
            }
        };
        add(&mut log.history);
        add(&mut self.published.write().unwrap_or_else(PoisonError::into_inner).history);
        Ok(())
    }

    /// All disks ever protected, by id.
    #[must_use]
    pub fn disks(&self) -> Vec<DiskRecord> {
        lock(&self.manifest).state().disks.values().map(|disk| disk.record.clone()).collect()
    }

    /// Keeps a small fact, durably; the last value of a key wins, an empty value removes the key.
    ///
    /// # Errors
    /// As [`Journal::append`].
    pub fn put_note(&self, key: &str, value: &[u8]) -> Result<(), AppendError> {
        if key.len() > NOTE_KEY_MAX_BYTES || value.len() > NOTE_VALUE_MAX_BYTES {
            return Err(AppendError::Invalid("the note is too long".to_owned()));
        }
        let _syncing = lock(&self.syncing);
        self.put_record(&Record::Note(key.to_owned(), value.to_vec()))
    }

    /// The value of a note.
    #[must_use]
    pub fn note(&self, key: &str) -> Option<Vec<u8>> {
        lock(&self.manifest).state().notes.get(key).cloned()
    }

    /// All notes, by key.
    #[must_use]
    pub fn notes(&self) -> Vec<(String, Vec<u8>)> {
        let manifest = lock(&self.manifest);
        manifest.state().notes.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
    }

    /// A snapshot of what can be recovered, of what is durable only.
    #[must_use]
    pub fn timeline(&self) -> Timeline {
        let published = self.published();
        Timeline::new(published.history, published.horizon, self.runs(), Arc::clone(&self.source))
    }

    /// The disks as of an LSN. Disks that are in a gap there, or unknown by then, are left out.
    ///
    /// # Errors
    /// [`ViewError::Refused`] when no disk remains, and beyond the horizon.
    pub fn view(&self, lsn: Lsn) -> Result<View, ViewError> {
        if let Some(view) = self.kept_view(lsn) {
            return Ok(view);
        }
        let timeline = self.timeline();
        let exact = timeline.exact_disks(lsn);
        let refuse = |error| match error {
            TimelineError::Refused(refused) => ViewError::Refused(refused),
            TimelineError::Read(error) => ViewError::Read(error),
        };
        timeline.check(lsn, &exact).map_err(refuse)?;
        let disks = exact.into_iter().map(|id| ViewDisk { id, size_bytes: timeline.size_at(id, lsn) });
        // Size 0: its protection had ended by then.
        let disks = disks.filter(|disk| disk.size_bytes > 0);
        let runs = self.runs();
        if runs.base.as_ref().is_some_and(|base| lsn < base.lsn) {
            // It was folded since the timeline was asked, which refuses it now.
            self.timeline().check(lsn, &[]).map_err(refuse)?;
        }
        Ok(View::new(Arc::clone(&self.source), &runs, lsn, disks.collect()))
    }

    /// The bytes of a disk that differ between two recovery points, in order. A disk that was added between them is
    /// compared with zeroes, as is what lies beyond the end of one that grew; beyond its end at `to` nothing is compared.
    ///
    /// # Errors
    /// As [`Journal::view`] for either point; [`ViewError::NoDisk`] when the disk is not exact at `to`, or is in a gap at
    /// `from`.
    pub fn changed(&self, disk: DiskId, from: Lsn, to: Lsn) -> Result<Changes, ViewError> {
        let (from, to) = (from.min(to), from.max(to));
        // First: a fold that comes in between then refuses the earlier point, and drops nothing unseen.
        let runs = self.runs();
        let views = (self.view(from)?, self.view(to)?);
        let timeline = self.timeline();
        let has = |view: &View| view.disks().iter().any(|found| found.id == disk);
        if !has(&views.0) && timeline.knows(disk, from) {
            return Err(ViewError::NoDisk { disk, lsn: from });
        }
        if !has(&views.1) {
            return Err(ViewError::NoDisk { disk, lsn: to });
        }
        if runs.base.as_ref().is_some_and(|base| from < base.lsn) {
            // A snapshot: what was written since then is not in the log any more.
            return Ok(Changes::of_contents(disk, views.0, views.1));
        }
        let between = Between { disk, from, to };
        let (cursors, wide) = gather(&self.source, &runs.segments, &between)?;
        Ok(Changes::new(disk, views, cursors, wide))
    }

    /// Counters.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        let runs = self.runs();
        let mut statistics = Statistics {
            segments: runs.segments.len() as u64,
            nodes: runs.nodes.len() as u64,
            index_bytes: runs.nodes.values().map(|node| node.record.bytes).sum(),
            frames: self.frames.load(Ordering::Relaxed),
            index_cache_bytes: self.source.cache_bytes() as u64,
            written_bytes: self.written_bytes.load(Ordering::Relaxed),
            ..Statistics::default()
        };
        for run in &runs.segments {
            statistics.payload_bytes += run.summary().payload_bytes;
            match run {
                Run::Sealed(sealed) => {
                    statistics.segment_bytes += sealed.bytes;
                    statistics.index_bytes += sealed.leaf_bytes;
                }
                Run::Open(segment) => {
                    statistics.segment_bytes += segment.closed().map_or(0, |closed| closed.bytes);
                }
                Run::Node(_) => {}
            }
        }
        statistics.segment_bytes += lock(&self.log).open.as_ref().map_or(0, |open| open.length);
        if let Manifest::Writer(manifest) = &*lock(&self.manifest) {
            statistics.written_bytes += manifest.written_bytes();
        }
        statistics
    }

    /// Whether a sync failed, so that it takes nothing more until it is opened again.
    #[must_use]
    pub fn is_poisoned(&self) -> bool {
        matches!(self.writable(), Err(AppendError::Poisoned))
    }

    /// Whether something may be written.
    fn writable(&self) -> Result<(), AppendError> {
        if let Some(reason) = &self.read_only {
            return Err(AppendError::ReadOnly(reason.clone()));
        }
        if self.poisoned.load(Ordering::SeqCst) { Err(AppendError::Poisoned) } else { Ok(()) }
    }

    fn poison(&self) {
        self.poisoned.store(true, Ordering::SeqCst);
        // Whoever opens the journal again waits for this one to be dropped.
        self.stop_merging.store(true, Ordering::SeqCst);
    }

    fn written(&self, bytes: impl TryInto<u64, Error: Display>) {
        self.written_bytes.fetch_add(bytes.try_into().unwrap_or(0), Ordering::Relaxed);
    }
}
