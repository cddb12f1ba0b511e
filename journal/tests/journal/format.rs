//! The bytes on disk: golden files of each released version, decoded field by field, and hostile input.
//!
//! `TIDEMARK_WRITE_FIXTURES=1 cargo test --test journal format` writes the fixture of the current version;
//! do so only while the version is not released.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use crate::support::*;
use proptest::prelude::*;
use tidemark_journal::attest::{Signer, SigningKey, prove};
use tidemark_journal::frame::{self, Cover, FRAME_HEADER_BYTES, FrameKind, Table};
use tidemark_journal::segment::{SEGMENT_HEADER_BYTES, SegmentHeader};
use tidemark_journal::storage::{OsStorage, SimStorage};
use tidemark_journal::store::MasterKey;
use tidemark_journal::{Encryption, Journal, OpenError, Options, leaf, manifest, node, verify};
use tidemark_proto::ids::Lsn;

const SEGMENT: &str = "segment-0000000000000001";
const LEAF: &str = "leaf-0000000000000001";
const NODE: &str = "node-1-0000000000000001";

fn fixture(version: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(version)
}

fn fixture_files(version: &str) -> BTreeMap<String, Vec<u8>> {
    let files = std::fs::read_dir(fixture(version)).unwrap().map(|entry| entry.unwrap());
    files.map(|file| (file.file_name().into_string().unwrap(), std::fs::read(file.path()).unwrap())).collect()
}

/// What was written to the fixture of version 1.
fn stream_v1() -> Stream {
    tiny(&journal(&SimStorage::new(1), 6 << 10))
}

/// What was written to the fixture of version 2.
fn stream_v2() -> Stream {
    sample(&journal(&SimStorage::new(1), 600))
}

/// Options of the fixture of this version: signed and encrypted.
fn options_now() -> Options {
    let encryption = Encryption { master: MasterKey::from_bytes(&[9; 32]).unwrap(), seed: [4; 32] };
    let signer: Arc<dyn Signer> = Arc::new(SigningKey::from_seed(&[5; 32]).unwrap());
    Options { encryption: Some(encryption), signer: Some(signer), ..options(600) }
}

/// What wrote the fixture of this version: with small segments, so that there is a node.
fn written_now() -> (BTreeMap<String, Vec<u8>>, Stream) {
    let storage = SimStorage::new(1);
    let journal = Journal::create(Arc::new(storage.clone()), vm(), options_now()).unwrap();
    journal.put_disk(disk(1)).unwrap();
    journal.put_disk(disk(2)).unwrap();
    let stream = sample(&journal);
    journal.put_note("vm-name", b"web-1").unwrap();
    journal.maintain().unwrap();
    journal.close().unwrap();
    drop(journal);
    (storage.files(), stream)
}

#[test]
fn this_version_writes_the_golden_bytes() {
    let (files, _) = written_now();
    if std::env::var_os("TIDEMARK_WRITE_FIXTURES").is_some() {
        std::fs::create_dir_all(fixture("v3")).unwrap();
        for (name, bytes) in &files {
            std::fs::write(fixture("v3").join(name), bytes).unwrap();
        }
    }
    let golden = fixture_files("v3");
    assert!(golden.contains_key(NODE));
    assert_eq!(files.keys().collect::<Vec<_>>(), golden.keys().collect::<Vec<_>>());
    for (name, bytes) in &files {
        let differs = bytes.iter().zip(&golden[name]).position(|(now, golden)| now != golden);
        assert_eq!((differs, bytes.len()), (None, golden[name].len()), "{name}: first different byte");
    }
}

/// Opens a fixture, compares it with the model, then writes on in a copy of it.
fn opens_and_reads(version: &str, mut stream: Stream, options: &Options) {
    let model = Model::of(&stream.frames, BaseRule::AtLine);
    let storage = Arc::new(OsStorage::open(fixture(version)).unwrap());
    assert!(verify(storage.as_ref()).unwrap().is_clean());
    let (journal, report) = Journal::open_read_only(storage, options.clone()).unwrap();
    assert_eq!(report.damage, None);
    assert_eq!(journal.durable(), stream.position);
    assert_eq!(journal.note("vm-name").as_deref(), Some(b"web-1".as_slice()));
    assert_eq!(difference(&journal, &model, 0..=stream.position.lsn.0), None);
    let storage = SimStorage::with_files(1, &fixture_files(version));
    let (journal, report) = Journal::open(Arc::new(storage.clone()), options.clone()).unwrap();
    assert_eq!(report.damage, None);
    for round in 0..12 {
        stream.writes(vec![entry(1, frame::EntryKind::Data, 9, 40)], 90 + round).append(&journal).unwrap();
        stream.heartbeat(true).append(&journal).unwrap();
        journal.sync().unwrap();
    }
    journal.maintain().unwrap();
    let model = Model::of(&stream.frames, BaseRule::AtLine);
    assert_eq!(difference(&journal, &model, 0..=stream.position.lsn.0), None);
    assert!(journal.statistics().nodes > 0);
    journal.close().unwrap();
    drop(journal);
    assert!(verify(&storage).unwrap().is_clean());
}

