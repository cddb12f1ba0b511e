//! What folding costs: bytes written for each byte received, log, deltas, rewritten chunks, trees and tables together;
//! and what a collection of the chunk store costs afterwards.
//!
//! Counted before compression, on a scaled disk: what matters is how many writes a fold has for each chunk of the disk,
//! not how large either is. A mix runs until its cost is steady; the first half is not counted.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use tidemark_journal::image::{Image, ImageBuilder, mark};
use tidemark_journal::storage::OsStorage;
use tidemark_journal::store::{
    ChunkStore, KeyDomain, LocalFolder, MasterKey, MasterSecret, StoreOptions, SweepOptions,
};
use tidemark_proto::ids::{DiskId, Lsn};

use super::super::{Goal, Table};
use super::Sizes;
use super::stream::{MIB, as_f64};

const BLOCK: u64 = 4096;
/// What the log takes for each byte received: see the rows about the log.
const LOG: f64 = 1.02;
const DOMAIN: KeyDomain = KeyDomain([1; 16]);
/// Folds between collections, so that the disk does not fill.
const COLLECT_EVERY: u64 = 64;

struct Random(u64);

impl Random {
    /// splitmix64, below a limit.
    fn below(&mut self, most: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % most
    }
}

/// Writes of one fold: first block and blocks of each, in order of time.
type Writes = fn(&mut Random, disk_blocks: u64, fold: u64, blocks: u64) -> Vec<(u64, u64)>;

struct Mix {
    name: &'static str,
    writes: Writes,
    /// A fold's blocks are this part of the disk's.
    fold_divisor: u64,
    rounds: u64,
    goal: f64,
}

/// A step of 4 GiB (`tidemark_journal::retention::step_bytes`) on 1 TiB and on 64 GiB.
const MIXES: [Mix; 2] = [
    Mix { name: "uniform 4 KiB over 1 TiB", writes: uniform, fold_divisor: 256, rounds: 1200, goal: 3.5 },
    Mix { name: "server mix on 64 GiB", writes: server, fold_divisor: 16, rounds: 240, goal: 2.0 },
];

fn uniform(random: &mut Random, disk: u64, _: u64, blocks: u64) -> Vec<(u64, u64)> {
    (0..blocks).map(|_| (random.below(disk), 1)).collect()
}

/// A server: of the blocks, a quarter go to a small hot set (journals, WAL, metadata), half are pairs in a warm tenth
/// (tables), a fifth are appended in long runs (logs, uploads), the rest go anywhere.
fn server(random: &mut Random, disk: u64, fold: u64, blocks: u64) -> Vec<(u64, u64)> {
    let (hot, warm) = (disk / 512, disk / 10);
    let mut head = (disk / 5 + fold * blocks / 5) % (disk / 2);
    let mut out = Vec::new();
    let mut written = 0;
    while written < blocks {
        let (at, count) = match random.below(100) {
            0..45 => (random.below(hot), 1),
            45..90 => (hot + random.below(warm) / 2 * 2, 2),
            90..92 => {
                head = (head + 16) % (disk - 16);
                (head, 16)
            }
            _ => (random.below(disk), 1),
        };
        written += count;
        out.push((at, count));
    }
    out
}

pub(super) fn measure(sizes: &Sizes, folder: &Path, table: &mut Table) -> Result<()> {
    for mix in &MIXES {
        let folder = tempfile::tempdir_in(folder)?;
        let rounds = (mix.rounds / sizes.fold_divisor).max(4);
        Run::begin(folder.path(), sizes.fold_disk_bytes)?.measure(mix, rounds, table)?;
    }
    Ok(())
}

struct Run {
    store: Arc<ChunkStore>,
    image: Image,
    disk_blocks: u64,
    serial: u64,
}

