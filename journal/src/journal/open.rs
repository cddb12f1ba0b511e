//! Creating and opening.

use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, RwLock};

use tidemark_proto::ids::VmId;

use super::{Journal, LiveImages, Log, Manifest, Merging, OpenSegment, Published, Runs, Snapshot};
use crate::Options;
use crate::encryption::{DataKeys, KEY_FILE, KEY_NEW_FILE};
use crate::error::OpenError;
use crate::leaf::leaf_name;
use crate::manifest::{
    self, MANIFEST_FILE, MANIFEST_NEW_FILE, ManifestError, ManifestLog, Read, Record, State,
};
use crate::options::limits::SEGMENT_MAX_BYTES;
use crate::recovery::{Damage, Recovered, RecoveryReport, Tail, replay};
use crate::segment::{SEGMENT_HEADER_BYTES, SegmentHeader, segment_name};
use crate::storage::{Storage, StorageErrorKind, StorageLock};
use crate::view::Source;
use crate::wire::size;

/// Files that no manifest names get this before their name.
const ASIDE: &str = "aside-";

/// What the names of segments begin with.
const SEGMENT: &str = "segment-";

/// What the names of nodes begin with.
const NODE: &str = "node-";

impl Journal {
    /// A new journal in an empty directory.
    ///
    /// # Errors
    /// [`OpenError::Exists`] when one is there; see [`OpenError`].
    pub fn create(storage: Arc<dyn Storage>, vm: VmId, options: Options) -> Result<Self, OpenError> {
        check_options(&options)?;
        let lock = take_lock(storage.as_ref())?;
        // Segments without a manifest are a journal too, which waits for a copy of it.
        if storage.list()?.iter().any(|name| name == MANIFEST_FILE || name.starts_with(SEGMENT)) {
            return Err(OpenError::Exists);
        }
        let keys = keys_for_writing(storage.as_ref(), vm, &options)?;
        let mut manifest = ManifestLog::create(storage.as_ref(), vm, options.key)?;
        manifest.append(&Record::Writer(1))?;
        manifest.append(&Record::HashedFrom(1))?;
        manifest.sync()?;
        let recovered = replay(storage.as_ref(), &options.key, manifest.state())?;
        let key = options.key;
        Ok(Self::assemble(
            storage,
            options,
            (vm, key, keys),
            Manifest::Writer(Box::new(manifest)),
            recovered,
            None,
            Some(lock),
        ))
    }

