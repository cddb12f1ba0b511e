//! Signed heads: what is proven, what a forger who knows every key in the folder cannot do, and old formats.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use crate::support::*;
use tidemark_journal::attest::{Proof, PublicKey, Signer, SigningKey, prove};
use tidemark_journal::frame::{self, EntryKind, FRAME_HEADER_BYTES};
use tidemark_journal::retention::{ImageKeeper, fold_to};
use tidemark_journal::segment::SEGMENT_HEADER_BYTES;
use tidemark_journal::storage::{Faults, SimStorage, Storage, StorageError, StorageFile, StorageLock};
use tidemark_journal::{Journal, Options, SyncError, VerifyReport, verify};
use tidemark_proto::ids::Lsn;

const SEGMENT_BYTES: u64 = 2 << 10;

fn signer() -> Arc<SigningKey> {
    Arc::new(SigningKey::from_seed(&[5; 32]).unwrap())
}

fn public_key() -> PublicKey {
    signer().public_key()
}

fn signing(segment_bytes: u64) -> Options {
    Options { signer: Some(signer()), ..options(segment_bytes) }
}

fn signed_journal(storage: &SimStorage) -> Journal {
    let journal = Journal::create(Arc::new(storage.clone()), vm(), signing(SEGMENT_BYTES)).unwrap();
    journal.put_disk(disk(1)).unwrap();
    journal.put_disk(disk(2)).unwrap();
    journal
}

fn one_segment(storage: &SimStorage) -> Journal {
    let journal = Journal::create(Arc::new(storage.clone()), vm(), signing(1 << 20)).unwrap();
    journal.put_disk(disk(1)).unwrap();
    journal.put_disk(disk(2)).unwrap();
    journal
}

/// A closed journal of several segments, with a bookmark.
fn closed() -> (SimStorage, Stream) {
    let storage = SimStorage::new(1);
    let journal = signed_journal(&storage);
    let mut stream = sample(&journal);
    for seed in 0..6 {
        stream.writes(vec![entry(1, EntryKind::Data, 30, 4)], 20 + seed).append(&journal).unwrap();
        stream.heartbeat(true).append(&journal).unwrap();
        journal.sync().unwrap();
    }
    journal.maintain().unwrap();
    journal.close().unwrap();
    (storage, stream)
}

fn proof(files: &BTreeMap<String, Vec<u8>>) -> (VerifyReport, Proof) {
    prove(&SimStorage::with_files(1, files), &public_key()).unwrap()
}

#[test]
fn a_closed_journal_is_proven_to_its_end_and_its_bookmark_by_itself() {
    let (storage, stream) = closed();
    let (report, proof) = proof(&storage.files());
    assert!(report.is_clean(), "{report:?}");
    assert_eq!(proof.broken, None);
    assert_eq!(proof.proven.unwrap().lsn, stream.position.lsn);
    assert!(proof.covers(stream.position.lsn) && !proof.covers(stream.position.lsn.next()));
    assert_eq!(proof.bookmarks, [Lsn(5)]);
    assert_eq!(proof.end_lsn, stream.position.lsn);
    // Another key proves nothing, and says so.
    let other = SigningKey::from_seed(&[6; 32]).unwrap().public_key();
    let (report, proof) = prove(&storage, &other).unwrap();
    assert!(report.is_clean() && proof.proven.is_none());
    assert!(proof.broken.unwrap().problem.contains("nothing is signed"));
}

