//! The splitters' streams.

use crate::site::{Guest, Site, Stream};
use tidemark_proto::ids::ChainHash;
use tidemark_proto::v1::when::Point;
use tidemark_proto::v1::{
    CreateBookmarkRequest, Frame, GapCause, OpenViewRequest, Ping, ReadViewRequest, When, appliance_message,
    frame, splitter_message,
};

const DISK_BYTES: u64 = 8 << 20;

async fn protected(site: &Site, name: &str) -> (Guest, Stream) {
    let mut guest = site.guest(name, DISK_BYTES).await;
    let mut stream = guest.connect(site).await.unwrap();
    guest.protect(&mut stream).await;
    (guest, stream)
}

/// Reads a range of disk 1 at a point.
async fn read(site: &Site, vm: &str, at: Point, offset: u64, length: u64) -> Result<Vec<u8>, tonic::Status> {
    let mut console = site.console().await;
    let request = OpenViewRequest {
        vm: vm.into(),
        at: Some(When { point: Some(at) }),
        disk: "disk-1".into(),
        ..<_>::default()
    };
    let mut lease = console.open_view(request).await?.into_inner();
    let view = lease.message().await?.unwrap();
    let request = ReadViewRequest { view_id: view.view_id, disk: "disk-1".into(), offset, length };
    let mut chunks = console.read_view(request).await?.into_inner();
    let mut bytes = Vec::new();
    while let Some(chunk) = chunks.message().await? {
        assert!(chunk.data.len() <= 1 << 20);
        bytes.extend_from_slice(&chunk.data);
        bytes.resize(bytes.len() + usize::try_from(chunk.zero_bytes).unwrap(), 0);
    }
    Ok(bytes)
}

#[tokio::test]
async fn acknowledged_writes_are_readable_at_every_point_and_after_a_restart() {
    let mut site = Site::start().await;
    let (mut guest, mut stream) = protected(&site, "a").await;
    let base = guest.lsn;
    for value in 1..=3 {
        let frame = guest.write(8, vec![value; 4096]);
        stream.frame(frame).await;
    }
    let frame = guest.heartbeat();
    stream.frame(frame).await;
    let durable = stream.acked(guest.seq).await;
    assert_eq!((durable.lsn, durable.ring_position), (guest.lsn, guest.ring));
    assert_eq!(durable.chain, guest.chain.0.to_vec());
    for restarted in [false, true] {
        if restarted {
            drop(stream.sender.clone());
            site.restart().await;
        }
        assert_eq!(read(&site, "a", Point::Lsn(base), 4096, 4096).await.unwrap(), vec![0; 4096]);
        for value in 1..=3_u8 {
            let at = Point::Lsn(base + u64::from(value));
            assert_eq!(read(&site, "a", at, 4096, 4096).await.unwrap(), vec![value; 4096]);
        }
        let all = read(&site, "a", Point::Latest(true), 0, DISK_BYTES).await.unwrap();
        assert_eq!(all.len() as u64, DISK_BYTES);
        assert_eq!(all.iter().filter(|byte| **byte == 3).count(), 4096);
    }
    guest.last_acked = Some(durable);
    let stream = guest.connect(&site).await.unwrap();
    assert_eq!(stream.welcome.durable.as_ref().unwrap().seq, guest.seq);
}

