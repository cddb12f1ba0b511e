//! Retention of a whole appliance: folded, restarted, killed, and every point that is offered compared byte for byte.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::site::{Guest, Site, Stream};
use tidemark_proto::v1::console_client::ConsoleClient;
use tidemark_proto::v1::retention_client::RetentionClient;
use tidemark_proto::v1::{
    ApplyPoliciesRequest, AssignPolicyRequest, Empty, HoldBookmarkRequest, ListPointsRequest,
    OpenViewRequest, ReadViewRequest, ReleaseBookmarkRequest, RemoveVmRequest, RunRetentionRequest, When,
    when,
};
use tonic::transport::Channel;
use tonic::{Code, Status};

/// Bytes of the disk: small enough to be compared whole.
const DISK_BYTES: u64 = 8 << 20;

/// Bytes of one write: with them a segment of 64 MiB is full soon.
const WRITE_BYTES: usize = 1 << 20;

/// Nothing of the log is guaranteed, so that it can be folded at once.
const SHORT: &str = "[policy.short]\nwindow = \"1s\"\n";

async fn retention(site: &Site) -> RetentionClient<Channel> {
    let context = site.context();
    let channel = site.channel(Some((&context.certificate_pem, &context.key_pem))).await.unwrap();
    RetentionClient::new(channel)
}

/// The whole disk as of a point.
async fn content(console: &mut ConsoleClient<Channel>, point: when::Point) -> Result<Vec<u8>, Status> {
    let at = Some(When { point: Some(point) });
    let request = OpenViewRequest { vm: "a".into(), at, disk: String::new(), ..<_>::default() };
    let mut lease = console.open_view(request).await?.into_inner();
    let view_id = lease.message().await?.unwrap().view_id;
    let request = ReadViewRequest { view_id, disk: "disk-1".into(), offset: 0, length: DISK_BYTES };
    let mut chunks = console.read_view(request).await?.into_inner();
    let mut out = Vec::new();
    while let Some(chunk) = chunks.message().await? {
        out.extend_from_slice(&chunk.data);
        out.resize(out.len() + chunk.zero_bytes as usize, 0);
    }
    Ok(out)
}

/// Writes some mebibytes, each with its own content; what the disk holds after each is noted.
async fn write(
    guest: &mut Guest,
    stream: &mut Stream,
    disk: &mut [u8],
    states: &mut BTreeMap<u64, Vec<u8>>,
    count: u64,
) {
    for _ in 0..count {
        let at = (guest.lsn * 5 % 8) as usize * WRITE_BYTES;
        let content: Vec<u8> =
            (guest.lsn..).take(WRITE_BYTES / 8).flat_map(|word| (word * 0x9e37).to_le_bytes()).collect();
        disk[at..at + WRITE_BYTES].copy_from_slice(&content);
        let frame = guest.write(at as u64 / 512, content);
        stream.frame(frame).await;
        states.insert(guest.lsn, disk.to_vec());
        stream.acked(guest.seq).await;
    }
    let beat = guest.heartbeat();
    stream.frame(beat).await;
    stream.acked(guest.seq).await;
    while states.len() > 40 {
        states.pop_first();
    }
}

