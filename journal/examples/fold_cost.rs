//! What folding costs: bytes written per byte received, log, deltas, rewritten chunks, tree and tables together.
//! `cargo run --release -p tidemark-journal --example fold_cost`
//!
//! The log's share is what `tests/costs.rs` bounds: 1.02. Everything else is counted here, before compression, on a
//! scaled disk: what matters is how many writes a fold has for each chunk of the disk, not how large either is. A fold
//! of 512 MiB over 1 TiB has one write of 4 KiB for 128 chunks, and so has a fold here. The mix runs until its cost is
//! steady; the first half is not counted.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a measurement prints what it measured")]

use std::collections::BTreeMap;
use std::sync::Arc;

use tidemark_journal::image::{Image, ImageBuilder};
use tidemark_journal::storage::SimStorage;
use tidemark_journal::store::{ChunkStore, KeyDomain, LocalFolder, MasterKey, MasterSecret, StoreOptions};
use tidemark_proto::ids::{DiskId, Lsn};

const BLOCK: u64 = 4096;
const LOG: f64 = 1.02;
const DOMAIN: KeyDomain = KeyDomain([1; 16]);

struct Random(u64);

impl Random {
    fn below(&mut self, most: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % most
    }
}

/// Writes of one fold: first block and blocks of each, in order of time.
type Mix = fn(&mut Random, disk_blocks: u64, fold: u64, blocks: u64) -> Vec<(u64, u64)>;

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

fn measure(name: &str, mix: Mix, disk: u64, fold_blocks: u64, rounds: u64, goal: f64) -> bool {
    let storage = SimStorage::new(1);
    let folder = Arc::new(LocalFolder::new(Arc::new(storage.clone())));
    let secret = MasterSecret::Key(MasterKey::from_bytes(&[1; 32]).unwrap());
    let options = StoreOptions { seed: [1; 32], compression: 0, ..StoreOptions::default() };
    let store = Arc::new(ChunkStore::create(Arc::new(storage), folder, &secret, options).unwrap());
    store.add_domain(DOMAIN).unwrap();
    let size = disk * BLOCK;
    let mut image = Image::empty(DOMAIN, DiskId(1), Lsn(0), size);
    let mut random = Random(1);
    let (mut received, mut unique, mut serial) = (0, 0, 0_u64);
    let mut start = 0;
    for fold in 0..rounds {
        let session = store.session(DOMAIN).unwrap();
        let mut builder = ImageBuilder::new(&session, Some(&image), DiskId(1), Lsn(fold + 1), size).unwrap();
        let mut newest = BTreeMap::new();
        let counted = fold >= rounds / 2;
        if fold == rounds / 2 {
            start = store.statistics().new_bytes;
        }
        for (at, count) in mix(&mut random, disk, fold, fold_blocks) {
            for block in at..(at + count).min(disk) {
                serial += 1;
                received += u64::from(counted);
                newest.insert(block, serial);
            }
        }
        unique += if counted { newest.len() } else { 0 };
        for (block, serial) in newest {
            let mut content = [0x5a; 4096];
            for sector in content.chunks_mut(512) {
                sector[..8].copy_from_slice(&serial.to_le_bytes());
            }
            builder.write(block * 8, &content).unwrap();
        }
        image = builder.finish().unwrap();
        if fold % 64 == 63 {
            collect(&store, &image);
        }
    }
    let written = store.statistics().new_bytes - start;
    #[allow(clippy::cast_precision_loss, reason = "a ratio for people")]
    let (folding, surviving) = (written as f64 / (received * BLOCK) as f64, unique as f64 / received as f64);
    let total = LOG + folding;
    let verdict = if total <= goal { "reached" } else { "MISSED" };
    println!("| {name} | {received} | {surviving:.2} | {folding:.2} | {total:.2} | <= {goal}: {verdict} |");
    total <= goal
}

/// Keeps what the newest image needs, so that memory stays small.
fn collect(store: &Arc<ChunkStore>, image: &Image) {
    store.flush().unwrap();
    let gc = store.begin_gc().unwrap();
    tidemark_journal::image::mark(store, image, &gc).unwrap();
    gc.sweep(tidemark_journal::store::SweepOptions { fill_percent: 30, tolerate_missing: false }).unwrap();
}

fn main() -> std::process::ExitCode {
    let quick = std::env::args().any(|argument| argument == "--quick");
    let scale = if quick { 4 } else { 1 };
    println!(
        "| mix | blocks of 4 KiB received | surviving the window | written by folding | with the log | goal |"
    );
    println!("|---|---|---|---|---|---|");
    // 1 GiB stands for 1 TiB: 128 blocks a fold for 16,384 chunks.
    let disk = (1 << 18) / scale;
    let uniform = measure("uniform random 4 KiB", uniform, disk, disk / 2048, 4500, 3.5);
    // 1 GiB stands for 64 GiB, folded 512 MiB at a time.
    let server = measure("server", server, disk, disk / 128, 600, 2.0);
    if uniform && server { std::process::ExitCode::SUCCESS } else { std::process::ExitCode::FAILURE }
}
