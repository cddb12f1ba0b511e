//! A chunk store in RAM, and contents for it.

use std::sync::Arc;

use tidemark_journal::storage::SimStorage;
use tidemark_journal::store::{
    ChunkStore, KdfCost, KeyDomain, LocalFolder, MasterKey, MasterSecret, OpenReport, StoreError,
    StoreOptions,
};

pub(crate) const DOMAIN: KeyDomain = KeyDomain(*b"domain number 01");
pub(crate) const OTHER: KeyDomain = KeyDomain(*b"domain number 02");

pub(crate) fn secret() -> MasterSecret {
    MasterSecret::Key(MasterKey::from_bytes(&[9; 32]).unwrap())
}

pub(crate) fn options(seed: u8, pack_bytes: usize) -> StoreOptions {
    StoreOptions {
        seed: [seed; 32],
        pack_bytes,
        // A cache would hide what is lost.
        cache_bytes: 0,
        kdf: KdfCost { memory_kib: 64, passes: 1, lanes: 1 },
        // Simulated disks are smaller than that; tests of a full one set it.
        floor_bytes: 0,
        ..StoreOptions::default()
    }
}

pub(crate) fn folder(storage: &SimStorage) -> Arc<LocalFolder> {
    Arc::new(LocalFolder::new(Arc::new(storage.clone())))
}

pub(crate) fn create(storage: &SimStorage, pack_bytes: usize) -> Arc<ChunkStore> {
    let made =
        ChunkStore::create(Arc::new(storage.clone()), folder(storage), &secret(), options(1, pack_bytes));
    let store = Arc::new(made.unwrap());
    store.add_domain(DOMAIN).unwrap();
    store
}

pub(crate) fn try_open(
    storage: &SimStorage,
    seed: u8,
    pack_bytes: usize,
) -> Result<(Arc<ChunkStore>, OpenReport), StoreError> {
    let options = options(seed, pack_bytes);
    let opened = ChunkStore::open(Arc::new(storage.clone()), folder(storage), &secret(), options);
    opened.map(|(store, report)| (Arc::new(store), report))
}

/// splitmix64.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, most: u64) -> u64 {
        self.next() % most
    }
}

/// Content that does not compress.
pub(crate) fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut random = Random(seed);
    let mut out: Vec<u8> = (0..bytes.div_ceil(8)).flat_map(|_| random.next().to_le_bytes()).collect();
    out.truncate(bytes);
    out
}

/// True for the sizes that are run by hand.
pub(crate) fn large() -> bool {
    std::env::var("TIDEMARK_TEST_SIZE").is_ok_and(|size| size == "large")
}
