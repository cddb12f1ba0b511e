//! Where views and timelines read from: the parts of leaf indexes, verified, through a cache.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use tidemark_proto::ids::{DiskId, Lsn};

use super::base::BaseImages;
use super::cache::{Cache, Cached, Part};
use super::files::{FileKey, Files};
use super::window::Window;
use crate::encryption::DataKeys;
use crate::error::ReadError;
use crate::index::{IndexEntry, Key, touching};
use crate::journal::Run;
use crate::leaf::{self, Directory, LeafError, leaf_name};
use crate::manifest::Sealed;
use crate::node::{Extent, Span};
use crate::recovery::Damage;
use crate::storage::{Storage, StorageFile};
use crate::wire::size;

/// Reads of one journal.
#[derive(Debug)]
pub(crate) struct Source {
    pub(super) key: [u8; 32],
    files: Files,
    cache: Mutex<Cache>,
    pub(super) broken: Mutex<Broken>,
    images: RwLock<Option<Arc<dyn BaseImages>>>,
    keys: RwLock<Option<Arc<DataKeys>>>,
}

/// Nodes that are damaged.
#[derive(Debug, Default)]
pub(super) struct Broken {
    /// Not to be read.
    pub nodes: BTreeSet<Span>,
    /// Of them, those that nobody has been told of.
    pub news: BTreeSet<Span>,
}

impl Source {
    pub(crate) fn new(storage: Arc<dyn Storage>, key: [u8; 32], cache_bytes: usize) -> Self {
        let cache = Mutex::new(Cache::new(cache_bytes));
        Self {
            key,
            files: Files::new(storage),
            cache,
            broken: Mutex::default(),
            images: RwLock::default(),
            keys: RwLock::default(),
        }
    }

    pub(crate) fn set_keys(&self, keys: Option<Arc<DataKeys>>) {
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = keys;
    }

    /// What opens encrypted payload.
    pub(crate) fn keys(&self) -> Option<Arc<DataKeys>> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set_images(&self, images: Arc<dyn BaseImages>) {
        *self.images.write().unwrap_or_else(PoisonError::into_inner) = Some(images);
    }

    /// Images are looked for anew at the next read.
    pub(crate) fn let_go_below(&self) {
        let images = self.images.read().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(images) = images {
            images.let_go();
        }
    }

    /// Reads an image below the log.
    pub(super) fn read_image(
        &self,
        disk: DiskId,
        image: &[u8],
        sector: u64,
        out: &mut [u8],
    ) -> Result<(), ReadError> {
        let images = self.images.read().unwrap_or_else(PoisonError::into_inner).clone();
        let read = match images {
            Some(images) => images.read(disk, image, sector, out),
            None => Err("nobody here reads images".into()),
        };
        read.map_err(|source| ReadError::Image { disk, source })
    }

