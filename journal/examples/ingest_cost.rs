//! What hashing, signing and encrypting cost while a journal is written: MB/s of appends to a folder, without syncs,
//! which cost the same in any case. Each round writes the same bytes in each way, so that a noisy machine meets all of
//! them; the median round is shown, and beside it the ratio to writing without encryption.
//!
//! `cargo run --release -p tidemark-journal --example ingest_cost -- [FOLDER]`; without a folder in RAM.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a measurement: it prints, and ends at the first error"
)]

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use tidemark_journal::attest::SigningKey;
use tidemark_journal::frame::{Body, Entry, EntryKind, Frame};
use tidemark_journal::storage::OsStorage;
use tidemark_journal::store::MasterKey;
use tidemark_journal::{DiskRecord, Encryption, Journal, Options, Position};
use tidemark_proto::ids::{DiskId, Lsn, VmId};

const ROUNDS: usize = 9;
const ROUND_BYTES: usize = 128 << 20;

fn append_all(folder: &Path, options: Options, write_bytes: usize, frame_bytes: usize) -> f64 {
    let dir = tempfile::tempdir_in(folder).unwrap();
    let storage = Arc::new(OsStorage::create(dir.path()).unwrap());
    let journal = Journal::create(storage, VmId(uuid::Uuid::from_bytes([1; 16])), options).unwrap();
    let disk = DiskId(1);
    let record = DiskRecord { id: disk, identity: "a".into(), path: "/dev/vdb".into(), size_bytes: 1 << 30 };
    journal.put_disk(record).unwrap();
    let payload: Vec<u8> = (0..frame_bytes).map(|at| u8::try_from(at * 31 % 251).unwrap()).collect();
    let crc32c: Vec<u32> = payload.chunks(4096).map(crc32c::crc32c).collect();
    let sectors = u32::try_from(write_bytes / 512).unwrap();
    let mut position = Position::default();
    let writes = (frame_bytes / write_bytes) as u64;
    let start = Instant::now();
    for round in 0..(ROUND_BYTES / frame_bytes) as u64 {
        let entry = |index: u64| Entry {
            disk,
            kind: EntryKind::Data,
            start_sector: (round * writes + index) * u64::from(sectors) % (1 << 20),
            sectors,
            flags: 0,
            time_delta_us: 0,
        };
        let entries: Vec<Entry> = (0..writes).map(entry).collect();
        let first_lsn = Lsn(position.lsn.0 + 1);
        position.seq += 1;
        position.lsn = Lsn(position.lsn.0 + writes);
        let body = Body::Writes { first_lsn, entries: &entries, payload: &payload, crc32c: &crc32c };
        journal.append(&Frame { position, appliance_time_us: round, clock_error_us: 0, body }).unwrap();
    }
    ROUND_BYTES as f64 / start.elapsed().as_secs_f64() / 1e6
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

fn hash_alone(frame_bytes: usize) -> f64 {
    let payload = vec![7; frame_bytes];
    let start = Instant::now();
    for _ in 0..ROUND_BYTES / frame_bytes {
        std::hint::black_box(blake3::keyed_hash(&[1; 32], &payload));
    }
    ROUND_BYTES as f64 / start.elapsed().as_secs_f64() / 1e6
}

fn main() {
    let folder = std::env::args().nth(1).unwrap_or_else(|| "/dev/shm".to_owned());
    let folder = Path::new(&folder);
    println!("| writes | frames | plain MB/s | encrypted MB/s | ratio | BLAKE3 alone MB/s |");
    println!("|---|---|---|---|---|---|");
    for (write_bytes, frame_bytes) in [(4096, 4096), (4096, 256 << 10), (1 << 20, 1 << 20)] {
        let (mut plain, mut encrypted, mut hash) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..u8::try_from(ROUNDS).unwrap() {
            let signer = Some(Arc::new(SigningKey::from_seed(&[5; 32]).unwrap()) as _);
            let signing = Options { signer, ..Options::default() };
            plain.push(append_all(folder, signing.clone(), write_bytes, frame_bytes));
            let master = MasterKey::from_bytes(&[9; 32]).unwrap();
            let encryption = Some(Encryption { master, seed: [round; 32] });
            let options = Options { encryption, ..signing };
            encrypted.push(append_all(folder, options, write_bytes, frame_bytes));
            hash.push(hash_alone(frame_bytes));
        }
        let (plain, encrypted, hash) = (median(plain), median(encrypted), median(hash));
        println!(
            "| {write_bytes} | {frame_bytes} | {plain:.0} | {encrypted:.0} | {:.2} | {hash:.0} |",
            encrypted / plain
        );
    }
}