#[test]
fn what_follows_the_last_statement_is_not_proven_until_the_next() {
    let storage = SimStorage::new(1);
    let journal = one_segment(&storage);
    let mut stream = tiny(&journal);
    let signed = Lsn(5);
    let (_, proof) = prove(&storage, &public_key()).unwrap();
    assert_eq!((proof.proven.unwrap().lsn, proof.broken), (signed, None), "at the bookmark");
    assert!(proof.end_lsn > signed);
    journal.attest().unwrap();
    let written = storage.files()["manifest"].len();
    journal.attest().unwrap();
    assert_eq!(storage.files()["manifest"].len(), written, "nothing new is to be signed");
    let (_, proof) = prove(&storage, &public_key()).unwrap();
    assert_eq!(proof.proven.unwrap().lsn, stream.position.lsn);
    // A checkpoint's place is taken by the next; the bookmark keeps its own through snapshots.
    for _ in 0..200 {
        stream.heartbeat(true).append(&journal).unwrap();
        journal.sync().unwrap();
        journal.attest().unwrap();
    }
    let (_, proof) = prove(&storage, &public_key()).unwrap();
    assert_eq!((proof.bookmarks.as_slice(), proof.broken), ([signed].as_slice(), None));
    assert!(proof.statements < 10, "{}", proof.statements);
}

#[test]
fn a_crash_at_any_time_leaves_a_log_that_its_signatures_fit() {
    for seed in 0..40 {
        let storage = SimStorage::new(seed);
        let journal = signed_journal(&storage);
        let mut stream = tiny(&journal);
        for round in 0..seed {
            stream.writes(vec![entry(1, EntryKind::Data, 30, 4)], round).append(&journal).unwrap();
            if round % 3 == 0 {
                journal.sync().unwrap();
            }
            if round % 7 == 0 {
                stream.marker("m").append(&journal).unwrap();
                journal.maintain().unwrap();
            }
        }
        storage.crash();
        drop(journal);
        let opened = Journal::open(Arc::new(storage.clone()), signing(SEGMENT_BYTES)).unwrap();
        assert_eq!(opened.1.damage, None, "seed {seed}");
        let journal = opened.0;
        stream.rewind(journal.appended());
        for round in 0..5 {
            stream.writes(vec![entry(2, EntryKind::Data, 30, 4)], 100 + round).append(&journal).unwrap();
        }
        journal.close().unwrap();
        let (report, proof) = prove(&storage, &public_key()).unwrap();
        assert!(report.is_clean(), "seed {seed}: {report:?}");
        assert_eq!(proof.broken, None, "seed {seed}");
        assert_eq!(proof.proven.unwrap().lsn, stream.position.lsn, "seed {seed}");
    }
}

/// Changes one byte of payload in the first data frame of a segment and makes everything fit again that can be made to
/// fit without the signing key: checksum, payload hash, the hashes of all frames after it.
fn forge(segment: &mut [u8]) {
    let mut at = SEGMENT_HEADER_BYTES;
    let mut previous: Option<[u8; 32]> = None;
    let mut forged = false;
    while at < segment.len() {
        let decoded = frame::decode(&segment[at..], &KEY).unwrap();
        let (head, whole) =
            (decoded.header.head_bytes(), usize::try_from(decoded.header.frame_bytes()).unwrap());
        if !forged && whole > head {
            segment[at + head] ^= 1;
            let payload = segment[at + head..at + whole].to_vec();
            let checksums = checksums(&payload);
            let start = at + head - 4 * checksums.len();
            for (index, checksum) in checksums.iter().enumerate() {
                segment[start + 4 * index..][..4].copy_from_slice(&checksum.to_le_bytes());
            }
            if decoded.payload_hash.is_some() {
                segment[start - 32..start].copy_from_slice(blake3::keyed_hash(&KEY, &payload).as_bytes());
            }
            forged = true;
        }
        if let Some(previous) = previous {
            segment[at + 168..at + 200].copy_from_slice(&previous);
        }
        let mut hasher = blake3::Hasher::new_keyed(&KEY);
        hasher.update(&segment[at..at + 200]).update(&segment[at + FRAME_HEADER_BYTES..at + head]);
        let hash = *hasher.finalize().as_bytes();
        segment[at + 200..at + 232].copy_from_slice(&hash);
        previous = Some(hash);
        at += whole;
    }
    assert!(forged);
}

