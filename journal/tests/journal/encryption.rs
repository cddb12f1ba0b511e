//! Encryption of the log: content comes back, nothing of it is in any file, no key meets a nonce twice, keys change.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::support::*;
use tidemark_journal::frame::{self, EntryKind};
use tidemark_journal::segment::{SEGMENT_HEADER_BYTES, SegmentHeader};
use tidemark_journal::storage::{Faults, SimStorage, Storage};
use tidemark_journal::store::MasterKey;
use tidemark_journal::{AppendError, Encryption, Journal, OpenError, Options, ReadError, ViewError, verify};
use tidemark_proto::ids::DiskId;

const SEGMENT_BYTES: u64 = 2 << 10;

fn encryption(master: u8, seed: u8) -> Encryption {
    Encryption { master: MasterKey::from_bytes(&[master; 32]).unwrap(), seed: [seed; 32] }
}

fn encrypting(seed: u8) -> Options {
    Options { encryption: Some(encryption(9, seed)), ..options(SEGMENT_BYTES) }
}

fn open(storage: &SimStorage, options: Options) -> Result<Journal, OpenError> {
    Journal::open(Arc::new(storage.clone()), options).map(|(journal, report)| {
        assert_eq!(report.damage, None);
        journal
    })
}

fn encrypted_journal(storage: &SimStorage) -> Journal {
    let journal = Journal::create(Arc::new(storage.clone()), vm(), encrypting(1)).unwrap();
    journal.put_disk(disk(1)).unwrap();
    journal.put_disk(disk(2)).unwrap();
    assert!(journal.is_encrypted());
    journal
}

/// Writes with LSNs after the sample's, enough for several segments.
fn more(journal: &Journal, stream: &mut Stream, rounds: u64) {
    for seed in 0..rounds {
        let from = usize::try_from(seed % 7).unwrap() * 31;
        stream.writes(vec![entry(1, EntryKind::Data, from, 23)], 40 + seed).append(journal).unwrap();
        stream.heartbeat(true).append(journal).unwrap();
        journal.sync().unwrap();
    }
}

fn same(journal: &Journal, stream: &Stream) {
    let model = Model::of(&stream.frames, BaseRule::AtLine);
    assert_eq!(difference(journal, &model, 0..=stream.position.lsn.0), None);
}

#[test]
fn what_is_written_comes_back_from_open_and_sealed_segments_and_after_reopening() {
    let storage = SimStorage::new(1);
    let journal = encrypted_journal(&storage);
    let mut stream = sample(&journal);
    more(&journal, &mut stream, 30);
    same(&journal, &stream);
    journal.maintain().unwrap();
    assert!(journal.statistics().nodes > 0);
    same(&journal, &stream);
    // Reads of every length and place.
    let view = journal.view(stream.position.lsn).unwrap();
    let expected = Model::of(&stream.frames, BaseRule::AtLine).image(1, stream.position.lsn.0);
    for from in (0..expected.len()).step_by(777) {
        for bytes in [1, 511, 512, 4095, 4096, 9000] {
            let mut found = vec![0; bytes.min(expected.len() - from)];
            view.read_at(DiskId(1), from as u64, &mut found).unwrap();
            assert!(found == expected[from..from + found.len()], "{bytes} bytes from {from}");
        }
    }
    journal.close().unwrap();
    drop((view, journal));
    let journal = open(&storage, encrypting(2)).unwrap();
    more(&journal, &mut stream, 3);
    same(&journal, &stream);
    journal.close().unwrap();
    drop(journal);
    assert!(verify(&storage).unwrap().is_clean(), "no key is needed to verify");
}

/// Whether any file has 16 bytes of the payloads in a row.
fn reveals(files: &BTreeMap<String, Vec<u8>>, stream: &Stream) -> Option<String> {
    let mut secrets: std::collections::HashSet<&[u8]> = std::collections::HashSet::new();
    for frame in &stream.frames {
        if let Content::Writes { payload, .. } | Content::Base { payload, .. } = &frame.content {
            secrets.extend(payload.chunks(SECTOR).map(|sector| &sector[..16]));
        }
    }
    assert!(secrets.len() > 100);
    let has = |bytes: &[u8]| bytes.windows(16).any(|window| secrets.contains(window));
    files.iter().find(|(_, bytes)| has(bytes)).map(|(name, _)| name.clone())
}

