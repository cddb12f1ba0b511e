//! Starting and ending an appliance.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use rustls::crypto::CryptoProvider;
use tidemark_journal::retention::ImageKeeper;
use tidemark_journal::storage::OsStorage;
use tidemark_journal::view::BaseImages;
use tidemark_proto::limits::MESSAGE_MAX_BYTES;
use tidemark_proto::v1::attest_server::AttestServer;
use tidemark_proto::v1::clones_server::ClonesServer;
use tidemark_proto::v1::console_server::ConsoleServer;
use tidemark_proto::v1::enrolment_server::EnrolmentServer;
use tidemark_proto::v1::grants_server::GrantsServer;
use tidemark_proto::v1::history_server::HistoryServer;
use tidemark_proto::v1::jobs_server::JobsServer;
use tidemark_proto::v1::objects_server::ObjectsServer;
use tidemark_proto::v1::restore_server::RestoreServer;
use tidemark_proto::v1::retention_server::RetentionServer;
use tidemark_proto::v1::search_server::SearchServer;
use tidemark_proto::v1::sets_server::SetsServer;
use tidemark_proto::v1::splitter_server::SplitterServer;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Server;

use crate::api::{
    self, AttestService, ClonesService, ConsoleService, GrantsService, HistoryService, JobsService,
    ObjectsService, RetentionService, SearchService, SetsService,
};
use crate::catalog::Catalog;
use crate::clock::now_us;
use crate::core::Core;
use crate::data_dir::DataDir;
use crate::enrolment::{self, EnrolmentService};
use crate::export::Exports;
use crate::fleet::{Fleet, LogKeys, Vm, VmLog};
use crate::images::Images;
use crate::ingest::{COMPARE_PARALLEL, Committer, SplitterService, rebuild_bookmarks};
use crate::metrics::Metrics;
use crate::objects::{ObjectRoots, Objects};
use crate::packs::{self, ObjectFolder};
use crate::pki::{Authority, ServerCertificate, server_config};
use crate::recovery::Leases;
use crate::restoring::{self, RestoreService, Restores};
use crate::retention::{Retention, RetentionClock, Tick, rebuild_held};
use crate::sets::{Reconciling, reconcile};
use crate::settings::Settings;
use crate::space::Space;
use crate::tasks::Tasks;
use crate::templates::Templates;
use crate::transport::{Gate, Incoming, bind};
use crate::{admin_context, clones, http, master_key, signing};

/// Bytes of HTTP/2 flow control per stream and per connection: a stream at 400 MB/s with 40 ms of round trip and
/// scheduling. A splitter that sends more waits.
const HTTP2_WINDOW_BYTES: u32 = 16 << 20;

/// Bytes of one HTTP/2 data frame at most: fewer, larger ones cost less per byte.
const HTTP2_FRAME_BYTES: u32 = 1 << 20;

/// Calls at a time on one connection at most. Further ones wait.
const HTTP2_STREAMS_MAX: u32 = 128;

/// Silence after which a connection is pinged, and how long the answer may take: a dead console's view ends with it.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// Between measurements of free space: a stream at 1 GB/s fills a reserve in this time.
const SPACE_INTERVAL: Duration = Duration::from_millis(250);

/// Between looks at what renews or expires.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(3600);

/// How long expired certificates stay listed, for the auditor.
const KEEP_EXPIRED_US: u64 = 365 * 24 * 3600 * 1_000_000;

/// How often the indexes of idle journals are looked after: what a full disk or a stop left undone is done within it.
const MAINTAIN_INTERVAL: Duration = Duration::from_secs(60);

/// How long streams, then connections, may take to end at shutdown. What is left is cut off; nothing acknowledged is lost.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(10);

/// A running appliance.
#[derive(Debug)]
pub struct Appliance {
    /// Where splitters and consoles connect.
    pub address: SocketAddr,
    /// Where metrics and health are.
    pub http: SocketAddr,
    core: Arc<Core>,
    /// Ends the servers and the committer, after `core.stopping` has ended the streams.
    ending: CancellationToken,
    server: JoinHandle<Result<(), tonic::transport::Error>>,
    committer: JoinHandle<()>,
}