#[test]
fn a_forger_who_knows_the_journals_keys_is_caught_by_the_signature_and_by_nothing_else() {
    // A killed journal: one segment, whose end no manifest record holds.
    let storage = SimStorage::new(1);
    let journal = one_segment(&storage);
    let stream = tiny(&journal);
    journal.attest().unwrap();
    drop(journal);
    let mut files = storage.files();
    assert_eq!(proof(&files).1.broken, None);
    forge(files.get_mut("segment-0000000000000001").unwrap());
    // Negative control: without a key the forged log is a sound one, and serves the forged byte.
    let forged = SimStorage::with_files(1, &files);
    assert!(verify(&forged).unwrap().is_clean());
    let model = Model::of(&stream.frames, BaseRule::AtLine);
    let (journal, _) = Journal::open_read_only(Arc::new(forged), options(1 << 20)).unwrap();
    assert!(difference(&journal, &model, [stream.position.lsn.0]).is_some());
    let (report, proof) = proof(&files);
    assert!(report.is_clean());
    let broken = proof.broken.unwrap();
    assert_eq!(broken.file, "segment-0000000000000001");
    assert!(broken.bytes > 0 && broken.problem.contains("signed"), "{broken}");
    assert!(
        proof.proven.is_none_or(|proven| proven.lsn < Lsn(2)),
        "nothing from the forged write on is proven"
    );
}

/// What becomes of a record's body, by kind; `None`: it is left out.
type Change = dyn Fn(u16, &[u8]) -> Option<Vec<u8>>;

/// Writes manifest records anew with right seqs and hashes, as a forger can; `change` drops or alters bodies by kind.
fn rewrite_manifest(bytes: &[u8], change: &Change) -> Vec<u8> {
    let mut out = bytes[..104].to_vec();
    let mut previous: [u8; 32] = bytes[72..104].try_into().unwrap();
    let mut seq = u64::from_le_bytes(bytes[64..72].try_into().unwrap());
    let mut at = 104;
    while at < bytes.len() {
        let kind = u16::from_le_bytes(bytes[at + 4..at + 6].try_into().unwrap());
        let length = u32::from_le_bytes(bytes[at + 8..at + 12].try_into().unwrap()) as usize;
        let body = &bytes[at + 60..at + 60 + length];
        at += 60 + length;
        let Some(body) = change(kind, body) else { continue };
        let mut fixed = b"TMMR".to_vec();
        fixed.extend_from_slice(&kind.to_le_bytes());
        fixed.extend_from_slice(&[0, 0]);
        fixed.extend_from_slice(&u32::try_from(body.len()).unwrap().to_le_bytes());
        fixed.extend_from_slice(&seq.to_le_bytes());
        fixed.extend_from_slice(&0_u64.to_le_bytes());
        let mut hasher = blake3::Hasher::new_keyed(&KEY);
        hasher.update(&previous).update(&fixed).update(&body);
        previous = *hasher.finalize().as_bytes();
        out.extend_from_slice(&fixed);
        out.extend_from_slice(&previous);
        out.extend_from_slice(&body);
        seq += 1;
    }
    out
}

#[test]
fn a_forged_manifest_is_caught() {
    let (storage, stream) = closed();
    let files = storage.files();
    let with = |change: &Change| {
        let mut files = files.clone();
        let manifest = rewrite_manifest(&files["manifest"], change);
        files.insert("manifest".to_owned(), manifest);
        proof(&files)
    };
    // Rewriting it as it was changes nothing.
    let (report, same) = with(&|_, body| Some(body.to_vec()));
    assert!(report.is_clean() && same.broken.is_none() && same.covers(stream.position.lsn));
    // A disk of another size.
    let (report, sized) = with(&|kind, body| {
        let mut body = body.to_vec();
        if kind == 2 {
            let last = body.len() - 7;
            body[last] ^= 8;
        }
        Some(body)
    });
    assert!(report.is_clean(), "negative control: hashes alone do not find it: {report:?}");
    assert!(sized.proven.is_none() && sized.broken.unwrap().problem.contains("disks"));
    // No signatures.
    let (_, bare) = with(&|kind, body| (kind != 19).then(|| body.to_vec()));
    assert!(bare.proven.is_none() && bare.broken.is_some());
    // A signature that is moved to another head.
    let (_, moved) = with(&|kind, body| {
        let mut body = body.to_vec();
        if kind == 19 {
            body[25] ^= 1;
        }
        Some(body)
    });
    assert!(moved.broken.unwrap().problem.contains("does not hold"));
}