    /// Opens for writing, exclusively, after recovery. With damage in acknowledged content it opens read-only and the
    /// report says what is damaged; nothing is changed then.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(storage: Arc<dyn Storage>, options: Options) -> Result<(Self, RecoveryReport), OpenError> {
        check_options(&options)?;
        let lock = take_lock(storage.as_ref())?;
        settle(storage.as_ref(), MANIFEST_FILE)?;
        let read = read_manifest(storage.as_ref())?;
        for ordinal in read.state.open.keys() {
            settle(storage.as_ref(), &segment_name(*ordinal))?;
        }
        let recovered = replay(storage.as_ref(), &read.key, &read.state)?;
        if read.damage.is_some() || recovered.damage.is_some() {
            return Self::read_only_from(storage, options, read, recovered, Some(lock));
        }
        if !DataKeys::are_in(storage.as_ref())? && any_encrypted(storage.as_ref(), &read.state)? {
            return Err(OpenError::Keys(
                "its segments are encrypted and the file of its data keys is gone: put a copy back",
            ));
        }
        let keys = keys_for_writing(storage.as_ref(), read.vm, &options)?;
        let mut report = RecoveryReport { frames_scanned: recovered.frames, ..RecoveryReport::default() };
        let (vm, key) = (read.vm, read.key);
        report.cut_bytes = recovered.cut_bytes + read.torn.as_ref().map_or(0, |torn| torn.bytes);
        let mut manifest = ManifestLog::resume(storage.open(MANIFEST_FILE)?, read)?;
        repair(storage.as_ref(), &recovered, &mut manifest)?;
        report.moved_aside = move_aside(storage.as_ref(), manifest.state())?;
        let manifest = Manifest::Writer(Box::new(manifest));
        Ok((Self::assemble(storage, options, (vm, key, keys), manifest, recovered, None, Some(lock)), report))
    }

    /// Opens for reading, changing nothing, beside a writer if need be. What the writer appends later is not seen.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open_read_only(
        storage: Arc<dyn Storage>,
        options: Options,
    ) -> Result<(Self, RecoveryReport), OpenError> {
        check_options(&options)?;
        /// A writer that works meanwhile can make an unfinished frame look like damage that later frames deny.
        const ATTEMPTS: u32 = 3;
        let mut attempt = 1;
        loop {
            let read = read_manifest(storage.as_ref())?;
            let recovered = replay(storage.as_ref(), &read.key, &read.state)?;
            let damaged = read.damage.is_some() || recovered.damage.is_some();
            if !damaged || attempt == ATTEMPTS {
                return Self::read_only_from(storage, options, read, recovered, None);
            }
            attempt += 1;
        }
    }

    fn read_only_from(
        storage: Arc<dyn Storage>,
        options: Options,
        read: Read,
        recovered: Recovered,
        lock: Option<Box<dyn StorageLock>>,
    ) -> Result<(Self, RecoveryReport), OpenError> {
        // Without keys everything but content can be read.
        let keys = match &options.encryption {
            Some(encryption) => DataKeys::load(storage.as_ref(), read.vm, &encryption.master)?,
            None => None,
        };
        let damage = read.damage.or_else(|| recovered.damage.clone());
        let reason = damage.as_ref().map_or_else(|| "it was opened for reading".to_owned(), damaged_reason);
        let report = RecoveryReport { damage, frames_scanned: recovered.frames, ..RecoveryReport::default() };
        let manifest = Manifest::Reader(Box::new(read.state));
        let journal = Self::assemble(
            storage,
            options,
            (read.vm, read.key, keys),
            manifest,
            recovered,
            Some(reason),
            lock,
        );
        Ok((journal, report))
    }

    pub(super) fn assemble(
        storage: Arc<dyn Storage>,
        options: Options,
        (vm, key, keys): (VmId, [u8; 32], Option<DataKeys>),
        manifest: Manifest,
        recovered: Recovered,
        read_only: Option<String>,
        lock: Option<Box<dyn StorageLock>>,
    ) -> Self {
        let history = Arc::new(recovered.history);
        let open = match recovered.tail {
            Tail::New => None,
            Tail::Open(tail) => Some(OpenSegment {
                file: tail.file,
                segment: tail.segment,
                length: tail.length,
                next_ordinal: tail.next_ordinal,
                unsynced: false,
                data_key: tail.data_key,
            }),
        };
        let log = Log {
            position: recovered.position,
            history: Arc::clone(&history),
            horizon: recovered.horizon,
            open,
            unsynced: Vec::new(),
            names_unsynced: false,
            last_hash: recovered.last_hash,
            place: recovered.place,
            heads: Vec::new(),
            floor_us: recovered.floor_us,
            writer_generation: manifest.state().writer_generation,
            head: Vec::new(),
            sealed: (Vec::new(), Vec::new()),
            attempts: 0,
        };
        let head = log.head();
        let published = Published { position: recovered.position, history, horizon: recovered.horizon, head };
        let mut runs = Runs::new(recovered.runs, manifest.state().nodes.values());
        runs.base.clone_from(&manifest.state().base);
        let kept = manifest.state().kept.iter();
        runs.kept = kept.map(|(lsn, kept)| (*lsn, Snapshot::new(Arc::clone(kept)))).collect();
        let live = LiveImages::default();
        live.add(runs.base.iter().chain(runs.kept.values().map(|snapshot| &snapshot.base)));
        let source = Arc::new(Source::new(Arc::clone(&storage), key, options.index_cache_bytes));
        source.set_keys(keys.map(Arc::new));
        Self {
            storage,
            options,
            vm,
            key,
            source,
            read_only,
            poisoned: AtomicBool::new(false),
            written_bytes: AtomicU64::new(0),
            frames: AtomicU64::new(0),
            old_hashed: AtomicU64::new(0),
            unhashed: Mutex::default(),
            merging: Mutex::new(Merging::default()),
            stop_merging: AtomicBool::new(false),
            sealing: Mutex::new(()),
            dropped: Mutex::default(),
            syncing: Mutex::new(()),
            log: Mutex::new(log),
            manifest: Mutex::new(manifest),
            published: RwLock::new(published),
            runs: RwLock::new(Arc::new(runs)),
            live,
            _lock: lock,
        }
    }
}