impl Appliance {
    /// Starts: takes the data folder, makes what is missing, opens all journals, listens.
    ///
    /// # Errors
    /// With what could not be done, in words for the operator.
    pub async fn start(settings: &Settings) -> anyhow::Result<Self> {
        let now_us = now_us();
        let data = DataDir::open(&settings.data)?;
        data.delete_doomed()?;
        let authority = Authority::load_or_create(&data.ca(), now_us)?;
        let catalog = Catalog::open(&settings.catalog, &data.catalog(), &authority.sha256()).await?;
        let (images, packs) = open_images(&data, settings, &authority).await?;
        let images = Arc::new(images);
        let objects = open_objects(&data, &images, &catalog).await?;
        let stopping = CancellationToken::new();
        let store = Arc::clone(images.store());
        let templates = Templates::open(&data.templates(), store, Arc::clone(&objects), stopping.clone())?;
        let metrics = Arc::new(Metrics::default());
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let names = server_names(settings);
        let certificate = Arc::new(ServerCertificate::new(&authority, &provider, names, now_us)?);
        let tls = server_config(&authority, Arc::clone(&provider), Arc::clone(&certificate))?;
        let signing = signing::load_or_create(&data.signing())?;
        let log_keys = LogKeys { signer: signing.clone(), master: Some(images.store().master()) };
        let keeper = Arc::new(ImageKeeper::new(Arc::clone(images.store())));
        let fleet = open_fleet(&data, &catalog, &keeper, &log_keys).await?;
        let images_below: Arc<dyn BaseImages> = Arc::<ImageKeeper>::clone(&keeper);
        clones::open_all(&data, &fleet, &images_below, &log_keys).await?;
        resume_verifies(&fleet, &catalog).await?;
        let retention = Retention::new(keeper, data.retention_clock(), retention_clock(&fleet));
        let (address, incoming) = bind(settings.listen, Arc::new(tls), Arc::clone(&metrics))
            .await
            .with_context(|| format!("listening on {}", settings.listen))?;
        admin_context::refresh(&data, &authority, &catalog, reachable(address), now_us).await?;
        let gate = Arc::new(Gate::new(&catalog.certificates().await?, Arc::clone(&metrics)));
        let space = Space::measure(data.root(), false).context("measuring free space")?;
        let (space_sender, space) = watch::channel(space);
        let core = Arc::new(Core {
            exports: Exports::new(data.exports()),
            restores: Restores::default(),
            reconciling: Reconciling::default(),
            clones: Arc::default(),
            data,
            authority,
            signing,
            log_keys,
            catalog,
            gate,
            fleet,
            images,
            packs,
            retention,
            objects,
            templates: Arc::new(templates),
            committer: Arc::new(Committer::default()),
            compare_slots: Arc::new(Semaphore::new(COMPARE_PARALLEL)),
            metrics,
            leases: Arc::new(Leases::default()),
            space,
            stopping,
            tasks: Tasks::default(),
        });
        let ending = CancellationToken::new();
        let http = http::serve(settings.http, Arc::clone(&core), ending.clone())
            .await
            .with_context(|| format!("listening on {} for metrics", settings.http))?;
        let committer = Arc::clone(&core.committer).run(Arc::clone(&core.metrics), ending.clone());
        let committer = tokio::spawn(committer);
        tokio::spawn(watch_space(Arc::clone(&core), space_sender, ending.clone()));
        tokio::spawn(upkeep(Arc::clone(&core), certificate, provider, ending.clone()));
        tokio::spawn(maintain_idle(Arc::clone(&core), ending.clone()));
        tokio::spawn(Retention::work(Arc::clone(&core), ending.clone()));
        tokio::spawn(Arc::clone(&core.clones).run(ending.clone()));
        reconcile(&core, "the appliance started").await;
        core.templates_changed();
        let server = tokio::spawn(serve(Arc::clone(&core), incoming, ending.clone()));
        Ok(Self { address, http, core, ending, server, committer })
    }

