//! The chunk store: what is put comes back, once stored, under keys that change; damage is found and named.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::store_support::*;
use tidemark_journal::storage::{Faults, OsStorage, SimStorage, Storage};
use tidemark_journal::store::keys::KeyFile;
use tidemark_journal::store::{
    ChunkStore, LocalFolder, MasterKey, MasterSecret, PackFolder, StoreError, SweepOptions, pack, scrub,
};

const PACK: usize = 64 << 10;

fn packs(storage: &SimStorage) -> BTreeMap<String, Vec<u8>> {
    storage.files().into_iter().filter(|(name, _)| name.starts_with("pack-")).collect()
}

#[test]
fn what_is_put_comes_back_before_and_after_a_flush_and_a_reopening() {
    let storage = SimStorage::new(1);
    let store = create(&storage, PACK);
    let session = store.session(DOMAIN).unwrap();
    let contents: Vec<Vec<u8>> = (0..40).map(|n| noise(n, 1 + 1600 * usize::try_from(n).unwrap())).collect();
    let ids: Vec<_> = contents.iter().map(|content| session.put(content).unwrap()).collect();
    for (id, content) in ids.iter().zip(&contents) {
        assert_eq!(store.get(id).unwrap().as_ref(), content.as_slice());
    }
    assert!(!packs(&storage).is_empty(), "full packs are written on the way");
    store.flush().unwrap();
    assert_eq!(store.check_index().unwrap(), Vec::<String>::new());
    drop(session);
    drop(store);
    storage.crash();
    let (store, report) = try_open(&storage, 2, PACK).unwrap();
    assert_eq!(report, tidemark_journal::store::OpenReport::default(), "the index was durable");
    for (id, content) in ids.iter().zip(&contents) {
        assert_eq!(store.get(id).unwrap().as_ref(), content.as_slice());
        assert!(store.contains(id).unwrap());
    }
    let session = store.session(DOMAIN).unwrap();
    assert!(matches!(session.put(&[]), Err(StoreError::Length(0))));
    assert!(matches!(session.put(&vec![0; 65_537]), Err(StoreError::Length(65_537))));
    let absent = tidemark_journal::store::ChunkId([7; 32]);
    assert!(matches!(store.get(&absent), Err(StoreError::Missing(_))));
    assert!(!session.keep(&absent).unwrap() && session.keep(&ids[3]).unwrap());
}

#[test]
fn a_chunk_is_stored_once_in_its_domain_and_nothing_crosses_domains() {
    let storage = SimStorage::new(1);
    let store = create(&storage, PACK);
    store.add_domain(OTHER).unwrap();
    let (session, other) = (store.session(DOMAIN).unwrap(), store.session(OTHER).unwrap());
    let content = noise(1, 5000);
    let id = session.put(&content).unwrap();
    assert_eq!(session.put(&content).unwrap(), id);
    assert_eq!(store.statistics().new_bytes, 5000);
    store.flush().unwrap();
    assert_eq!(session.put(&content).unwrap(), id);
    assert_eq!(store.statistics().new_bytes, 5000);
    assert_ne!(other.put(&content).unwrap(), id, "ids tell nothing across domains");
    assert_eq!(store.statistics().new_bytes, 10_000);
    // The plain hash of the content, which anybody could compute, is nowhere.
    store.flush().unwrap();
    let plain = blake3::hash(&content);
    for bytes in packs(&storage).values() {
        assert!(!bytes.windows(32).any(|window| window == plain.as_bytes()));
        assert!(!bytes.windows(32).any(|window| window == &content[..32]), "nothing lies in the clear");
    }
}

#[test]
fn compression_is_used_where_it_pays() {
    let storage = SimStorage::new(1);
    let store = create(&storage, 1 << 20);
    let session = store.session(DOMAIN).unwrap();
    let ids = [session.put(&[5; 65_536]).unwrap(), session.put(&noise(1, 65_536)).unwrap()];
    store.flush().unwrap();
    let bytes = packs(&storage).into_values().next().unwrap();
    let (_, chunks) = pack::decode(&bytes).unwrap();
    assert!(chunks[0].stored < 200, "{}", chunks[0].stored);
    assert_eq!(chunks[1].stored, 65_536 + 16);
    assert_eq!(store.get(&ids[0]).unwrap().as_ref(), [5; 65_536]);
}

#[test]
fn memory_stays_bounded_over_many_domains() {
    let storage = SimStorage::new(1);
    let store = create(&storage, PACK);
    for number in 0..40_u8 {
        let domain = tidemark_journal::store::KeyDomain([number; 16]);
        store.add_domain(domain).unwrap();
        store.session(domain).unwrap().put(&noise(number.into(), 30_000)).unwrap();
        let statistics = store.statistics();
        assert!(statistics.open_bytes <= (4 * PACK + 31_000) as u64, "{statistics:?}");
        assert!(statistics.cache_bytes <= 64 << 10);
    }
}

