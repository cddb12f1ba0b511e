//! Questions by hashes: what is answered, to whom, and what ends the stream.

use crate::site::{Guest, Site, Stream};
use tidemark_proto::limits::{PIECE_BYTES, QUESTIONS_MAX};
use tidemark_proto::pieces::{self, HashKey, Piece, ZEROES};
use tidemark_proto::v1::{GapCause, HashQuestion, appliance_message, splitter_message};

const DISK_BYTES: u64 = 8 << 20;
const PIECE_SECTORS: u64 = PIECE_BYTES / 512;

/// 64 KiB that no other number gives.
fn content(number: u64) -> Vec<u8> {
    (0..PIECE_BYTES / 8).flat_map(|word| (number << 32 | word | 1).to_le_bytes()).collect()
}

fn key(stream: &Stream) -> HashKey {
    HashKey::from_bytes(&stream.welcome.hash_key).unwrap()
}

fn piece(key: &HashKey, place: u64, content: &[u8]) -> Piece {
    let sectors = u32::try_from(content.len() / 512).unwrap();
    Piece { start_sector: place * PIECE_SECTORS, sectors, hash: key.hash(content) }
}

/// A guest of version 2 whose first pieces are `content(first..)`, with a line open above them. Returns the line.
async fn in_resync(site: &Site, name: &str, first: u64) -> (Guest, Stream, u64) {
    let mut guest = site.guest(name, DISK_BYTES).await;
    guest.protocol_max = 2;
    let mut stream = guest.connect(site).await.unwrap();
    assert!(stream.welcome.comparable_disks.is_empty(), "a new disk has nothing to compare with");
    guest.protect(&mut stream).await;
    for place in 0..4 {
        let frame = guest.write(place * PIECE_SECTORS, content(first + place));
        stream.frame(frame).await;
    }
    let line = guest.line_start(GapCause::CaptureRestarted);
    // Nobody waits: the question comes right behind.
    stream.frame(line).await;
    let lsn = guest.lsn;
    (guest, stream, lsn)
}

async fn ask(stream: &mut Stream, line: u64, pieces: &[Piece]) -> Vec<bool> {
    let question = pieces::ask(77, 1, line, pieces);
    stream.send(splitter_message::Body::HashQuestion(question)).await;
    loop {
        match stream.next().await {
            Some(appliance_message::Body::HashAnswer(answer)) => {
                assert_eq!(answer.id, 77);
                return (0..pieces.len()).map(|index| pieces::is_known(&answer, index)).collect();
            }
            Some(appliance_message::Body::Ack(_) | appliance_message::Body::Pong(_)) => {}
            other => panic!("waiting for an answer: {other:?}"),
        }
    }
}

#[tokio::test]
async fn what_lies_below_the_line_at_its_place_is_known_and_nothing_else() {
    let site = Site::start().await;
    let (mut guest, mut stream, line) = in_resync(&site, "a", 10).await;
    let key = key(&stream);
    let zero = |start: u64, sectors: u32| Piece { start_sector: start, sectors, hash: ZEROES };
    let above = guest.write(2 * PIECE_SECTORS, content(50));
    stream.frame(above).await;
    let asked = [
        piece(&key, 0, &content(10)),
        // The disk's own, and elsewhere.
        piece(&key, 1, &content(10)),
        // Below the line, and above it.
        piece(&key, 2, &content(12)),
        piece(&key, 3, &content(50)),
        // Never written.
        zero(4 * PIECE_SECTORS, 1024),
    ];
    assert_eq!(ask(&mut stream, line, &asked).await, [true, false, true, false, true]);
    let fine = pieces::cut(&key, PIECE_SECTORS, &content(11), 4096);
    let mut changed = fine.clone();
    changed[3].hash = key.hash(b"another");
    let known = ask(&mut stream, line, &changed).await;
    assert!(known.iter().enumerate().all(|(index, known)| *known == (index != 3)), "{known:?}");
    // What was captured above the line plays no part; zeroes where data lies are not known.
    let asked = [piece(&key, 2, &content(50)), zero(3 * PIECE_SECTORS, 128)];
    assert_eq!(ask(&mut stream, line, &asked).await, [false, false]);
    // No line, no answer but "unknown"; nor beyond the disk's end.
    assert_eq!(ask(&mut stream, line - 1, &[piece(&key, 0, &content(10))]).await, [false]);
    assert_eq!(ask(&mut stream, line, &[piece(&key, 1000, &content(10))]).await, [false]);
    // Over the next connection the disk is one to ask about, by another key.
    drop(stream);
    let stream = guest.connect(&site).await.unwrap();
    assert_eq!(
        (stream.welcome.comparable_disks.clone(), stream.welcome.verify_disks.clone()),
        (vec![1], vec![1])
    );
    assert_ne!(stream.welcome.hash_key, key.0.to_vec());
}