#[tokio::test]
async fn unacknowledged_frames_are_sent_again_and_the_state_follows_the_stream() {
    let site = Site::start().await;
    assert_eq!(
        {
            site.guest("new", DISK_BYTES).await;
            site.vm("new").await.state
        },
        "new"
    );
    let mut guest = site.guest("a", DISK_BYTES).await;
    let mut stream = guest.connect(&site).await.unwrap();
    let frame = guest.line_start(GapCause::InitialCopy);
    stream.frame(frame).await;
    stream.acked(guest.seq).await;
    assert_eq!(site.vm("a").await.state, "initial-sync");
    let (end, beat) = (guest.line_end(), guest.heartbeat());
    stream.frame(end).await;
    stream.frame(beat).await;
    stream.acked(guest.seq).await;
    let vm = site.vm("a").await;
    assert_eq!((vm.state.as_str(), vm.latest_lsn, vm.durable_lsn), ("protected", guest.lsn, guest.lsn));
    assert!(vm.rpo_ms.unwrap() < 20_000);
    drop(stream);
    let before = guest.clone();
    let lost = guest.write(0, vec![9; 512]);
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    assert_eq!(site.vm("a").await.state, "disconnected");
    let mut stream = guest.connect(&site).await.unwrap();
    assert_eq!(stream.welcome.durable.as_ref().unwrap().seq, before.seq);
    stream.frame(lost).await;
    stream.acked(guest.seq).await;
    let frame = guest.line_start(GapCause::RingFull);
    stream.frame(frame).await;
    stream.acked(guest.seq).await;
    assert_eq!(site.vm("a").await.state, "resync");
}

/// Sends one bad frame and expects a Goodbye that says so.
async fn refused(site: &Site, name: &str, change: impl FnOnce(&mut Guest) -> Frame, reason: &str) {
    let (mut guest, mut stream) = protected(site, name).await;
    let durable = guest.seq;
    let frame = change(&mut guest);
    stream.frame(frame).await;
    let goodbye = stream.goodbye().await;
    assert!(goodbye.reason.contains(reason), "{name}: {goodbye:?}");
    let mut guest = Guest { seq: durable, ..guest };
    let stream = guest.connect(site).await.unwrap();
    assert_eq!(stream.welcome.durable.unwrap().seq, durable, "{name}: nothing of it was stored");
}

/// The same content with a right chain hash: only the rule in question is broken.
fn rechain(guest: &mut Guest, change: impl FnOnce(&mut Frame)) -> Frame {
    let before = guest.chain;
    let mut frame = guest.write(0, vec![1; 4096]);
    change(&mut frame);
    frame.chain = tidemark_proto::chain::next(&before, &frame).0.to_vec().into();
    frame
}

fn writes(frame: &mut Frame) -> &mut tidemark_proto::v1::Writes {
    match &mut frame.body {
        Some(frame::Body::Writes(writes)) => writes,
        _ => panic!("not writes"),
    }
}

#[tokio::test]
async fn frames_that_break_a_rule_end_the_stream_and_leave_nothing() {
    let site = Site::start().await;
    refused(&site, "seq", |g| rechain(g, |f| f.seq += 1), "was due").await;
    refused(&site, "replay", |g| rechain(g, |f| f.seq -= 1), "was due").await;
    refused(&site, "lsn", |g| rechain(g, |f| writes(f).first_lsn += 1), "was due").await;
    refused(&site, "ring", |g| rechain(g, |f| f.ring_position = 1), "ring position").await;
    refused(&site, "generation", |g| rechain(g, |f| f.generation = 0), "generation").await;
    refused(&site, "no-line", |g| rechain(g, |f| f.generation = 2), "must begin with a line").await;
    refused(&site, "crc", |g| rechain(g, |f| writes(f).crc32c[0] ^= 1), "checksum").await;
    refused(&site, "payload", |g| rechain(g, |f| writes(f).payload = vec![0; 512].into()), "payload").await;
    refused(
        &site,
        "bounds",
        |g| rechain(g, |f| writes(f).entries[0].start_sector = DISK_BYTES / 512),
        "beyond",
    )
    .await;
    refused(&site, "disk", |g| rechain(g, |f| writes(f).entries[0].disk_id = 9), "not protected").await;
    refused(&site, "kind", |g| rechain(g, |f| writes(f).entries[0].kind = 77), "unknown kind").await;
    refused(&site, "empty", |g| rechain(g, |f| f.body = None), "without content").await;
    refused(&site, "name", |g| g.marker(&"x".repeat(200), "", 0), "name").await;
    refused(&site, "oversized", |g| g.write(0, vec![0; 10 << 20]), "message length too large").await;
    assert_eq!(site.vm("seq").await.latest_lsn, 2, "what was good before is still there");
}