#[test]
fn a_stolen_folder_reveals_nothing_of_the_content() {
    let storage = SimStorage::new(1);
    let journal = encrypted_journal(&storage);
    let mut stream = sample(&journal);
    more(&journal, &mut stream, 20);
    journal.maintain().unwrap();
    assert_eq!(reveals(&storage.files(), &stream), None);
    journal.close().unwrap();
    assert_eq!(reveals(&storage.files(), &stream), None);
    // Negative control.
    let storage = SimStorage::new(1);
    let journal = journal_without_keys(&storage);
    let mut stream = sample(&journal);
    more(&journal, &mut stream, 20);
    assert!(reveals(&storage.files(), &stream).unwrap().starts_with("segment-"));
}

fn journal_without_keys(storage: &SimStorage) -> Journal {
    journal(storage, SEGMENT_BYTES)
}

/// Salt and hash of every encrypted payload in the files, torn ones too: their heads say what they were.
fn sealed_payloads(files: &BTreeMap<String, Vec<u8>>) -> Vec<([u8; 32], [u8; 32])> {
    let mut found = Vec::new();
    for (_, bytes) in files.iter().filter(|(name, _)| name.contains("segment-")) {
        for at in SEGMENT_HEADER_BYTES..bytes.len() {
            if bytes[at..].starts_with(b"TMFRAME1")
                && let Ok(frame) = frame::decode(&bytes[at..], &KEY)
                && let Some(seal) = frame.seal
            {
                found.push((seal.salt, frame.payload_hash.unwrap()));
            }
        }
    }
    found
}

#[test]
fn no_salt_covers_two_payloads_over_full_disks_crashes_and_restored_copies() {
    let storage = SimStorage::new(3);
    let journal = encrypted_journal(&storage);
    let mut stream = sample(&journal);
    more(&journal, &mut stream, 3);
    let mut seen: BTreeMap<[u8; 32], [u8; 32]> = BTreeMap::new();
    let mut look = |storage: &SimStorage| {
        for (salt, hash) in sealed_payloads(&storage.files()) {
            assert_eq!(*seen.entry(salt).or_insert(hash), hash, "a salt was used for two payloads");
        }
        seen.len()
    };
    look(&storage);
    // Another payload in the place of one that did not fit.
    let used: usize = storage.files().values().map(Vec::len).sum();
    storage.set_faults(Faults { capacity_bytes: Some(used as u64 + 100), ..Faults::default() });
    let big = stream.writes(vec![entry(1, EntryKind::Data, 0, 50)], 9);
    assert!(matches!(big.append(&journal), Err(AppendError::Full)));
    look(&storage);
    storage.set_faults(Faults::default());
    stream.rewind(journal.appended());
    stream.writes(vec![entry(1, EntryKind::Data, 0, 50)], 10).append(&journal).unwrap();
    look(&storage);
    // Torn tails, cut and written anew, with a fresh seed each time; and a folder that is put back, twice.
    let copy = storage.files();
    for round in 0..6 {
        let storage = SimStorage::with_files(round, &copy);
        let journal = open(&storage, encrypting(20 + u8::try_from(round).unwrap())).unwrap();
        let mut stream = stream.clone();
        stream.rewind(journal.appended());
        stream.writes(vec![entry(1, EntryKind::Data, 4, 50)], 100 + round).append(&journal).unwrap();
        look(&storage);
        storage.crash();
        drop(journal);
        look(&storage);
        let journal = open(&storage, encrypting(40 + u8::try_from(round).unwrap())).unwrap();
        stream.rewind(journal.appended());
        stream.writes(vec![entry(1, EntryKind::Data, 4, 50)], 200 + round).append(&journal).unwrap();
        look(&storage);
    }
    assert!(look(&storage) > 10);
    // Negative control: one seed twice over the same copy, against the contract, is found by this check.
    let payloads = [300, 400].map(|seed| {
        let storage = SimStorage::with_files(1, &copy);
        let journal = open(&storage, encrypting(60)).unwrap();
        let mut stream = stream.clone();
        stream.rewind(journal.appended());
        stream.writes(vec![entry(1, EntryKind::Data, 4, 50)], seed).append(&journal).unwrap();
        sealed_payloads(&storage.files()).pop().unwrap()
    });
    assert!(payloads[0].0 == payloads[1].0 && payloads[0].1 != payloads[1].1);
}

