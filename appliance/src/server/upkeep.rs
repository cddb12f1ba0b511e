//! What an appliance does by itself while it runs: looking at its free space, its certificates and idle journals.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::CryptoProvider;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::clock::now_us;
use crate::core::Core;
use crate::metrics::Metrics;
use crate::pki::ServerCertificate;
use crate::space::Space;

/// Between measurements of free space: a stream at 1 GB/s fills a reserve in this time.
const SPACE_INTERVAL: Duration = Duration::from_millis(250);

/// Between looks at what renews or expires.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(3600);

/// How long expired certificates stay listed, for the auditor.
const KEEP_EXPIRED_US: u64 = 365 * 24 * 3600 * 1_000_000;

/// How often the indexes of idle journals are looked after: what a full disk or a stop left undone is done within it.
const MAINTAIN_INTERVAL: Duration = Duration::from_secs(60);

pub(super) async fn watch_space(core: Arc<Core>, sender: watch::Sender<Space>, ending: CancellationToken) {
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
pub(super) async fn maintain_idle(core: Arc<Core>, ending: CancellationToken) {
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

pub(super) async fn upkeep(
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