#[tokio::test]
async fn a_fork_is_quarantined_until_the_vm_is_enrolled_again() {
    let site = Site::start().await;
    let (mut guest, stream) = protected(&site, "a").await;
    drop(stream);
    let mut fork = guest.connect(&site).await.unwrap();
    guest.chain = ChainHash([9; 32]);
    let frame = guest.write(0, vec![1; 512]);
    fork.frame(frame).await;
    let goodbye = fork.goodbye().await;
    assert!(goodbye.reason.contains("quarantined") && !goodbye.retry, "{goodbye:?}");
    let again = guest.connect(&site).await.err().unwrap();
    assert!(again.reason.contains("--replace"), "{again:?}");
    assert_eq!(site.vm("a").await.state, "quarantined");

    let token = site.token("a", true).await;
    let (enrolled, key) = site.enrol(&token).await.unwrap();
    assert_eq!(enrolled.vm_id, guest.id, "the VM and its journal stay");
    let old = guest.open(&site, splitter_message::Body::Hello(guest.hello())).await.unwrap_err();
    assert_eq!(old.code(), tonic::Code::Unauthenticated);
    let mut guest = Guest { platform: guest.platform.clone(), ..Guest::new(enrolled, key, DISK_BYTES) };
    let stream = guest.connect(&site).await.unwrap();
    assert_eq!(stream.welcome.durable.unwrap().seq, 3);
    assert_eq!(stream.welcome.disks[0].disk_id, 1);
}

#[tokio::test]
async fn old_state_and_a_new_platform_are_quarantined() {
    let site = Site::start().await;
    let mut guest = site.guest("snapshot", DISK_BYTES).await;
    drop(guest.connect(&site).await.unwrap());
    let snapshot = guest.clone();
    wait_disconnected(&site, "snapshot").await;
    let stream = guest.connect(&site).await.unwrap();
    wait_saved(&site, "snapshot").await;
    drop(stream);
    wait_disconnected(&site, "snapshot").await;
    let refused = snapshot.clone().connect(&site).await.err().unwrap();
    assert!(refused.reason.contains("reverted to a snapshot") && !refused.retry, "{refused:?}");
    assert!(guest.connect(&site).await.is_err(), "the other one is stopped too");

    let mut guest = site.guest("moved", DISK_BYTES).await;
    drop(guest.connect(&site).await.unwrap());
    wait_disconnected(&site, "moved").await;
    guest.platform.dmi_uuid = "another".into();
    let refused = guest.connect(&site).await.err().unwrap();
    assert!(refused.reason.contains("DMI UUID changed"), "{refused:?}");
}