/// Places a bookmark as the guest does.
async fn bookmark(site: &Site, guest: &mut Guest, stream: &mut Stream, name: &str) {
    for frame in [guest.marker(name, &format!("id-{name}"), 0), guest.heartbeat()] {
        stream.frame(frame).await;
    }
    stream.acked(guest.seq).await;
    let mut console = site.console().await;
    for _ in 0..200 {
        let request = ListPointsRequest { vm: "a".into(), ..ListPointsRequest::default() };
        let list = console.list_points(request).await.unwrap().into_inner();
        if list.points.iter().any(|point| point.name == name) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the bookmark is not listed");
}

async fn run(client: &mut RetentionClient<Channel>) -> tidemark_proto::v1::RunRetentionVm {
    // Past the window.
    tokio::time::sleep(Duration::from_millis(1200)).await;
    let reply = client.run_retention(RunRetentionRequest { vm: "a".into() }).await.unwrap().into_inner();
    let done = reply.vms.into_iter().next().unwrap();
    assert_eq!(done.problem, "");
    done
}

/// The first point that is offered and does not hold what was written.
async fn wrong(site: &Site, states: &BTreeMap<u64, Vec<u8>>, base: u64, kept: u64) -> Option<String> {
    let mut console = site.console().await;
    for (lsn, expected) in states {
        match content(&mut console, when::Point::Lsn(*lsn)).await {
            Ok(found) if *lsn < base && *lsn != kept => {
                return Some(format!("{lsn} is offered below {base}: {} bytes", found.len()));
            }
            Ok(found) if found != *expected => return Some(format!("{lsn} differs")),
            Err(error) if *lsn >= base || *lsn == kept => return Some(format!("{lsn}: {error}")),
            _ => {}
        }
    }
    None
}

#[tokio::test(flavor = "multi_thread")]
async fn history_folds_into_images_and_a_held_bookmark_outlives_its_window() {
    let mut site = Site::start_process(&[]).await;
    let mut guest = site.guest("a", DISK_BYTES).await;
    let mut stream = guest.connect(&site).await.unwrap();
    guest.protect(&mut stream).await;
    let (mut disk, mut states) = (vec![0; DISK_BYTES as usize], BTreeMap::new());
    write(&mut guest, &mut stream, &mut disk, &mut states, 30).await;
    bookmark(&site, &mut guest, &mut stream, "keep").await;
    let kept = guest.lsn;
    let of_bookmark = disk.clone();
    let mut client = retention(&site).await;
    let apply = ApplyPoliciesRequest { toml: SHORT.into(), create: false };
    for _ in 0..2 {
        let reply = client.apply_policies(apply.clone()).await.unwrap().into_inner();
        let names: Vec<_> = reply.policies.iter().map(|policy| policy.name.as_str()).collect();
        assert_eq!(names, ["default", "short"], "the same file again changes nothing");
    }
    client.assign_policy(AssignPolicyRequest { policy: "short".into(), vm: "a".into() }).await.unwrap();
    let hold = HoldBookmarkRequest { vm: "a".into(), bookmark: "keep".into(), until_us: 0, lock: false };
    assert_eq!(client.hold_bookmark(hold).await.unwrap().into_inner().lsn, kept);
    write(&mut guest, &mut stream, &mut disk, &mut states, 170).await;
    let done = run(&mut client).await;
    assert!(done.segments_dropped >= 1 && done.snapshots_made == 1 && done.base_lsn > kept, "{done:?}");
    let base = done.base_lsn;
    states.insert(kept, of_bookmark);
    assert_eq!(wrong(&site, &states, base, kept).await, None);

    // What lies between the snapshot and the window is refused, with both named; listings show the snapshot.
    let mut console = site.console().await;
    let refused = content(&mut console, when::Point::Lsn(kept + 1)).await.unwrap_err();
    for part in ["only snapshots are kept", &format!("lsn:{kept} "), &format!("lsn:{base} ")] {
        assert!(refused.message().contains(part), "{part}: {refused}");
    }
    let request = ListPointsRequest { vm: "a".into(), ..ListPointsRequest::default() };
    let list = console.list_points(request).await.unwrap().into_inner();
    let kinds: Vec<_> = list.points.iter().map(|point| (point.lsn, point.kind.as_str())).collect();
    assert_eq!(kinds, [(kept, "bookmark"), (kept, "snapshot")]);
    assert_eq!(list.windows.first().unwrap().from_lsn, base);
    let time = list.points[0].time_us;
    assert!(content(&mut console, when::Point::TimeUs(time)).await.unwrap() == states[&kept]);
    assert!(content(&mut console, when::Point::Bookmark("keep".into())).await.unwrap() == states[&kept]);

    // Killed in the middle of more, nothing of it is lost.
    for round in 0..3 {
        drop(stream);
        let mut killed = retention(&site).await;
        let running = tokio::spawn(async move {
            let _ = killed.run_retention(RunRetentionRequest { vm: String::new() }).await;
        });
        tokio::time::sleep(Duration::from_millis(7 * round)).await;
        site.kill();
        running.abort();
        site.spawn(&[]).await;
        let vm = site.vm("a").await;
        assert!(!vm.reason.contains("damaged"), "{}", vm.reason);
        let request = ListPointsRequest { vm: "a".into(), ..ListPointsRequest::default() };
        let list = site.console().await.list_points(request).await.unwrap().into_inner();
        let base = list.windows.first().unwrap().from_lsn;
        assert_eq!(wrong(&site, &states, base, kept).await, None, "round {round}");
        stream = guest.connect(&site).await.unwrap();
        guest.resume(&stream.welcome.clone());
        write(&mut guest, &mut stream, &mut disk, &mut states, 2).await;
    }

    // Released, it goes with the next run.
    let mut client = retention(&site).await;
    let release = ReleaseBookmarkRequest { vm: "a".into(), bookmark: "keep".into() };
    client.release_bookmark(release).await.unwrap();
    // Releasing wakes the worker, so this run or one just before it gives the snapshot up.
    run(&mut client).await;
    let gone = content(&mut site.console().await, when::Point::Bookmark("keep".into())).await.unwrap_err();
    assert!(gone.message().contains("before the history"), "{gone}");
}

#[tokio::test]
async fn nobody_releases_shortens_or_removes_a_locked_point() {
    let site = Site::start().await;
    let mut guest = site.guest("a", DISK_BYTES).await;
    let mut stream = guest.connect(&site).await.unwrap();
    guest.protect(&mut stream).await;
    bookmark(&site, &mut guest, &mut stream, "law").await;
    let mut client = retention(&site).await;
    let until_us = tidemark_appliance::clock::now_us() + 3600 * 1_000_000;
    let lock =
        |until_us, lock| HoldBookmarkRequest { vm: "a".into(), bookmark: "law".into(), until_us, lock };
    let endless = client.hold_bookmark(lock(0, true)).await.unwrap_err();
    assert_eq!(endless.code(), Code::InvalidArgument, "{endless}");
    // What is past would end at once, or never: 0 means no end.
    for (past, as_lock) in [(1, false), (tidemark_appliance::clock::now_us() - 1_000_000, true)] {
        let refused = client.hold_bookmark(lock(past, as_lock)).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        assert!(refused.message().contains("is past: name one after"), "{refused}");
    }
    client.hold_bookmark(lock(until_us, true)).await.unwrap();
    let shorter = client.hold_bookmark(lock(until_us - 1, true)).await.unwrap_err();
    assert!(shorter.message().contains("nobody can release or shorten"), "{shorter}");
    client.hold_bookmark(lock(until_us + 1, true)).await.unwrap();
    let release = ReleaseBookmarkRequest { vm: "a".into(), bookmark: "law".into() };
    assert_eq!(client.release_bookmark(release).await.unwrap_err().code(), Code::FailedPrecondition);
    drop(stream);
    let removed = site.console().await.remove_vm(RemoveVmRequest { name: "a".into() }).await.unwrap_err();
    assert!(removed.message().contains("locked until"), "{removed}");
    assert!(site.console().await.status(Empty {}).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_held_bookmark_that_outlived_its_window_has_its_name_again_after_the_catalog_is_lost() {
    let mut site = Site::start().await;
    let mut guest = site.guest("a", DISK_BYTES).await;
    let mut stream = guest.connect(&site).await.unwrap();
    guest.protect(&mut stream).await;
    let (mut disk, mut states) = (vec![0; DISK_BYTES as usize], BTreeMap::new());
    write(&mut guest, &mut stream, &mut disk, &mut states, 5).await;
    bookmark(&site, &mut guest, &mut stream, "year-end").await;
    let (kept, of_bookmark) = (guest.lsn, disk.clone());
    let mut client = retention(&site).await;
    client.apply_policies(ApplyPoliciesRequest { toml: SHORT.into(), create: false }).await.unwrap();
    client.assign_policy(AssignPolicyRequest { policy: "short".into(), vm: "a".into() }).await.unwrap();
    let hold = HoldBookmarkRequest { vm: "a".into(), bookmark: "year-end".into(), until_us: 0, lock: false };
    client.hold_bookmark(hold).await.unwrap();
    // The hold of a second one ends before its marker leaves the log.
    write(&mut guest, &mut stream, &mut disk, &mut states, 1).await;
    bookmark(&site, &mut guest, &mut stream, "audit").await;
    let until_us = tidemark_appliance::clock::now_us() + 1_000_000;
    let hold = HoldBookmarkRequest { vm: "a".into(), bookmark: "audit".into(), until_us, lock: false };
    client.hold_bookmark(hold).await.unwrap();
    write(&mut guest, &mut stream, &mut disk, &mut states, 170).await;
    let done = run(&mut client).await;
    assert!(done.base_lsn > kept && done.segments_dropped > 0, "the marker left the log: {done:?}");
    drop((stream, client));
    site.lose_catalog().await;
    let mut console = site.console().await;
    let request = ListPointsRequest { vm: "a".into(), ..ListPointsRequest::default() };
    let list = console.list_points(request).await.unwrap().into_inner();
    let named: Vec<_> = list.points.iter().filter(|point| point.name == "year-end").collect();
    assert!(named.len() == 1 && named[0].lsn == kept && named[0].time_us > 0, "{:?}", list.points);
    assert!(content(&mut console, when::Point::Bookmark("year-end".into())).await.unwrap() == of_bookmark);
    assert!(!list.points.iter().any(|point| point.name == "audit"), "{:?}", list.points);
    // The next start adds no second one.
    site.restart().await;
    let request = ListPointsRequest { vm: "a".into(), ..ListPointsRequest::default() };
    let again = site.console().await.list_points(request).await.unwrap().into_inner();
    assert_eq!(again.points.len(), list.points.len());
}