#[test]
fn without_its_key_a_journal_shows_its_points_and_no_content() {
    let storage = SimStorage::new(1);
    let journal = encrypted_journal(&storage);
    let stream = sample(&journal);
    journal.close().unwrap();
    drop(journal);
    assert!(matches!(open(&storage, options(SEGMENT_BYTES)), Err(OpenError::Keys(_))));
    let wrong = Options { encryption: Some(encryption(8, 2)), ..options(SEGMENT_BYTES) };
    assert!(matches!(open(&storage, wrong), Err(OpenError::Keys(_))));
    let (journal, _) = Journal::open_read_only(Arc::new(storage.clone()), options(SEGMENT_BYTES)).unwrap();
    let view = journal.view(stream.position.lsn).unwrap();
    let mut bytes = [0; 512];
    let read = view.read_at(DiskId(1), 3 * 512, &mut bytes);
    assert!(matches!(read, Err(ViewError::Read(ReadError::NoKey { .. }))), "{read:?}");
    // The key file of another VM, and none.
    let mut files = storage.files();
    files.remove("keys").unwrap();
    let bare = SimStorage::with_files(1, &files);
    let report = verify(&bare).unwrap();
    assert_eq!(report.damage[0].file, "keys");
}

fn data_keys(storage: &SimStorage) -> Vec<u32> {
    let files = storage.files();
    let segments = files.iter().filter(|(name, _)| name.starts_with("segment-"));
    segments.map(|(_, bytes)| SegmentHeader::decode(bytes).unwrap().0.data_key).collect()
}

#[test]
fn data_keys_and_the_master_key_change_without_touching_what_is_written() {
    let storage = SimStorage::new(1);
    let journal = encrypted_journal(&storage);
    let mut stream = sample(&journal);
    let before = storage.files();
    journal.rotate_data_key(&encryption(9, 70)).unwrap();
    more(&journal, &mut stream, 4);
    let keys = data_keys(&storage);
    assert!(keys.first() == Some(&1) && keys.last() == Some(&2) && keys.is_sorted(), "{keys:?}");
    journal.rewrap_data_keys(&encryption(7, 71)).unwrap();
    more(&journal, &mut stream, 1);
    same(&journal, &stream);
    let after = storage.files();
    for (name, bytes) in before.iter().filter(|(name, _)| name.starts_with("segment-")) {
        assert!(after[name].starts_with(bytes), "{name} was touched");
    }
    journal.close().unwrap();
    drop(journal);
    assert!(matches!(open(&storage, encrypting(3)), Err(OpenError::Keys(_))), "the old master key");
    let now = Options { encryption: Some(encryption(7, 4)), ..options(SEGMENT_BYTES) };
    let journal = open(&storage, now).unwrap();
    same(&journal, &stream);
    assert!(!storage.files().contains_key("keys.new"));
}

#[test]
fn a_journal_that_was_not_encrypted_is_from_the_next_segment_on() {
    let storage = SimStorage::new(1);
    let journal = journal_without_keys(&storage);
    let mut stream = sample(&journal);
    drop(journal);
    let journal = open(&storage, encrypting(5)).unwrap();
    let from = stream.frames.len();
    more(&journal, &mut stream, 4);
    same(&journal, &stream);
    let keys = data_keys(&storage);
    assert!(keys.first() == Some(&0) && keys.last() == Some(&1) && keys.is_sorted(), "{keys:?}");
    let mut new = stream.clone();
    new.frames.drain(..from);
    let secret = |frame: &Owned| match &frame.content {
        Content::Writes { payload, .. } => Some(payload[..16].to_vec()),
        _ => None,
    };
    let secrets: Vec<_> = new.frames.iter().filter_map(secret).collect();
    let files = storage.files();
    let has = |bytes: &[u8]| bytes.windows(16).any(|window| secrets.iter().any(|secret| secret == window));
    assert!(!files.values().any(|bytes| has(bytes)));
    assert!(storage.list().unwrap().contains(&"keys".to_owned()));
}
