//! Starting and ending an appliance.

mod opening;
mod services;
mod upkeep;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tidemark_journal::retention::ImageKeeper;
use tidemark_journal::view::BaseImages;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::catalog::Catalog;
use crate::clock::now_us;
use crate::core::Core;
use crate::data_dir::DataDir;
use crate::export::Exports;
use crate::fleet::LogKeys;
use crate::ingest::{COMPARE_PARALLEL, Committer};
use crate::metrics::Metrics;
use crate::pki::{Authority, ServerCertificate, server_config};
use crate::recovery::Leases;
use crate::restoring::Restores;
use crate::retention::Retention;
use crate::sets::{Points, Reconciling, reconcile, restore_copy};
use crate::settings::Settings;
use crate::space::Space;
use crate::tasks::Tasks;
use crate::templates::Templates;
use crate::transport::{Gate, bind};
use crate::{admin_context, clones, http, signing};

use opening::{open_fleet, open_images, open_objects, resume_verifies, retention_clock};
use services::serve;
use upkeep::{maintain_idle, upkeep, watch_space};

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
            points: Points::default(),
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
        tokio::spawn(Points::work(Arc::clone(&core), ending.clone()));
        let restored = restore_copy(&core.catalog, &core.data).await.context("restoring sets")?;
        if restored > 0 {
            tracing::warn!(restored, "the catalog was lost: sets and tags were taken from their copy");
        }
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