/// Until the appliance has seen NonceSaved: from then on the nonce before is old.
async fn wait_saved(site: &Site, name: &str) {
    for _ in 0..200 {
        let row = site.appliance().core().catalog.vm_by_name(name).await.unwrap().unwrap();
        if row.nonce_hash.is_some() && row.pending_nonce_hash.is_none() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("the nonce of {name} stays unsaved");
}

async fn wait_disconnected(site: &Site, name: &str) {
    for _ in 0..200 {
        let vm = site.appliance().core().fleet.by_name(name).unwrap();
        if vm.session().is_none() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("{name} stays connected");
}

#[tokio::test]
async fn an_unsaved_nonce_keeps_the_old_one_good() {
    let site = Site::start().await;
    let mut guest = site.guest("a", DISK_BYTES).await;
    drop(guest.connect(&site).await.unwrap());
    wait_disconnected(&site, "a").await;
    // Welcomed, but killed before the new nonce was saved.
    let (sender, mut receiver) =
        guest.open(&site, splitter_message::Body::Hello(guest.hello())).await.unwrap();
    assert!(receiver.message().await.unwrap().is_some());
    drop((sender, receiver));
    wait_disconnected(&site, "a").await;
    guest.connect(&site).await.unwrap();
}

/// A splitter that is alive.
fn keep_talking(stream: &Stream) -> tokio::task::JoinHandle<()> {
    let sender = stream.sender.clone();
    tokio::spawn(async move {
        loop {
            let ping = splitter_message::Body::Ping(Ping { boottime_ns: 1, ..Ping::default() });
            if sender.send(tidemark_proto::v1::SplitterMessage { body: Some(ping) }).await.is_err() {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    })
}

#[tokio::test]
async fn the_same_splitter_takes_over_and_two_live_ones_are_both_stopped() {
    let site = Site::start().await;
    let (mut guest, mut first) = protected(&site, "a").await;
    let mut second = guest.connect(&site).await.unwrap();
    let goodbye = first.goodbye().await;
    assert!(goodbye.reason.contains("connected again"), "{goodbye:?}");
    let frame = guest.write(0, vec![1; 512]);
    second.frame(frame).await;
    second.acked(guest.seq).await;

    // Another boot with the newest nonce, while the first keeps talking.
    let mut clone = guest.clone();
    clone.platform.boot_id = "boot-2".into();
    let talk = keep_talking(&second);
    let refused = clone.connect(&site).await.err().unwrap();
    assert!(refused.reason.contains("two of its splitters"), "{refused:?}");
    let goodbye = second.goodbye().await;
    assert!(goodbye.reason.contains("quarantined"), "{goodbye:?}");
    talk.abort();

    // A copy that was given an identity of its own is refused by itself.
    let (mut guest, mut original) = protected(&site, "c").await;
    let mut copy = guest.clone();
    (copy.platform.boot_id, copy.platform.dmi_uuid) = ("boot-2".into(), "another".into());
    let (talk, refused) = (keep_talking(&original), copy.connect(&site).await.err().unwrap());
    assert!(!refused.retry && refused.reason.contains("DMI UUID"), "{refused:?}");
    let frame = guest.write(0, vec![2; 512]);
    original.frame(frame).await;
    original.acked(guest.seq).await;
    talk.abort();

    // A silent rival is dead: a reset machine comes back while its old connection still looks open.
    let (mut guest, _silent) = protected(&site, "b").await;
    guest.platform.boot_id = "boot-2".into();
    guest.connect(&site).await.unwrap();
}

#[tokio::test]
async fn pings_are_answered_and_frames_wait_for_the_saved_nonce() {
    let site = Site::start().await;
    let mut guest = site.guest("a", DISK_BYTES).await;
    let mut stream = guest.connect(&site).await.unwrap();
    stream.send(splitter_message::Body::Ping(Ping { boottime_ns: 42, ..Ping::default() })).await;
    match stream.next().await {
        Some(appliance_message::Body::Pong(pong)) => {
            assert_eq!(pong.boottime_ns, 42);
            assert!(pong.appliance_time_us > 1_000_000_000_000_000);
        }
        other => panic!("{other:?}"),
    }
    drop(stream);
    wait_disconnected(&site, "a").await;
    let (sender, receiver) = guest.open(&site, splitter_message::Body::Hello(guest.hello())).await.unwrap();
    let frame = guest.line_start(GapCause::InitialCopy);
    let welcome = tidemark_proto::v1::Welcome::default();
    let mut stream = Stream { welcome, sender, receiver };
    stream.frame(frame).await;
    assert!(stream.goodbye().await.reason.contains("NonceSaved"));
}

#[tokio::test]
async fn versions_and_strange_hellos_are_refused() {
    let site = Site::start().await;
    let guest = site.guest("a", DISK_BYTES).await;
    type Change = fn(&mut tidemark_proto::v1::Hello);
    let cases: [(Change, &str); 5] = [
        (|h| (h.protocol_min, h.protocol_max) = (7, 9), "upgrade the older one"),
        (|h| h.capture_id = vec![1; 3].into(), "16 bytes"),
        (|h| h.disks.push(h.disks[0].clone()), "used twice"),
        (|h| h.disks[0].size_bytes = 7, "impossible size"),
        (|h| h.software = "x".repeat(5000), "5000 bytes"),
    ];
    for (change, reason) in cases {
        let mut hello = guest.hello();
        change(&mut hello);
        let (sender, receiver) = guest.open(&site, splitter_message::Body::Hello(hello)).await.unwrap();
        let mut stream = Stream { welcome: tidemark_proto::v1::Welcome::default(), sender, receiver };
        let goodbye = stream.goodbye().await;
        assert!(goodbye.reason.contains(reason) && !goodbye.retry, "{goodbye:?}");
    }
    let (sender, receiver) = guest
        .open(&site, splitter_message::Body::NonceSaved(tidemark_proto::v1::NonceSaved {}))
        .await
        .unwrap();
    let mut stream = Stream { welcome: tidemark_proto::v1::Welcome::default(), sender, receiver };
    assert!(stream.goodbye().await.reason.contains("must be Hello"));
}

#[tokio::test]
async fn bookmarks_come_from_both_sides_and_survive_a_lost_catalog() {
    let mut site = Site::start().await;
    let (mut guest, mut stream) = protected(&site, "a").await;
    let mut console = site.console().await;
    let request = |name: &str, consistency: &str, allow_lower| CreateBookmarkRequest {
        name: name.into(),
        vm: "a".into(),
        consistency: consistency.into(),
        allow_lower,
    };
    let refused = console.create_bookmark(request("x", "application", false)).await.unwrap_err();
    assert!(refused.message().contains("--allow-lower"), "{refused}");
    let asked = tokio::spawn({
        let (mut console, request) = (console.clone(), request("before", "application", true));
        async move { console.create_bookmark(request).await }
    });
    let Some(appliance_message::Body::MarkerRequest(ask)) = stream.next().await else {
        panic!("no marker request")
    };
    let (marker, beat) = (guest.marker(&ask.name, &ask.bookmark_id, ask.request_id), guest.heartbeat());
    let at = guest.lsn;
    stream.frame(marker).await;
    stream.frame(beat).await;
    let reply = asked.await.unwrap().unwrap().into_inner();
    assert_eq!((reply.achieved.as_str(), reply.requested.as_str()), ("crash", "application"));
    assert_eq!(reply.points[0].lsn, at);
    let taken = console.create_bookmark(request("before", "", false)).await.unwrap_err();
    assert_eq!(taken.code(), tonic::Code::AlreadyExists);
    // Placed in the guest, which cannot know which names are taken.
    let (marker, write, beat) =
        (guest.marker("before", "", 0), guest.write(0, vec![5; 512]), guest.heartbeat());
    for frame in [marker, write, beat] {
        stream.frame(frame).await;
    }
    stream.acked(guest.seq).await;
    assert_eq!(read(&site, "a", Point::Bookmark("before".into()), 0, 512).await.unwrap(), vec![0; 512]);
    assert_eq!(read(&site, "a", Point::Latest(true), 0, 512).await.unwrap(), vec![5; 512]);
    let failed = tokio::spawn({
        let (mut console, request) = (console.clone(), request("later", "", false));
        async move { console.create_bookmark(request).await }
    });
    let Some(appliance_message::Body::MarkerRequest(ask)) = stream.next().await else {
        panic!("no marker request")
    };
    let answer = tidemark_proto::v1::MarkerFailed { request_id: ask.request_id, reason: "busy".into() };
    stream.send(splitter_message::Body::MarkerFailed(answer)).await;
    let failed = failed.await.unwrap().unwrap_err();
    assert!(failed.message().contains("busy"), "{failed}");
    drop((stream, console));

    // The catalog is lost: bookmarks and the VM's name come back from the journal, its credentials do not.
    site.lose_catalog().await;
    assert_eq!(read(&site, "a", Point::Bookmark("before".into()), 0, 512).await.unwrap(), vec![0; 512]);
    assert_eq!(read(&site, "a", Point::Bookmark("before~2".into()), 0, 512).await.unwrap(), vec![0; 512]);
    assert_eq!(site.vm("a").await.state, "quarantined");
    let refused = guest.open(&site, splitter_message::Body::Hello(guest.hello())).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unauthenticated, "an unlisted certificate");
}