#[test]
fn a_log_that_lost_its_signed_end_is_not_proven_beyond_what_is_there() {
    let storage = SimStorage::new(1);
    let journal = one_segment(&storage);
    tiny(&journal);
    journal.attest().unwrap();
    drop(journal);
    let mut files = storage.files();
    // The forger also takes the manifest's word of what is durable, so that the end looks torn.
    let manifest = rewrite_manifest(&files["manifest"], &|kind, body| (kind != 7).then(|| body.to_vec()));
    files.insert("manifest".to_owned(), manifest);
    let segment = files.get_mut("segment-0000000000000001").unwrap();
    let mut at = SEGMENT_HEADER_BYTES;
    for _ in 0..6 {
        at += usize::try_from(frame::decode(&segment[at..], &KEY).unwrap().header.frame_bytes()).unwrap();
    }
    segment.truncate(at);
    assert!(verify(&SimStorage::with_files(1, &files)).unwrap().damage.is_empty(), "negative control");
    let (_, proof) = proof(&files);
    assert_eq!(proof.proven.unwrap().lsn, Lsn(5));
    assert!(proof.broken.unwrap().problem.contains("the log ends before"));
}

#[test]
fn every_flipped_bit_of_a_signed_journal_ends_the_proof_where_it_lies() {
    let (storage, stream) = closed();
    let files = storage.files();
    for (name, bytes) in files.iter().filter(|(name, _)| name.starts_with("segment-")) {
        for offset in (0..bytes.len()).step_by(101) {
            let mut files = files.clone();
            files.get_mut(name).unwrap()[offset] ^= 1 << (offset % 8);
            let (_, proof) = proof(&files);
            let broken = proof.broken.unwrap();
            assert!(&broken.file == name, "{name} byte {offset}: {broken}");
            let (from, to) = (broken.offset, broken.offset + broken.bytes);
            assert!((from..to).contains(&(offset as u64)), "{name} byte {offset}: {broken}");
            assert!(proof.proven.is_none_or(|proven| proven.seq < stream.position.seq));
        }
    }
}

fn fixture(version: &str) -> SimStorage {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(version);
    let files: BTreeMap<String, Vec<u8>> = std::fs::read_dir(fixture)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|file| (file.file_name().into_string().unwrap(), std::fs::read(file.path()).unwrap()))
        .collect();
    SimStorage::with_files(1, &files)
}

#[test]
fn a_journal_of_the_first_version_proves_its_new_points_after_an_upgrade() {
    let storage = fixture("v1");
    let (journal, _) = Journal::open(Arc::new(storage.clone()), signing(600)).unwrap();
    let old_end = journal.durable().lsn;
    let mut stream = Stream { position: journal.durable(), frames: Vec::new() };
    stream.marker("after the upgrade").append(&journal).unwrap();
    stream.heartbeat(true).append(&journal).unwrap();
    journal.sync().unwrap();
    let bookmark = old_end.next();
    for round in 0..4 {
        stream.writes(vec![entry(1, EntryKind::Data, 30, 4)], round).append(&journal).unwrap();
        journal.sync().unwrap();
    }
    for _ in 0..20 {
        journal.maintain().unwrap();
    }
    assert_eq!(journal.unhashed_segments(), []);
    journal.close().unwrap();
    drop(journal);
    let (report, proof) = prove(&storage, &public_key()).unwrap();
    assert!(report.is_clean(), "{report:?}");
    assert_eq!(proof.broken, None);
    assert_eq!(
        (proof.proven.unwrap().lsn, proof.bookmarks.as_slice()),
        (stream.position.lsn, &[bookmark][..])
    );
    assert!(proof.covers(bookmark) && stream.position.lsn > bookmark);
    // Negative control: one byte of what was written since ends the proof before it.
    let mut files = storage.files();
    let newest = files.keys().rfind(|name| name.starts_with("segment-")).unwrap().clone();
    let bytes = files.get_mut(&newest).unwrap();
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    let (_, broken) = self::proof(&files);
    assert!(broken.broken.is_some() && !broken.covers(stream.position.lsn));
}