    /// The shared parts, for tests and embedding.
    #[must_use]
    pub fn core(&self) -> &Arc<Core> {
        &self.core
    }

    /// Ends when the server does, which it does not by itself.
    pub async fn failed(&mut self) -> anyhow::Error {
        match (&mut self.server).await {
            Ok(Ok(())) => anyhow::anyhow!("the server ended"),
            Ok(Err(error)) => anyhow::Error::new(error).context("serving"),
            Err(error) => anyhow::Error::new(error).context("serving"),
        }
    }

    /// Ends in order: streams say Goodbye, everything appended becomes durable, connections close.
    pub async fn shutdown(self) {
        self.core.stopping.cancel();
        if tokio::time::timeout(SHUTDOWN_TIMEOUT, self.core.tasks.wait()).await.is_err() {
            tracing::warn!("streams did not end in time and are cut off");
        }
        self.core.exports.stop_all().await;
        self.ending.cancel();
        if self.committer.await.is_err() {
            tracing::error!("the committer ended unexpectedly");
        }
        let abort = self.server.abort_handle();
        if tokio::time::timeout(SHUTDOWN_TIMEOUT, self.server).await.is_err() {
            // An idle console keeps its connection; it has nothing to lose.
            abort.abort();
        }
        let core = Arc::clone(&self.core);
        let closed = tokio::task::spawn_blocking(move || {
            core.clones.settle();
            for vm in core.fleet.with_clones() {
                vm.log.close("the appliance is shutting down");
            }
            if let Err(error) = core.images.store().flush() {
                tracing::error!(%error, "cannot flush the chunk store");
            }
        });
        if closed.await.is_err() {
            tracing::error!("closing the journals ended unexpectedly");
        }
        self.core.catalog.close().await;
    }
}

/// Where a console on this machine finds the listener.
fn reachable(address: SocketAddr) -> String {
    let ip = match address.ip() {
        ip if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, address.port()).to_string()
}

/// Names in the server's certificate: the address, the host's name, loopback, and what the operator adds.
fn server_names(settings: &Settings) -> Vec<String> {
    let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    if !settings.listen.ip().is_unspecified() {
        names.push(settings.listen.ip().to_string());
    }
    let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let hostname = hostname.trim();
    if !hostname.is_empty()
        && hostname.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-.".contains(&byte))
    {
        names.push(hostname.to_owned());
    }
    names.extend(settings.names.iter().cloned());
    names.sort();
    names.dedup();
    names
}

/// Opens the chunk store, with the master key and the packs from where the settings say.
async fn open_images(
    data: &DataDir,
    settings: &Settings,
    authority: &Authority,
) -> anyhow::Result<(Images, Option<Arc<ObjectFolder>>)> {
    let (dir, local) = (data.store(), data.packs());
    let secret = match master_key::pending(data)? {
        Some(record) => {
            let finished = master_key::finish(data, &record, &mut |_| true).await;
            let finished = finished.context("going on with a change of the master key")?;
            let source = &finished.source;
            if finished.unreadable.is_empty() {
                tracing::info!(%source, logs = finished.logs, "a change of the master key was finished");
            } else {
                let unreadable = finished.unreadable.join(", ");
                tracing::error!(%source, unreadable, "{}", master_key::UNFINISHED);
            }
            if *source != settings.master_key {
                tracing::warn!(%source, "the master key comes from another source now: say so with --master-key");
            }
            finished.secret
        }
        None => settings.master_key.load(&data.store_key(), Images::exist(&dir)).await?,
    };
    let packs = settings.packs.clone();
    let floor_bytes = Space::measure(data.root(), false).context("measuring free space")?.floor_bytes();
    let appliance: String = authority.sha256().iter().map(|byte| format!("{byte:02x}")).collect();
    let runtime = tokio::runtime::Handle::current();
    let opened = tokio::task::spawn_blocking(move || {
        let local = Arc::new(OsStorage::create(local)?);
        let packs = packs::open(&packs, local, &dir, &appliance, runtime, now_us())?;
        Ok::<_, anyhow::Error>((Images::open_with(&dir, packs.folder, &secret, floor_bytes)?, packs.objects))
    });
    opened.await.context("opening the chunk store")?.context("opening the chunk store")
}

