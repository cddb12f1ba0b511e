//! Grants to restore a disk: what they allow, to whom, and for how long.

use std::time::Duration;

use tidemark_proto::limits::PIECE_BYTES;
use tidemark_proto::pieces::{HashKey, ZEROES, is_set};
use tidemark_proto::token::{Token, TokenKind};
use tidemark_proto::v1::grants_client::GrantsClient;
use tidemark_proto::v1::restore_client::RestoreClient;
use tidemark_proto::v1::restore_reply::Reply;
use tidemark_proto::v1::restore_request::Request;
use tidemark_proto::v1::{
    CreateGrantRequest, Empty, RestoreAnswer, RestoreBegin, RestoreOpened, RestoreQuestion, RestoreReply,
    RestoreRequest, RevokeGrantRequest, When, when,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use crate::site::Site;

const DISK_BYTES: u64 = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(20);

async fn grants(site: &Site) -> GrantsClient<Channel> {
    let context = site.context();
    GrantsClient::new(site.channel(Some((&context.certificate_pem, &context.key_pem))).await.unwrap())
}

fn request(vm: &str, lsn: Option<u64>) -> CreateGrantRequest {
    let point = lsn.map_or(when::Point::Latest(true), when::Point::Lsn);
    let at = Some(When { point: Some(point) });
    CreateGrantRequest { vm: vm.into(), at, disk: "disk-1".into(), ttl_seconds: 0 }
}

async fn grant(site: &Site, request: CreateGrantRequest) -> Token {
    let reply = grants(site).await.create_grant(request).await.unwrap().into_inner();
    Token::read(TokenKind::Grant, &reply.grant).unwrap()
}

async fn revoke(site: &Site, id: &str) -> Result<(), Status> {
    let request = RevokeGrantRequest { id: id.into() };
    grants(site).await.revoke_grant(request).await.map(|_| ())
}

/// A restore as a machine without a certificate makes it.
struct Restore {
    questions: mpsc::Sender<RestoreRequest>,
    replies: Streaming<RestoreReply>,
    opened: RestoreOpened,
}

impl Restore {
    async fn begin(site: &Site, grant: &Token) -> Result<Self, Status> {
        let (questions, sent) = mpsc::channel(4);
        let begin = RestoreBegin {
            grant_id: grant.id.clone(),
            secret: grant.secret.to_vec().into(),
            software: "test".into(),
        };
        questions.send(RestoreRequest { request: Some(Request::Begin(begin)) }).await.unwrap();
        let mut client = RestoreClient::new(site.channel(None).await.unwrap());
        let mut replies = client.restore(ReceiverStream::new(sent)).await?.into_inner();
        let Some(RestoreReply { reply: Some(Reply::Opened(opened)) }) = replies.message().await? else {
            panic!("a restore that is not opened");
        };
        Ok(Self { questions, replies, opened })
    }

    fn key(&self) -> HashKey {
        HashKey::from_bytes(&self.opened.hash_key).unwrap()
    }

    async fn ask(&mut self, question: RestoreQuestion) -> Result<RestoreAnswer, Status> {
        let asked = RestoreRequest { request: Some(Request::Question(question)) };
        // Where the restore has ended already, what comes next says why.
        let _ = self.questions.send(asked).await;
        match tokio::time::timeout(PATIENCE, self.replies.message()).await.unwrap()? {
            Some(RestoreReply { reply: Some(Reply::Answer(answer)) }) => Ok(answer),
            other => panic!("no answer: {other:?}"),
        }
    }
}

fn question(hashes: &[[u8; 32]]) -> RestoreQuestion {
    RestoreQuestion { offset: 0, hashes: hashes.concat().into(), compare_only: false }
}

/// A VM whose first piece was `[1; ..]` at the LSN returned, and is `[2; ..]` since.
async fn rewritten(site: &Site, name: &str) -> u64 {
    let mut guest = site.guest(name, DISK_BYTES).await;
    let mut stream = guest.connect(site).await.unwrap();
    guest.protect(&mut stream).await;
    let mut before = 0;
    for value in [1, 2] {
        let piece = vec![value; usize::try_from(PIECE_BYTES).unwrap()];
        let frame = guest.write(0, piece);
        stream.frame(frame).await;
        let beat = guest.heartbeat();
        stream.frame(beat).await;
        let acked = stream.acked(guest.seq).await;
        if value == 1 {
            before = acked.lsn;
        }
    }
    before
}

#[tokio::test]
async fn a_grant_gives_one_disk_as_of_one_point_and_only_what_differs() {
    let site = Site::start().await;
    let lsn = rewritten(&site, "web-1").await;
    let granted = grant(&site, request("web-1", Some(lsn))).await;
    let mut restore = Restore::begin(&site, &granted).await.unwrap();
    let opened = &restore.opened;
    assert_eq!((opened.vm.as_str(), opened.disk.as_str(), opened.lsn), ("web-1", "disk-1", lsn));
    assert_eq!(opened.size_bytes, DISK_BYTES);
    let key = restore.key();
    let (old, new) = (vec![1; 64 << 10], vec![2; 64 << 10]);
    let answer = restore.ask(question(&[key.hash(&new), ZEROES, key.hash(&new)])).await.unwrap();
    let bits = |packed: &[u8]| (0..3).map(|piece| is_set(packed, piece)).collect::<Vec<_>>();
    assert_eq!(bits(&answer.differs), [true, false, true]);
    assert_eq!(bits(&answer.zero), [false, false, true]);
    assert!(answer.data == old, "the content of its point, not of the newest");
    let answer = restore.ask(question(&[key.hash(&old)])).await.unwrap();
    assert!(!is_set(&answer.differs, 0) && answer.data.is_empty());

    // One restore at a time; once it has ended, the grant goes on being good.
    let twice = Restore::begin(&site, &granted).await.map(|_| ()).unwrap_err();
    assert!(twice.message().contains("is running"), "{twice}");
    drop(restore);
    let began = std::time::Instant::now();
    while let Err(status) = Restore::begin(&site, &granted).await {
        assert!(status.message().contains("is running") && began.elapsed() < PATIENCE, "{status}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let listed = grants(&site).await.list_grants(Empty {}).await.unwrap().into_inner().grants;
    assert_eq!((listed.len(), listed[0].state.as_str()), (1, "valid"));
    assert!(listed[0].used_us > 0);
}

#[tokio::test]
async fn what_is_no_valid_grant_reads_nothing() {
    let site = Site::start().await;
    let lsn = rewritten(&site, "web-1").await;
    let good = grant(&site, request("web-1", Some(lsn))).await;
    let refused = async |grant: &Token| {
        let status = Restore::begin(&site, grant).await.map(|_| ()).unwrap_err();
        assert_eq!(status.code(), Code::PermissionDenied, "{status}");
        status.message().to_owned()
    };
    let mut wrong = good.clone();
    wrong.secret[0] ^= 1;
    assert!(refused(&wrong).await.contains("not given by this appliance"));
    let unknown = Token { id: "00000000".into(), ..good.clone() };
    assert!(refused(&unknown).await.contains("not given by this appliance"));
    // An enrolment token is none, even of the same VM.
    let enrolment = site.token("web-1", true).await;
    assert!(refused(&enrolment).await.contains("not given by this appliance"));
    let short = grant(&site, CreateGrantRequest { ttl_seconds: 1, ..request("web-1", None) }).await;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert!(refused(&short).await.contains("has expired"));
    assert!(revoke(&site, &short.id).await.unwrap_err().message().contains("no usable grant"));

    // What is revoked ends at once, and does not begin again.
    let mut restore = Restore::begin(&site, &good).await.unwrap();
    revoke(&site, &good.id).await.unwrap();
    let ended = loop {
        let key = restore.key();
        match restore.ask(question(&[key.hash(&[1])])).await {
            Ok(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            Err(status) => break status,
        }
    };
    assert!(ended.message().contains("revoked"), "{ended}");
    assert!(refused(&good).await.contains("was revoked"));
}

#[tokio::test]
async fn grants_are_made_by_administrators_for_what_there_is() {
    let site = Site::start().await;
    let lsn = rewritten(&site, "web-1").await;
    let mut grants = grants(&site).await;
    let refused = [
        (CreateGrantRequest { vm: "nobody".into(), ..request("web-1", None) }, "no VM named"),
        (CreateGrantRequest { disk: String::new(), ..request("web-1", None) }, "one disk"),
        (CreateGrantRequest { disk: "disk-9".into(), ..request("web-1", None) }, "has no disk-9"),
        (CreateGrantRequest { ttl_seconds: 90_000, ..request("web-1", None) }, "24 hours"),
        (request("web-1", Some(lsn + 1000)), "nearest"),
    ];
    for (request, words) in refused {
        let status = grants.create_grant(request).await.unwrap_err();
        assert!(status.message().contains(words), "{words}: {status}");
    }
    // A VM's certificate, and none at all.
    let (enrolled, key) = site.enrol(&site.token("web-2", false).await).await.unwrap();
    for identity in [Some((enrolled.certificate_pem.as_str(), key.as_str())), None] {
        let mut foreign = GrantsClient::new(site.channel(identity).await.unwrap());
        let status = foreign.create_grant(request("web-1", None)).await.unwrap_err();
        assert!(matches!(status.code(), Code::PermissionDenied | Code::Unauthenticated), "{status}");
    }
    // Questions that break a rule end the restore, not the appliance.
    let granted = grant(&site, request("web-1", None)).await;
    for bad in [
        RestoreQuestion { offset: 1, ..question(&[ZEROES]) },
        RestoreQuestion { offset: DISK_BYTES, ..question(&[ZEROES]) },
        RestoreQuestion { hashes: vec![0; 31].into(), ..question(&[]) },
        question(&[ZEROES; 16].iter().chain(&[ZEROES; 1]).copied().collect::<Vec<_>>()),
    ] {
        let began = std::time::Instant::now();
        let mut restore = loop {
            match Restore::begin(&site, &granted).await {
                Ok(restore) => break restore,
                Err(status) => assert!(began.elapsed() < PATIENCE, "{status}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        let status = restore.ask(bad).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    }
}