#[test]
fn a_point_is_proven_after_the_log_below_it_was_folded() {
    let (storage, mut stream) = closed();
    let journal = Journal::open(Arc::new(storage.clone()), signing(SEGMENT_BYTES)).unwrap().0;
    let chunks = crate::store_support::create(&SimStorage::new(7), 16 << 10);
    journal.set_images(Arc::new(ImageKeeper::new(Arc::clone(&chunks))));
    // A bookmark in the log that stays.
    stream.marker("kept").append(&journal).unwrap();
    let bookmark = stream.position.lsn;
    for seed in 0..6 {
        stream.writes(vec![entry(2, EntryKind::Data, 40, 4)], 50 + seed).append(&journal).unwrap();
        stream.heartbeat(true).append(&journal).unwrap();
        journal.sync().unwrap();
    }
    journal.maintain().unwrap();
    let cutoff = Lsn(bookmark.0 - 1);
    let folded =
        fold_to(&journal, &chunks, crate::store_support::DOMAIN, cutoff, 1, &mut |_| true).unwrap().unwrap();
    assert!(journal.drop_folded().unwrap() > 0, "the sample has several segments");
    journal.close().unwrap();
    drop(journal);
    let (report, proof) = prove(&storage, &public_key()).unwrap();
    assert!(report.is_clean(), "{report:?}");
    assert_eq!((proof.broken.clone(), proof.from_lsn), (None, folded.lsn));
    assert!(proof.covers(bookmark) && proof.bookmarks.contains(&bookmark), "{proof:?}");
    assert_eq!((proof.proven.unwrap().lsn, proof.images.len()), (stream.position.lsn, 2));
    // Negative control: another image below the log is another journal.
    let files = storage.files();
    let mut forged = files.clone();
    let manifest = rewrite_manifest(&files["manifest"], &|kind, body| {
        let mut body = body.to_vec();
        if kind == 17 {
            let last = body.len() - 1;
            body[last] ^= 1;
        }
        Some(body)
    });
    forged.insert("manifest".to_owned(), manifest);
    let (_, broken) = self::proof(&forged);
    assert!(!broken.covers(bookmark) || broken.broken.is_some(), "{broken:?}");
}

/// A directory in which one file cannot be read from some moment on.
#[derive(Debug)]
struct BadSector {
    storage: SimStorage,
    name: String,
    broken: std::sync::atomic::AtomicBool,
}

impl Storage for BadSector {
    fn create(&self, name: &str) -> Result<Arc<dyn StorageFile>, StorageError> {
        self.storage.create(name)
    }
    fn open(&self, name: &str) -> Result<Arc<dyn StorageFile>, StorageError> {
        if name == self.name && self.broken.load(std::sync::atomic::Ordering::SeqCst) {
            return Err(StorageError::os("read", name, std::io::Error::other("bad sector")));
        }
        self.storage.open(name)
    }
    fn rename(&self, from: &str, to: &str) -> Result<(), StorageError> {
        self.storage.rename(from, to)
    }
    fn remove(&self, name: &str) -> Result<(), StorageError> {
        self.storage.remove(name)
    }
    fn sync_dir(&self) -> Result<(), StorageError> {
        self.storage.sync_dir()
    }
    fn list(&self) -> Result<Vec<String>, StorageError> {
        self.storage.list()
    }
    fn lock(&self) -> Result<Box<dyn StorageLock>, StorageError> {
        self.storage.lock()
    }
}

