//! Collections: the caller marks what its roots reach, the sweep frees the rest.
//!
//! Never freed: packs younger than the collection or than a session that lived when it began, and packs that a
//! session relied on since. Of the others, those without a marked chunk are deleted, and of those with few the marked
//! chunks move to new packs, under the newest data key, before the old ones go.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::index::read_directory;
use super::pack::Stored;
use super::put::index_bytes;
use super::state::{PackState, State, lock};
use super::{ChunkId, ChunkStore, KeyDomain, PackId, StoreError, limits};
use crate::wire::size;

/// What marking a chunk found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// It was not marked yet: what it refers to must be marked too.
    New,
    /// It was marked already, and so is what it refers to if the caller marks depth first.
    Known,
    /// No pack has it: a root reaches what is lost.
    Missing,
}

/// What a sweep may do.
#[derive(Debug, Clone, Copy)]
pub struct SweepOptions {
    /// Packs with fewer live bytes than that share, in percent, are repacked. 0 never, 100 at the first dead chunk.
    pub fill_percent: u64,
    /// Go on although live chunks are missing: only after a scrub has said what is lost.
    pub tolerate_missing: bool,
}

impl Default for SweepOptions {
    fn default() -> Self {
        Self { fill_percent: 60, tolerate_missing: false }
    }
}

/// What a sweep did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CollectionReport {
    /// Packs deleted, without those repacked.
    pub dropped_packs: u64,
    /// Packs whose live chunks moved.
    pub repacked_packs: u64,
    /// Bytes of content that moved.
    pub moved_bytes: u64,
    /// Bytes of packs deleted.
    pub freed_bytes: u64,
    /// Packs that could have gone, but a session relies on them or they cannot be read.
    pub kept_packs: u64,
}

#[derive(Debug)]
pub(super) struct Marks {
    /// Packs of this epoch and later are not looked at.
    horizon: u64,
    pub protected: BTreeSet<PackId>,
    packs: BTreeMap<PackId, PackMarks>,
    missing: u64,
}

#[derive(Debug, Default, Clone)]
struct PackMarks {
    bits: Vec<u64>,
    chunks: u32,
    bytes: u64,
}

impl PackMarks {
    /// Whether it was not marked yet.
    fn set(&mut self, chunk: &Stored) -> bool {
        let (word, bit) = (size((chunk.number / 64).into()), 1 << (chunk.number % 64));
        if self.bits.len() <= word {
            self.bits.resize(word + 1, 0);
        }
        let Some(word) = self.bits.get_mut(word).filter(|word| **word & bit == 0) else { return false };
        *word |= bit;
        self.chunks += 1;
        self.bytes += chunk.record_bytes() as u64;
        true
    }

    fn has(&self, number: u32) -> bool {
        self.bits.get(size((number / 64).into())).is_some_and(|word| word & (1 << (number % 64)) != 0)
    }
}

/// A collection under way; dropping it before the sweep frees nothing. List the roots after it began: a root that was
/// durable before is listed then, and what a later one needs is protected by its session.
#[derive(Debug)]
pub struct Collection {
    store: Arc<ChunkStore>,
}

impl ChunkStore {
    /// Begins a collection.
    ///
    /// # Errors
    /// [`StoreError::Collecting`] when another is under way.
    pub fn begin_gc(self: &Arc<Self>) -> Result<Collection, StoreError> {
        self.sound()?;
        let mut state = self.state();
        if state.marks.is_some() {
            return Err(StoreError::Collecting);
        }
        state.epoch += 1;
        let starts = state.sessions.values().map(|session| session.start);
        let horizon = starts.min().unwrap_or(state.epoch).min(state.epoch);
        let protected = state.sessions.values().flat_map(|session| session.relied.iter().copied()).collect();
        state.marks = Some(Marks { horizon, protected, packs: BTreeMap::new(), missing: 0 });
        drop(state);
        Ok(Collection { store: Arc::clone(self) })
    }
}