/// Opens the objects, keeps their chunks from collections, and completes the catalog from their records.
async fn open_objects(data: &DataDir, images: &Images, catalog: &Catalog) -> anyhow::Result<Arc<Objects>> {
    let folder = data.objects();
    let opened = tokio::task::spawn_blocking(move || Objects::open(&folder)).await;
    let objects = Arc::new(opened.context("opening the objects")?.context("opening the objects")?);
    images.add_roots(Arc::new(ObjectRoots::new(Arc::clone(images.store()), Arc::clone(&objects))));
    catalog.replace_objects(&objects.list()).await?;
    Ok(objects)
}

/// Opens the journals of all VMs that the catalog or the data folder knows, and completes the catalog from them.
async fn open_fleet(
    data: &DataDir,
    catalog: &Catalog,
    keeper: &Arc<ImageKeeper>,
    keys: &LogKeys,
) -> anyhow::Result<Fleet> {
    let mut known: Vec<_> = catalog.vms().await?.into_iter().map(|row| (row.vm(), Some(row.name))).collect();
    for vm in data.vms()? {
        if !known.iter().any(|(id, _)| *id == vm) {
            known.push((vm, None));
        }
    }
    let opening: Vec<_> = known
        .into_iter()
        .map(|(id, name)| {
            let (dir, keeper, keys) = (data.journal(id), Arc::clone(keeper), keys.clone());
            (id, name, tokio::task::spawn_blocking(move || VmLog::open(id, &dir, keeper, keys)))
        })
        .collect();
    let fleet = Fleet::default();
    let now_us =
        RetentionClock::load(&data.retention_clock(), &Tick::now(), 0).observe(&Tick::now()).locks_us;
    for (id, name, log) in opening {
        let log = log.await.context("opening a journal")?;
        let name = match name {
            Some(name) => {
                let (log, name) = (Arc::clone(&log), name.clone());
                let noted = tokio::task::spawn_blocking(move || {
                    log.name_it(&name);
                    name
                });
                noted.await.context("opening a journal")?
            }
            None => adopt(catalog, id, &log).await?,
        };
        if let Ok(journal) = log.journal() {
            let rebuilt = rebuild_bookmarks(catalog, id, &journal.timeline()).await?;
            let held = rebuild_held(catalog, id, &journal, now_us).await?;
            if rebuilt + held > 0 {
                tracing::info!(vm = name, rebuilt, held, "bookmarks copied from the journal to the catalog");
            }
        }
        fleet.add(Vm::new(id, name, log));
    }
    Ok(fleet)
}

/// What an administrator asked for before the last end goes on with the VM's next session.
async fn resume_verifies(fleet: &Fleet, catalog: &Catalog) -> anyhow::Result<()> {
    for row in catalog.running_verifies().await? {
        if let Some(vm) = row.vm().and_then(|vm| fleet.get(vm))
            && let Err(older) = vm.begin_verify(row.job())
        {
            tracing::warn!(vm = vm.name, job = row.id, older, "two verifies of one VM: the older goes on");
            let reason = format!("another verify of the VM was running: {older}");
            catalog.keep_verify(&row.job().failed(&reason, now_us())).await?;
        }
    }
    Ok(())
}

/// The latest time that a journal has given something up at.
fn retention_clock(fleet: &Fleet) -> u64 {
    let journals = fleet.all().into_iter().filter_map(|vm| vm.log.journal().ok());
    journals.map(|journal| journal.retention_clock()).max().unwrap_or(0)
}