fn damaged_reason(damage: &Damage) -> String {
    format!(
        "acknowledged content is damaged ({damage}): restore these bytes from a copy, or recover what is left"
    )
}

pub(super) fn check_options(options: &Options) -> Result<(), OpenError> {
    if options.segment_bytes == 0 || options.segment_bytes > SEGMENT_MAX_BYTES {
        return Err(OpenError::Option("segment_bytes"));
    }
    Ok(())
}

/// Whether the newest sealed or an open segment is encrypted.
fn any_encrypted(storage: &dyn Storage, state: &State) -> Result<bool, OpenError> {
    for ordinal in state.sealed.keys().last().into_iter().chain(state.open.keys()) {
        let file = match storage.open(&segment_name(*ordinal)) {
            Ok(file) => file,
            Err(error) if error.kind() == StorageErrorKind::Missing => continue,
            Err(error) => return Err(error.into()),
        };
        let mut header = vec![0; SEGMENT_HEADER_BYTES];
        if file.len()? >= SEGMENT_HEADER_BYTES as u64 {
            file.read_at(0, &mut header)?;
        }
        if SegmentHeader::decode(&header).is_some_and(|(header, _)| header.data_key > 0) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The data keys, made when the journal is to be encrypted and was not before.
pub(super) fn keys_for_writing(
    storage: &dyn Storage,
    vm: VmId,
    options: &Options,
) -> Result<Option<DataKeys>, OpenError> {
    match &options.encryption {
        Some(encryption) => match DataKeys::load(storage, vm, &encryption.master)? {
            Some(keys) => Ok(Some(keys)),
            None => DataKeys::create(storage, vm, encryption).map(Some),
        },
        None if DataKeys::are_in(storage)? => {
            Err(OpenError::Keys("open it with the master key that its data keys are wrapped under"))
        }
        None => Ok(None),
    }
}

pub(super) fn take_lock(storage: &dyn Storage) -> Result<Box<dyn StorageLock>, OpenError> {
    storage.lock().map_err(|error| match error.kind() {
        StorageErrorKind::Locked => OpenError::Locked,
        _ => OpenError::Storage(error),
    })
}

/// What a writer before us failed to sync may still be cached as if it were durable; recovery must not take it for
/// that. Sealed segments and their indexes need none of this: the manifest names them only after a sync that succeeded.
fn settle(storage: &dyn Storage, name: &str) -> Result<(), crate::storage::StorageError> {
    match storage.open(name) {
        Ok(file) => file.settle(),
        Err(error) if error.kind() == StorageErrorKind::Missing => Ok(()),
        Err(error) => Err(error),
    }
}

/// The bytes of a whole file.
pub(crate) fn read_file(storage: &dyn Storage, name: &str) -> Result<Vec<u8>, crate::storage::StorageError> {
    let file = storage.open(name)?;
    let mut bytes = vec![0; size(file.len()?)];
    file.read_at(0, &mut bytes)?;
    Ok(bytes)
}

pub(crate) fn read_manifest(storage: &dyn Storage) -> Result<Read, OpenError> {
    let bytes = match read_file(storage, MANIFEST_FILE) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == StorageErrorKind::Missing => return Err(OpenError::Missing),
        Err(error) => return Err(error.into()),
    };
    manifest::read(&bytes).map_err(|error| match error {
        ManifestError::Damaged(damage) => OpenError::Damaged(damage),
        newer @ (ManifestError::Newer(_) | ManifestError::Version(_)) => OpenError::Newer(newer.to_string()),
    })
}

/// Cuts the tail, drops what held nothing acknowledged, and fences older writers; durable before anything is appended.
fn repair(storage: &dyn Storage, recovered: &Recovered, manifest: &mut ManifestLog) -> Result<(), OpenError> {
    if let Tail::Open(tail) = &recovered.tail {
        if recovered.cut_bytes > 0 {
            tail.file.truncate(tail.length)?;
        }
        // Frames that a killed process wrote may not be on the disk yet, and are about to be reported as durable.
        tail.file.sync()?;
    }
    for run in &recovered.runs {
        if let super::Run::Open(segment) = run
            && segment.closed().is_some()
        {
            storage.open(&segment_name(segment.ordinal))?.sync()?;
            segment.set_footer_durable();
        }
    }
    storage.sync_dir()?;
    for ordinal in &recovered.drop {
        manifest.append(&Record::Dropped(*ordinal))?;
    }
    manifest.append(&Record::Writer(manifest.state().writer_generation + 1))?;
    if manifest.state().hashed_from.is_none() {
        // A program of an older version wrote it; the segment that is open may go on with its frames in it.
        manifest.append(&Record::HashedFrom(manifest.state().last_ordinal + 1))?;
    }
    let position = recovered.position;
    manifest.sync()?;
    manifest.append(&Record::Durable { seq: position.seq, lsn: position.lsn })?;
    Ok(())
}

/// Renames what the manifest does not name: it is no part of the journal, but not ours to destroy either.
fn move_aside(storage: &dyn Storage, state: &State) -> Result<Vec<String>, OpenError> {
    let mut moved = Vec::new();
    for name in storage.list()? {
        if name == MANIFEST_FILE || name.starts_with(ASIDE) || is_listed(&name, state) {
            continue;
        }
        if name == MANIFEST_NEW_FILE
            || name == KEY_NEW_FILE
            || name.starts_with(NODE)
            || is_folded(&name, state)
        {
            // A snapshot that never got its name, of which the manifest holds all; a node that can be merged again; what
            // the manifest says to be dropped.
            storage.remove(&name)?;
            continue;
        }
        let aside = format!("{ASIDE}{name}");
        storage.rename(&name, &aside)?;
        moved.push(aside);
    }
    storage.sync_dir()?;
    Ok(moved)
}

/// Whether it is a segment or leaf that images hold and the manifest has dropped.
fn is_folded(name: &str, state: &State) -> bool {
    let ordinal = name.strip_prefix("segment-").or_else(|| name.strip_prefix("leaf-"));
    let ordinal = ordinal.and_then(|digits| u64::from_str_radix(digits, 16).ok());
    let ours = |ordinal: &u64| name == segment_name(*ordinal) || name == leaf_name(*ordinal);
    state.base.as_ref().is_some_and(|base| ordinal.filter(ours).is_some_and(|at| at < base.first_ordinal))
}

pub(crate) fn is_listed(name: &str, state: &State) -> bool {
    let sealed = |ordinal: &u64| name == segment_name(*ordinal) || name == leaf_name(*ordinal);
    name == KEY_FILE
        || state.sealed.keys().any(sealed)
        || state.open.keys().any(|ordinal| name == segment_name(*ordinal))
        || state.nodes.keys().any(|span| name == span.name())
}
