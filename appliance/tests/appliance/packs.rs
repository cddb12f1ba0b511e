//! Folders of packs: the local one and a real S3-compatible server by the same suite, and what only the latter can do to
//! us.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::pack_suite::{conformance, name, noise, race};
use crate::s3_server::S3Server;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult,
};
use tidemark_appliance::packs::{Access, ObjectFolder, ObjectPlace, PacksError, Remote, WholePacks};
use tidemark_journal::storage::{OsStorage, StorageError, StorageErrorKind};
use tidemark_journal::store::{
    ChunkStore, KdfCost, KeyDomain, LocalFolder, MasterKey, MasterSecret, PackFolder, StoreError,
    StoreOptions, scrub,
};
use tokio::runtime::Runtime;
use tokio_stream::Stream;

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn local(dir: &std::path::Path) -> LocalFolder {
    LocalFolder::new(Arc::new(OsStorage::create(dir).unwrap()))
}

#[test]
fn the_local_folder_keeps_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    conformance(&local(&dir.path().join("packs"))).unwrap();
}

#[test]
fn an_s3_server_keeps_the_contract_with_and_without_a_cache() {
    let Some(server) = S3Server::start() else { return };
    let (runtime, dir) = (runtime(), tempfile::tempdir().unwrap());
    let folder = server.take(runtime.handle(), "site-a/packs", "one", None).unwrap();
    conformance(folder.as_ref()).unwrap();
    let folder = server.take(runtime.handle(), "", "one", Some(dir.path())).unwrap();
    conformance(folder.as_ref()).unwrap();
    let used = folder.cache().unwrap();
    assert!(used.hits > 0 && used.damaged == 0 && used.failed_writes == 0, "{used:?}");
    assert_eq!(used.pieces, 0, "what is deleted leaves the cache: {used:?}");
    // The largest pack there may be, in one conditional request.
    let large = noise(7, 64 << 20);
    let started = Instant::now();
    folder.put(&name(9), &large).unwrap();
    let seconds = started.elapsed().as_secs_f64();
    let mut back = vec![0; large.len()];
    folder.read(&name(9), 0, &mut back).unwrap();
    assert!(back == large);
    println!("64 MiB put in {seconds:.2} s");
}

/// A folder that breaks its contract in one way.
#[derive(Debug)]
struct Broken {
    folder: LocalFolder,
    how: How,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum How {
    Overwrites,
    ReadsShort,
    KeepsDeleted,
    ListsAll,
}

impl PackFolder for Broken {
    fn put(&self, name: &str, bytes: &[u8]) -> Result<(), StorageError> {
        if self.how == How::Overwrites {
            self.folder.delete(name)?;
        }
        self.folder.put(name, bytes)
    }

    fn read(&self, name: &str, offset: u64, buffer: &mut [u8]) -> Result<(), StorageError> {
        let taken = if self.how == How::ReadsShort { buffer.len().div_ceil(2) } else { buffer.len() };
        self.folder.read(name, offset, &mut buffer[..taken])
    }

    fn list(&self) -> Result<BTreeMap<String, u64>, StorageError> {
        let mut listed = self.folder.list()?;
        if self.how == How::ListsAll {
            listed.values_mut().for_each(|bytes| *bytes += 1);
        }
        Ok(listed)
    }

    fn delete(&self, name: &str) -> Result<(), StorageError> {
        if self.how == How::KeepsDeleted { Ok(()) } else { self.folder.delete(name) }
    }

