//! The spool's folder: what a killed process leaves there, what is torn, whose it is.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test states what must hold and stops where it does not"
)]

use std::path::{Path, PathBuf};

use tidemark_proto::chain;
use tidemark_proto::ids::{CaptureId, ChainHash};
use tidemark_proto::v1::{Frame, WriteEntry, Writes, frame::Body};
use tidemark_splitter::spool::format::Key;
use tidemark_splitter::spool::limits::SEGMENT_BYTES;
use tidemark_splitter::spool::{Store, StoreError};
use tidemark_splitter_core::engine::SpooledFrame;

const CAPTURE: CaptureId = CaptureId([3; 16]);
const KEY: Key = Key([9; 32]);
const LIMIT: u64 = 256 << 20;
const SECRET: &[u8] = b"nobody may read this";

/// Frames from number 5 on, each with so many bytes of payload.
fn frames(count: u64, payload_bytes: usize) -> Vec<SpooledFrame> {
    let mut before = ChainHash([1; 32]);
    (5..5 + count)
        .map(|seq| {
            let payload = SECRET.iter().copied().cycle().take(payload_bytes).collect::<Vec<_>>();
            let entry = WriteEntry { disk_id: 1, kind: 1, sectors: 8, ..WriteEntry::default() };
            let body = Writes {
                first_lsn: seq,
                entries: vec![entry],
                crc32c: vec![seq.try_into().unwrap()],
                payload: payload.into(),
                ..Writes::default()
            };
            let mut frame =
                Frame { seq, ring_position: seq * 100, body: Some(Body::Writes(body)), ..Frame::default() };
            let chain = chain::next(&before, &frame);
            frame.chain = chain.0.to_vec().into();
            let spooled = SpooledFrame { frame, lsn: seq, floor: seq * 90, before };
            before = chain;
            spooled
        })
        .collect()
}

fn open(folder: &Path) -> (Store, Vec<u64>, Option<String>) {
    let (store, facts, damage) = Store::open(folder, CAPTURE, KEY, LIMIT).unwrap();
    (store, facts.iter().map(tidemark_splitter_core::engine::SpoolFact::seq).collect(), damage)
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

fn read_all(store: &mut Store, mut after: u64, last: u64) -> Vec<SpooledFrame> {
    let mut all = Vec::new();
    while after < last {
        all.extend(store.read(after, 3 << 20).unwrap());
        after = all.last().unwrap().frame.seq;
    }
    all
}

#[test]
fn frames_come_back_in_order_in_this_process_and_in_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let written = frames(40, 1 << 20);
    let (mut store, found, damage) = open(folder.path());
    assert_eq!((found, damage), (Vec::new(), None));
    written.iter().for_each(|frame| store.append(frame).unwrap());
    assert_eq!(files(folder.path()).len(), 3, "40 MiB in files of 16");
    assert!(read_all(&mut store, 4, 44) == written);
    assert!(read_all(&mut store, 30, 44) == written[26..]);
    for file in files(folder.path()) {
        let bytes = std::fs::read(file).unwrap();
        assert!(!bytes.windows(SECRET.len()).any(|window| window == SECRET));
    }
    drop(store);
    let (mut store, found, damage) = open(folder.path());
    assert_eq!((found, damage), ((5..45).collect(), None));
    assert!(read_all(&mut store, 4, 44) == written);
    // What is acknowledged is returned to the disk in whole files.
    let before = store.room();
    store.give_up(30);
    assert!(store.room().used_bytes + SEGMENT_BYTES <= before.used_bytes);
    assert!(read_all(&mut store, 30, 44) == written[26..]);
    store.give_up(44);
    assert!(store.is_empty() && files(folder.path()).is_empty());
    assert_eq!(store.room().used_bytes, 0);
}

#[test]
fn a_torn_end_is_cut_off_wherever_it_was_torn() {
    let written = frames(3, 700);
    let folder = tempfile::tempdir().unwrap();
    let (mut store, ..) = open(folder.path());
    let mut lengths = Vec::new();
    for frame in &written {
        store.append(frame).unwrap();
        lengths.push(store.room().used_bytes);
    }
    drop(store);
    let file = files(folder.path()).remove(0);
    let whole = std::fs::read(&file).unwrap();
    for length in 0..whole.len() {
        std::fs::write(&file, &whole[..length]).unwrap();
        let (mut store, found, _) = open(folder.path());
        let expected = lengths.iter().filter(|end| **end <= length as u64).count();
        assert_eq!(found.len(), expected, "{length} bytes");
        if expected > 0 {
            // The next frame is written once more in its place.
            store.append(&frames(3, 900)[expected]).unwrap();
            drop(store);
            assert_eq!(open(folder.path()).1.len(), expected + 1);
        }
        for left in files(folder.path()) {
            std::fs::remove_file(left).unwrap();
        }
    }
}

