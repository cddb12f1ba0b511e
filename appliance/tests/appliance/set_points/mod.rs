//! Points of sets: held, by clocks, automatic, on demand, and what is left of those that were not achieved.

pub(crate) mod member;

use std::time::Duration;

use member::{Manner, Member};
use tidemark_proto::v1::sets_client::SetsClient;
use tidemark_proto::v1::when::Point;
use tidemark_proto::v1::{
    BarrierAnswer, BarrierStep, ChangeSetRequest, Consistency, CreateSetBookmarkRequest, CreateSetRequest,
    DivergedRequest, FindSetPointRequest, ListPointsRequest, ListSetPointsRequest, ListSetPointsResponse,
    RemoveSetRequest, RemoveVmRequest, SetBookmarkReply, SetPoint, SetPointing, When, splitter_message,
};
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::site::Site;

const GOOD: Manner = Manner::Good(Consistency::Crash);

async fn sets(site: &Site) -> SetsClient<Channel> {
    let context = site.context();
    SetsClient::new(site.channel(Some((&context.certificate_pem, &context.key_pem))).await.unwrap())
}

/// A set of all VMs whose automatic points come at this interval.
async fn set(site: &Site, name: &str, rule: &str, every_us: u64, hold: &str) {
    let points = SetPointing { every_us: Some(every_us), hold: hold.into(), ..SetPointing::default() };
    let rules = vec![rule.to_owned()];
    let request = CreateSetRequest { name: name.into(), rules, points: Some(points), ..<_>::default() };
    sets(site).await.create_set(request).await.unwrap();
}

async fn bookmark(
    site: &Site,
    name: &str,
    consistency: &str,
    allow_lower: bool,
) -> Result<SetBookmarkReply, Status> {
    let request = CreateSetBookmarkRequest {
        set: "shop".into(),
        name: name.into(),
        consistency: consistency.into(),
        allow_lower,
    };
    sets(site).await.create_set_bookmark(request).await.map(tonic::Response::into_inner)
}

async fn list(site: &Site) -> ListSetPointsResponse {
    let request = ListSetPointsRequest { set: "shop".into(), ..<_>::default() };
    sets(site).await.list_set_points(request).await.unwrap().into_inner()
}

fn when(point: Point) -> Option<When> {
    Some(When { point: Some(point) })
}

async fn find(site: &Site, at: Point) -> Result<SetPoint, Status> {
    let request = FindSetPointRequest { set: "shop".into(), at: when(at) };
    sets(site).await.find_set_point(request).await.map(tonic::Response::into_inner)
}

/// Names of a VM's own bookmarks with their LSNs.
async fn bookmarks(site: &Site, vm: &str) -> Vec<(String, u64)> {
    let request = ListPointsRequest { vm: vm.into(), ..<_>::default() };
    let points = site.console().await.list_points(request).await.unwrap().into_inner().points;
    points.into_iter().map(|point| (point.name, point.lsn)).collect()
}

fn methods(point: &SetPoint) -> Vec<(&str, &str)> {
    point.members.iter().map(|member| (member.vm.as_str(), member.method.as_str())).collect()
}

