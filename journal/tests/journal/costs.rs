//! What the journal costs: bytes written per byte received, index per payload, and, by hand, time.
//! `cargo test --release --test journal costs -- --ignored --nocapture` prints the times.

use std::io::IoSlice;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::support::*;
use tidemark_journal::frame::{Body, Entry, EntryKind, Frame};
use tidemark_journal::storage::{OsStorage, SimStorage, Storage, StorageError, StorageFile, StorageLock};
use tidemark_journal::{DiskRecord, Journal, Options, Position};
use tidemark_proto::ids::{DiskId, Lsn};

const FRAME: usize = 1 << 20;

/// Bytes of the disk that writes are scattered over: half of what is written, so that versions lie above each other.
const DISK_BYTES: u64 = 256 << 20;

/// Appends frames of 1 MiB in writes of `write_bytes` at scattered places.
struct Load {
    disk_bytes: u64,
    position: Position,
    entries: Vec<Entry>,
    payload: Vec<u8>,
    crc32c: Vec<u32>,
    random: u64,
}

impl Load {
    fn new(write_bytes: usize) -> Self {
        Self::with_frame(write_bytes, FRAME)
    }

    fn with_frame(write_bytes: usize, frame: usize) -> Self {
        let sectors = write_bytes / SECTOR;
        let payload = pattern(1, frame / SECTOR);
        let entries = vec![entry(1, EntryKind::Data, 0, sectors); frame / write_bytes];
        Self {
            disk_bytes: DISK_BYTES,
            position: Position::default(),
            crc32c: checksums(&payload),
            entries,
            payload,
            random: 1,
        }
    }

    fn append(&mut self, journal: &Journal) {
        for entry in &mut self.entries {
            self.random =
                self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let sectors = u64::from(entry.sectors);
            entry.start_sector = (self.random >> 30) % (self.disk_bytes / 512 / sectors) * sectors;
        }
        let first_lsn = self.position.lsn.next();
        self.position.seq += 1;
        self.position.lsn = self.position.lsn.plus(self.entries.len() as u64);
        let body =
            Body::Writes { first_lsn, entries: &self.entries, payload: &self.payload, crc32c: &self.crc32c };
        let frame =
            Frame { position: self.position, appliance_time_us: self.position.seq, clock_error_us: 0, body };
        journal.append(&frame).unwrap();
    }
}

fn create(storage: Arc<dyn Storage>) -> Journal {
    let journal = Journal::create(storage, vm(), Options { key: KEY, ..Options::default() }).unwrap();
    journal.put_disk(DiskRecord { size_bytes: 1 << 44, ..disk(1) }).unwrap();
    journal
}

#[test]
fn bytes_written_stay_within_five_percent_and_the_index_within_two() {
    let journal = create(Arc::new(SimStorage::new(1)));
    let mut load = Load::new(4096);
    for _ in 0..130 {
        load.append(&journal);
    }
    journal.sync().unwrap();
    journal.maintain().unwrap();
    let statistics = journal.statistics();
    assert_eq!(statistics.payload_bytes, 130 << 20);
    #[allow(clippy::cast_precision_loss, reason = "a ratio for people")]
    let percent = |part: u64, of: u64| part as f64 * 100.0 / of as f64;
    let written = percent(statistics.written_bytes, statistics.payload_bytes);
    let index = percent(statistics.index_bytes, 128 << 20);
    println!("written {written:.2} % of payload, index {index:.2} %");
    assert!(written <= 105.0 && index <= 2.0 && index > 0.5);
}

#[test]
fn leaves_and_nodes_of_three_levels_take_two_percent_of_scattered_writes() {
    // Scattered over 1 TiB: no write is above another, so every node holds all that its segments hold.
    let options = Options { key: KEY, segment_bytes: 256 << 10, ..Options::default() };
    let journal = Journal::create(Arc::new(SimStorage::new(1)), vm(), options).unwrap();
    journal.put_disk(DiskRecord { size_bytes: 1 << 44, ..disk(1) }).unwrap();
    let mut load = Load { disk_bytes: 1 << 40, ..Load::with_frame(4096, 128 << 10) };
    for round in 0..1200 {
        load.append(&journal);
        if round % 8 == 7 {
            journal.sync().unwrap();
        }
    }
    journal.maintain().unwrap();
    let statistics = journal.statistics();
    assert!(statistics.nodes > 512 / 8 + 512 / 64, "{statistics:?}");
    #[allow(clippy::cast_precision_loss, reason = "a ratio for people")]
    let percent = statistics.index_bytes as f64 * 100.0 / statistics.payload_bytes as f64;
    println!(
        "index {percent:.2} % of payload, {} nodes over {} segments",
        statistics.nodes, statistics.segments
    );
    assert!(percent <= 2.0, "{percent}");
}

