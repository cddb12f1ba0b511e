//! WHEN, the list of points, and views at the edges.

use crate::site::{Guest, Site, Stream};
use tidemark_proto::v1::when::Point;
use tidemark_proto::v1::{
    Backlog, Consistency, CreateBookmarkRequest, Frame, GapCause, ListPointsRequest, Marker, MarkerRequest,
    OpenViewReply, OpenViewRequest, ReadViewRequest, RemoveVmRequest, When, appliance_message, frame,
};
use tonic::{Code, Status, Streaming};

const DISK_BYTES: u64 = 8 << 20;

async fn open(
    site: &Site,
    at: Option<Point>,
    disk: &str,
) -> Result<(OpenViewReply, Streaming<OpenViewReply>), Status> {
    let at = at.map(|point| When { point: Some(point) });
    let request = OpenViewRequest { vm: "a".into(), at, disk: disk.into(), ..<_>::default() };
    let mut stream = site.console().await.open_view(request).await?.into_inner();
    Ok((stream.message().await?.unwrap(), stream))
}

async fn refused(site: &Site, at: Point) -> Status {
    open(site, Some(at), "").await.err().unwrap()
}

#[tokio::test]
async fn points_in_gaps_and_outside_the_history_are_refused_with_both_neighbours() {
    let site = Site::start().await;
    let mut guest = site.guest("a", DISK_BYTES).await;
    let mut stream = guest.connect(&site).await.unwrap();
    assert!(refused(&site, Point::Latest(true)).await.message().contains("first copy"));
    guest.protect(&mut stream).await;
    let first = guest.lsn;
    let (write, beat) = (guest.write(0, vec![1; 512]), guest.heartbeat());
    let before = guest.lsn;
    for frame in [write, beat] {
        stream.frame(frame).await;
    }
    stream.acked(guest.seq).await;
    tokio::time::sleep(std::time::Duration::from_millis(30)).await;
    let (line, inside) = (guest.line_start(GapCause::RingFull), guest.write(8, vec![2; 512]));
    let in_gap = guest.lsn;
    let in_gap_us = tidemark_appliance::clock::now_us();
    for frame in [line, inside] {
        stream.frame(frame).await;
    }
    stream.acked(guest.seq).await;
    let vm = site.vm("a").await;
    assert_eq!((vm.state.as_str(), vm.latest_lsn), ("resync", before));
    tokio::time::sleep(std::time::Duration::from_millis(30)).await;
    let end = guest.line_end();
    let after = guest.lsn;
    let beat = guest.heartbeat();
    for frame in [end, beat] {
        stream.frame(frame).await;
    }
    stream.acked(guest.seq).await;

    for at in [Point::Lsn(in_gap), Point::TimeUs(in_gap_us)] {
        let error = refused(&site, at).await;
        assert_eq!(error.code(), Code::FailedPrecondition);
        for part in ["ring full", &format!("lsn:{before} "), &format!("lsn:{after} ")] {
            assert!(error.message().contains(part), "{part}: {error}");
        }
    }
    assert!(refused(&site, Point::Lsn(after + 1)).await.message().contains("after the latest"));
    assert!(refused(&site, Point::TimeUs(1)).await.message().contains("before the history"));
    assert!(refused(&site, Point::AgoUs(u64::MAX)).await.message().contains("before the history"));
    assert_eq!(refused(&site, Point::Bookmark("none".into())).await.code(), Code::NotFound);
    assert_eq!(open(&site, None, "").await.err().unwrap().code(), Code::InvalidArgument);
    assert_eq!(
        open(&site, Some(Point::Latest(true)), "vdb").await.err().unwrap().code(),
        Code::InvalidArgument
    );
    assert!(open(&site, Some(Point::Latest(true)), "disk-9").await.is_err());
    for (at, lsn) in [(Point::Latest(true), after), (Point::Lsn(before), before), (Point::Lsn(first), first)]
    {
        assert_eq!(open(&site, Some(at), "").await.unwrap().0.lsn, lsn);
    }
    let request = ListPointsRequest { vm: "a".into(), ..ListPointsRequest::default() };
    let list = site.console().await.list_points(request).await.unwrap().into_inner();
    let windows: Vec<_> = list.windows.iter().map(|window| (window.from_lsn, window.to_lsn)).collect();
    assert_eq!(windows, [(first, before), (after, after)]);
    assert!(
        list.windows.iter().all(|window| window.from_time_us > 0 && window.from_time_us <= window.to_time_us)
    );
    let gap = list.gaps.iter().find(|gap| gap.cause == "ring full").unwrap();
    assert_eq!((gap.from_lsn, gap.to_lsn, &gap.disks[..]), (before + 1, after, &["disk-1".to_owned()][..]));
    let request = ListPointsRequest {
        vm: "a".into(),
        from: Some(When { point: Some(Point::Lsn(after)) }),
        ..ListPointsRequest::default()
    };
    let list = site.console().await.list_points(request).await.unwrap().into_inner();
    assert_eq!(list.windows.len(), 1);
}