#[tokio::test]
async fn one_vm_learns_nothing_of_what_another_has() {
    let site = Site::start().await;
    let (_victim, mut victim, line) = in_resync(&site, "victim", 10).await;
    let (_spy, mut spy, spy_line) = in_resync(&site, "spy", 90).await;
    let (victims, spies) = (key(&victim), key(&spy));
    assert_ne!(victims, spies);
    // The victim has it.
    assert_eq!(ask(&mut victim, line, &[piece(&victims, 0, &content(10))]).await, [true]);
    // By the spy's key, and by the victim's in case it is known: at the same place, at another, as another disk or line.
    for key in [spies, victims] {
        for place in 0..8 {
            assert_eq!(ask(&mut spy, spy_line, &[piece(&key, place, &content(10))]).await, [false]);
        }
        assert_eq!(ask(&mut spy, line, &[piece(&key, 0, &content(10))]).await, [false]);
    }
    // It is served as before: its own is known.
    assert_eq!(ask(&mut spy, spy_line, &[piece(&spies, 0, &content(90))]).await, [true]);
    // The negative control: with the victim's own content the same question is answered otherwise, so the answers above
    // are about content, not about some other refusal.
    assert_eq!(ask(&mut victim, line, &[piece(&victims, 3, &content(13))]).await, [true]);
}

/// Sends questions and expects a Goodbye that says so.
async fn refused(site: &Site, name: &str, version: u32, questions: Vec<HashQuestion>, reason: &str) {
    let mut guest = site.guest(name, DISK_BYTES).await;
    guest.protocol_max = version;
    let mut stream = guest.connect(site).await.unwrap();
    assert_eq!(stream.welcome.hash_key.is_empty(), version == 1, "an older splitter gets no key");
    for question in questions {
        stream.send(splitter_message::Body::HashQuestion(question)).await;
    }
    let goodbye = stream.goodbye().await;
    assert!(goodbye.reason.contains(reason), "{name}: {goodbye:?}");
}

#[tokio::test]
async fn questions_that_break_a_rule_end_the_stream() {
    let site = Site::start().await;
    let good = pieces::ask(1, 1, 1, &[piece(&HashKey([1; 32]), 0, &content(1))]);
    refused(&site, "old", 1, vec![good.clone()], "version").await;
    let mut without = good.clone();
    without.hashes = Vec::new().into();
    refused(&site, "without-hash", 2, vec![without], "lack").await;
    let mut long = good.clone();
    long.sectors = vec![129];
    refused(&site, "long", 2, vec![long], "too long").await;
    let mut wide = good;
    (wide.sectors, wide.hashes) = (vec![4096], vec![0; 32].into());
    refused(&site, "wide", 2, vec![wide], "too much").await;
}

#[tokio::test]
async fn a_flood_of_questions_ends_the_stream() {
    let site = Site::start().await;
    let mut guest = site.guest("flood", DISK_BYTES).await;
    guest.protocol_max = 2;
    let mut stream = guest.connect(&site).await.unwrap();
    guest.protect(&mut stream).await;
    let key = key(&stream);
    // The two that may compare at once are kept busy by others.
    let busy = site.appliance().core().compare_slots.clone().acquire_many_owned(2).await.unwrap();
    for id in 0..=QUESTIONS_MAX as u64 {
        let question = pieces::ask(id, 1, 1, &[piece(&key, 0, &content(1))]);
        stream.send(splitter_message::Body::HashQuestion(question)).await;
    }
    let goodbye = stream.goodbye().await;
    assert!(goodbye.reason.contains("questions at once"), "{goodbye:?}");
    drop(busy);
}