    fn sync(&self) -> Result<(), StorageError> {
        self.folder.sync()
    }
}

/// Negative control: the suite fails each folder that breaks the contract, and says how.
#[test]
fn the_suite_fails_folders_that_break_the_contract() {
    for (how, says) in [
        (How::Overwrites, "instead of Exists"),
        (How::ReadsShort, "is not what was put"),
        (How::KeepsDeleted, "instead of Missing"),
        (How::ListsAll, "listed"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let broken = Broken { folder: local(&dir.path().join("packs")), how };
        let found = conformance(&broken).unwrap_err();
        assert!(found.contains(says), "{how:?}: {found}");
    }
}

#[test]
fn more_packs_than_a_page_holds_are_listed() {
    let Some(server) = S3Server::start() else { return };
    let runtime = runtime();
    let folder = server.take(runtime.handle(), "many", "one", None).unwrap();
    std::thread::scope(|scope| {
        for part in 0..8_u8 {
            let folder = &folder;
            scope.spawn(move || {
                for number in 0..132_u8 {
                    let mut id = [part; 16];
                    id[15] = number;
                    folder.put(&tidemark_journal::store::PackId(id).name(), &[number]).unwrap();
                }
            });
        }
    });
    assert_eq!(folder.list().unwrap().len(), 8 * 132);
}

#[test]
fn a_place_belongs_to_one_appliance() {
    let Some(server) = S3Server::start() else { return };
    let runtime = runtime();
    let first = server.take(runtime.handle(), "a", "one", None).unwrap();
    let error = server.take(runtime.handle(), "a", "two", None).unwrap_err();
    assert!(matches!(error, PacksError::Owned { .. }), "{error}");
    assert!(error.to_string().contains("choose another prefix"), "{error}");
    server.take(runtime.handle(), "b", "two", None).unwrap();
    first.put(&name(1), b"x").unwrap();
    // The same appliance again, after a crash.
    server.take(runtime.handle(), "a", "one", None).unwrap();
    assert!(server.file("a/owner").is_file());
    let left = std::fs::read_dir(server.file("a/probes")).map_or(0, Iterator::count);
    assert_eq!(left, 0, "probes are removed");
}

#[test]
fn a_server_that_dies_in_the_middle_leaves_a_pack_whole_or_not_at_all() {
    let Some(mut server) = S3Server::start() else { return };
    let runtime = runtime();
    let folder = server.take(runtime.handle(), "p", "one", None).unwrap();
    let bytes = noise(3, 32 << 20);
    let mut broken = 0;
    for round in 0..4_u8 {
        let (name, started) = (name(round + 1), Instant::now());
        let put = std::thread::scope(|scope| {
            let put = scope.spawn(|| folder.put(&name, &bytes));
            std::thread::sleep(Duration::from_millis(15 + 25 * u64::from(round)));
            server.kill();
            // It stays away in every other round, and comes back while the client still tries in the others.
            if round % 2 == 1 {
                server.restart();
            }
            put.join().unwrap()
        });
        assert!(started.elapsed() < Duration::from_secs(60), "a dead server is noticed in bounded time");
        server.restart();
        broken += u32::from(put.is_err());
        let listed = folder.list().unwrap().get(&name).copied();
        assert!(listed.is_none_or(|length| length == bytes.len() as u64), "{listed:?}");
        assert!(put.is_err() || listed.is_some(), "what was confirmed is there");
        // A kept connection to the dead server fails the first request that is sent over it, and that is all.
        let again = match folder.put(&name, &bytes) {
            Err(error) if error.kind() == StorageErrorKind::Failed => folder.put(&name, &bytes),
            other => other,
        };
        match again {
            Ok(()) => assert!(listed.is_none()),
            Err(error) => assert!(error.kind() == StorageErrorKind::Exists && listed.is_some(), "{error}"),
        }
        let mut back = vec![0; bytes.len()];
        folder.read(&name, 0, &mut back).unwrap();
        assert!(back == bytes);
    }
    println!("{broken} of 4 puts failed");
    // Deletions wait for the server.
    server.kill();
    folder.delete(&name(1)).unwrap();
    assert_eq!(folder.read(&name(1), 0, &mut [0; 8]).unwrap_err().kind(), StorageErrorKind::Missing);
    let error = folder.put(&name(9), b"x").unwrap_err();
    assert!(error.kind() == StorageErrorKind::Failed && !error.to_string().contains('\n'), "{error}");
    server.restart();
    assert!(!folder.list().unwrap().contains_key(&name(1)));
    folder.sync().unwrap();
    assert_eq!(folder.waiting_deletions(), 0);
    assert!(!server.file(&format!("p/packs/{}", name(1))).exists());
}

const DOMAIN: KeyDomain = KeyDomain([4; 16]);

fn store(dir: &std::path::Path, folder: Arc<ObjectFolder>) -> Arc<ChunkStore> {
    let storage = Arc::new(OsStorage::create(dir).unwrap());
    let secret = MasterSecret::Key(MasterKey::from_bytes(&[9; 32]).unwrap());
    let options = StoreOptions {
        seed: rand::random(),
        pack_bytes: 1 << 20,
        cache_bytes: 0,
        kdf: KdfCost { memory_kib: 64, passes: 1, lanes: 1 },
        ..StoreOptions::default()
    };
    if dir.join("chunk-keys").exists() {
        let (store, report) = ChunkStore::open(storage, folder, &secret, options).unwrap();
        assert_eq!(report.forgotten, 0, "{report:?}");
        return Arc::new(store);
    }
    let store = Arc::new(ChunkStore::create(storage, folder, &secret, options).unwrap());
    store.add_domain(DOMAIN).unwrap();
    store
}

#[test]
fn a_store_over_a_bucket_comes_back_from_the_bucket_and_finds_all_damage() {
    let Some(server) = S3Server::start() else { return };
    let (runtime, dir) = (runtime(), tempfile::tempdir().unwrap());
    let (data, cache) = (dir.path().join("store"), dir.path().join("cache"));
    let folder = server.take(runtime.handle(), "s", "one", Some(&cache)).unwrap();
    let chunks = store(&data, Arc::clone(&folder));
    let session = chunks.session(DOMAIN).unwrap();
    let ids: Vec<_> = (0..60).map(|seed| session.put(&noise(seed, 60_000)).unwrap()).collect();
    chunks.flush().unwrap();
    drop((session, chunks));
    // Without the index everything comes from the packs; the cache of the first process is used on.
    std::fs::remove_file(data.join("chunk-index")).unwrap();
    let chunks = store(&data, Arc::clone(&folder));
    for _ in 0..2 {
        for (seed, id) in (0..).zip(&ids) {
            assert_eq!(chunks.get(id).unwrap().as_ref(), noise(seed, 60_000).as_slice());
        }
    }
    let used = folder.cache().unwrap();
    assert!(used.hits > used.misses && used.bytes <= 64 << 20, "{used:?}");
    let stored = WholePacks::new(Arc::clone(&folder));
    let clean = scrub(&stored).unwrap();
    assert_eq!((clean.chunks, clean.damage.len()), (60, 0));
    // A flipped bit in the bucket: the cache still answers, a scrub reads past it, and a cold reader refuses it.
    let pack = folder.list().unwrap().into_keys().next().unwrap();
    let file = server.file(&format!("s/packs/{pack}"));
    let intact = std::fs::read(&file).unwrap();
    let mut flipped = intact.clone();
    flipped[3000] ^= 4;
    std::fs::write(&file, &flipped).unwrap();
    let found = scrub(&WholePacks::new(Arc::clone(&folder))).unwrap();
    assert_eq!(found.damaged_chunks().len(), 1, "{:?}", found.damage);
    let damaged = *found.damaged_chunks().first().unwrap();
    chunks.get(&damaged).unwrap();
    drop((chunks, stored));
    std::fs::remove_dir_all(&cache).unwrap();
    let folder = server.take(runtime.handle(), "s", "one", Some(&cache)).unwrap();
    let chunks = store(&data, Arc::clone(&folder));
    for id in &ids {
        assert_eq!(chunks.get(id).is_err(), *id == damaged);
    }
    assert!(matches!(chunks.get(&damaged), Err(StoreError::Damaged { .. })));
    drop((chunks, folder));
    // A truncated object is another pack than the one that was indexed.
    std::fs::write(&file, &intact[..intact.len() / 2]).unwrap();
    std::fs::remove_dir_all(&cache).unwrap();
    let folder = server.take(runtime.handle(), "s", "one", Some(&cache)).unwrap();
    let found = scrub(&WholePacks::new(Arc::clone(&folder))).unwrap();
    assert!(!found.damage.is_empty());
    std::fs::write(&file, &intact).unwrap();
    let chunks = store(&data, folder);
    for id in &ids {
        chunks.get(id).unwrap();
    }
}

#[test]
fn refusals_say_what_to_do() {
    let Some(server) = S3Server::start() else { return };
    let runtime = runtime();
    let place = ObjectPlace { bucket: crate::s3_server::BUCKET.to_owned(), prefix: String::new() };
    let endpoint = server.endpoint();
    let value = |name: &str| match name {
        "AWS_ACCESS_KEY_ID" => Some(crate::s3_server::KEY_ID.to_owned()),
        "AWS_SECRET_ACCESS_KEY" => Some("a wrong secret".to_owned()),
        "AWS_ENDPOINT_URL" => Some(endpoint.clone()),
        _ => None,
    };
    let access = Access::from_environment(value).unwrap();
    let remote = Remote::new(Arc::new(access.client(&place).unwrap()), runtime.handle().clone(), &place);
    let error = ObjectFolder::take(remote, None, "one", 1).unwrap_err().to_string();
    assert!(!error.contains('\n') && error.len() < 700, "{error}");
    assert!(error.contains("check the keys") && !error.contains("a wrong secret"), "{error}");
}

/// An object storage that answers conditional writes with success and overwrites, as some servers do.
#[derive(Debug)]
struct Careless(InMemory);

impl std::fmt::Display for Careless {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Careless")
    }
}

type Stored<T> = object_store::Result<T>;
type Streamed<T> = Pin<Box<dyn Stream<Item = Stored<T>> + Send>>;

#[tonic::async_trait]
impl ObjectStore for Careless {
    async fn put_opts(&self, path: &Path, payload: PutPayload, mut options: PutOptions) -> Stored<PutResult> {
        options.mode = PutMode::Overwrite;
        self.0.put_opts(path, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> Stored<Box<dyn MultipartUpload>> {
        self.0.put_multipart_opts(path, options).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Stored<GetResult> {
        self.0.get_opts(path, options).await
    }

    fn delete_stream(&self, paths: Streamed<Path>) -> Streamed<Path> {
        self.0.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&Path>) -> Streamed<ObjectMeta> {
        self.0.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Stored<ListResult> {
        self.0.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Stored<()> {
        self.0.copy_opts(from, to, options).await
    }
}

#[test]
fn a_server_that_ignores_conditions_is_refused_and_one_that_honours_them_is_not() {
    let runtime = runtime();
    let place = ObjectPlace { bucket: "bucket".to_owned(), prefix: "x".to_owned() };
    let take = |objects: Arc<dyn ObjectStore>| {
        ObjectFolder::take(Remote::new(objects, runtime.handle().clone(), &place), None, "one", 1)
    };
    let error = take(Arc::new(Careless(InMemory::new()))).unwrap_err().to_string();
    assert!(error.contains("ignores conditional writes"), "{error}");
    let folder = take(Arc::new(InMemory::new())).unwrap();
    race(&folder).unwrap();
}
