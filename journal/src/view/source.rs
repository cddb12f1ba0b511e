//! Where views and timelines read from: leaf pages and payload, verified, through a cache.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};

use tidemark_proto::ids::{DiskId, Lsn};
use tidemark_proto::limits::{CHECKSUM_PIECE_BYTES, SECTOR_BYTES};

use super::cache::{Cache, Cached, Part};
use super::resolve::Bytes;
use crate::error::ReadError;
use crate::index::{IndexEntry, Key, touching};
use crate::journal::Run;
use crate::leaf::{self, Directory, LeafError, leaf_name};
use crate::manifest::Sealed;
use crate::options::limits::OPEN_FILES_MAX;
use crate::recovery::Damage;
use crate::segment::segment_name;
use crate::storage::{Storage, StorageFile};
use crate::wire::size;

/// Reads of one journal.
#[derive(Debug)]
pub(crate) struct Source {
    storage: Arc<dyn Storage>,
    key: [u8; 32],
    cache: Mutex<Cache>,
    files: Mutex<VecDeque<(String, Arc<dyn StorageFile>)>>,
}

impl Source {
    pub(crate) fn new(storage: Arc<dyn Storage>, key: [u8; 32], cache_bytes: usize) -> Self {
        Self { storage, key, cache: Mutex::new(Cache::new(cache_bytes)), files: Mutex::new(VecDeque::new()) }
    }