#[test]
fn the_fixture_of_version_1_opens_reads_and_is_written_on() {
    opens_and_reads("v1", stream_v1(), &options(6 << 10));
}

#[test]
fn the_fixture_of_version_2_opens_reads_and_is_written_on() {
    opens_and_reads("v2", stream_v2(), &options(600));
}

#[test]
fn the_fixture_of_version_3_opens_reads_and_is_written_on() {
    opens_and_reads("v3", written_now().1, &options_now());
    let key = SigningKey::from_seed(&[5; 32]).unwrap().public_key();
    let (report, proof) = prove(&OsStorage::open(fixture("v3")).unwrap(), &key).unwrap();
    assert!(report.is_clean() && proof.broken.is_none());
    assert_eq!(proof.proven.unwrap().lsn, Lsn(13));
}

#[test]
fn fields_lie_where_the_format_says() {
    let files = fixture_files("v1");
    let segment = &files[SEGMENT];
    assert_eq!(&segment[..8], b"TMSEGM01");
    assert_eq!(&segment[8..16], [1, 0, 160, 0, 0, 0, 0, 0]);
    assert_eq!(segment[16..32], [3; 16]);
    assert_eq!(segment[64..96], KEY);
    let (header, hash) = SegmentHeader::decode(segment).unwrap();
    assert_eq!((header.ordinal, header.seq_before, header.lsn_before), (1, 0, Lsn(0)));
    // The second frame: writes at LSN 2, two entries, two sectors of payload.
    let first = &segment[SEGMENT_HEADER_BYTES..];
    let line = frame::decode(first, &KEY).unwrap();
    assert_eq!((line.header.kind, line.header.previous), (FrameKind::LineStart, hash));
    let writes = &first[usize::try_from(line.header.frame_bytes()).unwrap()..];
    let u32_at = |at: usize| u32::from_le_bytes(writes[at..at + 4].try_into().unwrap());
    let u64_at = |at: usize| u64::from_le_bytes(writes[at..at + 8].try_into().unwrap());
    assert_eq!(&writes[..8], b"TMFRAME1");
    assert_eq!(writes[8..12], [1, 0, 1, 0]);
    assert_eq!([u32_at(12), u32_at(16), u32_at(20)], [48, 1, 1024]);
    assert_eq!(
        [u64_at(24), u64_at(32), u64_at(40), u64_at(48), u64_at(56), u64_at(64)],
        [1, 1, 2, 3, 1, 128]
    );
    assert_eq!([u64_at(120), u64_at(128)], [1_002_000, 3]);
    assert_eq!([u64_at(144), u64_at(152), u64_at(160)], [1, 1, 2]);
    assert_eq!(writes[168..200], line.hash);
    let table = &writes[FRAME_HEADER_BYTES..];
    assert_eq!(table[..16], [1, 0, 0, 0, 2, 0, 0, 0, 127, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(table[16..24], [0, 0, 0, 0, 1, 0, 0, 0]);
    let payload = &table[48 + 4..48 + 4 + 1024];
    assert_eq!(u32_at(FRAME_HEADER_BYTES + 48), crc32c::crc32c(payload));
    assert_eq!(payload, pattern(64, 2));
    let leaf = &files[LEAF];
    assert_eq!(&leaf[..8], b"TMLEAF01");
    let (directory, entries, times) = leaf::decode(leaf, &KEY).unwrap();
    assert_eq!((directory.ordinal, directory.first_lsn), (1, 1));
    assert_eq!(times[1], 1_002_000);
    assert!(entries.iter().any(|entry| entry.start == 127 && entry.lsn == Lsn(2)));
    let (of, records) = manifest::decode(&files["manifest"]).unwrap();
    assert_eq!(of, vm());
    assert!(records.last().unwrap().text.contains("Closed"));
    assert_eq!(&files["manifest"][..8], b"TMMANI01");
    let files = fixture_files("v2");
    assert_eq!(files["manifest"][8..12], [2, 0, 104, 0]);
    let bytes = &files[NODE];
    let trailer = &bytes[bytes.len() - 80..];
    assert_eq!(&trailer[..8], b"TMNODE01");
    assert_eq!(trailer[8..12], [1, 0, 1, 0]);
    assert_eq!(trailer[16..24], [1, 0, 0, 0, 0, 0, 0, 0]);
    let directory = node::decode(bytes, &KEY).unwrap();
    assert_eq!((directory.level, directory.first_ordinal), (1, 1));
    assert_eq!(directory.extents, u64::from_le_bytes(trailer[24..32].try_into().unwrap()));
    // Its first page: disk 1, from sector 0 on.
    let pages = usize::try_from(u64::from_le_bytes(trailer[32..40].try_into().unwrap())).unwrap();
    assert_eq!(bytes[pages..pages + 12], [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn what_version_3_added_lies_where_the_format_says() {
    let files = fixture_files("v3");
    assert_eq!(files["manifest"][8..12], [3, 0, 104, 0]);
    assert_eq!(&files["keys"][..8], b"TMKEYS01");
    let segment = &files[SEGMENT];
    // Version 2 of the header, with the ordinal of the data key.
    assert_eq!(segment[8..16], [2, 0, 160, 0, 1, 0, 0, 0]);
    let line = frame::decode(&segment[SEGMENT_HEADER_BYTES..], &KEY).unwrap();
    assert_eq!((line.header.cover, line.payload_hash), (Cover::Hashed, None));
    let writes = &segment[SEGMENT_HEADER_BYTES + usize::try_from(line.header.frame_bytes()).unwrap()..];
    assert_eq!(writes[8..12], [2, 0, 1, 2]);
    let frame = frame::decode(writes, &KEY).unwrap();
    let (table, payload, pieces) = (48, 29 * 512, 4);
    let seal = frame.seal.as_ref().unwrap();
    let tags = FRAME_HEADER_BYTES + table;
    assert_eq!(writes[tags..tags + 16], seal.tags[0]);
    let salt = tags + 16 * pieces;
    assert_eq!(writes[salt..salt + 32], seal.salt);
    let stored = &writes[frame.header.head_bytes()..][..payload];
    assert_eq!(writes[salt + 32..salt + 64], *blake3::keyed_hash(&KEY, stored).as_bytes());
    let checksums: Vec<u8> = checksums(stored).iter().flat_map(|one| one.to_le_bytes()).collect();
    assert_eq!(writes[salt + 64..salt + 64 + 4 * pieces], checksums);
    assert_eq!(frame.header.head_bytes(), salt + 64 + 4 * pieces);
    let (_, records) = manifest::decode(&files["manifest"]).unwrap();
    assert!(records.iter().any(|record| record.text.contains("Bookmark")));
}

#[test]
fn a_newer_version_or_a_reserved_flag_is_refused_not_misread() {
    let mut files = fixture_files("v1");
    let mut manifest = files["manifest"].clone();
    manifest[8] = 4;
    let hash = blake3::keyed_hash(&KEY, &manifest[..72]);
    manifest[72..104].copy_from_slice(hash.as_bytes());
    assert!(matches!(manifest::decode(&manifest), Err(manifest::ManifestError::Version(4))));
    files.insert("manifest".to_owned(), manifest);
    let opened = Journal::open(Arc::new(SimStorage::with_files(1, &files)), options(6 << 10));
    assert!(matches!(opened, Err(OpenError::Newer(_))));
    let bytes = &files[SEGMENT][SEGMENT_HEADER_BYTES..];
    for (at, value) in [(8, 3_u8), (10, 99), (11, 1)] {
        let mut changed = bytes.to_vec();
        changed[at] = value;
        // With a hash that fits, as a newer program would write it.
        let table = usize::try_from(u32::from_le_bytes(bytes[12..16].try_into().unwrap())).unwrap();
        let mut hasher = blake3::Hasher::new_keyed(&KEY);
        hasher.update(&changed[..200]).update(&changed[FRAME_HEADER_BYTES..FRAME_HEADER_BYTES + table]);
        changed[200..232].copy_from_slice(hasher.finalize().as_bytes());
        assert_eq!(frame::decode(&changed, &KEY), Err(frame::FrameError::Unknown));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn decoders_take_anything(bytes in proptest::collection::vec(any::<u8>(), 0..2000), at in any::<usize>(), which in 0..4_usize) {
        let files = fixture_files("v3");
        let name = [SEGMENT, LEAF, "manifest", NODE][which];
        let mut changed = files[name].clone();
        let at = at % changed.len();
        let end = (at + bytes.len()).min(changed.len());
        changed[at..end].copy_from_slice(&bytes[..end - at]);
        for input in [&bytes, &changed, &changed[at..].to_vec(), &changed[..at].to_vec()] {
            let _ = frame::decode(input, &KEY);
            let _ = SegmentHeader::decode(input);
            let _ = leaf::decode(input, &KEY);
            let _ = manifest::decode(input);
            let _ = node::decode(input, &KEY);
        }
        let mut broken = files.clone();
        broken.insert(name.to_owned(), changed);
        let storage = SimStorage::with_files(1, &broken);
        let _ = verify(&storage);
        let _ = Journal::open(Arc::new(storage), options(6 << 10));
    }

    #[test]
    fn frames_decode_to_what_was_appended(disk in 1..3_u32, start in 0..200_usize, sectors in 1..80_usize, seed in 0..1000_u64) {
        let storage = SimStorage::new(1);
        let journal = journal(&storage, 1 << 20);
        let mut stream = Stream::default();
        let frame = stream.writes(vec![entry(disk, frame::EntryKind::Data, start, sectors)], seed);
        frame.append(&journal).unwrap();
        let segment = storage.files()[SEGMENT].clone();
        let decoded = frame::decode(&segment[SEGMENT_HEADER_BYTES..], &KEY).unwrap();
        let Content::Writes { entries, payload, .. } = &frame.content else { unreachable!() };
        prop_assert_eq!(&decoded.table, &Table::Entries(entries.clone()));
        prop_assert_eq!(decoded.header.position, frame.position);
        let found = &segment[SEGMENT_HEADER_BYTES + decoded.header.head_bytes()..];
        prop_assert_eq!(found, payload.as_slice());
    }
}