#[test]
fn keys_rotate_and_a_wrong_key_opens_nothing() {
    let storage = SimStorage::new(1);
    let store = create(&storage, PACK);
    let first = store.session(DOMAIN).unwrap().put(&noise(1, 4000)).unwrap();
    store.flush().unwrap();
    store.rotate_data_key(DOMAIN).unwrap();
    let session = store.session(DOMAIN).unwrap();
    let second = session.put(&noise(2, 4000)).unwrap();
    assert_eq!(session.put(&noise(1, 4000)).unwrap(), first, "ids outlive data keys");
    store.flush().unwrap();
    let ordinals = |storage: &SimStorage| {
        let mut found: Vec<u32> =
            packs(storage).values().map(|bytes| pack::decode(bytes).unwrap().0.key_ordinal).collect();
        found.sort_unstable();
        found
    };
    assert_eq!(ordinals(&storage), [1, 2]);
    let passphrase = MasterSecret::Passphrase("correct horse".to_owned());
    store.rotate_master(&passphrase).unwrap();
    drop((session, store));
    let open = |secret: &MasterSecret| {
        ChunkStore::open(Arc::new(storage.clone()), folder(&storage), secret, options(3, PACK))
    };
    assert!(matches!(open(&secret()), Err(StoreError::BadKey(_))));
    let wrong = MasterSecret::Passphrase("correct horsf".to_owned());
    assert!(matches!(open(&wrong), Err(StoreError::WrongKey)));
    let (store, _) = open(&passphrase).unwrap();
    for (id, seed) in [(first, 1), (second, 2)] {
        assert_eq!(store.get(&id).unwrap().as_ref(), noise(seed, 4000).as_slice());
    }
    let key = MasterSecret::Key(MasterKey::from_bytes(format!("{}\n", "ab".repeat(32)).as_bytes()).unwrap());
    store.rotate_master(&key).unwrap();
    drop(store);
    assert!(matches!(open(&secret()), Err(StoreError::WrongKey)));
    let (store, _) = open(&key).unwrap();
    // Repacking moves chunks under the newest data key: keep the first chunk of two in one old pack.
    let store = Arc::new(store);
    let gc = store.begin_gc().unwrap();
    for id in [first, second] {
        gc.mark(&id).unwrap();
    }
    gc.sweep(SweepOptions::default()).unwrap();
    assert_eq!(ordinals(&storage), [1, 2], "full packs stay");
    for bad in [&b"short"[..], &[0; 31], "AB".repeat(32).as_bytes(), "ab".repeat(33).as_bytes()] {
        assert!(MasterKey::from_bytes(bad).is_err());
    }
}

#[test]
fn the_index_is_rebuilt_from_the_packs_row_by_row() {
    let storage = SimStorage::new(1);
    let store = create(&storage, PACK);
    let session = store.session(DOMAIN).unwrap();
    let ids: Vec<_> = (0..60).map(|n| session.put(&noise(n, 9000)).unwrap()).collect();
    store.flush().unwrap();
    let packs_now = store.statistics().packs;
    drop((session, store));
    for damage in 0..3 {
        let mut files = storage.files();
        match damage {
            0 => drop(files.remove("chunk-index").unwrap()),
            1 => files.get_mut("chunk-index").unwrap().truncate(5000),
            _ => files.get_mut("chunk-index").unwrap().fill(0x5a),
        }
        let storage = SimStorage::with_files(1, &files);
        let (store, report) = try_open(&storage, 2, PACK).unwrap();
        assert_eq!((report.added, report.forgotten), (packs_now, 0), "damage {damage}");
        assert_eq!(store.check_index().unwrap(), Vec::<String>::new());
        for id in &ids {
            store.get(id).unwrap();
        }
    }
    // Negative control: the comparison sees a pack that came or went behind the index's back.
    let storage = SimStorage::with_files(1, &storage.files());
    let (store, _) = try_open(&storage, 2, PACK).unwrap();
    let name = packs(&storage).into_keys().next().unwrap();
    storage.remove(&name).unwrap();
    assert!(!store.check_index().unwrap().is_empty());
    drop(store);
    let (store, report) = try_open(&storage, 3, PACK).unwrap();
    assert_eq!((report.added, report.forgotten), (0, 1));
    assert_eq!(store.check_index().unwrap(), Vec::<String>::new());
}