    /// Which parts of an image below the log are data.
    pub(super) fn image_extents(
        &self,
        disk: DiskId,
        image: &[u8],
        sector: u64,
        sectors: u64,
    ) -> Result<Vec<super::Extent>, ReadError> {
        let images = self.images.read().unwrap_or_else(PoisonError::into_inner).clone();
        let extents = match images {
            Some(images) => images.extents(disk, image, sector, sectors),
            None => Err("nobody here reads images".into()),
        };
        extents.map_err(|source| ReadError::Image { disk, source })
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn cache_bytes(&self) -> usize {
        self.cache().bytes()
    }

    /// The file of that name is another now, as written.
    pub(crate) fn forget(&self, file: FileKey) {
        self.files.forget(file);
        if let FileKey::Node(span) = file {
            self.broken().nodes.remove(&span);
        }
    }

    pub(super) fn file(&self, key: FileKey) -> Result<Arc<dyn StorageFile>, ReadError> {
        Ok(self.files.get(key)?)
    }

    pub(super) fn cached<T>(
        &self,
        file: FileKey,
        part: Part,
        pick: impl Fn(Cached) -> Option<T>,
        load: impl FnOnce() -> Result<Cached, ReadError>,
    ) -> Result<Option<T>, ReadError> {
        let found = self.cache().get(file, part);
        if let Some(found) = found {
            return Ok(pick(found));
        }
        // Two threads may load the same page; both are right.
        let loaded = load()?;
        self.cache().put(file, part, loaded.clone());
        Ok(pick(loaded))
    }

    pub(super) fn bytes(&self, file: FileKey, offset: u64, bytes: usize) -> Result<Vec<u8>, ReadError> {
        let mut buffer = vec![0; bytes];
        self.file(file)?.read_at(offset, &mut buffer)?;
        Ok(buffer)
    }

    fn part(&self, ordinal: u64, offset: u64, bytes: usize) -> Result<Vec<u8>, ReadError> {
        self.bytes(FileKey::Leaf(ordinal), offset, bytes)
    }

    pub(super) fn directory(&self, sealed: &Sealed) -> Result<Arc<Directory>, ReadError> {
        let ordinal = sealed.ordinal;
        let pick = |cached| if let Cached::Directory(found) = cached { Some(found) } else { None };
        let found = self.cached(FileKey::Leaf(ordinal), Part::Directory, pick, || {
            let head = self.part(ordinal, 0, leaf::HEADER_BYTES)?;
            let more = leaf::directory_bytes(&head).ok_or_else(|| broken(ordinal, "no leaf begins here"))?;
            let total = leaf::HEADER_BYTES.saturating_add(more);
            if total as u64 > sealed.leaf_bytes {
                return Err(broken(ordinal, "the directory is longer than the file"));
            }
            let head = self.part(ordinal, 0, total)?;
            let (directory, hash) =
                leaf::decode_directory(&head, &self.key).map_err(|error| damaged(ordinal, &error))?;
            if hash != sealed.leaf_hash || directory.file_bytes != sealed.leaf_bytes {
                return Err(broken(ordinal, "it is not the leaf that the manifest names"));
            }
            Ok(Cached::Directory(Arc::new(directory)))
        })?;
        found.ok_or_else(|| broken(ordinal, "no directory"))
    }

    pub(super) fn entries(
        &self,
        ordinal: u64,
        directory: &Directory,
        page: Option<usize>,
    ) -> Result<Arc<Vec<IndexEntry>>, ReadError> {
        let pick = |cached| if let Cached::Entries(found) = cached { Some(found) } else { None };
        let part = page.map_or(Part::Wide, Part::Entries);
        let found = self.cached(FileKey::Leaf(ordinal), part, pick, || {
            let entries = match page {
                None => {
                    let page = &directory.wide;
                    let bytes = self.part(ordinal, page.offset, page.bytes)?;
                    leaf::decode_entries(page, &bytes, &self.key)
                }
                Some(number) => {
                    let page = directory.pages.get(number).ok_or_else(|| broken(ordinal, "no such page"))?;
                    let bytes = self.part(ordinal, page.offset, page.bytes)?;
                    leaf::decode_entries(page, &bytes, &self.key)
                }
            };
            Ok(Cached::Entries(Arc::new(entries.map_err(|error| damaged(ordinal, &error))?)))
        })?;
        found.ok_or_else(|| broken(ordinal, "no such page"))
    }

    /// Offers a window the versions up to an LSN that a run has of its sectors.
    pub(crate) fn lookup(&self, run: &Run, lsn: Lsn, window: &mut Window) -> Result<(), ReadError> {
        match run {
            Run::Open(segment) => {
                segment.index().lookup(lsn, window, segment.ordinal);
                Ok(())
            }
            Run::Sealed(sealed) => self.lookup_leaf(sealed, lsn, window),
            Run::Node(node) => self.lookup_node(node, lsn, window),
        }
    }

    /// Of each chunk the newest come first, so a chunk is left as soon as no older one can win.
    fn lookup_leaf(&self, sealed: &Sealed, lsn: Lsn, window: &mut Window) -> Result<(), ReadError> {
        let directory = self.directory(sealed)?;
        let disk = window.disk();
        let chunks = window.chunks();
        let begin = |chunk| -> Key { (disk.0, chunk, Reverse(lsn.0), Reverse(u32::MAX)) };
        let end = begin(chunks.end);
        let mut from = begin(chunks.start);
        let first = directory.pages.partition_point(|page| page.first <= from).saturating_sub(1);
        for (number, page) in directory.pages.iter().enumerate().skip(first) {
            if page.first >= end || from >= end {
                break;
            }
            if directory.pages.get(number + 1).is_some_and(|next| next.first <= from) {
                continue;
            }
            let entries = self.entries(sealed.ordinal, &directory, Some(number))?;
            let mut rest = entries.as_slice();
            loop {
                let skipped = rest.partition_point(|entry| entry.key() < from);
                rest = rest.get(skipped..).unwrap_or_default();
                let Some(entry) = rest.first().filter(|entry| entry.key() < end) else { break };
                let chunk = entry.chunk();
                // The versions above the view's LSN come first.
                if entry.lsn > lsn {
                    from = begin(chunk);
                    continue;
                }
                let mut taken = 0;
                for entry in rest.iter().take_while(|entry| entry.disk == disk && entry.chunk() == chunk) {
                    if window.settled(chunk, entry.lsn.0.saturating_add(1)) {
                        from = begin(chunk.saturating_add(1));
                        break;
                    }
                    window.offer(&Extent::of(entry, sealed.ordinal));
                    taken += 1;
                }
                rest = rest.get(taken..).unwrap_or_default();
            }
        }
        if directory.wide.bytes > 0 {
            let wide = self.entries(sealed.ordinal, &directory, None)?;
            for entry in touching(&wide, window, lsn) {
                window.offer(&Extent::of(entry, sealed.ordinal));
            }
        }
        Ok(())
    }

    /// The time of an LSN in a run that took it.
    pub(crate) fn time(&self, run: &Run, lsn: Lsn) -> Result<Option<u64>, ReadError> {
        let Some(at) = lsn.0.checked_sub(run.summary().first_lsn) else { return Ok(None) };
        match run {
            Run::Open(segment) => Ok(segment.index().times().get(size(at)).copied()),
            Run::Node(_) => Ok(None),
            Run::Sealed(sealed) => {
                let directory = self.directory(sealed)?;
                let page = size(at) / leaf::TIMES_PER_PAGE;
                let times = self.times(sealed.ordinal, &directory, page)?;
                Ok(times.get(size(at) % leaf::TIMES_PER_PAGE).copied())
            }
        }
    }

    /// The last LSN of a run with a time of at most `time_us`.
    pub(crate) fn lsn_at(&self, run: &Run, time_us: u64) -> Result<Option<Lsn>, ReadError> {
        let first = run.summary().first_lsn;
        let before = match run {
            Run::Open(segment) => segment.index().times().partition_point(|time| *time <= time_us),
            Run::Node(_) => return Ok(None),
            Run::Sealed(sealed) => {
                let directory = self.directory(sealed)?;
                let pages = directory.times.partition_point(|page| page.first <= time_us);
                let Some(page) = pages.checked_sub(1) else { return Ok(None) };
                let times = self.times(sealed.ordinal, &directory, page)?;
                page * leaf::TIMES_PER_PAGE + times.partition_point(|time| *time <= time_us)
            }
        };
        Ok((before as u64).checked_sub(1).map(|at| Lsn(first.saturating_add(at))))
    }

    fn times(&self, ordinal: u64, directory: &Directory, page: usize) -> Result<Arc<Vec<u64>>, ReadError> {
        let pick = |cached| if let Cached::Times(found) = cached { Some(found) } else { None };
        let found = self.cached(FileKey::Leaf(ordinal), Part::Times(page), pick, || {
            let page = directory.times.get(page).ok_or_else(|| broken(ordinal, "no such page"))?;
            let bytes = self.part(ordinal, page.offset, page.bytes)?;
            let times = leaf::decode_times(page, &bytes, &self.key);
            Ok(Cached::Times(Arc::new(times.map_err(|error| damaged(ordinal, &error))?)))
        })?;
        found.ok_or_else(|| broken(ordinal, "no such page"))
    }
}

fn damaged(ordinal: u64, error: &LeafError) -> ReadError {
    ReadError::Damaged(Damage {
        file: leaf_name(ordinal),
        offset: error.offset,
        bytes: error.bytes,
        problem: error.problem.to_owned(),
    })
}

fn broken(ordinal: u64, problem: &'static str) -> ReadError {
    damaged(ordinal, &LeafError { offset: 0, bytes: leaf::HEADER_BYTES as u64, problem })
}