impl Run {
    fn begin(folder: &Path, disk_bytes: u64) -> Result<Self> {
        let storage = Arc::new(OsStorage::create(folder)?);
        let packs = Arc::new(LocalFolder::new(storage.clone()));
        let secret = MasterSecret::Key(MasterKey::from_bytes(&[1; 32])?);
        let options = StoreOptions { seed: [1; 32], compression: 0, ..StoreOptions::default() };
        let store = Arc::new(ChunkStore::create(storage, packs, &secret, options)?);
        store.add_domain(DOMAIN)?;
        let image = Image::empty(DOMAIN, DiskId(1), Lsn(0), disk_bytes);
        Ok(Self { store, image, disk_blocks: disk_bytes / BLOCK, serial: 0 })
    }

    fn measure(mut self, mix: &Mix, rounds: u64, table: &mut Table) -> Result<()> {
        let mut random = Random(1);
        let (mut received, mut surviving, mut before) = (0, 0, 0);
        for round in 0..rounds {
            let counted = round >= rounds / 2;
            if round == rounds / 2 {
                before = self.store.statistics().new_bytes;
            }
            let blocks = self.disk_blocks / mix.fold_divisor;
            let writes = (mix.writes)(&mut random, self.disk_blocks, round, blocks);
            let (all, unique) = self.fold(Lsn(round + 1), &writes)?;
            if counted {
                received += all;
                surviving += unique;
            }
            if round % COLLECT_EVERY == COLLECT_EVERY - 1 {
                self.collect()?;
            }
        }
        let written = as_f64(self.store.statistics().new_bytes - before) / as_f64(received * BLOCK);
        let name = |what: &str| format!("folding, {}: {what}", mix.name);
        table.add(&name("bytes written per byte received"), "", LOG + written, None, Goal::AtMost(mix.goal));
        let share = as_f64(surviving) / as_f64(received) * 100.0;
        table.add(&name("surviving a step"), "% of what was received", share, None, Goal::None);
        self.store.flush()?;
        let before = self.store.statistics();
        let started = Instant::now();
        let freed = self.collect()?;
        let (seconds, after) = (started.elapsed().as_secs_f64(), self.store.statistics());
        let looked_at = as_f64(before.pack_bytes / MIB);
        table.add(&name("a collection"), "s", seconds, None, Goal::None);
        table.add(&name("looked at in it"), "MiB/s", looked_at / seconds.max(1e-9), None, Goal::None);
        let rewritten = as_f64(after.written_bytes - before.written_bytes);
        table.add(
            &name("written by it per byte freed"),
            "",
            rewritten / as_f64(freed.max(1)),
            None,
            Goal::None,
        );
        Ok(())
    }

    /// One fold; blocks received, and those that survived.
    fn fold(&mut self, lsn: Lsn, writes: &[(u64, u64)]) -> Result<(u64, u64)> {
        let session = self.store.session(DOMAIN)?;
        let size_bytes = self.disk_blocks * BLOCK;
        let mut builder = ImageBuilder::new(&session, Some(&self.image), DiskId(1), lsn, size_bytes)?;
        let (mut received, mut newest) = (0, BTreeMap::new());
        for (at, count) in writes {
            for block in *at..(at + count).min(self.disk_blocks) {
                self.serial += 1;
                received += 1;
                newest.insert(block, self.serial);
            }
        }
        let mut content = [0x5a; 4096];
        for (block, serial) in &newest {
            for sector in content.chunks_mut(512) {
                for (to, from) in sector.iter_mut().zip(serial.to_le_bytes()) {
                    *to = from;
                }
            }
            builder.write(block * 8, &content)?;
        }
        self.image = builder.finish()?;
        Ok((received, newest.len() as u64))
    }

    /// Keeps what the newest image needs; bytes freed.
    fn collect(&self) -> Result<u64> {
        self.store.flush()?;
        let collection = self.store.begin_gc()?;
        mark(&self.store, &self.image, &collection)?;
        let report = collection.sweep(SweepOptions { fill_percent: 30, tolerate_missing: false })?;
        Ok(report.freed_bytes)
    }
}
