//! A small data folder, journal and chunk store, with encryption and signatures: each flipped bit in each file is found
//! and located. The store's index is left out: it repeats what the packs say and is rebuilt from them at need.
//!
//! One bit of each byte; every bit with `TIDEMARK_TEST_SIZE=large`.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::store_support::{DOMAIN, create, folder, large, noise};
use crate::support::*;
use tidemark_journal::attest::{Signer, SigningKey, prove};
use tidemark_journal::storage::SimStorage;
use tidemark_journal::store::keys::KeyFile;
use tidemark_journal::store::{MasterKey, scrub};
use tidemark_journal::{Encryption, Journal, Options, verify};

const SEGMENT_BYTES: u64 = 600;

/// A place that a checker names: file, first byte, bytes.
type Found = (String, u64, u64);

type Files = BTreeMap<String, Vec<u8>>;

/// What the offline check of a journal names.
fn check_journal(files: &Files) -> Vec<Found> {
    let report = verify(&SimStorage::with_files(1, files)).unwrap();
    let damage = report.damage.into_iter().chain(report.torn_tail);
    damage.map(|damage| (damage.file, damage.offset, damage.bytes)).collect()
}

/// The same of a chunk store.
fn check_store(store: &Files) -> Vec<Found> {
    let mut found = Vec::new();
    let scrubbed = scrub(folder(&SimStorage::with_files(1, store)).as_ref()).unwrap();
    found.extend(scrubbed.damage.iter().map(|damage| (damage.pack.name(), damage.offset, damage.bytes)));
    for (name, bytes) in store.iter().filter(|(name, _)| *name == "chunk-keys") {
        if KeyFile::decode(bytes).is_err() {
            found.push((name.clone(), 0, bytes.len() as u64));
        }
    }
    found
}

/// A journal and a store.
fn written(key: &Arc<SigningKey>) -> (Files, Files) {
    let storage = SimStorage::new(1);
    let master = MasterKey::from_bytes(&[9; 32]).unwrap();
    let encryption = Some(Encryption { master, seed: [4; 32] });
    let signer: Option<Arc<dyn Signer>> = Some(Arc::clone(key) as Arc<dyn Signer>);
    let options = Options { encryption, signer, ..options(SEGMENT_BYTES) };
    let journal = Journal::create(Arc::new(storage.clone()), vm(), options).unwrap();
    journal.put_disk(disk(1)).unwrap();
    journal.put_disk(disk(2)).unwrap();
    sample(&journal);
    journal.maintain().unwrap();
    journal.close().unwrap();
    let journal = storage.files();
    let storage = SimStorage::new(1);
    let store = create(&storage, 4096);
    let session = store.session(DOMAIN).unwrap();
    for seed in 0..3 {
        session.put(&noise(seed, 700)).unwrap();
    }
    store.flush().unwrap();
    drop((session, store));
    let store = storage.files().into_iter().filter(|(name, _)| name != "chunk-index").collect();
    (journal, store)
}

/// Flips bits of every byte of every file, one at a time, and returns how many.
fn flip_all(files: &Files, check: impl Fn(&Files) -> Vec<Found>) -> u64 {
    assert_eq!(check(files), []);
    let (mut flips, mut files) = (0, files.clone());
    for name in files.keys().cloned().collect::<Vec<_>>() {
        for offset in 0..files[&name].len() {
            let bits = if large() { 0..8 } else { offset % 8..offset % 8 + 1 };
            for bit in bits {
                files.get_mut(&name).unwrap()[offset] ^= 1 << bit;
                let (found, at) = (check(&files), offset as u64);
                let names = |found: &Found| found.0 == name && found.1 <= at && at < found.1 + found.2;
                assert!(found.iter().any(names), "{name} byte {offset} bit {bit}: {found:?}");
                files.get_mut(&name).unwrap()[offset] ^= 1 << bit;
                flips += 1;
            }
        }
    }
    flips
}

#[test]
fn every_flipped_bit_of_a_small_folder_is_found_where_it_is() {
    let key = Arc::new(SigningKey::from_seed(&[5; 32]).unwrap());
    let (journal, store) = written(&key);
    let (_, proof) = prove(&SimStorage::with_files(1, &journal), &key.public_key()).unwrap();
    assert!(proof.proven.is_some() && proof.broken.is_none());
    for kind in ["manifest", "segment-", "leaf-", "node-", "keys", "pack-", "chunk-keys"] {
        let mut names = journal.keys().chain(store.keys());
        assert!(names.any(|name| name.starts_with(kind)), "no {kind} is in the folder");
    }
    let flips = flip_all(&journal, check_journal) + flip_all(&store, check_store);
    println!("{flips} flips, all located");
    // Negative control: the check does not name whatever it is asked for.
    let (name, mut other) = ("segment-0000000000000002", journal);
    other.get_mut(name).unwrap()[400] ^= 1;
    let found = check_journal(&other);
    assert!(found.iter().all(|(file, from, _)| file != "keys" && (file != name || *from > 10)), "{found:?}");
}