/// Lists a VM of which only the journal is left. Its credentials are gone, so it must be enrolled again.
async fn adopt(catalog: &Catalog, id: tidemark_proto::ids::VmId, log: &VmLog) -> anyhow::Result<String> {
    let reason = "the catalog was lost: its journal is here, its credentials are not";
    let fallback = format!("vm-{id}");
    let name = log.noted_name().unwrap_or_else(|| fallback.clone());
    tracing::warn!(vm = name, %id, "a journal without a catalog entry: the VM must be enrolled again");
    match catalog.rebuild_vm(id, &name, reason, now_us()).await {
        Ok(()) => Ok(name),
        Err(crate::catalog::CatalogError::Taken(_)) => {
            catalog.rebuild_vm(id, &fallback, reason, now_us()).await?;
            Ok(fallback)
        }
        Err(error) => Err(error.into()),
    }
}

async fn serve(
    core: Arc<Core>,
    incoming: Incoming,
    ending: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let [vm_gate, admin_gate, history_gate, retention_gate, clones_gate, search_gate, attest_gate] =
        [(); 7].map(|()| Arc::clone(&core.gate));
    let splitter = SplitterServer::new(SplitterService::new(Arc::clone(&core)))
        .max_decoding_message_size(MESSAGE_MAX_BYTES);
    let splitter = InterceptedService::new(splitter, move |request| vm_gate.admit_vm(request));
    let console = ConsoleServer::new(ConsoleService::new(Arc::clone(&core)))
        .max_decoding_message_size(api::REQUEST_MAX_BYTES);
    let console = InterceptedService::new(console, move |request| admin_gate.admit_admin(request));
    let history = HistoryServer::new(HistoryService::new(Arc::clone(&core)))
        .max_decoding_message_size(api::REQUEST_MAX_BYTES);
    let history = InterceptedService::new(history, move |request| history_gate.admit_admin(request));
    let retention = RetentionServer::new(RetentionService::new(Arc::clone(&core)))
        .max_decoding_message_size(api::REQUEST_MAX_BYTES);
    let retention = InterceptedService::new(retention, move |request| retention_gate.admit_admin(request));
    let clones = ClonesServer::new(ClonesService::new(Arc::clone(&core)))
        .max_decoding_message_size(api::CLONE_REQUEST_MAX_BYTES);
    let clones = InterceptedService::new(clones, move |request| clones_gate.admit_admin(request));
    let search = SearchServer::new(SearchService::new(Arc::clone(&core)))
        .max_decoding_message_size(api::REQUEST_MAX_BYTES);
    let search = InterceptedService::new(search, move |request| search_gate.admit_admin(request));
    let objects_gate = Arc::clone(&core.gate);
    let objects = ObjectsServer::new(ObjectsService::new(Arc::clone(&core)))
        .max_decoding_message_size(api::OBJECT_MESSAGE_MAX_BYTES);
    let objects = InterceptedService::new(objects, move |request| objects_gate.admit_admin(request));
    let attest = AttestServer::new(AttestService::new(Arc::clone(&core)))
        .max_decoding_message_size(api::REQUEST_MAX_BYTES);
    let attest = InterceptedService::new(attest, move |request| attest_gate.admit_admin(request));
    let jobs_gate = Arc::clone(&core.gate);
    let jobs = JobsServer::new(JobsService::new(Arc::clone(&core)))
        .max_decoding_message_size(api::REQUEST_MAX_BYTES);
    let jobs = InterceptedService::new(jobs, move |request| jobs_gate.admit_admin(request));
    let sets_gate = Arc::clone(&core.gate);
    let sets = SetsServer::new(SetsService::new(Arc::clone(&core)))
        .max_decoding_message_size(api::REQUEST_MAX_BYTES);
    let sets = InterceptedService::new(sets, move |request| sets_gate.admit_admin(request));
    let grants_gate = Arc::clone(&core.gate);
    let grants = GrantsServer::new(GrantsService::new(Arc::clone(&core)))
        .max_decoding_message_size(api::REQUEST_MAX_BYTES);
    let grants = InterceptedService::new(grants, move |request| grants_gate.admit_admin(request));
    let restore = RestoreServer::new(RestoreService::new(Arc::clone(&core)))
        .max_decoding_message_size(restoring::REQUEST_MAX_BYTES);
    let enrolment = EnrolmentServer::new(EnrolmentService::new(core))
        .max_decoding_message_size(enrolment::REQUEST_MAX_BYTES);
    Server::builder()
        .initial_stream_window_size(HTTP2_WINDOW_BYTES)
        .initial_connection_window_size(HTTP2_WINDOW_BYTES)
        .max_frame_size(HTTP2_FRAME_BYTES)
        .max_concurrent_streams(HTTP2_STREAMS_MAX)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .add_service(splitter)
        .add_service(console)
        .add_service(history)
        .add_service(retention)
        .add_service(clones)
        .add_service(search)
        .add_service(objects)
        .add_service(attest)
        .add_service(jobs)
        .add_service(sets)
        .add_service(grants)
        .add_service(restore)
        .add_service(enrolment)
        .serve_with_incoming_shutdown(incoming, ending.cancelled_owned())
        .await
}

