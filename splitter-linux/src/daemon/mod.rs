//! The running splitter.
//!
//! Two threads matter. The *worker* owns the capture and the engine and is the only one that touches them; it is woken
//! by a timer and by whoever sends it a command. The *session* task owns the connection: it passes messages between
//! the appliance and the worker and holds no state that outlives the connection. A third thread reads disks for
//! initial copy and resync, a fourth writes the spool, a fifth answers local commands.

mod boottime;
mod command;
mod disk_reader;
mod handle;
mod hardening;
mod outbound;
mod parts;
mod platform;
mod protection;
mod renewal;
mod session;
mod socket;
mod spooler;
mod worker;

pub(crate) use boottime::now_us;
pub(crate) use handle::Handle;
pub use parts::{KernelSide, Parts};
pub use protection::{Attached, NoteError, attach, forget, forget_all, note, note_all};

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing_subscriber::EnvFilter;

use crate::cli::{LogFormat, RunOptions};
use crate::gate::{self, Gates};
use crate::state::{Quarantine, StateDir};

/// First pause between two attempts to connect; doubled up to [`RETRY_MAX`], with jitter so that a thousand splitters
/// do not come back to a restarted appliance at once.
const RETRY_MIN: Duration = Duration::from_millis(100);
/// Longest pause between two attempts. Beyond it an appliance that is back would wait for its splitters.
const RETRY_MAX: Duration = Duration::from_secs(5);
/// How long a stop may take: acknowledgements of what is on the way. Beyond it the rest is sent after the next start.
const STOP_MAX: Duration = Duration::from_secs(3);

/// `tidemark-splitter run`, with these parts.
///
/// # Errors
/// One line that says what to do.
pub fn run(options: RunOptions, parts: Parts) -> Result<()> {
    start_log(options.log);
    let state = StateDir::new(&options.state);
    let identity = state.identity()?;
    if let Some(quarantine) = state.quarantine()? {
        bail!("{}", quarantine.reason);
    }
    let _lock = state.lock()?;
    crate::disks::check_machine()?;
    hardening::apply();
    hardening::yield_to_guest(options.nice);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the network run time")?;
    let span = tracing::info_span!("splitter", vm = identity.vm_name);
    let _entered = span.enter();
    runtime.block_on(serve(state, options, parts))
}

fn start_log(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => builder.with_ansi(false).init(),
        LogFormat::Json => builder.json().init(),
    }
}

async fn serve(state: StateDir, options: RunOptions, parts: Parts) -> Result<()> {
    let (restart, restarts) = watch::channel(0_u64);
    let ring_bytes = u64::from(options.ring_mib) << 20;
    let spool = spooler::Options {
        folder: match &options.spool {
            // Of a folder that several could name, each takes its own part.
            Some(folder) => folder.join(crate::capture::name_for(state.root())),
            None => state.spool(),
        },
        limit_bytes: u64::from(options.spool_mib) << 20,
    };
    let gates = Arc::new(Gates::default());
    let settings = worker::Options { ring_bytes, hooks: options.hooks, spool };
    let (worker, worker_ended) = worker::start(state.clone(), settings, restart, parts, Arc::clone(&gates))?;
    let orders = gate::start(state.clone(), Arc::clone(&gates), worker.clone())
        .context("cannot start the thread of the gates")?;
    socket::serve(&state, worker.clone(), orders)?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;
    let (stop, stopping) = watch::channel(false);
    let mut sessions = tokio::spawn(keep_connected(state.clone(), worker.clone(), gates, restarts, stopping));
    // Without systemd there is nobody to tell.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    tracing::info!("running");
    let outcome = tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        ended = &mut sessions => Err(match ended {
            Ok(reason) => anyhow!(reason),
            Err(error) => anyhow!("the session task ended: {error}"),
        }),
        failure = worker_ended => Err(anyhow!(failure.unwrap_or_else(|_| "the capture thread ended".to_owned()))),
    };
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    let _ = stop.send(true);
    if !sessions.is_finished() {
        let _ = tokio::time::timeout(STOP_MAX, sessions).await;
    }
    worker.stop();
    let _ = std::fs::remove_file(state.control_socket());
    tracing::info!("stopped; the tap stays in the kernel and captures on");
    outcome
}

/// Holds a session whenever there is a disk to protect. Returns only with a reason for which a person is needed.
async fn keep_connected(
    state: StateDir,
    worker: Handle,
    gates: Arc<Gates>,
    mut restarts: watch::Receiver<u64>,
    mut stopping: watch::Receiver<bool>,
) -> String {
    let mut pause = RETRY_MIN;
    loop {
        if *stopping.borrow() {
            return String::new();
        }
        restarts.mark_unchanged();
        let Some(facts) = worker.hello().await else {
            tokio::select! {
                _ = restarts.changed() => continue,
                _ = stopping.changed() => continue,
            }
        };
        let mut connection = session::Session::new(&state, &worker, &gates, &mut restarts, &mut stopping);
        let end = connection.run(facts).await;
        gates.connected(false, false);
        worker.disconnected();
        match end {
            session::End::Restart => pause = RETRY_MIN,
            session::End::Stop => return String::new(),
            session::End::Final(reason) => {
                tracing::error!(reason, "the appliance takes nothing more from this splitter");
                if let Err(error) = state.store_quarantine(&Quarantine { reason: reason.clone() }) {
                    tracing::error!(%error, "cannot note it");
                }
                return reason;
            }
            session::End::Lost { reason, established } => {
                if established {
                    pause = RETRY_MIN;
                }
                tracing::info!(reason, "not connected; trying again");
                let jittered = pause.mul_f64(rand::random_range(0.5..1.0));
                tokio::select! {
                    () = tokio::time::sleep(jittered) => {}
                    _ = stopping.changed() => {}
                    _ = restarts.changed() => {}
                }
                pause = (pause * 2).min(RETRY_MAX);
            }
        }
    }
}