impl Collection {
    /// Marks a chunk as reached by a root.
    ///
    /// # Errors
    /// When the index fails: the collection must not be swept then.
    pub fn mark(&self, id: &ChunkId) -> Result<Mark, StoreError> {
        let mut places = self.store.index.find(id)?;
        // There are several where one was damaged and the content was put again.
        if places.len() > 1 {
            self.store.sound_first(&mut places);
        }
        let mut state = self.store.state();
        let State { packs, marks, .. } = &mut *state;
        let Some(marks) = marks else { return Ok(Mark::Missing) };
        // One copy is enough; the others are garbage.
        if let Some((pack, chunk)) = places.iter().find(|(pack, _)| packs.contains_key(pack)) {
            let new = marks.packs.entry(*pack).or_default().set(chunk);
            return Ok(if new { Mark::New } else { Mark::Known });
        }
        if state.in_memory(id) {
            return Ok(Mark::New);
        }
        drop(state);
        // It may have moved from memory to a pack in between.
        if self.store.contains(id)? {
            return Ok(Mark::New);
        }
        if let Some(marks) = &mut self.store.state().marks {
            marks.missing += 1;
        }
        Ok(Mark::Missing)
    }

    /// Frees what is not marked. A crash anywhere within loses nothing; the next collection frees the rest.
    ///
    /// # Errors
    /// [`StoreError::MissingLive`] before anything is freed; [`StoreError::Index`] when the index is not as the packs
    /// say; or when the storage fails.
    pub fn sweep(self, options: SweepOptions) -> Result<CollectionReport, StoreError> {
        let store = &self.store;
        store.sound()?;
        let mut report = CollectionReport::default();
        let (dead, sparse) = {
            let state = store.state();
            let Some(marks) = &state.marks else { return Ok(report) };
            if marks.missing > 0 && !options.tolerate_missing {
                return Err(StoreError::MissingLive(marks.missing));
            }
            candidates(&state, marks, options.fill_percent, store.options.pack_bytes as u64)
        };
        for step in dead.chunks(limits::DELETED_STEP_PACKS) {
            for pack in step {
                match self.directory(pack) {
                    Ok(chunks) => {
                        if store.drop_pack(pack, &chunks, &mut report)? {
                            report.dropped_packs += 1;
                        }
                    }
                    Err(StoreError::Pack { .. }) => report.kept_packs += 1,
                    Err(error) => return Err(error),
                }
            }
            self.settle()?;
        }
        for step in sparse.chunks(limits::REPACK_STEP_PACKS) {
            if store.room(self.live_bytes(step)).is_ok() {
                self.repack(step, &mut report)?;
                continue;
            }
            // One after another needs the least space, and each frees more than it takes.
            for pack in step {
                if store.room(self.live_bytes(&[*pack])).is_ok() {
                    self.repack(&[*pack], &mut report)?;
                } else {
                    report.kept_packs += 1;
                }
            }
        }
        self.settle()?;
        Ok(report)
    }

    /// Makes what was deleted so far durable, so that the index can use again what that gave back.
    fn settle(&self) -> Result<(), StoreError> {
        let store = &self.store;
        store.folder.sync().map_err(|error| store.poison(error))?;
        store.index.sync().map_err(|error| store.poison(error))
    }

    /// The directory as the pack has it, if the index agrees: marks are by number, and a wrong one would free what lives.
    fn directory(&self, pack: &PackId) -> Result<Vec<Stored>, StoreError> {
        let store = &self.store;
        let bytes = store.state().packs.get(pack).map(|pack| pack.info.bytes);
        let bytes = bytes.ok_or(StoreError::Pack { pack: *pack, problem: "it is gone" })?;
        let (_, chunks) = read_directory(store.folder.as_ref(), pack, bytes)?;
        for chunk in &chunks {
            if !store.index.find(&chunk.id)?.contains(&(*pack, *chunk)) {
                return Err(store.poison(StoreError::Index(format!("chunk {} is misplaced", chunk.id))));
            }
        }
        Ok(chunks)
    }

    /// What moving the live chunks of some packs writes at most, into packs and into the index.
    fn live_bytes(&self, packs: &[PackId]) -> u64 {
        let state = self.store.state();
        let marks = state.marks.as_ref();
        let live = |pack| {
            marks
                .and_then(|marks| marks.packs.get(pack))
                .map_or(0, |live| live.bytes.saturating_add(index_bytes(live.chunks as usize)))
        };
        let open = state.room_bytes();
        packs.iter().map(live).sum::<u64>().saturating_add(open)
    }

