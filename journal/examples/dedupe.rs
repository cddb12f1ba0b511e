//! Ten disks of the same system, a little different each: space and time of the chunk store beside restic and borg on
//! the same files in the same run. `cargo run --release -p tidemark-journal --example dedupe [MiB of a disk]`
//!
//! Disks are generated: a common system of files of many sizes, half text and half noise, laid out alike; then each
//! disk has files of its own and changed blocks. All three store without a password worth the name and on one disk.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a measurement prints what it measured")]

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tidemark_journal::image::{ImageBuilder, ImageReader};
use tidemark_journal::storage::OsStorage;
use tidemark_journal::store::{ChunkStore, KeyDomain, LocalFolder, MasterKey, MasterSecret, StoreOptions};
use tidemark_proto::ids::{DiskId, Lsn};

const DISKS: u32 = 10;
const DOMAIN: KeyDomain = KeyDomain([1; 16]);
const WORDS: [&str; 12] = [
    "kernel ",
    "module ",
    "/usr/lib/",
    "config=",
    "0x00ff ",
    "error: ",
    "\n",
    "static ",
    "return ",
    "// note ",
    "true;",
    "0.0.0.0:22 ",
];

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// A file's content: text of few words, or noise.
fn file(seed: u64, bytes: usize) -> Vec<u8> {
    let mut random = Random(seed);
    let mut out = Vec::with_capacity(bytes + 16);
    while out.len() < bytes {
        let value = random.next();
        if seed.is_multiple_of(2) {
            out.extend_from_slice(WORDS[usize::try_from(value % 12).unwrap()].as_bytes());
        } else {
            out.extend_from_slice(&value.to_le_bytes());
        }
    }
    out.truncate(bytes);
    out
}

/// A disk: files at block boundaries, a tenth of it free, some blocks changed.
fn disk(number: u32, bytes: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes);
    let mut random = Random(7);
    while out.len() < bytes * 8 / 10 {
        let seed = random.next();
        let length = 1 << (9 + seed % 12);
        out.extend_from_slice(&file(seed, length + usize::try_from(seed % 4096).unwrap()));
        out.resize(out.len().next_multiple_of(4096), 0);
    }
    let mut own = Random(1000 + u64::from(number));
    while out.len() < bytes * 9 / 10 {
        out.extend_from_slice(&file(own.next(), 128 << 10));
    }
    out.resize(bytes, 0);
    for _ in 0..bytes / (2 << 20) {
        let at = usize::try_from(own.next()).unwrap() % (bytes * 8 / 10 / 4096) * 4096;
        out[at..at + 4096].copy_from_slice(&file(own.next(), 4096));
    }
    out
}

fn folder_bytes(path: &Path) -> u64 {
    let entries = std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap());
    entries
        .map(|entry| {
            let kind = entry.metadata().unwrap();
            if kind.is_dir() { folder_bytes(&entry.path()) } else { kind.len() }
        })
        .sum()
}

/// Stores all disks, and reads the last one back and compares it.
fn ours(source: &Path, place: &Path) -> (Duration, u64) {
    let storage = Arc::new(OsStorage::create(place).unwrap());
    let folder = Arc::new(LocalFolder::new(storage.clone()));
    let secret = MasterSecret::Key(MasterKey::from_bytes(&[1; 32]).unwrap());
    let options = StoreOptions { seed: [1; 32], ..StoreOptions::default() };
    let store = Arc::new(ChunkStore::create(storage, folder, &secret, options).unwrap());
    store.add_domain(DOMAIN).unwrap();
    let started = Instant::now();
    let mut last = None;
    for number in 0..DISKS {
        let mut input = File::open(source.join(format!("disk-{number}"))).unwrap();
        let size = input.metadata().unwrap().len();
        let session = store.session(DOMAIN).unwrap();
        let mut builder = ImageBuilder::new(&session, None, DiskId(number + 1), Lsn(1), size).unwrap();
        let mut buffer = vec![0; 1 << 20];
        for at in (0..size).step_by(1 << 20) {
            input.read_exact(&mut buffer).unwrap();
            builder.write(at / 512, &buffer).unwrap();
        }
        last = Some(builder.finish().unwrap());
        store.flush().unwrap();
    }
    let time = started.elapsed();
    let reader = ImageReader::new(store, last.unwrap());
    let wanted = std::fs::read(source.join(format!("disk-{}", DISKS - 1))).unwrap();
    let mut found = vec![0; wanted.len()];
    reader.read_at(0, &mut found).unwrap();
    assert!(found == wanted, "the last disk does not read back");
    (time, folder_bytes(place))
}

