//! Verify on request: who may ask for it, what a splitter may ask in its turn, and what becomes of its outcome.

use crate::site::{Guest, PATIENCE, Site, Stream};
use tidemark_proto::limits::{
    DISKS_MAX, PIECE_BYTES, TEXT_MAX_BYTES, VERIFY_QUESTIONS_MAX, VERIFY_RANGES_MAX,
};
use tidemark_proto::pieces::{self, HashKey, Piece};
use tidemark_proto::v1::clones_client::ClonesClient;
use tidemark_proto::v1::jobs_client::JobsClient;
use tidemark_proto::v1::retention_client::RetentionClient;
use tidemark_proto::v1::{
    Alarm, ApplyPoliciesRequest, AssignPolicyRequest, ByteRange, CancelJobRequest, CloneInfo, CloneName,
    CreateCloneRequest, Empty, GapCause, HashAnswer, HoldBookmarkRequest, JobInfo, ListJobsRequest,
    ListPointsRequest, OpenViewRequest, RunRetentionRequest, VerifyAnswer, VerifyDisk, VerifyQuestion,
    VerifyReport, VerifyRequest, VerifyState, VerifyVmRequest, When, appliance_message, splitter_message,
    when,
};
use tonic::transport::Channel;
use tonic::{Code, Status};

const DISK_BYTES: u64 = 8 << 20;
const PIECE_SECTORS: u64 = PIECE_BYTES / 512;

async fn jobs(site: &Site) -> JobsClient<Channel> {
    let context = site.context();
    let channel = site.channel(Some((&context.certificate_pem, &context.key_pem))).await.unwrap();
    JobsClient::new(channel)
}

async fn verify(site: &Site, vm: &str, disk: &str) -> Result<JobInfo, Status> {
    let request = VerifyVmRequest { vm: vm.into(), disk: disk.into() };
    jobs(site).await.verify_vm(request).await.map(tonic::Response::into_inner)
}

async fn list(site: &Site) -> Vec<JobInfo> {
    jobs(site).await.list_jobs(ListJobsRequest::default()).await.unwrap().into_inner().jobs
}

