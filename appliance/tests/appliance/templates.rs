//! Content of published templates: what is offered, to whom, how it gets into a journal, and what ends it.

use std::time::Duration;

use crate::site::{Guest, Site, Stream};
use tidemark_proto::limits::PIECE_BYTES;
use tidemark_proto::pieces::{self, HashKey, Piece, ZEROES};
use tidemark_proto::v1::when::Point;
use tidemark_proto::v1::{
    BaseBlocks, Frame, GapCause, When, WriteEntry, appliance_message, frame, splitter_message,
};

const DISK_BYTES: u64 = 8 << 20;
const PIECE_SECTORS: u64 = PIECE_BYTES / 512;
const CHUNK: usize = 64 << 10;

/// Pieces and their content.
type Content = Vec<(Piece, Vec<u8>)>;

/// Breaks blocks in one way.
type Breaks = fn(&mut BaseBlocks);

/// 64 KiB that no other number gives and nothing compresses.
fn content(number: u64) -> Vec<u8> {
    let mut bytes = vec![0; CHUNK];
    blake3::Hasher::new().update(&number.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

fn image(numbers: std::ops::Range<u64>) -> Vec<u8> {
    numbers.flat_map(content).collect()
}

/// Puts a published template and waits until it is known.
async fn published(site: &Site, name: &str, numbers: std::ops::Range<u64>) -> String {
    let id = site.put_object(name, "template", true, &image(numbers)).await.id;
    known(site).await;
    id
}

/// Waits until everything that is published is known.
async fn known(site: &Site) {
    let templates = &site.appliance().core().templates;
    for _ in 0..1000 {
        if templates.missing() == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("published templates never became known");
}

fn key(stream: &Stream) -> HashKey {
    HashKey::from_bytes(&stream.welcome.hash_key).unwrap()
}

fn piece(key: &HashKey, place: u64, content: &[u8]) -> Piece {
    let sectors = u32::try_from(content.len() / 512).unwrap();
    Piece { start_sector: place * PIECE_SECTORS, sectors, hash: key.hash(content) }
}

/// A guest of a version whose first copy has begun, and its line.
async fn in_first_copy(site: &Site, name: &str, version: u32) -> (Guest, Stream, u64) {
    let mut guest = site.guest(name, DISK_BYTES).await;
    guest.protocol_max = version;
    let mut stream = guest.connect(site).await.unwrap();
    let line = guest.line_start(GapCause::InitialCopy);
    stream.frame(line).await;
    let lsn = guest.lsn;
    (guest, stream, lsn)
}

/// Whether each piece is known, and whether it is offered.
async fn ask(stream: &mut Stream, line: u64, pieces: &[Piece]) -> (Vec<bool>, Vec<bool>) {
    let question = pieces::ask(77, 1, line, pieces);
    stream.send(splitter_message::Body::HashQuestion(question)).await;
    loop {
        match stream.next().await {
            Some(appliance_message::Body::HashAnswer(answer)) => {
                let known = (0..pieces.len()).map(|index| pieces::is_known(&answer, index)).collect();
                return (known, (0..pieces.len()).map(|index| pieces::is_offered(&answer, index)).collect());
            }
            Some(appliance_message::Body::Ack(_) | appliance_message::Body::Pong(_)) => {}
            other => panic!("waiting for an answer: {other:?}"),
        }
    }
}

/// Blocks of a line as a frame brings them.
fn blocks(line: u64, of: &[(Piece, Vec<u8>)]) -> BaseBlocks {
    let entry = |(piece, _): &(Piece, Vec<u8>)| WriteEntry {
        disk_id: 1,
        kind: 1,
        start_sector: piece.start_sector,
        sectors: piece.sectors,
        ..WriteEntry::default()
    };
    let payload: Vec<u8> = of.iter().flat_map(|(_, content)| content.clone()).collect();
    BaseBlocks {
        line_lsn: line,
        entries: of.iter().map(entry).collect(),
        crc32c: payload.chunks(4096).map(crc32c::crc32c).collect(),
        payload: payload.into(),
        ..BaseBlocks::default()
    }
}

/// The same, named by the hashes of the pieces.
fn named(line: u64, of: &[(Piece, Vec<u8>)]) -> BaseBlocks {
    let hashes: Vec<u8> = of.iter().flat_map(|(piece, _)| piece.hash).collect();
    BaseBlocks { payload: Vec::new().into(), hashes: hashes.into(), ..blocks(line, of) }
}

fn base(guest: &mut Guest, blocks: BaseBlocks) -> Frame {
    guest.frame(frame::Body::Base(blocks))
}

/// Ends the copy; the newest point is durable then.
async fn complete(guest: &mut Guest, stream: &mut Stream) {
    for frame in [guest.line_end(), guest.heartbeat()] {
        stream.frame(frame).await;
    }
    stream.acked(guest.seq).await;
}

/// The disk as of its newest point.
async fn latest(site: &Site, vm: &str) -> Vec<u8> {
    site.content(vm, Some(When { point: Some(Point::Latest(true)) })).await.unwrap()
}

fn template_bytes(site: &Site, vm: &str) -> u64 {
    let metrics = site.appliance().core().metrics.render();
    let series = format!("tidemark_ingest_template_bytes_total{{vm=\"{vm}\"}} ");
    metrics.lines().find_map(|line| line.strip_prefix(&series)).map_or(0, |count| count.parse().unwrap())
}

/// The disk that has this content at these places, and zeroes elsewhere.
fn disk(of: &[(u64, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(DISK_BYTES).unwrap()];
    for (place, content) in of {
        let at = usize::try_from(*place).unwrap() * CHUNK;
        bytes[at..at + content.len()].copy_from_slice(content);
    }
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_published_template_has_is_offered_wherever_it_lies_and_gets_into_the_journal() {
    let site = Site::start().await;
    published(&site, "golden", 100..120).await;
    let (mut guest, mut stream, line) = in_first_copy(&site, "web-1", 3).await;
    assert!(stream.welcome.templates && stream.welcome.comparable_disks.is_empty());
    let key = key(&stream);
    let zero =
        |place: u64, sectors: u32| Piece { start_sector: place * PIECE_SECTORS, sectors, hash: ZEROES };
    // At another place, nowhere, as zeroes, at its own place and its neighbours.
    let asked = [
        piece(&key, 0, &content(103)),
        piece(&key, 1, &content(999)),
        zero(2, 128),
        piece(&key, 6, &content(106)),
        piece(&key, 7, &content(107)),
    ];
    let (is_known, is_offered) = ask(&mut stream, line, &asked).await;
    assert_eq!(is_known, [false, false, true, false, false]);
    assert_eq!(is_offered, [true, false, false, true, true]);
    let offered = [(asked[0], content(103)), (asked[3], content(106)), (asked[4], content(107))];
    let frame = base(&mut guest, named(line, &offered));
    stream.frame(frame).await;
    let frame = base(&mut guest, blocks(line, &[(asked[1], content(999))]));
    stream.frame(frame).await;
    // Of a chunk that was changed, what was not is found in small pieces: the disk goes on as it did.
    let mut changed = content(109);
    changed[4096 * 3 + 5] ^= 1;
    let (_, whole) = ask(&mut stream, line, &[piece(&key, 9, &changed)]).await;
    assert_eq!(whole, [false]);
    let fine = pieces::cut(&key, 9 * PIECE_SECTORS, &changed, 4096);
    let (_, small) = ask(&mut stream, line, &fine).await;
    assert!(
        small.len() == 16 && small.iter().enumerate().all(|(index, found)| *found == (index != 3)),
        "{small:?}"
    );
    let of = |index: usize| (fine[index], changed[4096 * index..4096 * (index + 1)].to_vec());
    let offered: Vec<_> = (0..16).filter(|index| *index != 3).map(of).collect();
    let frame = base(&mut guest, named(line, &offered));
    stream.frame(frame).await;
    let frame = base(&mut guest, blocks(line, &[of(3)]));
    stream.frame(frame).await;
    complete(&mut guest, &mut stream).await;
    let expected = [(0, content(103)), (1, content(999)), (6, content(106)), (7, content(107)), (9, changed)];
    assert!(latest(&site, "web-1").await == disk(&expected));
    assert_eq!(template_bytes(&site, "web-1"), 3 * PIECE_BYTES + 15 * 4096);
}

/// Sends a frame that names content, and expects that the stream ends and nothing of it is kept.
async fn not_taken(site: &Site, name: &str, guest: &mut Guest, stream: &mut Stream, blocks: BaseBlocks) {
    let before = site.appliance().core().fleet.by_name(name).unwrap().log.journal().unwrap().appended().seq;
    let frame = base(guest, blocks);
    stream.frame(frame).await;
    let goodbye = stream.goodbye().await;
    assert!(goodbye.retry && goodbye.reason.contains("not offered"), "{goodbye:?}");
    let journal = site.appliance().core().fleet.by_name(name).unwrap().log.journal().unwrap();
    assert!(journal.appended().seq <= before.max(guest.seq - 1));
    assert_eq!(template_bytes(site, name), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_but_published_templates_can_be_found_or_claimed() {
    let site = Site::start().await;
    // A victim's own content, a template that is not published, and a file.
    let (mut victim, mut stream, line) = in_first_copy(&site, "victim", 3).await;
    assert!(!stream.welcome.templates, "nothing is published yet");
    let own_key = key(&stream);
    let frame = base(&mut victim, blocks(line, &[(piece(&own_key, 0, &content(10)), content(10))]));
    stream.frame(frame).await;
    complete(&mut victim, &mut stream).await;
    site.put_object("secret", "template", false, &image(20..24)).await;
    site.put_object("file", "file", false, &image(30..34)).await;
    published(&site, "golden", 100..104).await;
    let (_spy, mut spied, spy_line) = in_first_copy(&site, "spy", 3).await;
    let key = key(&spied);
    assert_ne!(key, own_key);
    // By the key of all, and by the victim's in case it is known.
    for key in [key, own_key] {
        for number in [10, 20, 21, 30] {
            let asked: Vec<_> = (0..8).map(|place| piece(&key, place, &content(number))).collect();
            let told = ask(&mut spied, spy_line, &asked).await;
            assert_eq!(told, (vec![false; 8], vec![false; 8]), "{number}");
            let fine = pieces::cut(&key, 0, &content(number), 4096);
            assert_eq!(ask(&mut spied, spy_line, &fine).await, (vec![false; 16], vec![false; 16]));
        }
    }
    // The control: what is published is found by the same questions.
    let good = piece(&key, 3, &content(102));
    assert_eq!(ask(&mut spied, spy_line, &[good]).await.1, [true]);
    // Without an open line nothing is offered, since nothing could be placed.
    assert_eq!(ask(&mut spied, spy_line + 5, &[good]).await.1, [false]);
    drop(spied);

    // Claims. Each ends the stream, with nothing taken.
    let claims: [(&str, Content, bool); 5] = [
        ("victims", vec![(piece(&key, 0, &content(10)), content(10))], true),
        ("never-asked", vec![(piece(&key, 0, &content(100)), content(100))], false),
        ("elsewhere", vec![(piece(&key, 1, &content(100)), content(100))], true),
        ("another-hash", vec![(piece(&key, 0, &content(101)), content(101))], true),
        ("twice", vec![(piece(&key, 0, &content(100)), content(100)); 2], true),
    ];
    for (name, claim, asks) in claims {
        let (mut guest, mut stream, line) = in_first_copy(&site, name, 3).await;
        if asks {
            let offered = ask(&mut stream, line, &[piece(&key, 0, &content(100))]).await.1;
            assert_eq!(offered, [true]);
        }
        not_taken(&site, name, &mut guest, &mut stream, named(line, &claim)).await;
    }
    // In a session of a version that has no templates, and by one that is told of none.
    let (mut guest, mut stream, line) = in_first_copy(&site, "old", 2).await;
    assert!(!stream.welcome.templates && stream.welcome.hash_key != key.0.to_vec());
    let claim = (piece(&key, 0, &content(100)), content(100));
    assert_eq!(ask(&mut stream, line, &[claim.0]).await.1, [false]);
    not_taken(&site, "old", &mut guest, &mut stream, named(line, std::slice::from_ref(&claim))).await;
    // Rules.
    let broken: [(&str, Breaks); 3] = [
        ("payload", |base| base.payload = vec![0; CHUNK].into()),
        ("hashes", |base| base.hashes = vec![0; 33].into()),
        ("zeroes", |base| base.entries[0].kind = 2),
    ];
    for (name, change) in broken {
        let (mut guest, mut stream, line) = in_first_copy(&site, name, 3).await;
        assert_eq!(ask(&mut stream, line, &[claim.0]).await.1, [true]);
        let mut blocks = named(line, std::slice::from_ref(&claim));
        change(&mut blocks);
        let frame = base(&mut guest, blocks);
        stream.frame(frame).await;
        let goodbye = stream.goodbye().await;
        assert!(goodbye.reason.contains("named by hashes"), "{name}: {goodbye:?}");
    }
    // A frame's checksums are those of the content: what is named is not taken where they are not.
    let (mut guest, mut stream, line) = in_first_copy(&site, "checksums", 3).await;
    assert_eq!(ask(&mut stream, line, &[claim.0]).await.1, [true]);
    let mut wrong = named(line, &[claim]);
    wrong.crc32c[7] ^= 1;
    let frame = base(&mut guest, wrong);
    stream.frame(frame).await;
    assert!(stream.goodbye().await.reason.contains("checksum"));
}

#[tokio::test(flavor = "multi_thread")]
async fn unpublishing_ends_it_at_once_and_the_same_frame_is_then_taken_with_its_payload() {
    let mut site = Site::start().await;
    let id = published(&site, "golden", 100..104).await;
    let index = site.settings.data.join("templates").join(&id);
    assert!(index.exists());
    let (mut guest, mut stream, line) = in_first_copy(&site, "web-1", 3).await;
    let key = key(&stream);
    let of = (piece(&key, 0, &content(101)), content(101));
    let asked = [of.0, piece(&key, 1, &content(102))];
    assert_eq!(ask(&mut stream, line, &asked).await.1, [true, true]);
    let line_seq = guest.seq;
    site.publish("golden", false).await;
    // Neither what is asked now, nor what was offered before.
    assert_eq!(ask(&mut stream, line, &asked).await, (vec![false, false], vec![false, false]));
    let unsent = guest.clone();
    not_taken(&site, "web-1", &mut guest, &mut stream, named(line, std::slice::from_ref(&of))).await;
    drop(stream);
    // To its next session the splitter sends the frame as it is, with the payload: the chain is the same.
    let chain = guest.chain;
    (guest.seq, guest.ring, guest.chain) = (unsent.seq, unsent.ring, unsent.chain);
    let mut stream = guest.connect(&site).await.unwrap();
    assert!(!stream.welcome.templates);
    assert_eq!(stream.welcome.durable.as_ref().unwrap().seq, line_seq);
    let frame = base(&mut guest, blocks(line, &[of]));
    assert_eq!(guest.chain, chain);
    stream.frame(frame).await;
    complete(&mut guest, &mut stream).await;
    assert!(latest(&site, "web-1").await == disk(&[(0, content(101))]));
    assert_eq!(template_bytes(&site, "web-1"), 0);
    // Published again it is known again, also after a restart, which finds its index in the file.
    site.publish("golden", true).await;
    known(&site).await;
    let made = std::fs::metadata(&index).unwrap().modified().unwrap();
    drop(stream);
    site.restart().await;
    known(&site).await;
    assert_eq!(std::fs::metadata(&index).unwrap().modified().unwrap(), made, "it was not read again");
    let (_guest, mut stream, line) = in_first_copy(&site, "web-2", 3).await;
    assert_eq!(ask(&mut stream, line, &asked).await.1, [true, true]);
    // A damaged index is made anew.
    site.stop().await;
    let mut bytes = std::fs::read(&index).unwrap();
    bytes[100] ^= 1;
    std::fs::write(&index, &bytes).unwrap();
    site.restart().await;
    known(&site).await;
    assert_ne!(std::fs::read(&index).unwrap(), bytes);
    // Removed, nothing of it is left to be told, and its chunks go.
    site.remove_object("golden").await.unwrap();
    let core = site.appliance().core().clone();
    for _ in 0..1000 {
        if !index.exists() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(!index.exists() && core.templates.known().is_empty());
    let freed =
        tokio::task::spawn_blocking(move || tidemark_appliance::retention::collect(&core)).await.unwrap();
    assert!(freed.unwrap().freed_bytes > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_damaged_of_a_template_is_asked_for_instead() {
    let mut site = Site::start().await;
    published(&site, "golden", 100..116).await;
    site.stop().await;
    // One bit in the middle of the largest pack: in one of its chunks, or in the way to them.
    let packs = std::fs::read_dir(site.settings.data.join("store").join("packs")).unwrap().flatten();
    let pack = packs.max_by_key(|pack| pack.metadata().unwrap().len()).unwrap().path();
    let mut bytes = std::fs::read(&pack).unwrap();
    assert!(bytes.len() > 16 * CHUNK, "the pack has the template's chunks: {}", bytes.len());
    let middle = 8 * CHUNK;
    bytes[middle] ^= 1;
    std::fs::write(&pack, bytes).unwrap();
    site.restart().await;
    known(&site).await;
    let (mut guest, mut stream, line) = in_first_copy(&site, "web-1", 3).await;
    let key = key(&stream);
    let all: Vec<_> =
        (0..16).map(|place| (piece(&key, place, &content(100 + place)), content(100 + place))).collect();
    let asked: Vec<Piece> = all.iter().map(|(piece, _)| *piece).collect();
    let offered = ask(&mut stream, line, &asked).await.1;
    assert_eq!(offered.iter().filter(|offered| !**offered).count(), 1, "{offered:?}");
    let (of_template, sent): (Vec<_>, Vec<_>) =
        all.iter().cloned().zip(&offered).partition(|(_, offered)| **offered);
    let plain = |of: Vec<((Piece, Vec<u8>), &bool)>| of.into_iter().map(|(of, _)| of).collect::<Vec<_>>();
    let frame = base(&mut guest, named(line, &plain(of_template)));
    stream.frame(frame).await;
    let frame = base(&mut guest, blocks(line, &plain(sent)));
    stream.frame(frame).await;
    complete(&mut guest, &mut stream).await;
    let expected: Vec<_> = (0..16).map(|place| (place, content(100 + place))).collect();
    assert!(latest(&site, "web-1").await == disk(&expected));
    assert_eq!(template_bytes(&site, "web-1"), 15 * PIECE_BYTES);
}