#[test]
fn damage_ends_the_spool_and_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let (mut store, ..) = open(folder.path());
    let mut ends = Vec::new();
    for frame in frames(4, 700) {
        store.append(&frame).unwrap();
        ends.push(store.room().used_bytes);
    }
    let file = files(folder.path()).remove(0);
    let mut bytes = std::fs::read(&file).unwrap();
    let at = usize::try_from(ends[1] + 300).unwrap();
    bytes[at] ^= 1;
    std::fs::write(&file, &bytes).unwrap();
    // The process that wrote it notices when it reads it.
    assert_eq!(store.read(4, u64::MAX).unwrap().len(), 2);
    assert!(matches!(store.read(6, u64::MAX), Err(StoreError::Missing(7))));
    assert_eq!(store.read(4, 1).unwrap().len(), 1);
    drop(store);
    let (_, found, damage) = open(folder.path());
    assert_eq!(found, [5, 6]);
    assert_eq!(damage.as_deref(), Some("frame 7 is not whole"));
}

#[test]
fn another_captures_spool_is_removed_and_another_key_opens_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (mut store, ..) = open(folder.path());
    store.append(&frames(1, 700)[0]).unwrap();
    drop(store);
    let (_, facts, damage) = Store::open(folder.path(), CAPTURE, Key([8; 32]), LIMIT).unwrap();
    assert!(facts.is_empty() && damage.is_some());
    let (mut store, ..) = open(folder.path());
    store.append(&frames(1, 700)[0]).unwrap();
    drop(store);
    let (_, facts, damage) = Store::open(folder.path(), CaptureId([4; 16]), KEY, LIMIT).unwrap();
    assert!(facts.is_empty() && damage.is_none() && files(folder.path()).is_empty());
}

#[test]
fn what_cannot_be_written_ends_writing_until_the_spool_is_empty() {
    let folder = tempfile::tempdir().unwrap();
    let (mut store, ..) = open(folder.path());
    let written = frames(4, 700);
    store.append(&written[0]).unwrap();
    // A frame that does not follow, as after a failed write.
    assert!(matches!(store.append(&written[2]), Err(StoreError::Order { seq: 7, last: 5 })));
    assert!(matches!(store.append(&written[1]), Err(StoreError::Failed)));
    assert_eq!(store.room().room_bytes, 0);
    assert_eq!(store.read(4, 1).unwrap(), written[..1]);
    store.give_up(5);
    store.append(&written[2]).unwrap();
    assert_eq!(store.read(6, 1).unwrap(), written[2..3]);
}

#[test]
fn room_ends_with_the_limit() {
    let folder = tempfile::tempdir().unwrap();
    let (mut store, ..) = Store::open(folder.path(), CAPTURE, KEY, 64 << 20).unwrap();
    let mut count = 0;
    let written = frames(64, 1 << 20);
    while store.room().room_bytes > 0 {
        store.append(&written[count]).unwrap();
        count += 1;
    }
    let used = store.room().used_bytes;
    assert!((50 << 20..64 << 20).contains(&used), "{used}");
}

/// The bytes of version 1 as they lie in a file. A change here is a new version.
#[test]
fn the_layout_is_that_of_version_1() {
    use tidemark_splitter::spool::format::{FileHeader, seal};
    let file = FileHeader { capture_id: CAPTURE, number: 3, first_seq: 5 };
    let header = file.encode();
    let hex: String = header.iter().map(|byte| format!("{byte:02x}")).collect();
    let fields = ["544d53504f4f4c00", "01000000", "40000000", &"03".repeat(16), "0300000000000000"];
    assert!(hex.starts_with(&fields.concat()), "{hex}");
    let record = seal(&KEY, &file, &frames(1, 100)[0], [2; 32]).unwrap();
    let whole = [header.as_slice(), record.as_slice()].concat();
    assert_eq!(blake3::hash(&whole).to_hex().as_str(), GOLDEN);
}

const GOLDEN: &str = "fc6b234a98180bb025b61238d85b1800c85da6bd038f1ecfab88ac1a99761194";
