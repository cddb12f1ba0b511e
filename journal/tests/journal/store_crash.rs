//! Puts, flushes and collections with a crash at a random step: no reachable chunk is lost, and the next collection
//! leaves nothing that is unreachable.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::store_support::*;
use tidemark_journal::storage::{Faults, SimStorage};
use tidemark_journal::store::{ChunkId, ChunkStore, StoreError, SweepOptions, pack};

const PACK: usize = 8 << 10;

/// Chunks that must be there, each with the seed of its content.
type Root = BTreeMap<ChunkId, u64>;

fn content(seed: u64) -> Vec<u8> {
    noise(seed, 200 + usize::try_from(seed % 37).unwrap() * 50)
}

/// Puts chunks, some of them known, and makes a root of them.
fn put_root(store: &Arc<ChunkStore>, random: &mut Random) -> Result<Root, StoreError> {
    let session = store.session(DOMAIN)?;
    let mut root = Root::new();
    for _ in 0..1 + random.below(20) {
        let seed = random.below(150);
        root.insert(session.put(&content(seed))?, seed);
        if random.below(30) == 0 {
            store.flush()?;
        }
    }
    // A collection that begins while the session lives knows nothing of this root.
    if random.below(3) == 0 {
        collect(store, &[], random)?;
    }
    store.flush()?;
    Ok(root)
}

fn collect(store: &Arc<ChunkStore>, roots: &[Root], random: &mut Random) -> Result<(), StoreError> {
    let gc = store.begin_gc()?;
    for id in roots.iter().flat_map(|root| root.keys()) {
        gc.mark(id)?;
    }
    gc.sweep(SweepOptions { fill_percent: 40 + random.below(61), ..SweepOptions::default() })?;
    Ok(())
}

/// One operation; what it made durable is in `roots` when it returns.
fn step(store: &Arc<ChunkStore>, roots: &mut Vec<Root>, random: &mut Random) -> Result<(), StoreError> {
    match random.below(10) {
        0..6 => {
            // Only without other roots may the inner collection free all: it would know of none.
            if roots.is_empty() {
                let root = put_root(store, random)?;
                roots.push(root);
            } else {
                let session = store.session(DOMAIN)?;
                let mut root = Root::new();
                for _ in 0..1 + random.below(20) {
                    let seed = random.below(150);
                    root.insert(session.put(&content(seed))?, seed);
                }
                if random.below(3) == 0 {
                    collect(store, roots, random)?;
                }
                store.flush()?;
                roots.push(root);
            }
        }
        6 | 7 if roots.len() > 2 => {
            let at = usize::try_from(random.below(roots.len() as u64)).unwrap();
            roots.swap_remove(at);
        }
        _ => collect(store, roots, random)?,
    }
    Ok(())
}

/// What is wrong with the store, if anything, given what must be there.
fn lost(store: &ChunkStore, roots: &[Root]) -> Option<String> {
    for (id, seed) in roots.iter().flatten() {
        match store.get(id) {
            Ok(found) if found.as_ref() == content(*seed) => {}
            Ok(_) => return Some(format!("{id} has another content")),
            Err(error) => return Some(error.to_string()),
        }
    }
    store.check_index().unwrap().into_iter().next()
}

/// Chunks that lie in packs, as often as they do.
fn stored(storage: &SimStorage) -> Vec<ChunkId> {
    let files = storage.files();
    let packs = files.iter().filter(|(name, _)| name.starts_with("pack-"));
    packs.flat_map(|(_, bytes)| pack::decode(bytes).unwrap().1).map(|chunk| chunk.id).collect()
}

/// How many of the lives ended at a random step, not in order.
fn run(seed: u64) -> usize {
    let mut crashed = 0;
    let mut random = Random(seed);
    let storage = SimStorage::new(seed);
    let mut store = create(&storage, PACK);
    let mut roots = Vec::new();
    for life in 0..3_u8 {
        storage.set_faults(Faults { halt_after: Some(random.below(900)), ..Faults::default() });
        let failed = (0..60).find_map(|_| step(&store, &mut roots, &mut random).err());
        if let Some(error) = failed {
            crashed += 1;
            assert!(!matches!(error, StoreError::Missing(_) | StoreError::MissingLive(_)), "{seed}: {error}");
        }
        storage.crash();
        drop(store);
        let (opened, report) = try_open(&storage, 10 + life, PACK).unwrap();
        assert_eq!(report.unreadable, [], "seed {seed}");
        assert_eq!(lost(&opened, &roots), None, "seed {seed}, life {life}: after the crash");
        let gc = opened.begin_gc().unwrap();
        for id in roots.iter().flat_map(|root: &Root| root.keys()) {
            gc.mark(id).unwrap();
        }
        gc.sweep(SweepOptions { fill_percent: 100, tolerate_missing: false }).unwrap();
        assert_eq!(lost(&opened, &roots), None, "seed {seed}, life {life}: after the collection");
        let live: BTreeSet<ChunkId> = roots.iter().flat_map(|root| root.keys().copied()).collect();
        let mut found = stored(&storage);
        found.sort_unstable();
        assert_eq!(found, live.into_iter().collect::<Vec<_>>(), "seed {seed}, life {life}: what is stored");
        assert!(!storage.files().keys().any(|name| name.ends_with(".part")));
        store = opened;
    }
    crashed
}

#[test]
fn no_reachable_chunk_is_lost_and_no_space_leaks() {
    let seeds = if large() { 1000 } else { 100 };
    let crashed: usize = (0..seeds).map(run).sum();
    assert!(crashed > usize::try_from(seeds).unwrap(), "{crashed} crashes: the steps are too few");
}

/// Negative controls: the same checks fail for a store that forgets a root, or whose session ends too early.
#[test]
fn the_checks_fail_when_a_root_is_forgotten_or_a_session_ends_early() {
    for early in [false, true] {
        let storage = SimStorage::new(1);
        let store = create(&storage, PACK);
        let session = store.session(DOMAIN).unwrap();
        let root: Root = (0..9).map(|seed| (session.put(&content(seed)).unwrap(), seed)).collect();
        store.flush().unwrap();
        let session = Some(session).filter(|_| !early);
        collect(&store, &[], &mut Random(1)).unwrap();
        assert_eq!(lost(&store, &[root]).is_some(), early, "early {early}");
        drop(session);
    }
}