/// The newest job, once it is in this state.
async fn in_state(site: &Site, state: &str) -> JobInfo {
    let began = std::time::Instant::now();
    loop {
        let newest = list(site).await.into_iter().next().unwrap();
        if newest.state == state {
            return newest;
        }
        assert!(began.elapsed() < PATIENCE, "{newest:?} is never {state}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

/// What is said of a point of the VM "a".
async fn warnings(site: &Site, lsn: u64) -> Vec<String> {
    warnings_of(site, "a", Some(lsn)).await
}

/// What opening a view says, at the latest point unless told.
async fn warnings_of(site: &Site, vm: &str, lsn: Option<u64>) -> Vec<String> {
    let point = lsn.map_or(when::Point::Latest(true), when::Point::Lsn);
    let request = OpenViewRequest {
        vm: vm.into(),
        at: Some(When { point: Some(point) }),
        disk: String::new(),
        ..<_>::default()
    };
    let mut held = site.console().await.open_view(request).await.unwrap().into_inner();
    held.message().await.unwrap().unwrap().warnings
}

async fn alarms(site: &Site) -> Vec<Alarm> {
    site.console().await.status(Empty {}).await.unwrap().into_inner().alarms
}

fn content(number: u64) -> Vec<u8> {
    (0..PIECE_BYTES / 8).flat_map(|word| (number << 32 | word | 1).to_le_bytes()).collect()
}

/// A protected guest of this version whose first pieces are `content(0..4)`.
async fn protected(site: &Site, name: &str, version: u32) -> (Guest, Stream) {
    let mut guest = site.guest(name, DISK_BYTES).await;
    guest.protocol_max = version;
    let mut stream = guest.connect(site).await.unwrap();
    guest.protect(&mut stream).await;
    for place in 0..4 {
        let frame = guest.write(place * PIECE_SECTORS, content(place));
        stream.frame(frame).await;
    }
    let beat = guest.heartbeat();
    stream.frame(beat).await;
    stream.acked(guest.seq).await;
    (guest, stream)
}

async fn requested(stream: &mut Stream) -> VerifyRequest {
    loop {
        match stream.next().await {
            Some(appliance_message::Body::VerifyRequest(request)) => return request,
            Some(appliance_message::Body::Ack(_) | appliance_message::Body::Pong(_)) => {}
            other => panic!("waiting for a request: {other:?}"),
        }
    }
}

fn question(id: u64, lsn: u64, pieces: &[Piece]) -> splitter_message::Body {
    let question = Some(pieces::ask(id, 1, lsn, pieces));
    splitter_message::Body::VerifyQuestion(VerifyQuestion { question })
}

async fn ask(stream: &mut Stream, lsn: u64, pieces: &[Piece]) -> Result<Vec<bool>, String> {
    stream.send(question(77, lsn, pieces)).await;
    loop {
        match stream.next().await {
            Some(appliance_message::Body::VerifyAnswer(VerifyAnswer { id, same, problem })) => {
                assert_eq!(id, 77);
                let bits = HashAnswer { id, known: same, ..HashAnswer::default() };
                let same = (0..pieces.len()).map(|index| pieces::is_known(&bits, index)).collect();
                return if problem.is_empty() { Ok(same) } else { Err(problem) };
            }
            Some(appliance_message::Body::Ack(_) | appliance_message::Body::Pong(_)) => {}
            other => panic!("waiting for an answer: {other:?}"),
        }
    }
}

fn piece(stream: &Stream, place: u64, content: &[u8]) -> Piece {
    let key = HashKey::from_bytes(&stream.welcome.hash_key).unwrap();
    let sectors = u32::try_from(content.len() / 512).unwrap();
    Piece { start_sector: place * PIECE_SECTORS, sectors, hash: key.hash(content) }
}

fn report(job_id: &str, state: VerifyState, differing_bytes: u64, begin_lsn: u64) -> splitter_message::Body {
    let differing =
        if differing_bytes > 0 { vec![ByteRange { offset: 65536, bytes: differing_bytes }] } else { vec![] };
    let disk = VerifyDisk {
        disk_id: 1,
        total_bytes: DISK_BYTES,
        equal_bytes: DISK_BYTES - differing_bytes,
        differing_bytes,
        skipped_bytes: 0,
        begin_lsn,
        differing,
    };
    let job_id = job_id.to_owned();
    splitter_message::Body::VerifyReport(VerifyReport {
        job_id,
        state: state.into(),
        reason: String::new(),
        disks: vec![disk],
    })
}

#[tokio::test]
async fn a_verify_compares_at_the_lsn_that_it_names_and_outlives_the_appliance() {
    let mut site = Site::start().await;
    let (mut guest, mut stream) = protected(&site, "a", 3).await;
    let job = verify(&site, "a", "disk-1").await.unwrap();
    assert_eq!((job.state.as_str(), job.kind.as_str(), job.vm.as_str()), ("running", "verify", "a"));
    let request = requested(&mut stream).await;
    assert_eq!((request.job_id.as_str(), request.disk_ids.as_slice()), (job.id.as_str(), [1].as_slice()));
    let refused = verify(&site, "a", "").await.unwrap_err();
    assert!(refused.message().contains(&job.id), "{refused}");

    let before = guest.lsn;
    let frame = guest.write(2 * PIECE_SECTORS, content(50));
    stream.frame(frame).await;
    let asked = [
        piece(&stream, 0, &content(0)),
        // The disk's own, and elsewhere.
        piece(&stream, 1, &content(0)),
        piece(&stream, 2, &content(2)),
    ];
    assert_eq!(ask(&mut stream, before, &asked).await, Ok(vec![true, false, true]));
    assert_eq!(ask(&mut stream, guest.lsn, &asked).await, Ok(vec![true, false, false]));
    let newer = [piece(&stream, 2, &content(50))];
    assert_eq!(ask(&mut stream, guest.lsn, &newer).await, Ok(vec![true]));
    // Nothing is compared where nothing can be: beyond the end, and at an LSN that has not come.
    let beyond = [piece(&stream, 1000, &content(0))];
    assert!(ask(&mut stream, guest.lsn, &beyond).await.is_err());
    assert!(ask(&mut stream, guest.lsn + 1, &newer).await.is_err());

    stream.send(report(&job.id, VerifyState::Running, 0, before)).await;
    let began = std::time::Instant::now();
    let shown = loop {
        let running = site.vm("a").await.verify.unwrap();
        if !running.disks.is_empty() {
            break running;
        }
        assert!(began.elapsed() < PATIENCE, "no progress is shown");
    };
    assert_eq!((shown.id.as_str(), shown.disks[0].equal_bytes), (job.id.as_str(), DISK_BYTES));
    assert_eq!(site.vm("a").await.state, "protected", "the history goes on");

    // Another process goes on with it: the request comes again behind the first frame.
    drop(stream);
    site.restart().await;
    assert_eq!(in_state(&site, "running").await.id, job.id);
    let mut stream = guest.connect(&site).await.unwrap();
    guest.resume(&stream.welcome);
    let beat = guest.heartbeat();
    stream.frame(beat).await;
    assert_eq!(requested(&mut stream).await.job_id, job.id);

    stream.send(report(&job.id, VerifyState::Done, 0, before)).await;
    assert_eq!(in_state(&site, "done").await.id, job.id);
}

#[tokio::test]
async fn what_a_verify_finds_casts_doubt_on_points_and_raises_an_alarm() {
    let site = Site::start().await;
    let (mut guest, mut stream) = protected(&site, "a", 3).await;
    let before = guest.lsn;
    let job = verify(&site, "a", "").await.unwrap();
    requested(&mut stream).await;
    // What differs opens a gap; afterwards the points since the last time that all was known to be right are in doubt.
    let line = guest.line_start(GapCause::VerifyDifference);
    let gap = guest.lsn;
    stream.frame(line).await;
    for frame in [guest.line_end(), guest.heartbeat()] {
        stream.frame(frame).await;
    }
    stream.acked(guest.seq).await;
    stream.send(report(&job.id, VerifyState::Done, 4096, before)).await;
    let done = in_state(&site, "done").await;
    assert_eq!((done.id.as_str(), done.disks[0].differing[0].offset), (job.id.as_str(), 65536));
    assert!(done.ended_us >= done.begun_us && site.vm("a").await.verify.is_none());
    let request = ListPointsRequest { vm: "a".into(), ..ListPointsRequest::default() };
    let points = site.console().await.list_points(request).await.unwrap().into_inner();
    let found =
        |gaps: &[tidemark_proto::v1::Gap]| gaps.iter().filter(|gap| gap.cause == "found by a verify").count();
    assert_eq!(found(&points.gaps), 1, "{points:?}");
    // The first copy ended at LSN 2.
    assert_eq!((points.doubts[0].from_lsn, points.doubts[0].to_lsn), (2, gap), "{points:?}");
    assert!(warnings(&site, before).await[0].contains("in doubt"));
    assert!(warnings(&site, guest.lsn).await.is_empty());
    assert!(alarms(&site).await.iter().any(|alarm| alarm.text.contains("verify found 4096 bytes")));

    // One that finds nothing ends the alarm; the doubt stays.
    let second = verify(&site, "a", "").await.unwrap();
    assert!(requested(&mut stream).await.disk_ids.is_empty());
    stream.send(report(&second.id, VerifyState::Done, 0, guest.lsn)).await;
    assert_eq!(in_state(&site, "done").await.id, second.id);
    let began = std::time::Instant::now();
    while alarms(&site).await.iter().any(|alarm| alarm.text.contains("verify found")) {
        assert!(began.elapsed() < PATIENCE, "the alarm never ends");
    }
    assert!(warnings(&site, before).await[0].contains("in doubt"));
    assert_eq!(list(&site).await.len(), 2);
}

async fn cloned(site: &Site, name: &str, lsn: u64) -> CloneInfo {
    let context = site.context();
    let channel = site.channel(Some((&context.certificate_pem, &context.key_pem))).await.unwrap();
    let at = Some(When { point: Some(when::Point::Lsn(lsn)) });
    let request = CreateCloneRequest { vm: "a".into(), at, name: name.into(), ..Default::default() };
    ClonesClient::new(channel).create_clone(request).await.unwrap().into_inner()
}

#[tokio::test(flavor = "multi_thread")]
async fn doubt_outlives_the_gap_that_it_comes_from_and_reaches_clones() {
    let mut site = Site::start().await;
    let (mut guest, mut stream) = protected(&site, "a", 3).await;
    let marker = guest.marker("keep", "id-keep", 0);
    let before = guest.lsn;
    for frame in [marker, guest.heartbeat()] {
        stream.frame(frame).await;
    }
    stream.acked(guest.seq).await;
    let job = verify(&site, "a", "").await.unwrap();
    requested(&mut stream).await;
    for frame in [guest.line_start(GapCause::VerifyDifference), guest.line_end(), guest.heartbeat()] {
        stream.frame(frame).await;
    }
    stream.acked(guest.seq).await;
    stream.send(report(&job.id, VerifyState::Done, 4096, before)).await;
    in_state(&site, "done").await;
    let after = guest.lsn;

    assert!(cloned(&site, "doubtful", before).await.warnings[0].contains("in doubt"));
    assert!(cloned(&site, "sure", after).await.warnings.is_empty());
    assert!(warnings_of(&site, "doubtful", None).await[0].contains("of 'a' at"), "whatever it took since");
    assert!(warnings_of(&site, "sure", None).await.is_empty());

    // A held point stays; the gap is folded away, and doubt stays where the point did.
    let context = site.context();
    let channel = site.channel(Some((&context.certificate_pem, &context.key_pem))).await.unwrap();
    for name in ["doubtful", "sure"] {
        ClonesClient::new(channel.clone()).remove_clone(CloneName { name: name.into() }).await.unwrap();
    }
    let mut client = RetentionClient::new(channel);
    let hold = HoldBookmarkRequest { vm: "a".into(), bookmark: "keep".into(), until_us: 0, lock: false };
    client.hold_bookmark(hold).await.unwrap();
    let toml = "[policy.short]\nwindow = \"1s\"\n".to_owned();
    client.apply_policies(ApplyPoliciesRequest { toml, create: false }).await.unwrap();
    client.assign_policy(AssignPolicyRequest { policy: "short".into(), vm: "a".into() }).await.unwrap();
    // Two segments and more: the last sealed one stays.
    for number in 0..150_u64 {
        let content = (0..1 << 17).flat_map(|word: u64| (word | number << 32).to_le_bytes()).collect();
        let frame = guest.write(number % 8 * 2048, content);
        stream.frame(frame).await;
        stream.acked(guest.seq).await;
    }
    let beat = guest.heartbeat();
    stream.frame(beat).await;
    stream.acked(guest.seq).await;
    tokio::time::sleep(std::time::Duration::from_millis(1200)).await;
    client.run_retention(RunRetentionRequest { vm: "a".into() }).await.unwrap();
    for restarted in [false, true] {
        let request = ListPointsRequest { vm: "a".into(), ..ListPointsRequest::default() };
        let points = site.console().await.list_points(request).await.unwrap().into_inner();
        assert!(points.windows[0].from_lsn > after, "{points:?}");
        assert!(!restarted || points.gaps.is_empty(), "nothing else would tell of it: {points:?}");
        assert_eq!((points.doubts.len(), points.doubts[0].from_lsn), (1, 2), "{points:?}");
        assert!(warnings(&site, before).await[0].contains("in doubt"));
        assert!(warnings_of(&site, "a", None).await.is_empty());
        site.restart().await;
    }
}

async fn cancel(site: &Site, id: &str) -> Result<JobInfo, Status> {
    let request = CancelJobRequest { id: id.into() };
    jobs(site).await.cancel_job(request).await.map(tonic::Response::into_inner)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_verify_that_is_cancelled_ends_with_what_it_found() {
    let site = Site::start().await;
    let (mut guest, mut stream) = protected(&site, "a", 3).await;
    let job = verify(&site, "a", "").await.unwrap();
    assert!(!requested(&mut stream).await.cancel);
    stream.send(report(&job.id, VerifyState::Running, 0, guest.lsn)).await;
    // The splitter ends it: a question on its way is answered still.
    let (ended, ()) = tokio::join!(cancel(&site, &job.id), async {
        let request = requested(&mut stream).await;
        assert_eq!((request.job_id.as_str(), request.cancel), (job.id.as_str(), true));
        let asked = [piece(&stream, 0, &content(0))];
        assert_eq!(ask(&mut stream, guest.lsn, &asked).await, Ok(vec![true]));
        let splitter_message::Body::VerifyReport(mut last) =
            report(&job.id, VerifyState::Failed, 4096, guest.lsn)
        else {
            panic!("a report is a report")
        };
        last.reason = "cancelled".into();
        stream.send(splitter_message::Body::VerifyReport(last)).await;
    });
    let ended = ended.unwrap();
    assert_eq!((ended.state.as_str(), ended.reason.as_str()), ("failed", "cancelled"));
    assert_eq!(ended.disks[0].differing_bytes, 4096);
    let again = cancel(&site, &job.id).await.unwrap_err();
    assert!(again.code() == Code::FailedPrecondition && again.message().contains("ended already"), "{again}");
    assert_eq!(cancel(&site, "no-job").await.unwrap_err().code(), Code::NotFound);

    // Nothing of it is left that the next one could meet.
    let job = verify(&site, "a", "").await.unwrap();
    assert_eq!(requested(&mut stream).await.job_id, job.id);
    drop(stream);
    let began = std::time::Instant::now();
    while site.vm("a").await.state != "disconnected" {
        assert!(began.elapsed() < PATIENCE, "the session never ends");
    }
    let ended = cancel(&site, &job.id).await.unwrap();
    assert_eq!((ended.state.as_str(), ended.reason.as_str()), ("failed", "cancelled"), "at once");
    let mut stream = guest.connect(&site).await.unwrap();
    guest.resume(&stream.welcome);
    let beat = guest.heartbeat();
    stream.frame(beat).await;
    stream.acked(guest.seq).await;
    let third = verify(&site, "a", "").await.unwrap();
    assert_eq!(requested(&mut stream).await.job_id, third.id, "it was not asked for again");
}

#[tokio::test]
async fn what_was_found_outlives_the_splitter_and_the_appliance() {
    let mut site = Site::start().await;
    let (mut guest, mut stream) = protected(&site, "a", 3).await;
    let job = verify(&site, "a", "").await.unwrap();
    requested(&mut stream).await;
    stream.send(report(&job.id, VerifyState::Running, 4096, guest.lsn)).await;
    let began = std::time::Instant::now();
    // It is an alarm before the verify has ended, and what is an alarm is kept.
    while !alarms(&site).await.iter().any(|alarm| alarm.text.contains("verify found 4096 bytes")) {
        assert!(began.elapsed() < PATIENCE, "what was found is never kept");
    }
    drop(stream);
    site.restart().await;
    // The splitter was restarted, too: it knows nothing of what it found, and has repaired it.
    let mut stream = guest.connect(&site).await.unwrap();
    guest.resume(&stream.welcome);
    let beat = guest.heartbeat();
    stream.frame(beat).await;
    requested(&mut stream).await;
    stream.send(report(&job.id, VerifyState::Done, 0, guest.lsn)).await;
    let done = in_state(&site, "done").await;
    assert_eq!((done.id.as_str(), done.disks[0].differing_bytes), (job.id.as_str(), 4096));
    assert_eq!(done.disks[0].differing[0].offset, 65536);
    assert!(alarms(&site).await.iter().any(|alarm| alarm.text.contains("verify found 4096 bytes")));
}

#[tokio::test]
async fn a_verify_that_nobody_can_make_is_refused_in_words() {
    let site = Site::start().await;
    let guest = site.guest("away", DISK_BYTES).await;
    let refused = verify(&site, "away", "").await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("not connected"), "{refused}");
    drop(guest);
    let (_guest, _stream) = protected(&site, "old", 2).await;
    let refused = verify(&site, "old", "").await.unwrap_err();
    assert!(refused.message().contains("protocol 2") && refused.message().contains("upgrade"), "{refused}");
    let refused = verify(&site, "nobody", "").await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    let refused = verify(&site, "old", "disk-9").await.unwrap_err();
    assert!(refused.message().contains("no disk-9"), "{refused}");
    assert!(list(&site).await.is_empty(), "what was refused is no job");
}

/// Sends messages while a verify of disk 1 is asked for, or not, and expects a Goodbye that says so.
async fn ended(
    site: &Site,
    name: &str,
    asked: bool,
    bodies: impl Fn(&Stream, u64) -> Vec<splitter_message::Body>,
    reason: &str,
) {
    let (guest, mut stream) = protected(site, name, 3).await;
    if asked {
        verify(site, name, "disk-1").await.unwrap();
        requested(&mut stream).await;
    }
    for body in bodies(&stream, guest.lsn) {
        stream.send(body).await;
    }
    let goodbye = stream.goodbye().await;
    assert!(goodbye.reason.contains(reason), "{name}: {goodbye:?}");
}

#[tokio::test]
async fn what_nobody_asked_for_ends_the_stream() {
    let site = Site::start().await;
    let good = |stream: &Stream, lsn| question(1, lsn, &[piece(stream, 0, &content(0))]);
    ended(&site, "unasked", false, |stream, lsn| vec![good(stream, lsn)], "nobody asked for").await;
    ended(&site, "report", false, |_, lsn| vec![report("x", VerifyState::Done, 0, lsn)], "nobody asked")
        .await;
    // The past of a disk, another disk, and nothing at all.
    ended(&site, "past", true, |stream, lsn| vec![good(stream, lsn - 1)], "before it was asked for").await;
    let other = |stream: &Stream, lsn| {
        let question = Some(pieces::ask(1, 2, lsn, &[piece(stream, 0, &content(0))]));
        vec![splitter_message::Body::VerifyQuestion(VerifyQuestion { question })]
    };
    ended(&site, "other", true, other, "disk-2").await;
    let nothing =
        |_: &Stream, _| vec![splitter_message::Body::VerifyQuestion(VerifyQuestion { question: None })];
    ended(&site, "nothing", true, nothing, "of nothing").await;
    // Once the verify has ended nothing more is answered.
    let (guest, mut stream) = protected(&site, "late", 3).await;
    let job = verify(&site, "late", "").await.unwrap();
    requested(&mut stream).await;
    stream.send(report(&job.id, VerifyState::Done, 0, guest.lsn)).await;
    let body = good(&stream, guest.lsn);
    stream.send(body).await;
    assert!(stream.goodbye().await.reason.contains("nobody asked for"));
    // Reports beyond their limits.
    let huge = |change: fn(&mut VerifyReport)| {
        move |_: &Stream, lsn| {
            let splitter_message::Body::VerifyReport(mut body) = report("x", VerifyState::Running, 1, lsn)
            else {
                panic!("not a report")
            };
            change(&mut body);
            vec![splitter_message::Body::VerifyReport(body)]
        }
    };
    let disks = huge(|body| body.disks = vec![body.disks[0].clone(); DISKS_MAX + 1]);
    ended(&site, "disks", true, disks, "disks").await;
    let places = huge(|body| body.disks[0].differing = vec![ByteRange::default(); VERIFY_RANGES_MAX + 1]);
    ended(&site, "places", true, places, "places").await;
    ended(&site, "text", true, huge(|body| body.reason = "x".repeat(TEXT_MAX_BYTES + 1)), "a text").await;
    ended(&site, "name", true, huge(|body| body.job_id = "x".repeat(TEXT_MAX_BYTES + 1)), "a text").await;
    // More at once than is allowed; all are answered in one go at most so many at a time.
    let flood = |stream: &Stream, lsn| vec![good(stream, lsn); 64 * VERIFY_QUESTIONS_MAX];
    ended(&site, "flood", true, flood, "at once").await;
}
