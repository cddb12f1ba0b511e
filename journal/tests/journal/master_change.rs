//! A change of the master key that ends at any step, by a kill or by a power cut: whoever has the new secret goes on with
//! it, nothing is lost, and in the end the old key opens nothing.

use std::sync::Arc;

use crate::store_support::{DOMAIN, OTHER, create, folder, noise, secret};
use crate::support::{BaseRule, Model, Stream, difference, disk, options, sample, vm};
use tidemark_journal::storage::{Faults, SimStorage};
use tidemark_journal::store::keys::{MasterChange, Rewrapped};
use tidemark_journal::store::{ChunkId, ChunkStore, KdfCost, MasterKey, MasterSecret, StoreError, pack};
use tidemark_journal::{Encryption, Journal, OpenError, Options, encryption};

const COST: KdfCost = KdfCost { memory_kib: 64, passes: 1, lanes: 1 };

fn old() -> MasterKey {
    MasterKey::from_bytes(&[9; 32]).unwrap()
}

fn key(byte: u8) -> MasterSecret {
    MasterSecret::Key(MasterKey::from_bytes(&[byte; 32]).unwrap())
}

fn passphrase() -> MasterSecret {
    MasterSecret::Passphrase("correct horse".to_owned())
}

/// A store and an encrypted journal, closed, and what they hold.
struct Site {
    store: SimStorage,
    log: SimStorage,
    chunk: ChunkId,
    stream: Stream,
}

fn log_options(master: &MasterKey, seed: u8) -> Options {
    Options { encryption: Some(Encryption { master: master.clone(), seed: [seed; 32] }), ..options(2 << 10) }
}

impl Site {
    fn new(seed: u64) -> Self {
        let (store, log) = (SimStorage::new(seed), SimStorage::new(seed + 1000));
        let chunks = create(&store, 8 << 10);
        chunks.add_domain(OTHER).unwrap();
        let chunk = chunks.session(DOMAIN).unwrap().put(&noise(1, 4000)).unwrap();
        chunks.flush().unwrap();
        let journal = Journal::create(Arc::new(log.clone()), vm(), log_options(&old(), 1)).unwrap();
        journal.put_disk(disk(1)).unwrap();
        journal.put_disk(disk(2)).unwrap();
        let stream = sample(&journal);
        journal.close().unwrap();
        Self { store, log, chunk, stream }
    }

    fn change(&self, change: &MasterChange, data_keys: bool, seed: u8) -> Result<(), String> {
        encryption::rewrap(&self.log, vm(), change, data_keys, &[seed; 32])
            .map_err(|error| error.to_string())?;
        ChunkStore::rewrap(&self.store, change, data_keys, &[seed + 1; 32])
            .map_err(|error| error.to_string())?;
        Ok(())
    }

    /// What is not there under a secret, if anything.
    fn missing(&self, secret: &MasterSecret) -> Option<String> {
        let options = crate::store_support::options(77, 8 << 10);
        let opened = ChunkStore::open(Arc::new(self.store.clone()), folder(&self.store), secret, options);
        let store = match opened {
            Ok((store, _)) => store,
            Err(error) => return Some(error.to_string()),
        };
        if store.get(&self.chunk).ok().as_deref() != Some(&noise(1, 4000)[..]) {
            return Some("the chunk".to_owned());
        }
        let opened = Journal::open(Arc::new(self.log.clone()), log_options(&store.master(), 7));
        match opened {
            Ok((journal, _)) => {
                let model = Model::of(&self.stream.frames, BaseRule::AtLine);
                difference(&journal, &model, 0..=self.stream.position.lsn.0)
            }
            Err(error) => Some(error.to_string()),
        }
    }
}