    /// Moves the live chunks of some packs, then deletes the packs.
    fn repack(&self, packs: &[PackId], report: &mut CollectionReport) -> Result<(), StoreError> {
        let store = &self.store;
        let mut moved = Vec::new();
        for pack in packs {
            let known = store.state().packs.get(pack).copied();
            let Some(known) = known else { continue };
            match self.move_live(pack, &known, report) {
                Ok(chunks) => moved.push((*pack, chunks)),
                // What cannot be read or has no key stays where it is.
                Err(StoreError::Pack { .. } | StoreError::Damaged { .. } | StoreError::NoDomain(_)) => {
                    report.kept_packs += 1;
                }
                Err(error) => return Err(error),
            }
        }
        // The new packs are durable before an old one goes.
        store.flush()?;
        for (pack, chunks) in moved {
            if store.drop_pack(&pack, &chunks, report)? {
                report.repacked_packs += 1;
            }
        }
        Ok(())
    }

    fn move_live(
        &self,
        pack: &PackId,
        known: &PackState,
        report: &mut CollectionReport,
    ) -> Result<Vec<Stored>, StoreError> {
        let store = &self.store;
        let chunks = self.directory(pack)?;
        let marks = {
            let state = store.state();
            let marks = state.marks.as_ref().and_then(|marks| marks.packs.get(pack));
            marks.cloned().unwrap_or_default()
        };
        for chunk in chunks.iter().filter(|chunk| marks.has(chunk.number)) {
            let content = store.read_stored(pack, &known.info, chunk)?;
            store.store_chunk(known.info.domain, chunk.id, &content)?;
            report.moved_bytes += content.len() as u64;
        }
        Ok(chunks)
    }
}

impl Drop for Collection {
    fn drop(&mut self) {
        self.store.state().marks = None;
    }
}

impl ChunkStore {
    /// Deletes a pack unless a session relies on it by now; whether it is deleted.
    fn drop_pack(
        &self,
        pack: &PackId,
        chunks: &[Stored],
        report: &mut CollectionReport,
    ) -> Result<bool, StoreError> {
        let _writing = lock(&self.writing);
        let bytes = {
            let mut state = self.state();
            if state.marks.as_ref().is_none_or(|marks| marks.protected.contains(pack)) {
                report.kept_packs += 1;
                return Ok(false);
            }
            // From here on no session can rely on it.
            state.packs.remove(pack).map_or(0, |pack| pack.info.bytes)
        };
        // The pack first: on a full disk the index needs the space. After a crash in between the opening forgets the rows.
        self.folder.delete(&pack.name()).map_err(|error| self.poison(error))?;
        self.index.remove(pack, chunks).map_err(|error| self.poison(error))?;
        report.freed_bytes += bytes;
        Ok(true)
    }
}

/// Packs to delete, and packs to repack.
fn candidates(
    state: &State,
    marks: &Marks,
    fill_percent: u64,
    pack_bytes: u64,
) -> (Vec<PackId>, Vec<PackId>) {
    let (mut dead, mut sparse) = (Vec::new(), Vec::new());
    let mut small: BTreeMap<KeyDomain, Vec<PackId>> = BTreeMap::new();
    for (pack, known) in &state.packs {
        if known.epoch >= marks.horizon || marks.protected.contains(pack) {
            continue;
        }
        match marks.packs.get(pack) {
            None => dead.push(*pack),
            Some(live) if live.chunks < known.info.chunks => {
                if live.bytes * 100 < known.info.bytes * fill_percent {
                    sparse.push(*pack);
                }
            }
            Some(_) if known.info.bytes < pack_bytes / 4 => {
                small.entry(known.info.domain).or_default().push(*pack);
            }
            Some(_) => {}
        }
    }
    sparse.extend(small.into_values().filter(|packs| packs.len() >= limits::SMALL_PACKS_MERGED).flatten());
    (dead, sparse)
}
