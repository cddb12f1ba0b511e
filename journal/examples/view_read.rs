//! Reads a view of a disk, all of it in pieces of 1 MiB and 4 KiB at random places, beside a plain file with the same
//! bytes, and prints the rates and their ratio. Both are read from the page cache: what is left is the journal's work.
//!
//! `cargo run --release -p tidemark-journal --example view_read [FOLDER]`
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    reason = "a program for people"
)]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use tidemark_journal::frame::{Body, Entry, EntryKind, Frame};
use tidemark_journal::storage::OsStorage;
use tidemark_journal::view::View;
use tidemark_journal::{DiskRecord, Journal, Options, Position};
use tidemark_proto::ids::{DiskId, Lsn, VmId};

const DISK: DiskId = DiskId(1);
const DISK_BYTES: u64 = 512 << 20;
const MIB: usize = 1 << 20;
const RANDOM_READS: u64 = 100_000;

/// splitmix64.
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

struct Load {
    journal: Journal,
    position: Position,
    payload: Vec<u8>,
    crc32c: Vec<u32>,
}

impl Load {
    fn new(path: PathBuf) -> Self {
        let storage = Arc::new(OsStorage::create(path).unwrap());
        let journal =
            Journal::create(storage, VmId(uuid::Uuid::from_bytes([1; 16])), Options::default()).unwrap();
        let disk = DiskRecord { id: DISK, identity: "a".into(), path: "b".into(), size_bytes: DISK_BYTES };
        journal.put_disk(disk).unwrap();
        let mut seed = 1;
        let payload: Vec<u8> = (0..MIB / 8).flat_map(|_| random(&mut seed).to_le_bytes()).collect();
        let crc32c = payload.chunks(4096).map(crc32c::crc32c).collect();
        let mut load = Self { journal, position: Position::default(), payload, crc32c };
        let disks = [DISK];
        let start = Body::LineStart {
            lsn: Lsn(1),
            gap_from_lsn: Lsn(1),
            cause: 1,
            detail: "",
            disks: &disks,
            dirty_bytes: 0,
        };
        load.append(1, start);
        load.append(1, Body::LineEnd { lsn: Lsn(2), disks: &disks });
        load
    }

    fn append(&mut self, lsns: u64, body: Body<'_>) {
        self.position.seq += 1;
        self.position.lsn = self.position.lsn.plus(lsns);
        let frame =
            Frame { position: self.position, appliance_time_us: self.position.seq, clock_error_us: 0, body };
        self.journal.append(&frame).unwrap();
    }

    /// One frame of 1 MiB that writes blocks of `block` bytes at these places.
    fn write(&mut self, places: &[u64], block: usize) {
        let sectors = u32::try_from(block / 512).unwrap();
        let entry = |place: &u64| Entry {
            disk: DISK,
            kind: EntryKind::Data,
            start_sector: place / 512,
            sectors,
            flags: 0,
            time_delta_us: 0,
        };
        let entries: Vec<Entry> = places.iter().map(entry).collect();
        let (payload, crc32c) = (self.payload.clone(), self.crc32c.clone());
        let first_lsn = self.position.lsn.next();
        let body = Body::Writes { first_lsn, entries: &entries, payload: &payload, crc32c: &crc32c };
        self.append(entries.len() as u64, body);
    }

    fn view(&mut self) -> View {
        let lsn = self.position.lsn;
        self.append(0, Body::Heartbeat { lsn, time_us: self.position.seq + 1, clean: true });
        self.journal.sync().unwrap();
        self.journal.maintain().unwrap();
        let start = Instant::now();
        let view = self.journal.view(lsn).unwrap();
        let statistics = self.journal.statistics();
        let opened = start.elapsed();
        println!("  opened in {opened:?}, {} segments, {} nodes", statistics.segments, statistics.nodes);
        view
    }
}

/// Seconds of reading everything in order, and of random 4 KiB reads.
fn times(mut read: impl FnMut(u64, &mut [u8])) -> (f64, f64) {
    let mut buffer = vec![0; MIB];
    // The first pass warms the page cache; the second counts.
    let mut sequential = 0.0;
    for _ in 0..2 {
        let start = Instant::now();
        for offset in (0..DISK_BYTES).step_by(MIB) {
            read(offset, &mut buffer);
        }
        sequential = start.elapsed().as_secs_f64();
    }
    let mut block = vec![0; 4096];
    let mut seed = 7;
    let start = Instant::now();
    for _ in 0..RANDOM_READS {
        read(random(&mut seed) % (DISK_BYTES / 4096) * 4096, &mut block);
    }
    (sequential, start.elapsed().as_secs_f64())
}

fn compare(name: &str, view: &View, file: &File) {
    let mut copy = vec![0; MIB];
    for offset in (0..DISK_BYTES).step_by(MIB) {
        view.read_at(DISK, offset, &mut copy).unwrap();
        file.write_all_at(&copy, offset).unwrap();
    }
    let (view_all, view_random) = times(|offset, out| view.read_at(DISK, offset, out).unwrap());
    let (file_all, file_random) = times(|offset, out| file.read_exact_at(out, offset).unwrap());
    let mibs = |seconds: f64| DISK_BYTES as f64 / MIB as f64 / seconds;
    let rate = |seconds: f64| RANDOM_READS as f64 / seconds;
    println!(
        "  {name}, in order: {:.0} MiB/s, plain file {:.0} MiB/s, ratio {:.2}",
        mibs(view_all),
        mibs(file_all),
        file_all / view_all
    );
    println!(
        "  {name}, 4 KiB at random: {:.0}/s, plain file {:.0}/s, ratio {:.2}",
        rate(view_random),
        rate(file_random),
        file_random / view_random
    );
}

fn main() {
    let folder = std::env::args_os().nth(1).map_or_else(std::env::temp_dir, PathBuf::from);
    let folder = tempfile::tempdir_in(folder).unwrap();
    let open = |name| {
        File::options().read(true).write(true).create_new(true).open(folder.path().join(name)).unwrap()
    };
    println!("a disk of {} MiB, written once in order:", DISK_BYTES >> 20);
    let mut load = Load::new(folder.path().join("ordered"));
    for place in (0..DISK_BYTES).step_by(MIB) {
        load.write(&[place], MIB);
    }
    compare("ordered", &load.view(), &open("file-1"));
    println!("then 4 KiB blocks at random places, as many as the disk has:");
    let mut seed = 3;
    for _ in 0..DISK_BYTES / MIB as u64 {
        let mut places: Vec<u64> = Vec::with_capacity(MIB / 4096);
        while places.len() < MIB / 4096 {
            places.push(random(&mut seed) % (DISK_BYTES / 4096) * 4096);
        }
        load.write(&places, 4096);
    }
    compare("scattered", &load.view(), &open("file-2"));
}