#[test]
fn it_goes_on_from_any_step_and_the_old_key_opens_nothing_then() {
    let mut interrupted = 0;
    for to in [key(8), passphrase()] {
        for power_cut in [false, true] {
            for step in 0..30 {
                let site = Site::new(step);
                let file = MasterChange::begin(old(), &to, COST, &[5; 32]).unwrap().encode();
                let change = MasterChange::resume(&file, &to).unwrap();
                let faults = Faults { halt_after: Some(step % 15), ..Faults::default() };
                // Of the log first, then of the store.
                if step < 15 { &site.log } else { &site.store }.set_faults(faults);
                interrupted += u32::from(site.change(&change, true, 20).is_err());
                for storage in [&site.log, &site.store] {
                    storage.set_faults(Faults::default());
                    if power_cut {
                        storage.crash();
                    }
                }
                let change = MasterChange::resume(&file, &to).unwrap();
                site.change(&change, true, 40).unwrap();
                // Now the file of the change goes: what it says must be durable.
                site.log.crash();
                site.store.crash();
                assert_eq!(site.missing(&to), None, "step {step}, power cut {power_cut}");
                let with_old = site.missing(&secret()).unwrap();
                assert!(with_old.contains("master key"), "{with_old}");
                let opened = encryption::check(&site.log, vm(), &old());
                assert!(matches!(opened, Err(OpenError::Keys(_))), "{opened:?}");
            }
        }
    }
    assert!(interrupted > 20, "{interrupted} interruptions: the steps are too few");
}

/// Negative control: the same check fails when the change is forgotten halfway.
#[test]
fn a_change_that_is_forgotten_halfway_loses_the_log_under_either_key() {
    let site = Site::new(1);
    let change = MasterChange::begin(old(), &key(8), COST, &[5; 32]).unwrap();
    assert_eq!(site.missing(&secret()), None);
    encryption::rewrap(&site.log, vm(), &change, false, &[6; 32]).unwrap();
    assert!(site.missing(&secret()).unwrap().contains("master key"));
    assert!(site.missing(&key(8)).unwrap().contains("does not open"));
}

#[test]
fn the_new_secret_alone_opens_the_file_of_a_change_and_the_same_key_is_refused() {
    let change = MasterChange::begin(old(), &passphrase(), COST, &[5; 32]).unwrap();
    let file = change.encode();
    let wrong = MasterSecret::Passphrase("wrong".to_owned());
    assert!(matches!(MasterChange::resume(&file, &wrong), Err(StoreError::WrongKey)));
    assert!(matches!(MasterChange::resume(&file, &secret()), Err(StoreError::BadKey(_))));
    assert_eq!(MasterChange::resume(&file, &passphrase()).unwrap().new_key(), change.new_key());
    assert!(matches!(MasterChange::begin(old(), &secret(), COST, &[5; 32]), Err(StoreError::BadKey(_))));
    let site = Site::new(1);
    let store_keys = site.store.files().remove("chunk-keys").unwrap();
    assert!(matches!(MasterChange::resume(&store_keys, &secret()), Err(StoreError::KeyFile(_))));
}

#[test]
fn new_data_keys_are_made_once_and_used_for_what_comes() {
    let site = Site::new(1);
    let change = MasterChange::begin(old(), &key(8), COST, &[5; 32]).unwrap();
    site.change(&change, true, 20).unwrap();
    let again = encryption::rewrap(&site.log, vm(), &change, true, &[30; 32]).unwrap();
    assert_eq!(again, Some(Rewrapped::Before));
    assert_eq!(ChunkStore::rewrap(&site.store, &change, true, &[31; 32]).unwrap(), Rewrapped::Before);
    let options = crate::store_support::options(77, 8 << 10);
    let (store, _) =
        ChunkStore::open(Arc::new(site.store.clone()), folder(&site.store), &key(8), options).unwrap();
    let store = Arc::new(store);
    store.session(DOMAIN).unwrap().put(&noise(2, 4000)).unwrap();
    store.flush().unwrap();
    let files = site.store.files();
    let packs = files.iter().filter(|(name, _)| name.starts_with("pack-"));
    let mut ordinals: Vec<u32> = packs.map(|(_, bytes)| pack::decode(bytes).unwrap().0.key_ordinal).collect();
    ordinals.sort_unstable();
    assert_eq!(ordinals, [1, 2]);
}
