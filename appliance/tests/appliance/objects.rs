//! Objects over the protocol: hostile messages, collections, and the packs of a real S3-compatible server.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use crate::pack_suite::noise;
use crate::s3_server::S3Server;
use crate::site::Site;
use bytes::Bytes;
use tidemark_appliance::objects::Object;
use tidemark_journal::store::SweepOptions;
use tidemark_proto::limits::OBJECT_PIECE_BYTES;
use tidemark_proto::v1::objects_client::ObjectsClient;
use tidemark_proto::v1::put_object_request::Body;
use tidemark_proto::v1::{
    GetObjectRequest, ListObjectsRequest, ObjectInfo, PutObjectEnd, PutObjectHead, PutObjectRequest,
    RemoveObjectRequest, get_object_reply, put_object_reply,
};
use tonic::transport::Channel;
use tonic::{Code, Status};

async fn client(site: &Site) -> ObjectsClient<Channel> {
    let context = site.context();
    let channel = site.channel(Some((&context.certificate_pem, &context.key_pem))).await.unwrap();
    ObjectsClient::new(channel).max_decoding_message_size(8 << 20)
}

fn head(name: &str, size: usize) -> Body {
    Body::Head(PutObjectHead {
        name: name.to_owned(),
        kind: "file".to_owned(),
        size_bytes: size as u64,
        source: Bytes::from_static(b"the same file"),
        ..PutObjectHead::default()
    })
}

fn pieces(content: &[u8]) -> Vec<Body> {
    content.chunks(OBJECT_PIECE_BYTES).map(|piece| Body::Data(Bytes::copy_from_slice(piece))).collect()
}

fn end(content: &[u8]) -> Body {
    Body::End(PutObjectEnd { hash: Bytes::copy_from_slice(blake3::hash(content).as_bytes()) })
}

/// Sends messages as they are; the object, or why there is none, and where the appliance wanted to begin.
async fn send(site: &Site, messages: Vec<Body>) -> (u64, Result<ObjectInfo, Status>) {
    let messages = messages.into_iter().map(|body| PutObjectRequest { body: Some(body) });
    let mut replies =
        match client(site).await.put_object(tokio_stream::iter(messages.collect::<Vec<_>>())).await {
            Ok(replies) => replies.into_inner(),
            Err(status) => return (0, Err(status)),
        };
    let mut begin_at = 0;
    loop {
        match replies.message().await {
            Ok(Some(reply)) => match reply.body {
                Some(put_object_reply::Body::BeginAt(at)) => begin_at = at,
                Some(put_object_reply::Body::Done(object)) => return (begin_at, Ok(object)),
                _ => {}
            },
            Ok(None) => return (begin_at, Err(Status::unavailable("the stream ended"))),
            Err(status) => return (begin_at, Err(status)),
        }
    }
}

async fn put(site: &Site, name: &str, content: &[u8]) -> ObjectInfo {
    let messages = [vec![head(name, content.len())], pieces(content), vec![end(content)]].concat();
    send(site, messages).await.1.unwrap()
}

async fn get(site: &Site, name: &str) -> Result<Vec<u8>, Status> {
    let request = GetObjectRequest { name: name.to_owned(), offset: 0 };
    let mut replies = client(site).await.get_object(request).await?.into_inner();
    let mut content = Vec::new();
    while let Some(reply) = replies.message().await? {
        match reply.body {
            Some(get_object_reply::Body::Data(data)) => content.extend_from_slice(&data),
            Some(get_object_reply::Body::ZeroBytes(bytes)) => {
                content.resize(content.len() + bytes as usize, 0)
            }
            _ => {}
        }
    }
    Ok(content)
}