/// Runs a program for each disk; `None` and a line when it is not there or fails.
fn other(
    program: &str,
    source: &Path,
    place: &Path,
    init: &[&str],
    backup: fn(&Path, u32) -> Vec<String>,
) -> Option<(Duration, u64)> {
    let home = place.with_extension("home");
    std::fs::create_dir_all(&home).unwrap();
    let run = |arguments: &[String]| {
        let mut command = Command::new(program);
        command.args(arguments).current_dir(source).stdout(Stdio::null()).stderr(Stdio::null());
        command.env("HOME", &home).env("RESTIC_PASSWORD", "measure").env("BORG_PASSPHRASE", "measure");
        command.env("RESTIC_REPOSITORY", place).env("BORG_REPO", place);
        command.status()
    };
    let init: Vec<String> = init.iter().map(|argument| (*argument).to_owned()).collect();
    match run(&init) {
        Err(_) => {
            println!("| {program} | skipped: it is not installed | | |");
            return None;
        }
        Ok(status) if !status.success() => {
            println!("| {program} | skipped: it cannot make a repository | | |");
            return None;
        }
        Ok(_) => {}
    }
    let started = Instant::now();
    for number in 0..DISKS {
        if !run(&backup(source, number)).is_ok_and(|status| status.success()) {
            println!("| {program} | skipped: it failed | | |");
            return None;
        }
    }
    Some((started.elapsed(), folder_bytes(place)))
}

fn main() {
    let mebibytes: usize = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(128);
    let bytes = mebibytes << 20;
    let place = tempfile::tempdir().unwrap();
    let source = place.path().join("disks");
    std::fs::create_dir(&source).unwrap();
    for number in 0..DISKS {
        File::create(source.join(format!("disk-{number}"))).unwrap().write_all(&disk(number, bytes)).unwrap();
    }
    println!("| {DISKS} disks of {mebibytes} MiB | stored, MiB | time, s | space and time, theirs / ours |");
    println!("|---|---|---|---|");
    let (time, space) = ours(&source, &place.path().join("ours"));
    let show = |bytes: u64| bytes >> 20;
    println!("| tidemark | {} | {:.1} | |", show(space), time.as_secs_f64());
    let restic = other("restic", &source, &place.path().join("restic"), &["init"], |_, number| {
        ["backup".to_owned(), format!("disk-{number}")].to_vec()
    });
    let init = ["init", "--encryption=repokey-blake2"];
    let borg = other("borg", &source, &place.path().join("borg"), &init, |_, number| {
        ["create", "--compression", "zstd,3", &format!("::disk-{number}"), &format!("disk-{number}")]
            .map(str::to_owned)
            .to_vec()
    });
    for (name, measured) in [("restic", restic), ("borg", borg)] {
        let Some((their_time, their_space)) = measured else { continue };
        #[allow(clippy::cast_precision_loss, reason = "a ratio for people")]
        let ratio = their_space as f64 / space as f64;
        println!(
            "| {name} | {} | {:.1} | {ratio:.2}, {:.2} |",
            show(their_space),
            their_time.as_secs_f64(),
            their_time.as_secs_f64() / time.as_secs_f64()
        );
    }
}