    pub(crate) fn cache_bytes(&self) -> usize {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner).bytes()
    }

    fn file(&self, name: &str) -> Result<Arc<dyn StorageFile>, ReadError> {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = files.iter().position(|(open, _)| open == name)
            && let Some(entry) = files.remove(at)
        {
            let file = Arc::clone(&entry.1);
            files.push_back(entry);
            return Ok(file);
        }
        let file = self.storage.open(name)?;
        files.push_back((name.to_owned(), Arc::clone(&file)));
        if files.len() > OPEN_FILES_MAX {
            files.pop_front();
        }
        Ok(file)
    }

    fn cached<T>(
        &self,
        ordinal: u64,
        part: Part,
        pick: impl Fn(Cached) -> Option<T>,
        load: impl FnOnce() -> Result<Cached, ReadError>,
    ) -> Result<Option<T>, ReadError> {
        let found = self.cache.lock().unwrap_or_else(PoisonError::into_inner).get(ordinal, part);
        if let Some(found) = found {
            return Ok(pick(found));
        }
        // Two threads may load the same page; both are right.
        let loaded = load()?;
        self.cache.lock().unwrap_or_else(PoisonError::into_inner).put(ordinal, part, loaded.clone());
        Ok(pick(loaded))
    }

    fn part(&self, ordinal: u64, offset: u64, bytes: usize) -> Result<Vec<u8>, ReadError> {
        let mut buffer = vec![0; bytes];
        self.file(&leaf_name(ordinal))?.read_at(offset, &mut buffer)?;
        Ok(buffer)
    }

    fn directory(&self, sealed: &Sealed) -> Result<Arc<Directory>, ReadError> {
        let ordinal = sealed.ordinal;
        let pick = |cached| if let Cached::Directory(found) = cached { Some(found) } else { None };
        let found = self.cached(ordinal, Part::Directory, pick, || {
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

    fn entries(
        &self,
        ordinal: u64,
        directory: &Directory,
        page: Option<usize>,
    ) -> Result<Arc<Vec<IndexEntry>>, ReadError> {
        let pick = |cached| if let Cached::Entries(found) = cached { Some(found) } else { None };
        let part = page.map_or(Part::Wide, Part::Entries);
        let found = self.cached(ordinal, part, pick, || {
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

    /// Calls `found` with the entries of a chunk up to an LSN, newest first, then the wide ranges that touch it.
    pub(crate) fn lookup(
        &self,
        run: &Run,
        disk: DiskId,
        chunk: u64,
        lsn: Lsn,
        found: &mut dyn FnMut(&IndexEntry) -> ControlFlow<()>,
    ) -> Result<(), ReadError> {
        let sealed = match run {
            Run::Open(segment) => {
                segment.index().lookup(disk, chunk, lsn, found);
                return Ok(());
            }
            Run::Sealed(sealed) => sealed,
        };
        let directory = self.directory(sealed)?;
        let from: Key = (disk.0, chunk, Reverse(lsn.0), Reverse(u32::MAX));
        let to: Key = (disk.0, chunk, Reverse(0), Reverse(0));
        let first = directory.pages.partition_point(|page| page.first <= from).saturating_sub(1);
        'pages: for (number, page) in directory.pages.iter().enumerate().skip(first) {
            if page.first > to {
                break;
            }
            let entries = self.entries(sealed.ordinal, &directory, Some(number))?;
            let start = entries.partition_point(|entry| entry.key() < from);
            for entry in entries.iter().skip(start) {
                if entry.key() > to || found(entry).is_break() {
                    break 'pages;
                }
            }
        }
        if directory.wide.bytes > 0 {
            let wide = self.entries(sealed.ordinal, &directory, None)?;
            for entry in touching(&wide, disk, chunk, lsn) {
                let _ = found(entry);
            }
        }
        Ok(())
    }

    /// The time of an LSN in a run that took it.
    pub(crate) fn time(&self, run: &Run, lsn: Lsn) -> Result<Option<u64>, ReadError> {
        let Some(at) = lsn.0.checked_sub(run.summary().first_lsn) else { return Ok(None) };
        match run {
            Run::Open(segment) => Ok(segment.index().times().get(size(at)).copied()),
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
        let found = self.cached(ordinal, Part::Times(page), pick, || {
            let page = directory.times.get(page).ok_or_else(|| broken(ordinal, "no such page"))?;
            let bytes = self.part(ordinal, page.offset, page.bytes)?;
            let times = leaf::decode_times(page, &bytes, &self.key);
            Ok(Cached::Times(Arc::new(times.map_err(|error| damaged(ordinal, &error))?)))
        })?;
        found.ok_or_else(|| broken(ordinal, "no such page"))
    }

    /// Fills `out` with payload from `place` on, every checksum piece it touches verified.
    pub(crate) fn payload(&self, place: &Bytes, out: &mut [u8]) -> Result<(), ReadError> {
        const PIECE: u64 = CHECKSUM_PIECE_BYTES as u64;
        let name = segment_name(place.segment);
        let file = self.file(&name)?;
        let total = place.payload_sectors * SECTOR_BYTES;
        let end = (place.offset + out.len() as u64).min(total);
        let first = place.offset / PIECE;
        let from = first * PIECE;
        let to = end.next_multiple_of(PIECE).min(total);
        let checksums_start = place
            .payload_start
            .checked_sub(total.div_ceil(PIECE) * 4)
            .ok_or_else(|| outside(&name, place))?;
        let mut checksums = vec![0; size((to - from).div_ceil(PIECE) * 4)];
        file.read_at(checksums_start + first * 4, &mut checksums)?;
        let checksums: Vec<u32> =
            checksums.as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect();
        // A read of whole pieces lands where it is wanted; others go through a buffer.
        let whole = from == place.offset && (to - from) == out.len() as u64;
        let mut around = Vec::new();
        let pieces: &mut [u8] = if whole {
            &mut *out
        } else {
            around.resize(size(to - from), 0);
            &mut around
        };
        file.read_at(place.payload_start + from, pieces)?;
        if let Some(at) = crate::frame::payload_damage(pieces, &checksums) {
            return Err(ReadError::Damaged(Damage {
                file: name,
                offset: place.payload_start + from + at as u64,
                bytes: PIECE.min(to - from - at as u64),
                problem: "a checksum of the payload does not match".to_owned(),
            }));
        }
        if !whole {
            let skip = size(place.offset - from);
            let found =
                around.get(skip..skip.saturating_add(out.len())).ok_or_else(|| outside(&name, place))?;
            out.copy_from_slice(found);
        }
        Ok(())
    }
}

fn outside(name: &str, place: &Bytes) -> ReadError {
    ReadError::Damaged(Damage {
        file: name.to_owned(),
        offset: place.payload_start,
        bytes: 0,
        problem: "an index entry points outside its frame".to_owned(),
    })
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