/// Takes writes and keeps nothing: what is left is the journal's own work.
#[derive(Debug, Default)]
struct NullStorage {
    inner: SimStorage,
}

#[derive(Debug, Default)]
struct NullFile(AtomicU64);

impl StorageFile for NullFile {
    fn write_at(&self, offset: u64, slices: &mut [IoSlice<'_>]) -> Result<(), StorageError> {
        let bytes: usize = slices.iter().map(|slice| slice.len()).sum();
        self.0.store(offset + bytes as u64, Ordering::Relaxed);
        Ok(())
    }
    fn read_at(&self, _: u64, _: &mut [u8]) -> Result<(), StorageError> {
        Ok(())
    }
    fn sync(&self) -> Result<(), StorageError> {
        Ok(())
    }
    fn settle(&self) -> Result<(), StorageError> {
        Ok(())
    }
    fn len(&self) -> Result<u64, StorageError> {
        Ok(self.0.load(Ordering::Relaxed))
    }
    fn truncate(&self, _: u64) -> Result<(), StorageError> {
        Ok(())
    }
}

impl Storage for NullStorage {
    fn create(&self, _: &str) -> Result<Arc<dyn StorageFile>, StorageError> {
        Ok(Arc::new(NullFile::default()))
    }
    fn open(&self, name: &str) -> Result<Arc<dyn StorageFile>, StorageError> {
        self.inner.open(name)
    }
    fn rename(&self, _: &str, _: &str) -> Result<(), StorageError> {
        Ok(())
    }
    fn remove(&self, _: &str) -> Result<(), StorageError> {
        Ok(())
    }
    fn sync_dir(&self) -> Result<(), StorageError> {
        Ok(())
    }
    fn list(&self) -> Result<Vec<String>, StorageError> {
        Ok(Vec::new())
    }
    fn lock(&self) -> Result<Box<dyn StorageLock>, StorageError> {
        self.inner.lock()
    }
}

#[allow(clippy::cast_precision_loss, reason = "a rate for people")]
fn rate(bytes: usize, since: Instant) -> f64 {
    bytes as f64 / since.elapsed().as_secs_f64() / 1e9
}

#[test]
#[ignore = "prints times: run by hand, in release"]
fn speed() {
    for write_bytes in [4096, 64 << 10, 1 << 20] {
        let journal = create(Arc::new(NullStorage::default()));
        let mut load = Load::new(write_bytes);
        let start = Instant::now();
        for round in 0..1024 {
            load.append(&journal);
            if round % 32 == 31 {
                journal.sync().unwrap();
            }
        }
        println!("append without a disk, writes of {write_bytes}: {:.2} GB/s", rate(1024 * FRAME, start));
        let directory = tempfile::tempdir().unwrap();
        let storage = Arc::new(OsStorage::create(directory.path().join("j")).unwrap());
        let journal = create(Arc::clone(&storage) as Arc<dyn Storage>);
        let mut load = Load::new(write_bytes);
        let mut stream = Stream::default();
        stream.line_start(&[1], 0).append(&journal).unwrap();
        stream.line_end(&[1]).append(&journal).unwrap();
        load.position = stream.position;
        let start = Instant::now();
        for round in 0..512 {
            load.append(&journal);
            if round % 32 == 31 {
                journal.sync().unwrap();
            }
        }
        println!("append and sync to a file, writes of {write_bytes}: {:.2} GB/s", rate(512 * FRAME, start));
        stream.position = load.position;
        stream.heartbeat(true).append(&journal).unwrap();
        journal.close().unwrap();
        drop(journal);
        let start = Instant::now();
        let (journal, report) = Journal::open(storage, Options::default()).unwrap();
        println!("open: {:?}, {} frames scanned", start.elapsed(), report.frames_scanned);
        let start = Instant::now();
        let view = journal.view(Lsn(stream.position.lsn.0 / 2 + 2)).unwrap();
        println!("view: {:?}", start.elapsed());
        let start = Instant::now();
        let mut buffer = vec![0; FRAME];
        for offset in 0..256_u64 {
            view.read_at(DiskId(1), offset << 20, &mut buffer).unwrap();
        }
        println!("sequential read of the view: {:.2} GB/s", rate(256 * FRAME, start));
    }
}