#[tokio::test]
async fn members_that_all_hold_are_one_moment_and_names_are_unique() {
    let site = Site::start().await;
    let mut members = Vec::new();
    for (name, manner) in [("a", GOOD), ("b", Manner::Late), ("c", GOOD)] {
        members.push(Member::start(&site, name, manner, 100).await);
    }
    set(&site, "shop", "name=*", 0, "free").await;
    let reply = bookmark(&site, "before", "", false).await.unwrap();
    let point = reply.point.unwrap();
    assert_eq!((point.cut.as_str(), point.bound_us, point.hold_us), ("barrier", 0, 1234), "{point:?}");
    assert!(point.missing.is_empty() && reply.warnings.is_empty());
    assert_eq!(methods(&point), [("a", "gate"), ("b", "gate"), ("c", "gate")]);
    for (member, place) in members.iter().zip(&point.members) {
        assert_eq!(member.steps(), [BarrierStep::Prepare, BarrierStep::Mark, BarrierStep::Release]);
        assert_eq!(bookmarks(&site, &place.vm).await, [("before".to_owned(), place.lsn)]);
    }
    let near = bookmark(&site, "again", "", false).await;
    let taken = bookmark(&site, "before", "", false).await.unwrap_err();
    assert_eq!(taken.code(), Code::AlreadyExists);
    assert!(near.is_ok() || near.unwrap_err().code() == Code::ResourceExhausted);

    // It is found by its name, by time and as the latest; never by an LSN.
    assert_eq!(find(&site, Point::Bookmark("before".into())).await.unwrap().id, point.id);
    assert_eq!(find(&site, Point::TimeUs(point.time_us)).await.unwrap().id, point.id);
    assert_eq!(
        find(&site, Point::TimeUs(point.time_us - 1)).await.unwrap_err().code(),
        Code::FailedPrecondition
    );
    assert_eq!(find(&site, Point::Lsn(3)).await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(find(&site, Point::Bookmark("no".into())).await.unwrap_err().code(), Code::NotFound);
    for place in &point.members {
        site.content(&place.vm, when(Point::Lsn(place.lsn))).await.unwrap();
    }
    let request = DivergedRequest { set: "shop".into(), at: when(Point::Latest(true)), vm: "a".into() };
    let diverged = sets(&site).await.diverged(request).await.unwrap().into_inner();
    let others: Vec<_> = diverged.members.iter().map(|member| member.vm.as_str()).collect();
    assert_eq!(others, ["b", "c"]);
    assert!(diverged.members.iter().any(|member| member.entries > 0), "{diverged:?}");
}

#[tokio::test]
async fn who_does_not_hold_is_there_by_its_clock_or_named_as_missing() {
    let site = Site::start().await;
    let mut members = Vec::new();
    for (name, manner, error_us) in [
        ("a", GOOD, 7),
        ("b", GOOD, 7),
        ("fails", Manner::Fails, 3000),
        ("gone", Manner::Leaves, 7),
        ("silent", Manner::Silent, 500),
    ] {
        members.push(Member::start(&site, name, manner, error_us).await);
    }
    members.push(Member::of_version(&site, "old", GOOD, 20, 4).await);
    site.guest("off", 1 << 20).await;
    set(&site, "shop", "name=*", 0, "free").await;
    let strict = bookmark(&site, "strict", "filesystem", false).await.unwrap_err();
    assert_eq!(strict.code(), Code::FailedPrecondition);
    assert!(strict.message().contains("old: ") && strict.message().contains("off: "), "{strict}");
    tokio::time::sleep(Duration::from_secs(1)).await;
    let reply = bookmark(&site, "x", "", false).await.unwrap();
    let point = reply.point.unwrap();
    assert_eq!(point.cut, "mixed", "{point:?}");
    let by = [("a", "gate"), ("b", "gate"), ("fails", "clock"), ("old", "clock"), ("silent", "clock")];
    assert_eq!(methods(&point), by);
    assert_eq!(point.bound_us, 3500, "the two that may be the most wrong");
    let reason = |vm: &str| point.members.iter().find(|member| member.vm == vm).unwrap().reason.clone();
    assert_eq!(reason("fails"), "swap is in use");
    assert!(reason("silent").contains("in time") && reason("old").contains("older version"));
    let missing: Vec<_> = point.missing.iter().map(|member| member.vm.as_str()).collect();
    assert_eq!(missing, ["gone", "off"]);
    assert_eq!(reply.warnings.len(), 5, "{:?}", reply.warnings);
    for place in &point.members {
        assert!(place.method == "gate" || place.time_us <= point.time_us, "{place:?}");
        assert_eq!(bookmarks(&site, &place.vm).await, [("x".to_owned(), place.lsn)], "each by the name");
    }
    assert!(bookmarks(&site, "gone").await.is_empty());
    assert!(list(&site).await.windows.is_empty(), "a partial point is no window of all");
}

#[tokio::test]
async fn a_level_that_is_not_achieved_leaves_nothing_behind() {
    let site = Site::start().await;
    let filesystem = Manner::Good(Consistency::Filesystem);
    let _a = Member::start(&site, "a", filesystem, 10).await;
    let _b = Member::start(&site, "b", Manner::Breaks, 10).await;
    let _c = Member::start(&site, "c", GOOD, 10).await;
    set(&site, "shop", "name=*", 0, "free").await;
    let refused = bookmark(&site, "x", "filesystem", false).await.unwrap_err();
    assert!(refused.message().contains("b: only crash (the hold broke)"), "{refused}");
    assert!(refused.message().contains("c: only crash"), "{refused}");
    tokio::time::sleep(Duration::from_millis(1100)).await;
    for vm in ["a", "b", "c"] {
        assert!(bookmarks(&site, vm).await.is_empty(), "{vm}");
    }
    assert!(list(&site).await.points.is_empty());
    let lower = bookmark(&site, "x", "filesystem", true).await.unwrap().point.unwrap();
    assert_eq!((lower.consistency.as_str(), lower.cut.as_str(), lower.bound_us), ("crash", "mixed", 10));
    assert_eq!(lower.members[0].consistency, "filesystem");
}

#[tokio::test]
async fn a_place_that_cannot_be_recovered_is_missing() {
    let site = Site::start().await;
    let _a = Member::start(&site, "a", GOOD, 10).await;
    let _b = Member::start(&site, "gap", Manner::Gap, 10).await;
    let _c = Member::start(&site, "forges", Manner::Forges, 10).await;
    set(&site, "shop", "name=*", 0, "free").await;
    let point = bookmark(&site, "x", "", false).await.unwrap().point.unwrap();
    assert_eq!((methods(&point), point.cut.as_str()), (vec![("a", "gate")], "mixed"));
    let missing: Vec<_> = point.missing.iter().map(|member| (&member.vm[..], &member.reason[..])).collect();
    assert!(missing[0].0 == "forges" && missing[0].1.contains("its marker is at"), "{missing:?}");
    assert!(missing[1].0 == "gap" && missing[1].1.contains("gap"), "{missing:?}");
    let gaps = list(&site).await.gaps;
    assert!(gaps.iter().any(|gap| gap.vm == "gap" && gap.gap.as_ref().unwrap().cause == "ring full"));
}

#[tokio::test]
async fn answers_that_nobody_asked_for_are_ignored_and_impossible_ones_end_the_stream() {
    let site = Site::start().await;
    let answer = |step: i32| BarrierAnswer { request_id: 77, step, ..BarrierAnswer::default() };
    let mut guest = site.guest("a", 1 << 20).await;
    guest.protocol_max = 5;
    let mut stream = guest.connect(&site).await.unwrap();
    stream.send(splitter_message::Body::BarrierAnswer(answer(BarrierStep::Release.into()))).await;
    guest.protect(&mut stream).await;
    let long = BarrierAnswer { reason: "x".repeat(2000), ..answer(BarrierStep::Failed.into()) };
    let method = BarrierAnswer { method: 40, ..answer(BarrierStep::Release.into()) };
    for bad in [answer(0), answer(5), answer(99), long, method] {
        stream.send(splitter_message::Body::BarrierAnswer(bad.clone())).await;
        let goodbye = stream.goodbye().await;
        assert!(goodbye.reason.contains("barrier"), "{bad:?}: {goodbye:?}");
        stream = guest.connect(&site).await.unwrap();
    }
    drop(stream);
    let mut old = site.guest("old", 1 << 20).await;
    old.protocol_max = 4;
    let mut stream = old.connect(&site).await.unwrap();
    stream.send(splitter_message::Body::BarrierAnswer(answer(BarrierStep::Failed.into()))).await;
    assert!(stream.goodbye().await.reason.contains("version 4"));
}

#[tokio::test]
async fn automatic_points_come_at_their_interval_and_go_with_the_set() {
    let site = Site::start().await;
    let mut members = Vec::new();
    for name in ["a", "b"] {
        members.push(Member::start(&site, name, GOOD, 40).await);
    }
    set(&site, "shop", "name=*", 400_000, "free").await;
    let mut points = Vec::new();
    for _ in 0..100 {
        points = list(&site).await.points;
        if points.len() >= 5 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(points.len() >= 5, "{} points", points.len());
    for pair in points.windows(2) {
        let apart_us = pair[1].time_us - pair[0].time_us;
        assert!((200_000..2_000_000).contains(&apart_us), "{apart_us} us");
    }
    assert!(points.iter().all(|point| point.kind == "automatic" && point.name.is_empty()));
    assert!(points.iter().all(|point| point.cut == "barrier"), "{points:?}");
    assert!(bookmarks(&site, "a").await.is_empty(), "no marker has a name");
    assert_eq!(list(&site).await.windows.len(), 1);
    let metrics = site.appliance().core().metrics.render();
    assert!(metrics.contains("tidemark_sets_points_total{cut=\"barrier\"}"), "{metrics}");

    // By clocks alone, and not at all.
    let change = |every_us: Option<u64>, hold: &str| ChangeSetRequest {
        name: "shop".into(),
        points: Some(SetPointing { every_us, hold: hold.into(), ..<_>::default() }),
        ..ChangeSetRequest::default()
    };
    let mut calls = sets(&site).await;
    let refused = calls.change_set(change(Some(5), "")).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert_eq!(calls.change_set(change(None, "fly")).await.unwrap_err().code(), Code::InvalidArgument);
    calls.change_set(change(None, "clock")).await.unwrap();
    tokio::time::sleep(Duration::from_millis(2500)).await;
    let newest = list(&site).await.points.pop().unwrap();
    assert_eq!((newest.cut.as_str(), newest.bound_us, newest.hold_us), ("clock", 80, 0));
    calls.change_set(change(Some(0), "")).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let count = list(&site).await.points.len();
    tokio::time::sleep(Duration::from_millis(1000)).await;
    assert_eq!(list(&site).await.points.len(), count);

    calls.remove_set(RemoveSetRequest { name: "shop".into() }).await.unwrap();
    let trail = site.appliance().core().catalog.audit_trail().await.unwrap();
    let said = trail.iter().find(|entry| entry.action == "remove set").unwrap();
    assert_eq!(said.detail, format!("and its {count} points"));
    set(&site, "shop", "name=*", 0, "free").await;
    assert!(list(&site).await.points.is_empty());
}

#[tokio::test]
async fn a_guest_may_ask_for_points_of_its_own_sets_and_learns_of_no_other() {
    let site = Site::start().await;
    let mut a = Member::start(&site, "a", GOOD, 10).await;
    let mut b = Member::start(&site, "b", GOOD, 10).await;
    set(&site, "shop", "name=a", 0, "free").await;
    let done = a.ask("shop", "inside").await;
    assert_eq!((done.id, done.reason.as_str(), done.achieved()), (9, "", Consistency::Crash));
    assert!(done.lsn > 0 && done.hold_us == 1234, "{done:?}");
    assert_eq!(list(&site).await.points[0].name, "inside");
    let (not_in, none) = (b.ask("shop", "x").await.reason, b.ask("shoq", "x").await.reason);
    assert_eq!(not_in, none.replace("shoq", "shop"), "no word of whether there is one");
    assert!(a.ask("shop", "inside").await.reason.contains("exists"));
    let mut last = String::new();
    for number in 0..12 {
        last = b.ask("shoq", &number.to_string()).await.reason;
    }
    assert!(last.contains("which is the most"), "{last}");
    assert!(bookmarks(&site, "b").await.is_empty());
}

#[tokio::test]
async fn automatic_points_are_forgotten_once_no_member_has_them_and_bookmarks_stay() {
    let site = Site::start().await;
    let _a = Member::start(&site, "a", GOOD, 10).await;
    set(&site, "shop", "name=*", 300_000, "free").await;
    let all =
        || async { site.appliance().core().catalog.set_points("shop", 0, u64::MAX, 100).await.unwrap() };
    for _ in 0..100 {
        if all().await.len() >= 3 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    bookmark(&site, "kept", "", false).await.unwrap();
    let points = Some(SetPointing { every_us: Some(0), ..<_>::default() });
    let change = ChangeSetRequest { name: "shop".into(), points, ..<_>::default() };
    sets(&site).await.change_set(change.clone()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(all().await.len() >= 4, "what can be recovered stays");
    site.console().await.remove_vm(RemoveVmRequest { name: "a".into() }).await.unwrap();
    // Whoever changes a set has all of them looked at.
    sets(&site).await.change_set(change).await.unwrap();
    for _ in 0..100 {
        if all().await.len() == 1 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let left: Vec<_> = all().await.into_iter().map(|row| row.name).collect();
    assert_eq!(left, ["kept"]);
    let gone = find(&site, Point::Bookmark("kept".into())).await.unwrap_err();
    assert!(gone.message().contains("history of a is gone"), "{gone}");
    assert!(list(&site).await.points.is_empty(), "what cannot be recovered is not offered");
}