async fn watch_space(core: Arc<Core>, sender: watch::Sender<Space>, ending: CancellationToken) {
    let root = core.data.root().to_path_buf();
    loop {
        tokio::select! {
            () = tokio::time::sleep(SPACE_INTERVAL) => {}
            () = ending.cancelled() => return,
        }
        let was_low = sender.borrow().low();
        measure(&root, &sender, &core.metrics);
        if !was_low && sender.borrow().low() {
            // Folding may still keep ingest going.
            core.retention.wake();
        }
    }
}

fn measure(root: &Path, sender: &watch::Sender<Space>, metrics: &Metrics) {
    let was_full = sender.borrow().full;
    let space = match Space::measure(root, was_full) {
        Ok(space) => space,
        Err(error) => return tracing::error!(%error, "cannot measure free space"),
    };
    metrics.free_bytes.set(i64::try_from(space.free_bytes).unwrap_or(i64::MAX));
    if space.full && !was_full {
        tracing::error!(free_bytes = space.free_bytes, "the disk is full: ingest stops until there is space");
    } else if was_full && !space.full {
        tracing::info!(free_bytes = space.free_bytes, "there is space again: ingest resumes");
    }
    // Only the turn from one state to the other wakes the streams.
    sender.send_if_modified(|current| {
        let turned = current.full != space.full;
        *current = space;
        turned
    });
}

/// Commits maintain the journals they go to; this does it for those that none go to, one journal at a time, and signs where
/// each stands.
async fn maintain_idle(core: Arc<Core>, ending: CancellationToken) {
    loop {
        for vm in core.fleet.with_clones() {
            if ending.is_cancelled() {
                return;
            }
            let work = move || {
                vm.log.maintain();
                vm.log.attest();
            };
            let _ = tokio::task::spawn_blocking(work).await;
        }
        tokio::select! {
            () = tokio::time::sleep(MAINTAIN_INTERVAL) => {}
            () = ending.cancelled() => return,
        }
    }
}

async fn upkeep(
    core: Arc<Core>,
    certificate: Arc<ServerCertificate>,
    provider: Arc<CryptoProvider>,
    ending: CancellationToken,
) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(UPKEEP_INTERVAL) => {}
            () = ending.cancelled() => return,
        }
        let now_us = now_us();
        match certificate.renew_if_due(&core.authority, &provider, now_us) {
            Ok(true) => tracing::info!("server certificate renewed"),
            Ok(false) => {}
            Err(error) => tracing::error!(%error, "cannot renew the server certificate"),
        }
        let before_us = now_us.saturating_sub(KEEP_EXPIRED_US);
        match core.catalog.forget_expired_certificates(before_us).await {
            Ok(0) => {}
            Ok(_) => {
                if let Ok(rows) = core.catalog.certificates().await {
                    core.gate.retain(|serial| rows.iter().any(|row| row.serial == serial));
                }
            }
            Err(error) => tracing::warn!(%error, "cannot forget expired certificates"),
        }
    }
}