#[test]
fn a_scrub_finds_every_flipped_bit_and_names_the_chunk() {
    let storage = SimStorage::new(1);
    let store = create(&storage, PACK);
    let session = store.session(DOMAIN).unwrap();
    let ids: Vec<_> = (0..4).map(|n| session.put(&noise(n, 700)).unwrap()).collect();
    store.flush().unwrap();
    let clean = scrub(folder(&storage).as_ref()).unwrap();
    assert_eq!((clean.packs, clean.chunks, clean.damage.len()), (1, 4, 0));
    drop((session, store));
    let (name, bytes) = packs(&storage).into_iter().next().unwrap();
    let (_, chunks) = pack::decode(&bytes).unwrap();
    let end_of_records = chunks.last().map(|last| last.offset + 80 + last.stored).unwrap();
    for at in (0..bytes.len() as u64).step_by(if large() { 1 } else { 7 }) {
        let storage = SimStorage::with_files(1, &storage.files());
        storage.flip(&name, at, u8::try_from(at % 8).unwrap());
        let report = scrub(folder(&storage).as_ref()).unwrap();
        assert!(!report.damage.is_empty(), "byte {at}");
        let hit = chunks
            .iter()
            .find(|chunk| at >= chunk.offset.into() && at < u64::from(chunk.offset + 80 + chunk.stored));
        if let Some(hit) = hit {
            assert_eq!(report.damaged_chunks().into_iter().collect::<Vec<_>>(), [hit.id], "byte {at}");
        }
        if at >= u64::from(end_of_records) {
            assert_eq!(report.damaged_chunks().len(), 4, "byte {at}: all are out of reach");
        }
    }
    // A reader refuses exactly the damaged chunk, and the store still opens when a directory is gone.
    storage.flip(&name, u64::from(chunks[2].offset) + 100, 3);
    let (store, _) = try_open(&storage, 2, PACK).unwrap();
    for id in &ids {
        assert_eq!(store.get(id).is_err(), *id == chunks[2].id);
    }
    drop(store);
    storage.flip(&name, bytes.len() as u64 - 10, 0);
    storage.remove("chunk-index").unwrap();
    let (store, report) = try_open(&storage, 3, PACK).unwrap();
    assert_eq!(report.unreadable.len(), 1);
    let store_gc = store.begin_gc().unwrap();
    assert_eq!(store_gc.mark(&ids[0]).unwrap(), tidemark_journal::store::Mark::Missing);
    assert!(matches!(store_gc.sweep(SweepOptions::default()), Err(StoreError::MissingLive(1))));
    assert_eq!(packs(&storage).len(), 1, "what cannot be read is not deleted");
}

#[test]
fn content_whose_copy_is_damaged_is_stored_again_and_the_good_copy_stays() {
    let storage = SimStorage::new(1);
    let store = create(&storage, PACK);
    let session = store.session(DOMAIN).unwrap();
    let contents: Vec<_> = (0..3).map(|n| noise(n, 700)).collect();
    let ids: Vec<_> = contents.iter().map(|content| session.put(content).unwrap()).collect();
    store.flush().unwrap();
    drop((session, store));
    let (name, bytes) = packs(&storage).into_iter().next().unwrap();
    let (_, chunks) = pack::decode(&bytes).unwrap();
    let hit = chunks.iter().find(|chunk| chunk.id == ids[1]).unwrap();
    storage.flip(&name, u64::from(hit.offset) + 100, 3);
    let (store, _) = try_open(&storage, 2, PACK).unwrap();
    let session = store.session(DOMAIN).unwrap();
    // Nobody knows yet: it passes for stored. Once it was read, it does not.
    session.put(&contents[1]).unwrap();
    assert_eq!(session.new_bytes(), 0);
    assert!(matches!(store.get(&ids[1]), Err(StoreError::Damaged { .. })));
    for (content, new) in contents.iter().zip([0, 700, 700]) {
        session.put(content).unwrap();
        assert_eq!(session.new_bytes(), new);
    }
    store.flush().unwrap();
    session.put(&contents[1]).unwrap();
    assert_eq!(session.new_bytes(), 700, "the good copy is found");
    drop((session, store));
    // Also by an opening that knows of no damage, a collection keeps the good one.
    for seed in 3..5 {
        let (store, _) = try_open(&storage, seed, PACK).unwrap();
        let collection = store.begin_gc().unwrap();
        for id in &ids {
            collection.mark(id).unwrap();
        }
        collection.sweep(SweepOptions { fill_percent: 100, ..SweepOptions::default() }).unwrap();
        for (id, content) in ids.iter().zip(&contents) {
            assert_eq!(&*store.get(id).unwrap(), &content[..]);
        }
    }
}

