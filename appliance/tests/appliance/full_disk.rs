//! A real small file system that is filled while the appliance ingests and folds: what is given up and what is not.
//! Needs root to mount one; says so without.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::site::{Guest, Site, Stream, Tmpfs};
use tidemark_journal::storage::OsStorage;
use tidemark_journal::store::{
    ChunkStore, KeyDomain, LocalFolder, MasterKey, MasterSecret, StoreError, StoreOptions, SweepOptions,
};
use tidemark_proto::v1::retention_client::RetentionClient;
use tidemark_proto::v1::{
    ApplyPoliciesRequest, AssignPolicyRequest, Empty, ListPointsRequest, OpenViewRequest, ReadViewRequest,
    RunRetentionRequest, When, appliance_message, when,
};
use tonic::transport::Channel;

const MIB: u64 = 1 << 20;

/// Takes space, as another program does.
struct Ballast(std::path::PathBuf);

impl Ballast {
    fn new(dir: &Path) -> Self {
        Self(dir.join("ballast"))
    }

    /// Grows or shrinks until about so many bytes are free.
    fn leave(&self, free: u64) {
        let now = free_bytes(self.0.parent().unwrap());
        let mut file = OpenOptions::new().create(true).append(true).open(&self.0).unwrap();
        let length = file.metadata().unwrap().len();
        if now < free {
            file.set_len(length.saturating_sub(free - now)).unwrap();
            return;
        }
        let piece = vec![7; 1 << 16];
        let mut left = now - free;
        while left > 0 {
            let some = piece.len().min(left as usize);
            // Someone else may have taken it meanwhile.
            if file.write_all(&piece[..some]).is_err() {
                return;
            }
            left -= some as u64;
        }
    }

    fn remove(&self) {
        std::fs::remove_file(&self.0).unwrap();
    }
}

fn free_bytes(dir: &Path) -> u64 {
    let stat = nix::sys::statvfs::statvfs(dir).unwrap();
    stat.blocks_available() * stat.fragment_size()
}

const DOMAIN: KeyDomain = KeyDomain(*b"domain number 01");

fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(bytes);
    while out.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(bytes);
    out
}

fn open_store(dir: &Path, seed: u8, floor_bytes: u64) -> Arc<ChunkStore> {
    let storage = Arc::new(OsStorage::create(dir).unwrap());
    let packs = Arc::new(LocalFolder::new(Arc::new(OsStorage::create(dir.join("packs")).unwrap())));
    let secret = MasterSecret::Key(MasterKey::from_bytes(&[9; 32]).unwrap());
    let options = StoreOptions {
        seed: [seed; 32],
        pack_bytes: 1 << 20,
        cache_bytes: 0,
        floor_bytes,
        ..StoreOptions::default()
    };
    let store = if dir.join("chunk-keys").exists() {
        let (store, report) = ChunkStore::open(storage, packs, &secret, options).unwrap();
        assert_eq!(report.unreadable, []);
        store
    } else {
        let store = ChunkStore::create(storage, packs, &secret, options).unwrap();
        store.add_domain(DOMAIN).unwrap();
        store
    };
    Arc::new(store)
}

/// Puts small chunks until the store says that there is no space; the chunks that a flush made durable.
fn fill(store: &Arc<ChunkStore>, from: u64) -> (Vec<(tidemark_journal::store::ChunkId, u64)>, StoreError) {
    let session = store.session(DOMAIN).unwrap();
    let (mut durable, mut pending) = (Vec::new(), Vec::new());
    let mut seed = from;
    loop {
        // Small ones, so that the index has much to note.
        match session.put(&noise(seed, 600)) {
            Ok(id) => pending.push((id, seed)),
            Err(error) => return (durable, error),
        }
        if seed.is_multiple_of(4096) {
            match store.flush() {
                Ok(()) => durable.append(&mut pending),
                Err(error) => return (durable, error),
            }
        }
        seed += 1;
    }
}