#[tokio::test]
async fn a_view_lives_as_long_as_its_stream_and_reads_only_what_it_has() {
    let site = Site::start().await;
    let mut guest = site.guest("a", DISK_BYTES).await;
    let mut stream = guest.connect(&site).await.unwrap();
    guest.protect(&mut stream).await;
    let (write, beat) = (guest.write(16, vec![4; 3 << 20]), guest.heartbeat());
    stream.frame(write).await;
    stream.frame(beat).await;
    stream.acked(guest.seq).await;
    let (view, lease) = open(&site, Some(Point::Latest(true)), "").await.unwrap();
    assert_eq!((view.disks.len(), view.disks[0].size_bytes, view.vm.as_str()), (1, DISK_BYTES, "a"));
    let request = |disk: &str, offset, length| ReadViewRequest {
        view_id: view.view_id.clone(),
        disk: disk.into(),
        offset,
        length,
    };
    let mut console = site.console().await;
    let mut chunks = console.read_view(request("disk-1", 0, DISK_BYTES)).await.unwrap().into_inner();
    let (mut zeroes, mut data) = (0, 0);
    while let Some(chunk) = chunks.message().await.unwrap() {
        assert!(chunk.data.len() <= 1 << 20 && (chunk.zero_bytes == 0) != chunk.data.is_empty());
        zeroes += chunk.zero_bytes;
        data += chunk.data.len() as u64;
    }
    assert_eq!((data, zeroes), (3 << 20, DISK_BYTES - (3 << 20)));
    for (request, code) in [
        (request("disk-1", 1, DISK_BYTES), Code::OutOfRange),
        (request("disk-1", u64::MAX, 1), Code::OutOfRange),
        (request("disk-1", 0, 1 << 40), Code::InvalidArgument),
        (request("disk-2", 0, 1), Code::NotFound),
        (request("", 0, 1), Code::InvalidArgument),
        (ReadViewRequest { view_id: "x".into(), ..request("disk-1", 0, 1) }, Code::InvalidArgument),
    ] {
        assert_eq!(console.read_view(request.clone()).await.err().unwrap().code(), code, "{request:?}");
    }
    drop(stream);
    let removed = console.remove_vm(RemoveVmRequest { name: "a".into() }).await.unwrap_err();
    assert!(removed.message().contains("a view of 'a' is open"), "{removed}");
    drop(lease);
    let core = std::sync::Arc::clone(site.appliance().core());
    for _ in 0..200 {
        if core.leases.count() == 0 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let ended = console.read_view(request("disk-1", 0, 1)).await.err().unwrap();
    assert!(ended.message().contains("this view has ended"), "{ended}");
    console.remove_vm(RemoveVmRequest { name: "a".into() }).await.unwrap();
    assert!(core.fleet.by_name("a").is_none());
    assert_eq!(std::fs::read_dir(site.settings.data.join("vms")).unwrap().count(), 0);
    // The name is free again.
    site.guest("a", DISK_BYTES).await;
}

/// The next marker that the appliance asks the splitter for.
async fn asked(stream: &mut Stream) -> MarkerRequest {
    loop {
        match stream.next().await {
            Some(appliance_message::Body::MarkerRequest(ask)) => return ask,
            Some(appliance_message::Body::Ack(_)) => {}
            other => panic!("waiting for a marker request: {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_bookmark_asked_for_in_a_short_gap_is_placed_after_it() {
    let mut site = Site::start().await;
    let mut guest = site.guest("a", DISK_BYTES).await;
    let mut stream = guest.connect(&site).await.unwrap();
    guest.protect(&mut stream).await;
    stream.frame(guest.line_start(GapCause::UnseenWrite)).await;
    let request = CreateBookmarkRequest { name: "now".into(), vm: "a".into(), ..Default::default() };
    let reply = tokio::spawn({
        let (mut console, request) = (site.console().await, request.clone());
        async move { console.create_bookmark(request).await }
    });
    let first = asked(&mut stream).await;
    for frame in [guest.marker(&first.name, &first.bookmark_id, first.request_id), guest.heartbeat()] {
        stream.frame(frame).await;
    }
    let in_gap = guest.lsn;
    stream.acked(guest.seq).await;
    for frame in [guest.line_end(), guest.write(0, vec![7; 512]), guest.heartbeat()] {
        stream.frame(frame).await;
    }
    let second = asked(&mut stream).await;
    assert_ne!(second.bookmark_id, first.bookmark_id);
    for frame in [guest.marker(&second.name, &second.bookmark_id, second.request_id), guest.heartbeat()] {
        stream.frame(frame).await;
    }
    let reply = reply.await.unwrap().unwrap().into_inner();
    assert_eq!((reply.points[0].lsn, &reply.id), (guest.lsn, &second.bookmark_id));
    assert!(reply.points[0].lsn > in_gap);
    let mut console = site.console().await;
    assert_eq!(console.create_bookmark(request).await.unwrap_err().code(), Code::AlreadyExists);
    assert_eq!(open(&site, Some(Point::Bookmark("now".into())), "").await.unwrap().0.lsn, guest.lsn);
    drop((stream, console));

    // A catalog that is rebuilt from the journal does not bring back the one that nobody can recover.
    site.lose_catalog().await;
    let list = ListPointsRequest { vm: "a".into(), ..ListPointsRequest::default() };
    let list = site.console().await.list_points(list).await.unwrap().into_inner();
    let names: Vec<_> = list.points.iter().map(|point| (point.name.as_str(), point.lsn)).collect();
    assert_eq!(names, [("now", guest.lsn)]);
}

/// A marker with a level, as a splitter of version 4 makes it.
fn with_level(guest: &mut Guest, ask: &MarkerRequest, level: Consistency, reason: &str) -> Frame {
    guest.lsn += 1;
    let marker = Marker {
        lsn: guest.lsn,
        boottime_us: tidemark_appliance::clock::now_us(),
        bookmark_id: ask.bookmark_id.clone(),
        name: ask.name.clone(),
        request_id: ask.request_id,
        consistency: level.into(),
        hold_us: 1234,
        reason: reason.into(),
    };
    guest.frame(frame::Body::Marker(marker))
}

#[tokio::test]
async fn a_bookmark_has_the_level_that_was_achieved_also_after_the_catalog_was_lost() {
    let mut site = Site::start().await;
    let mut guest = site.guest("a", DISK_BYTES).await;
    guest.protocol_max = 4;
    let mut stream = guest.connect(&site).await.unwrap();
    guest.protect(&mut stream).await;
    let create = |name: &str, consistency: &str| CreateBookmarkRequest {
        name: name.into(),
        vm: "a".into(),
        consistency: consistency.into(),
        allow_lower: true,
    };
    for (name, wanted, achieved, reason) in [
        ("whole", "application", Consistency::Application, ""),
        ("lower", "application", Consistency::Filesystem, "no hook"),
        ("plain", "crash", Consistency::Crash, ""),
    ] {
        let reply = tokio::spawn({
            let (mut console, request) = (site.console().await, create(name, wanted));
            async move { console.create_bookmark(request).await }
        });
        let ask = asked(&mut stream).await;
        assert_eq!((ask.consistency().word(), ask.allow_lower), (wanted, true));
        let marker = with_level(&mut guest, &ask, achieved, reason);
        for frame in [marker, guest.heartbeat()] {
            stream.frame(frame).await;
        }
        let reply = reply.await.unwrap().unwrap().into_inner();
        assert_eq!((&*reply.requested, &*reply.achieved), (wanted, achieved.word()));
        assert_eq!((reply.hold_us, &*reply.reason), (1234, reason));
    }
    // One of a guest's own, and one of a level that nobody knows.
    let own = MarkerRequest { name: "own".into(), ..MarkerRequest::default() };
    let marker = with_level(&mut guest, &own, Consistency::Filesystem, "");
    for frame in [marker, guest.heartbeat()] {
        stream.frame(frame).await;
    }
    stream.acked(guest.seq).await;
    let mut unknown = with_level(&mut guest, &own, Consistency::Crash, "");
    if let Some(frame::Body::Marker(marker)) = &mut unknown.body {
        marker.consistency = 9;
    }
    stream.frame(unknown).await;
    assert!(stream.goodbye().await.reason.contains("level"));
    drop(stream);
    site.lose_catalog().await;
    let list = ListPointsRequest { vm: "a".into(), ..ListPointsRequest::default() };
    let list = site.console().await.list_points(list).await.unwrap().into_inner();
    let levels: Vec<_> =
        list.points.iter().map(|point| (point.name.as_str(), point.consistency.as_str())).collect();
    let expected =
        [("whole", "application"), ("lower", "filesystem"), ("plain", "crash"), ("own", "filesystem")];
    assert_eq!(levels, expected);
}

#[tokio::test]
async fn when_writes_waited_in_the_guest_is_on_the_timeline() {
    let mut site = Site::start().await;
    let mut guest = site.guest("a", DISK_BYTES).await;
    let mut stream = guest.connect(&site).await.unwrap();
    guest.protect(&mut stream).await;
    let list = async |site: &Site| {
        let request = ListPointsRequest { vm: "a".into(), ..ListPointsRequest::default() };
        site.console().await.list_points(request).await.unwrap().into_inner().spools
    };
    assert!(list(&site).await.is_empty());
    let began = guest.lsn;
    for (round, waits) in [true, true, false, false, true].into_iter().enumerate() {
        let mut frame = guest.write(8 * round as u64, vec![1; 512]);
        // It takes no part in the chain.
        frame.backlog = waits.then_some(Backlog { ring_bytes_used: 1, spool_bytes: 2, spool_limit_bytes: 3 });
        // It is noted once a second at most.
        tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
        stream.frame(frame).await;
        stream.acked(guest.seq).await;
    }
    let spools = list(&site).await;
    assert_eq!(spools.len(), 2, "{spools:?}");
    assert_eq!((spools[0].from_lsn, spools[1].to_time_us), (began, 0), "{spools:?}");
    assert!(spools[0].from_time_us < spools[0].to_time_us, "{spools:?}");
    // The guest still waits when it comes back, and a session later it does not.
    site.restart().await;
    drop(stream);
    let mut stream = guest.connect(&site).await.unwrap();
    let beat = guest.heartbeat();
    stream.frame(beat).await;
    stream.acked(guest.seq).await;
    let spools = list(&site).await;
    assert!(spools.len() == 2 && spools[1].to_time_us > spools[1].from_time_us, "{spools:?}");
}