#[test]
fn a_full_disk_loses_nothing_and_a_failed_sync_stops_the_store() {
    let storage = SimStorage::new(1);
    let store = create(&storage, PACK);
    let session = store.session(DOMAIN).unwrap();
    let ids: Vec<_> = (0..3).map(|n| session.put(&noise(n, 9000)).unwrap()).collect();
    let used: usize = storage.files().values().map(Vec::len).sum();
    storage.set_faults(Faults { capacity_bytes: Some(used as u64 + 1000), ..Faults::default() });
    assert!(matches!(store.flush(), Err(StoreError::Full)));
    for id in &ids {
        store.get(id).unwrap();
    }
    let later = (0..100).map(|n| session.put(&noise(100 + n, 9000))).find_map(Result::err);
    assert!(matches!(later, Some(StoreError::Full)), "memory is bounded: {later:?}");
    assert!(store.statistics().open_bytes <= (5 * PACK) as u64, "{:?}", store.statistics());
    storage.set_faults(Faults::default());
    store.flush().unwrap();
    assert_eq!(store.check_index().unwrap(), Vec::<String>::new());
    session.put(&noise(500, 9000)).unwrap();
    storage.set_faults(Faults { halt_after: Some(5), ..Faults::default() });
    store.flush().unwrap_err();
    storage.set_faults(Faults::default());
    assert!(matches!(store.flush(), Err(StoreError::Poisoned)));
    drop((session, store));
    let (store, _) = try_open(&storage, 2, PACK).unwrap();
    for id in &ids {
        store.get(id).unwrap();
    }
}

#[test]
fn two_openings_at_once_are_refused() {
    let storage = SimStorage::new(1);
    let store = create(&storage, PACK);
    assert!(matches!(try_open(&storage, 2, PACK), Err(StoreError::Locked)));
    drop(store);
    try_open(&storage, 2, PACK).unwrap();
}

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/store-v1")
}

/// What wrote the fixture.
fn written_now() -> (BTreeMap<String, Vec<u8>>, Vec<tidemark_journal::store::ChunkId>) {
    let storage = SimStorage::new(1);
    let store = create(&storage, PACK);
    let session = store.session(DOMAIN).unwrap();
    let ids = vec![session.put(b"a short chunk").unwrap(), session.put(&noise(1, 600)).unwrap()];
    store.flush().unwrap();
    drop((session, store));
    let mut files = storage.files();
    files.remove("chunk-index");
    (files, ids)
}

#[test]
fn this_version_writes_the_golden_bytes_and_reads_them() {
    let (files, ids) = written_now();
    if std::env::var_os("TIDEMARK_WRITE_FIXTURES").is_some() {
        std::fs::create_dir_all(fixture()).unwrap();
        for (name, bytes) in &files {
            std::fs::write(fixture().join(name), bytes).unwrap();
        }
    }
    let golden: BTreeMap<String, Vec<u8>> = std::fs::read_dir(fixture())
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap()))
        .collect();
    assert!(files == golden, "the bytes differ from the fixture");
    let storage = SimStorage::with_files(1, &golden);
    let (store, report) = try_open(&storage, 2, PACK).unwrap();
    assert_eq!(report.added, 1);
    assert_eq!(store.get(&ids[0]).unwrap().as_ref(), b"a short chunk");
    assert_eq!(store.get(&ids[1]).unwrap().as_ref(), noise(1, 600).as_slice());
    let pack_bytes = golden.iter().find(|(name, _)| name.starts_with("pack-")).unwrap().1;
    assert_eq!(&pack_bytes[..8], b"TMPACK01");
    assert_eq!(pack_bytes[8..16], [1, 0, 104, 0, 0, 0, 0, 0]);
    assert_eq!(&pack_bytes[16..32], &DOMAIN.0);
    assert_eq!(&pack_bytes[104..108], b"TMCH");
    assert_eq!(pack_bytes[104 + 4..104 + 16], [29, 0, 0, 0, 13, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(&pack_bytes[pack_bytes.len() - 64..pack_bytes.len() - 56], b"TMPFOOT1");
    let keys = &golden["chunk-keys"];
    assert_eq!(&keys[..8], b"TMKEYS01");
    KeyFile::decode(keys).unwrap();
}

#[test]
fn the_folder_puts_only_under_free_names() {
    let place = tempfile::tempdir().unwrap();
    let storage: Arc<dyn Storage> = Arc::new(OsStorage::open(place.path()).unwrap());
    let folder = LocalFolder::new(storage);
    let name = tidemark_journal::store::PackId([1; 16]).name();
    folder.put(&name, b"first").unwrap();
    assert!(folder.put(&name, b"second").is_err());
    std::fs::write(place.path().join(format!("{name}.part")), b"torn").unwrap();
    folder.clean().unwrap();
    assert_eq!(folder.list().unwrap(), BTreeMap::from([(name.clone(), 5)]));
    let mut bytes = [0; 3];
    folder.read(&name, 2, &mut bytes).unwrap();
    assert_eq!(&bytes, b"rst");
    folder.delete(&name).unwrap();
    folder.delete(&name).unwrap();
    folder.sync().unwrap();
    assert!(folder.list().unwrap().is_empty());
    assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 0);
}