#[test]
fn the_stores_index_never_meets_a_full_disk_and_goes_on_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let small = dir.path().join("small");
    let Some(_tmpfs) = Tmpfs::mount(&small, 64) else { return };
    let home = small.join("store");
    let store = open_store(&home, 1, 16 * MIB);
    let (durable, error) = fill(&store, 0);
    assert!(matches!(error, StoreError::Full), "{error}");
    assert!(free_bytes(&small) >= 15 * MIB, "{} are free", free_bytes(&small));
    // Again and again nothing changes; what is there is there.
    for _ in 0..3 {
        assert!(matches!(fill(&store, 1 << 32).1, StoreError::Full));
    }
    assert!(durable.len() > 10_000);
    for (id, seed) in durable.iter().step_by(97) {
        assert_eq!(store.get(id).unwrap().as_ref(), noise(*seed, 600));
    }
    // A collection works although nothing can be put: half of it is given up.
    let gc = store.begin_gc().unwrap();
    let (kept, _) = durable.split_at(durable.len() / 2);
    for (id, _) in kept {
        gc.mark(id).unwrap();
    }
    let report = gc.sweep(SweepOptions::default()).unwrap();
    assert!(report.freed_bytes > 4 * MIB, "{report:?}");
    // There is space again, and it goes on without being opened anew.
    let session = store.session(DOMAIN).unwrap();
    let new = session.put(&noise(1 << 40, 600)).unwrap();
    store.flush().unwrap();
    assert_eq!(store.get(&new).unwrap().as_ref(), noise(1 << 40, 600));
    assert_eq!(store.check_index().unwrap(), Vec::<String>::new());
    drop((session, store));
    let store = open_store(&home, 2, 16 * MIB);
    for (id, seed) in kept {
        assert_eq!(store.get(id).unwrap().as_ref(), noise(*seed, 600));
    }
}

/// Negative control: without the floor the same filling leaves a store that takes nothing more until it is opened again.
#[test]
fn without_the_floor_the_index_meets_the_full_disk() {
    let dir = tempfile::tempdir().unwrap();
    let small = dir.path().join("small");
    let Some(_tmpfs) = Tmpfs::mount(&small, 64) else { return };
    let broken = (0..8_u8).any(|round| {
        let home = small.join(format!("store-{round}"));
        let store = open_store(&home, round + 1, 0);
        let (_, first) = fill(&store, 0);
        let (_, second) = fill(&store, 1 << 32);
        let poisoned = |error: &StoreError| matches!(error, StoreError::Poisoned | StoreError::Index(_));
        drop(store);
        std::fs::remove_dir_all(&home).unwrap();
        // Another remainder in the next round.
        File::create(small.join(format!("filler-{round}"))).unwrap().write_all(&vec![1; 300_000]).unwrap();
        poisoned(&first) || poisoned(&second)
    });
    assert!(broken);
}

/// Bytes of the disk and of one write.
const DISK_BYTES: u64 = 8 * MIB;
const WRITE_BYTES: u64 = MIB;

/// A guest that writes whole mebibytes, and what it wrote.
struct Writer {
    guest: Guest,
    stream: Option<Stream>,
    /// LSN, slot and seed of each write.
    writes: Vec<(u64, u64, u64)>,
    /// The last LSN that was acknowledged.
    acked: u64,
    goodbyes: u64,
}

impl Writer {
    async fn new(site: &Site) -> Self {
        let mut guest = site.guest("a", DISK_BYTES).await;
        let mut stream = guest.connect(site).await.unwrap();
        guest.protect(&mut stream).await;
        Self { guest, stream: Some(stream), writes: Vec::new(), acked: 0, goodbyes: 0 }
    }

    /// Writes once, and says whether it was acknowledged; otherwise the appliance said goodbye.
    async fn write(&mut self) -> bool {
        let Some(stream) = &mut self.stream else { return false };
        let (slot, seed) = (self.guest.lsn * 5 % 8, self.guest.lsn + 1);
        let content = noise(seed, WRITE_BYTES as usize);
        let frames = [self.guest.write(slot * WRITE_BYTES / 512, content), self.guest.heartbeat()];
        self.writes.push((self.guest.lsn, slot, seed));
        for frame in frames {
            stream.frame(frame).await;
        }
        loop {
            match stream.next().await {
                Some(appliance_message::Body::Ack(ack)) => {
                    let durable = ack.durable.unwrap();
                    self.acked = self.acked.max(durable.lsn);
                    if durable.seq >= self.guest.seq {
                        return true;
                    }
                }
                Some(appliance_message::Body::Pong(_)) => {}
                Some(appliance_message::Body::Goodbye(goodbye)) => {
                    assert!(goodbye.retry, "{goodbye:?}");
                    (self.stream, self.goodbyes) = (None, self.goodbyes + 1);
                    return false;
                }
                None => {
                    self.stream = None;
                    return false;
                }
                other => panic!("{other:?}"),
            }
        }
    }

