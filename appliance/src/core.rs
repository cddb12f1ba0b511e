//! What all services of one appliance share.

use std::sync::Arc;

use tidemark_journal::attest::SigningKey;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use crate::catalog::Catalog;
use crate::clock::now_us;
use crate::clones::Clones;
use crate::data_dir::DataDir;
use crate::export::Exports;
use crate::fleet::{Fleet, LogKeys};
use crate::images::Images;
use crate::ingest::Committer;
use crate::metrics::Metrics;
use crate::objects::Objects;
use crate::packs::ObjectFolder;
use crate::pki::Authority;
use crate::recovery::Leases;
use crate::restoring::Restores;
use crate::retention::Retention;
use crate::sets::{Points, Reconciling};
use crate::space::Space;
use crate::tasks::Tasks;
use crate::templates::Templates;
use crate::transport::Gate;

/// The parts of a running appliance.
#[derive(Debug)]
pub struct Core {
    /// The locked data folder.
    pub data: DataDir,
    /// Signs certificates.
    pub authority: Authority,
    /// Signs what is said of journals.
    pub signing: Arc<SigningKey>,
    /// What journals are opened with.
    pub log_keys: LogKeys,
    /// Names, nonces, tokens, certificates, bookmarks, audit.
    pub catalog: Catalog,
    /// Who may call.
    pub gate: Arc<Gate>,
    /// The VMs.
    pub fleet: Fleet,
    /// The chunk store.
    pub images: Arc<Images>,
    /// The packs of it, where they lie in object storage: for their counters.
    pub packs: Option<Arc<ObjectFolder>>,
    /// Folding, snapshots and the space they take.
    pub retention: Retention,
    /// Files kept in the chunk store.
    pub objects: Arc<Objects>,
    /// What published templates have, by hashes.
    pub templates: Arc<Templates>,
    /// Group commit.
    pub committer: Arc<Committer>,
    /// Who may compare by hashes now: [`COMPARE_PARALLEL`](crate::ingest::COMPARE_PARALLEL).
    pub compare_slots: Arc<Semaphore>,
    /// Prometheus metrics.
    pub metrics: Arc<Metrics>,
    /// Open views.
    pub leases: Arc<Leases>,
    /// Clones that are written.
    pub clones: Arc<Clones>,
    /// Who looks for changes in sets.
    pub reconciling: Reconciling,
    /// Points of sets.
    pub points: Points,
    /// Disks that are being restored by grants.
    pub restores: Restores,
    /// NBD exports.
    pub exports: Exports,
    /// Free space, measured regularly.
    pub space: watch::Receiver<Space>,
    /// Cancelled when the appliance ends: streams say Goodbye.
    pub stopping: CancellationToken,
    /// Sessions, views and other work that shutdown waits for.
    pub tasks: Tasks,
}

impl Core {
    /// Something was published, or is not any more. What is new is known to splitters as soon as it is indexed.
    pub fn templates_changed(&self) {
        self.templates.forget_unpublished();
        let templates = Arc::clone(&self.templates);
        self.tasks.spawn(async move {
            if tokio::task::spawn_blocking(move || templates.build()).await.is_err() {
                tracing::error!("indexing templates ended unexpectedly");
            }
        });
    }

    /// Notes an act in the audit trail. A failure is logged and changes nothing: the act has happened.
    pub async fn audit(&self, actor: &str, action: &str, target: &str, detail: &str) {
        if let Err(error) = self.catalog.audit(now_us(), actor, action, target, detail).await {
            tracing::error!(%error, actor, action, target, "cannot write the audit trail");
        }
    }
}
