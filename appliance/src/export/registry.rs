//! The exports that run in this process.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tidemark_proto::ids::DiskId;
use tidemark_proto::v1::ExportInfo;
use tokio::sync::Mutex;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::connection::Served;
use super::listener::{Bound, Listener, bind_tls, bind_unix};
use super::source::{ExportSource, ViewSource};
use super::worker::{self, Client};
use crate::recovery::OpenedView;

/// Connections of one export at once: kernel clients and `nbdcopy` open one per processor. Further ones are closed.
const CONNECTIONS_MAX: usize = 16;
/// Exports at once: each holds a view. Further ones are refused.
const EXPORTS_MAX: usize = 64;
/// Pause after accepting failed (no descriptors left), so that it does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Time connections get to end when their export stops: they are cancelled, only a blocking read may last.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// An export could not be started or found.
#[derive(Debug, Error)]
pub enum ExportError {
    /// The caller asked for something that is not there; the text says what.
    #[error("{0}")]
    NotFound(String),
    /// The caller asked for something that cannot be; the text says what to do.
    #[error("{0}")]
    Invalid(String),
    /// This side failed.
    #[error("{0}")]
    Failed(String),
}

#[derive(Debug)]
struct Running {
    /// Without credentials.
    info: ExportInfo,
    stop: CancellationToken,
    task: JoinHandle<()>,
    socket: Option<PathBuf>,
}

/// The exports of this process.
#[derive(Debug)]
pub struct Exports {
    dir: PathBuf,
    running: Mutex<BTreeMap<String, Running>>,
}

impl Exports {
    /// Exports whose sockets live in `dir` (0700). Leftovers of a killed process are removed.
    #[must_use]
    pub fn new(dir: PathBuf) -> Self {
        if let Err(error) = prepare(&dir) {
            tracing::warn!(dir = %dir.display(), "cannot prepare the folder for exports, they will not start: {error}");
        }
        Self { dir, running: Mutex::default() }
    }

    /// Serves one disk of the view, or each of them, until stopped. `tls_addr` empty: a Unix socket of mode 0600.
    /// The reply holds the clients' credentials; they are not kept.
    ///
    /// # Errors
    /// [`ExportError::NotFound`] for a disk the view has not, [`ExportError::Invalid`] for an address that cannot be,
    /// [`ExportError::Failed`] when the socket cannot be bound.
    pub async fn start(
        &self,
        view: OpenedView,
        disk: Option<DiskId>,
        tls_addr: &str,
    ) -> Result<Vec<ExportInfo>, ExportError> {
        let disks: Vec<_> = match disk {
            None => view.disks.iter().collect(),
            Some(id) => vec![view.disk(id).ok_or_else(|| {
                ExportError::NotFound(format!(
                    "{} has no {id} at this point: `tidemark vm show` lists its disks",
                    view.vm_name
                ))
            })?],
        };
        let mut started: Vec<ExportInfo> = Vec::new();
        for disk in disks {
            let source = Arc::new(ViewSource::new(view.view.clone(), disk.id, disk.size_bytes));
            match self.start_source(&view.vm_name, &disk.id.to_string(), view.lsn.0, source, tls_addr).await {
                Ok(info) => started.push(info),
                Err(error) => {
                    for info in &started {
                        let _ = self.stop(&info.id).await;
                    }
                    return Err(error);
                }
            }
        }
        Ok(started)
    }

    /// Serves one volume, under the name `disk`.
    ///
    /// # Errors
    /// As [`Exports::start`].
    pub async fn start_source(
        &self,
        vm: &str,
        disk: &str,
        lsn: u64,
        source: Arc<dyn ExportSource>,
        tls_addr: &str,
    ) -> Result<ExportInfo, ExportError> {
        let mut running = self.running.lock().await;
        if running.len() >= EXPORTS_MAX {
            return Err(ExportError::Invalid(format!(
                "{EXPORTS_MAX} exports run, which is the most: stop one first"
            )));
        }
        let id = loop {
            let id = format!("{:08x}", rand::random::<u32>());
            if !running.contains_key(&id) {
                break id;
            }
        };
        let Bound { listener, uri, tls } = if tls_addr.is_empty() {
            bind_unix(&self.dir, &id, disk)?
        } else {
            bind_tls(tls_addr, disk).await?
        };
        let (acceptor, credentials) = tls.unzip();
        let info = ExportInfo {
            id: id.clone(),
            vm: vm.to_owned(),
            disk: disk.to_owned(),
            uri,
            lsn,
            ..Default::default()
        };
        let socket = match &listener {
            Listener::Unix(_, path) => Some(path.clone()),
            Listener::Tcp(_) => None,
        };
        let stop = CancellationToken::new();
        let served = Arc::new(Served { name: disk.to_owned(), source, tls: acceptor });
        let span = tracing::info_span!("export", vm, disk, id);
        let task = tokio::spawn(accept(listener, served, stop.clone()).instrument(span));
        running.insert(id, Running { info: info.clone(), stop, task, socket });
        Ok(match credentials {
            None => info,
            Some(client) => ExportInfo {
                ca_pem: client.ca_pem,
                client_certificate_pem: client.certificate_pem,
                client_key_pem: client.key_pem,
                ..info
            },
        })
    }

    /// All running exports, without their credentials.
    pub async fn list(&self) -> Vec<ExportInfo> {
        self.running.lock().await.values().map(|running| running.info.clone()).collect()
    }

    /// Ends an export and its connections.
    ///
    /// # Errors
    /// [`ExportError::NotFound`] when there is none of that id.
    pub async fn stop(&self, id: &str) -> Result<(), ExportError> {
        let Some(running) = self.running.lock().await.remove(id) else {
            return Err(ExportError::NotFound(format!(
                "there is no export '{id}'; `tidemark export list` shows those there are"
            )));
        };
        running.end().await;
        Ok(())
    }

    /// Ends all exports, at shutdown.
    pub async fn stop_all(&self) {
        let all = std::mem::take(&mut *self.running.lock().await);
        for running in all.into_values() {
            running.end().await;
        }
    }
}

impl Running {
    async fn end(self) {
        self.stop.cancel();
        if tokio::time::timeout(STOP_LIMIT, self.task).await.is_err() {
            tracing::warn!(id = %self.info.id, "connections of a stopped export still end");
        }
        if let Some(socket) = self.socket {
            let _ = std::fs::remove_file(socket);
        }
    }
}

/// Makes the folder private and removes sockets of a process that was killed.
fn prepare(dir: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700))?;
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "sock") {
            std::fs::remove_file(path)?;
        }
    }
    Ok(())
}

/// Owns the export's connections: they end with it.
async fn accept(listener: Listener, served: Arc<Served>, stop: CancellationToken) {
    let mut clients = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = clients.join_next() => continue,
            accepted = accept_one(&listener) => accepted,
        };
        let client = match accepted {
            Ok(client) => client,
            Err(error) => {
                tracing::warn!("cannot accept a connection: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        if clients.len() >= CONNECTIONS_MAX {
            tracing::info!("a connection beyond {CONNECTIONS_MAX} was closed");
            continue;
        }
        let served = Arc::clone(&served);
        let stop = stop.clone();
        clients.spawn(async move { worker::run(client, served, &stop).await }.in_current_span());
    }
    while clients.join_next().await.is_some() {}
}

async fn accept_one(listener: &Listener) -> io::Result<Client> {
    Ok(match listener {
        Listener::Unix(listener, _) => Client::Unix(listener.accept().await?.0.into_std()?),
        Listener::Tcp(listener) => {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            Client::Tcp(stream.into_std()?)
        }
    })
}