    /// Comes back as a splitter does; what was not durable is forgotten here, and would be sent again there.
    async fn connect(&mut self, site: &Site) -> bool {
        if self.stream.is_some() {
            return true;
        }
        let Ok(stream) = self.guest.connect(site).await else { return false };
        let durable = stream.welcome.durable.clone().unwrap();
        assert!(durable.lsn >= self.acked, "{} was acknowledged, {} is there", self.acked, durable.lsn);
        self.guest.resume(&stream.welcome);
        self.writes.retain(|(lsn, ..)| *lsn <= durable.lsn);
        self.stream = Some(stream);
        true
    }

    async fn connect_soon(&mut self, site: &Site) {
        let deadline = Instant::now() + Duration::from_secs(90);
        while !self.connect(site).await {
            assert!(Instant::now() < deadline, "ingest does not go on");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    fn disk(&self, lsn: u64) -> Vec<u8> {
        let mut disk = vec![0; DISK_BYTES as usize];
        for slot in 0..8 {
            let last = self.writes.iter().rfind(|(at, of, _)| *of == slot && *at <= lsn);
            if let Some((_, _, seed)) = last {
                let at = (slot * WRITE_BYTES) as usize;
                disk[at..at + WRITE_BYTES as usize].copy_from_slice(&noise(*seed, WRITE_BYTES as usize));
            }
        }
        disk
    }

    /// Compares some of the points that are offered, the first, the snapshots and the last among them; the first.
    async fn compare(&self, site: &Site) -> u64 {
        let vm = site.vm("a").await;
        assert!(!vm.reason.contains("damaged") && vm.state != "error", "{}: {}", vm.state, vm.reason);
        let mut console = site.console().await.max_decoding_message_size(64 << 20);
        let request = ListPointsRequest { vm: "a".into(), ..ListPointsRequest::default() };
        let list = console.list_points(request.clone()).await.unwrap().into_inner();
        let (first, last) = (list.windows[0].from_lsn, list.windows.last().unwrap().to_lsn);
        assert!(last >= self.acked.saturating_sub(1), "{last} of {}", self.acked);
        let mut points: Vec<u64> = (0..=6).map(|part| first + (last - first) * part / 6).collect();
        points.extend(list.points.iter().map(|point| point.lsn));
        for lsn in points {
            let at = Some(When { point: Some(when::Point::Lsn(lsn)) });
            let view = OpenViewRequest { vm: "a".into(), at, disk: String::new(), ..<_>::default() };
            let mut lease = match console.open_view(view).await {
                Ok(lease) => lease.into_inner(),
                Err(refused) => {
                    // The window may have ended later since it was listed.
                    let now = console.list_points(request.clone()).await.unwrap().into_inner();
                    assert!(lsn < now.windows[0].from_lsn, "lsn {lsn} is offered and refused: {refused}");
                    continue;
                }
            };
            let view_id = lease.message().await.unwrap().unwrap().view_id;
            let read = ReadViewRequest { view_id, disk: "disk-1".into(), offset: 0, length: DISK_BYTES };
            let mut chunks = console.read_view(read).await.unwrap().into_inner();
            let mut found = Vec::new();
            while let Some(chunk) = chunks.message().await.unwrap() {
                found.extend_from_slice(&chunk.data);
                found.resize(found.len() + chunk.zero_bytes as usize, 0);
            }
            assert!(found == self.disk(lsn), "lsn {lsn} is offered and differs");
        }
        first
    }
}

async fn retention(site: &Site) -> RetentionClient<Channel> {
    let context = site.context();
    let channel = site.channel(Some((&context.certificate_pem, &context.key_pem))).await.unwrap();
    RetentionClient::new(channel)
}

async fn alarms(site: &Site) -> Vec<String> {
    let status = site.console().await.status(Empty {}).await.unwrap().into_inner();
    status.alarms.into_iter().map(|alarm| alarm.text).collect()
}

/// An hour is wanted; where space is short a second is enough.
const POLICY: &str = "[policy.tight]\nwindow = \"1h\"\nwindow-min = \"1s\"\n";

#[tokio::test(flavor = "multi_thread")]
async fn windows_shrink_then_ingest_stops_and_it_goes_on_by_itself_also_after_sigkill() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    // A reserve of 38 MiB, low below 153 MiB.
    let Some(_tmpfs) = Tmpfs::mount(&data, 768) else { return };
    let mut site = Site::start_process_in(dir, &[]).await;
    let mut writer = Writer::new(&site).await;
    let mut client = retention(&site).await;
    client.apply_policies(ApplyPoliciesRequest { toml: POLICY.into(), create: false }).await.unwrap();
    client.assign_policy(AssignPolicyRequest { policy: "tight".into(), vm: "a".into() }).await.unwrap();

    // More than twice of what there is room for: the window shrinks as it must, nothing else is lost.
    let mut shrank = false;
    while writer.writes.len() < 1300 {
        if !writer.write().await {
            writer.connect_soon(&site).await;
        }
        if !shrank && writer.writes.len().is_multiple_of(50) {
            let request = ListPointsRequest { vm: "a".into(), ..ListPointsRequest::default() };
            let list = site.console().await.list_points(request).await.unwrap().into_inner();
            shrank = list.windows.first().is_some_and(|window| window.from_lsn > 10);
        }
    }
    assert!(shrank);
    writer.compare(&site).await;
    println!("{} goodbyes while 1300 MiB went through 768", writer.goodbyes);

    // No room at all: ingest stops with the alarm; killed like that, the next start has everything.
    let ballast = Ballast::new(&data);
    ballast.leave(20 * MIB);
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        ballast.leave(20 * MIB);
        writer.write().await;
        if writer.stream.is_none() && !writer.connect(&site).await {
            break;
        }
        assert!(Instant::now() < deadline, "ingest goes on with {} free", free_bytes(&data));
    }
    assert!(alarms(&site).await.iter().any(|text| text.contains("ingest has stopped")));
    for round in 0..3 {
        // Whatever is freed meanwhile is taken at once.
        let mut killed = retention(&site).await;
        let running = tokio::spawn(async move {
            let _ = killed.run_retention(RunRetentionRequest { vm: String::new() }).await;
        });
        let until = Instant::now() + Duration::from_millis(100 + 150 * round);
        while Instant::now() < until {
            ballast.leave(20 * MIB);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        site.kill();
        running.abort();
        site.spawn(&[]).await;
        writer.stream = None;
        let before = writer.acked;
        let vm = site.vm("a").await;
        assert!(vm.durable_lsn >= before, "round {round}: {} of {before}", vm.durable_lsn);
        writer.writes.retain(|(lsn, ..)| *lsn <= vm.durable_lsn);
        writer.compare(&site).await;
    }

    // Space, and everything goes on by itself: ingest, then folding and collections.
    ballast.remove();
    writer.connect_soon(&site).await;
    for _ in 0..60 {
        assert!(writer.write().await);
    }
    tokio::time::sleep(Duration::from_millis(1200)).await;
    let mut client = retention(&site).await;
    let done = client.run_retention(RunRetentionRequest { vm: "a".into() }).await.unwrap().into_inner();
    assert_eq!(done.vms[0].problem, "");
    writer.compare(&site).await;
    let left = alarms(&site).await;
    assert!(!left.iter().any(|text| text.contains("retention does not go on")), "{left:?}");
}

/// Not a byte is free, by another program: nothing is damaged, and there is an end to it.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_without_a_free_byte_damages_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let Some(_tmpfs) = Tmpfs::mount(&data, 512) else { return };
    let mut site = Site::start_process_in(dir, &[]).await;
    let mut writer = Writer::new(&site).await;
    let mut client = retention(&site).await;
    client.apply_policies(ApplyPoliciesRequest { toml: POLICY.into(), create: false }).await.unwrap();
    client.assign_policy(AssignPolicyRequest { policy: "tight".into(), vm: "a".into() }).await.unwrap();
    for _ in 0..150 {
        assert!(writer.write().await);
    }
    let ballast = Ballast::new(&data);
    let mut killed = retention(&site).await;
    let running = tokio::spawn(async move {
        let _ = killed.run_retention(RunRetentionRequest { vm: String::new() }).await;
    });
    for _ in 0..30 {
        ballast.leave(0);
        writer.write().await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    site.kill();
    running.abort();
    writer.stream = None;
    // Room for what the start itself writes.
    ballast.leave(8 * MIB);
    site.spawn(&[]).await;
    let vm = site.vm("a").await;
    assert!(vm.durable_lsn >= writer.acked, "{} of {}", vm.durable_lsn, writer.acked);
    writer.writes.retain(|(lsn, ..)| *lsn <= vm.durable_lsn);
    writer.compare(&site).await;
    ballast.remove();
    writer.connect_soon(&site).await;
    for _ in 0..10 {
        assert!(writer.write().await);
    }
    writer.compare(&site).await;
}