#[test]
fn an_old_segment_that_cannot_be_read_is_named_and_stops_no_other() {
    let storage = fixture("v2");
    let old = |storage: &SimStorage| {
        let files = storage.files();
        let names =
            files.keys().filter_map(|name| u64::from_str_radix(name.strip_prefix("segment-")?, 16).ok());
        names.collect::<Vec<u64>>()
    };
    let all = old(&storage);
    assert!(all.len() > 2, "{all:?}");
    let lost = all[0];
    let name = format!("segment-{lost:016x}");
    let bad = Arc::new(BadSector { storage: storage.clone(), name, broken: false.into() });
    let (journal, _) = Journal::open(Arc::clone(&bad) as Arc<dyn Storage>, signing(600)).unwrap();
    bad.broken.store(true, std::sync::atomic::Ordering::SeqCst);
    for _ in 0..20 {
        journal.maintain().unwrap();
    }
    let unhashed = journal.unhashed_segments();
    assert!(unhashed.len() == 1 && unhashed[0].0 == lost, "{unhashed:?}");
    assert!(unhashed[0].1.contains("bad sector") && unhashed[0].1.contains(&bad.name), "{unhashed:?}");
    // The others have their hashes: of each a record (kind 20) is in the manifest.
    let manifest = storage.files()["manifest"].clone();
    let hashes = rewrite_manifest(&manifest, &|kind, body| (kind == 20).then(|| body.to_vec()));
    // Of each 60 bytes of a record, the ordinal, and the hash.
    let hashed = (hashes.len() - 104) / (60 + 8 + 32);
    assert!(hashed + 2 >= all.len(), "{hashed} of {}", all.len());
}

#[test]
fn an_old_segment_whose_hash_found_no_space_gets_it_later() {
    let hashed = |full: bool| {
        let storage = fixture("v2");
        let (journal, _) = Journal::open(Arc::new(storage.clone()), signing(600)).unwrap();
        if full {
            let used: usize = storage.files().values().map(Vec::len).sum();
            storage.set_faults(Faults { capacity_bytes: Some(used as u64), ..Faults::default() });
            assert!(matches!(journal.maintain(), Err(SyncError::Full)));
            storage.set_faults(Faults::default());
        }
        for _ in 0..20 {
            journal.maintain().unwrap();
        }
        // Of each a record of kind 20.
        rewrite_manifest(&storage.files()["manifest"], &|kind, body| (kind == 20).then(|| body.to_vec()))
            .len()
    };
    assert!(hashed(false) > 104 + 100, "the header, and more than one record");
    assert_eq!(hashed(true), hashed(false));
}

#[test]
fn old_formats_are_hashed_after_an_upgrade_and_proven_from_then_on() {
    let storage = fixture("v2");
    let (journal, _) = Journal::open(Arc::new(storage.clone()), signing(600)).unwrap();
    let end = journal.durable().lsn;
    journal.attest().unwrap();
    let (_, before) = prove(&storage, &public_key()).unwrap();
    assert!(before.proven.is_none() && before.broken.unwrap().problem.contains("older version"));
    let mut stream = Stream { position: journal.durable(), frames: Vec::new() };
    for round in 0..4 {
        stream.writes(vec![entry(1, EntryKind::Data, 30, 4)], round).append(&journal).unwrap();
        journal.sync().unwrap();
    }
    for _ in 0..20 {
        journal.maintain().unwrap();
    }
    journal.close().unwrap();
    drop(journal);
    let (report, proof) = prove(&storage, &public_key()).unwrap();
    assert!(report.is_clean(), "{report:?}");
    assert_eq!(proof.broken, None);
    assert_eq!(proof.proven.unwrap().lsn, stream.position.lsn);
    assert!(stream.position.lsn > end);
    // In such a segment the forger finds checksums only; the hash of the file catches him.
    let mut files = storage.files();
    let segment = "segment-0000000000000002";
    forge(files.get_mut(segment).unwrap());
    let broken = self::proof(&files).1.broken.unwrap();
    assert_eq!(broken.file, segment);
}
