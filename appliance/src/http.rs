//! `/metrics` and `/healthz`: plain HTTP, on loopback only.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::api::describe_vms;
use crate::core::Core;
use crate::metrics::VmLabel;

/// Listens, and serves until `stop`.
///
/// # Errors
/// When the address cannot be bound.
pub async fn serve(
    address: SocketAddr,
    core: Arc<Core>,
    stop: CancellationToken,
) -> std::io::Result<SocketAddr> {
    let listener = TcpListener::bind(address).await?;
    let local = listener.local_addr()?;
    let router =
        Router::new().route("/metrics", get(metrics)).route("/healthz", get(health)).with_state(core);
    tokio::spawn(async move {
        let served = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await;
        if let Err(error) = served {
            tracing::error!(%error, "the metrics server ended");
        }
    });
    Ok(local)
}

async fn metrics(State(core): State<Arc<Core>>) -> impl IntoResponse {
    if let Ok(vms) = describe_vms(&core).await {
        for vm in vms {
            let label = VmLabel { vm: vm.name.clone() };
            let gauge = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
            if let Some(rpo_ms) = vm.rpo_ms {
                core.metrics.durable_lag.get_or_create(&label).set(gauge(rpo_ms));
            }
            core.metrics.undurable_bytes.get_or_create(&label).set(gauge(vm.lag_bytes));
            let journal = core.fleet.by_name(&vm.name).and_then(|vm| vm.log.journal().ok());
            if let Some(journal) = journal {
                let open = journal.timeline().gaps().iter().filter(|gap| gap.to.is_none()).count();
                core.metrics.open_gaps.get_or_create(&label).set(i64::try_from(open).unwrap_or(i64::MAX));
                core.metrics
                    .written_bytes
                    .get_or_create(&label)
                    .set(gauge(journal.statistics().written_bytes));
            }
        }
    }
    core.metrics.stored(&core.images.store().statistics());
    if let Some(packs) = &core.packs {
        core.metrics.packed(packs);
    }
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], core.metrics.render())
}

/// 200 only when the appliance serves and its storage takes writes.
async fn health(State(core): State<Arc<Core>>) -> impl IntoResponse {
    let mut problems = Vec::new();
    if core.stopping.is_cancelled() {
        problems.push("shutting down".to_owned());
    }
    if core.space.borrow().full {
        problems.push("the data folder's disk is full".to_owned());
    }
    if let Err(error) = core.catalog.ping().await {
        problems.push(error.to_string());
    }
    for vm in core.fleet.with_clones() {
        if let Some(problem) = vm.log.problem() {
            problems.push(format!("{}: {problem}", vm.name));
        }
    }
    if problems.is_empty() {
        (StatusCode::OK, "ok\n".to_owned())
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, problems.join("\n") + "\n")
    }
}