async fn names(site: &Site) -> Vec<String> {
    let mut replies =
        client(site).await.list_objects(ListObjectsRequest::default()).await.unwrap().into_inner();
    let mut names = Vec::new();
    while let Some(reply) = replies.message().await.unwrap() {
        names.extend(reply.objects.into_iter().map(|object| object.name));
    }
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_is_whole_and_as_announced_is_kept() {
    let site = Site::start().await;
    let content = noise(1, 3_000_123);
    let half = &content[..2_000_000];
    let size = content.len();
    let wrong = [
        ("no head", pieces(&content), Code::InvalidArgument),
        ("another hash", [vec![head("a", size)], pieces(&content), vec![end(half)]].concat(), Code::DataLoss),
        ("too short", [vec![head("a", size)], pieces(half), vec![end(&content)]].concat(), Code::DataLoss),
        ("too long", [vec![head("a", 10)], pieces(&content), vec![end(&content)]].concat(), Code::DataLoss),
        ("a second head", vec![head("a", size), head("a", size)], Code::InvalidArgument),
        ("a huge run", vec![head("a", size), Body::ZeroBytes(u64::MAX)], Code::InvalidArgument),
        (
            "a large piece",
            vec![head("a", size), Body::Data(vec![1; OBJECT_PIECE_BYTES + 1].into())],
            Code::InvalidArgument,
        ),
        (
            "a short hash",
            vec![head("a", 0), Body::End(PutObjectEnd { hash: Bytes::new() })],
            Code::InvalidArgument,
        ),
        ("a bad name", vec![head("a\nb", 0), end(b"")], Code::InvalidArgument),
        ("an impossible size", vec![head("a", usize::MAX), end(b"")], Code::ResourceExhausted),
    ];
    for (what, messages, code) in wrong {
        let (_, refused) = send(&site, messages).await;
        assert_eq!(refused.unwrap_err().code(), code, "{what}");
        assert_eq!(names(&site).await, Vec::<String>::new(), "{what}");
    }
    // A broken connection: what came is not sent again.
    let (_, broken) = send(&site, [vec![head("a", size)], pieces(half)].concat()).await;
    broken.unwrap_err();
    let rest = [vec![head("a", size)], pieces(&content[2_000_000..]), vec![end(&content)]].concat();
    let (begin_at, object) = send(&site, rest).await;
    assert_eq!((begin_at, object.unwrap().size_bytes), (2_000_000, size as u64));
    assert!(get(&site, "a").await.unwrap() == content);
    let (_, taken) = send(&site, vec![head("a", size)]).await;
    assert_eq!(taken.unwrap_err().code(), Code::AlreadyExists);
    // Without a certificate there is no answer.
    let stranger = ObjectsClient::new(site.channel(None).await.unwrap())
        .list_objects(ListObjectsRequest::default())
        .await;
    assert_eq!(stranger.unwrap_err().code(), Code::Unauthenticated);
}

/// Frees what no object keeps; bytes freed.
fn collect(site: &Site) -> u64 {
    let images = &site.appliance().core().images;
    let collection = images.store().begin_gc().unwrap();
    for roots in images.roots() {
        roots.mark(&collection).unwrap();
    }
    collection.sweep(SweepOptions { fill_percent: 100, tolerate_missing: false }).unwrap().freed_bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn collections_free_what_was_removed_and_nothing_else() {
    let site = Site::start().await;
    let (kept, gone) = (noise(1, 2_500_000), noise(2, 2_500_000));
    put(&site, "kept", &kept).await;
    put(&site, "gone", &gone).await;
    // An upload that was interrupted keeps its chunks, though nothing shows it.
    let waiting = noise(3, 2_000_000);
    let (_, broken) = send(&site, [vec![head("waiting", 3_000_000)], pieces(&waiting)].concat()).await;
    broken.unwrap_err();
    site.appliance().core().images.store().flush().unwrap();
    assert_eq!(collect(&site), 0);
    client(&site).await.remove_object(RemoveObjectRequest { name: "gone".to_owned() }).await.unwrap();
    let freed = collect(&site);
    assert!(freed > 2_000_000, "the removed object: {freed}");
    let all = [waiting.clone(), noise(4, 1_000_000)].concat();
    let rest = [vec![head("waiting", all.len())], pieces(&all[waiting.len()..]), vec![end(&all)]].concat();
    let (begin_at, object) = send(&site, rest).await;
    assert_eq!(begin_at, waiting.len() as u64);
    object.unwrap();
    assert!(get(&site, "waiting").await.unwrap() == all);
    assert!(get(&site, "kept").await.unwrap() == kept);
    assert_eq!(get(&site, "gone").await.unwrap_err().code(), Code::NotFound);
    assert_eq!(put(&site, "kept-too", &kept).await.new_bytes, 0);
    let again = put(&site, "gone", &gone).await;
    assert!(again.new_bytes >= 2_500_000, "it was freed: {again:?}");
    // The catalog has a copy to search.
    let names = names(&site).await;
    assert_eq!(names, ["gone", "kept", "kept-too", "waiting"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_appliance_keeps_its_chunks_in_a_bucket_through_kills() {
    let Some(server) = S3Server::start() else { return };
    let keys = tempfile::tempdir().unwrap();
    let config = keys.path().join("packs.toml");
    let text = format!(
        "endpoint = '{}'\naccess_key_id = '{}'\nsecret_access_key = '{}'\n",
        server.endpoint(),
        crate::s3_server::KEY_ID,
        crate::s3_server::SECRET
    );
    std::fs::write(&config, text).unwrap();
    std::fs::set_permissions(&config, std::fs::Permissions::from_mode(0o600)).unwrap();
    let place = format!("s3://{}/site-a", crate::s3_server::BUCKET);
    let arguments = ["--packs", &place, "--packs-config", config.to_str().unwrap(), "--packs-cache-mib", "8"];
    let mut site = Site::start_process(&arguments).await;
    let content = noise(5, 24 << 20);
    let started = std::time::Instant::now();
    put(&site, "big", &content).await;
    println!("24 MiB put into a bucket in {:.2} s", started.elapsed().as_secs_f64());
    site.kill();
    site.spawn(&arguments).await;
    assert!(get(&site, "big").await.unwrap() == content);
    let packs = std::fs::read_dir(server.file("site-a/packs")).unwrap().count();
    assert!(packs >= 1, "the packs are in the bucket");
    let local = std::fs::read_dir(site.settings.data.join("store/packs")).unwrap().count();
    assert_eq!(local, 0, "and not here");
    let cached: u64 = std::fs::read_dir(site.settings.data.join("store/pack-cache"))
        .unwrap()
        .map(|file| file.unwrap().metadata().unwrap().len())
        .sum();
    assert!(cached > 0 && cached <= 8 << 20, "{cached}");

    // Another appliance, and this one told to look elsewhere, do not start.
    let refused = |data: &std::path::Path, arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_tidemark-appliance"))
            .arg("--data")
            .arg(data)
            .args(["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"])
            .args(arguments)
            .env("TIDEMARK_LOG", "error")
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    };
    let other = refused(&keys.path().join("other"), &arguments);
    assert!(other.contains("belongs to another appliance") && other.lines().count() == 1, "{other}");
    assert!(get(&site, "big").await.unwrap() == content, "the owner goes on");
    site.kill();
    let elsewhere = refused(&site.settings.data, &[]);
    assert!(elsewhere.contains(&format!("--packs {place}")) && elsewhere.lines().count() == 1, "{elsewhere}");
    site.spawn(&arguments).await;
    assert!(get(&site, "big").await.unwrap() == content);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_of_thirty_thousand_objects_comes_whole_and_in_order() {
    // In memory where there is such a file system: each record is synced.
    let memory = std::path::Path::new("/dev/shm");
    let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
    let settings = tidemark_appliance::settings::Settings::local(&dir.path().join("data"));
    let site = Site::start_with(dir, settings).await;
    let first = put(&site, "first", b"content").await;
    let objects = std::sync::Arc::clone(&site.appliance().core().objects);
    let made = tokio::task::spawn_blocking(move || {
        let model = objects.get("first").unwrap();
        for number in 0..30_000_u128 {
            let tags = [("text".to_owned(), "x".repeat(200))].into();
            let name = format!("object {number:05} {}", "n".repeat(100));
            let id = uuid::Uuid::from_u128(number + 1);
            objects.add(Object { id, name, tags, ..model.as_ref().clone() }).unwrap();
        }
    });
    made.await.unwrap();
    let found = names(&site).await;
    assert_eq!((found.len(), found[0].as_str()), (30_001, first.name.as_str()));
    assert!(found.is_sorted());
    // In more than one message, so that none is near what one may have.
    let request = ListObjectsRequest { search: "OBJECT 2".into(), ..ListObjectsRequest::default() };
    let mut replies = client(&site).await.list_objects(request).await.unwrap().into_inner();
    let (mut messages, mut matching) = (0, 0);
    while let Some(reply) = replies.message().await.unwrap() {
        (messages, matching) = (messages + 1, matching + reply.objects.len());
    }
    assert!(messages > 1 && matching == 10_000, "{matching} in {messages}");
}
