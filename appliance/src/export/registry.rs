//! The exports that run in this process.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tidemark_proto::ids::{DiskId, VmId};
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
/// Exports that one person who is no administrator may run at once. Further ones are refused, so that there is room for
/// everybody else.
const PERSON_EXPORTS_MAX: usize = 16;
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
    /// `None`: an administrator started it.
    holder: Option<Holder>,
}

/// For whom an export runs that no administrator started.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Holder {
    person: String,
    vm: VmId,
}

impl Running {
    /// Whether a person may know of it: its own; an administrator (`None`) may know of all.
    fn is_of(&self, person: Option<&str>) -> bool {
        person.is_none_or(|person| self.holder.as_ref().is_some_and(|holder| holder.person == person))
    }
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
    /// The reply holds the clients' credentials; they are not kept. `person`: who is no administrator and starts it.
    ///
    /// # Errors
    /// [`ExportError::NotFound`] for a disk the view has not, [`ExportError::Invalid`] for an address that cannot be,
    /// [`ExportError::Failed`] when the socket cannot be bound.
    pub async fn start(
        &self,
        view: OpenedView,
        disk: Option<DiskId>,
        tls_addr: &str,
        person: Option<&str>,
    ) -> Result<Vec<ExportInfo>, ExportError> {
        let holder = person.map(|person| Holder { person: person.to_owned(), vm: view.vm });
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
            let (vm, name) = (&view.vm_name, disk.id.to_string());
            match self.start_for(holder.clone(), (vm, &name, view.lsn.0), source, tls_addr).await {
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

    /// Serves one volume, under the name `disk`, for an administrator.
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
        self.start_for(None, (vm, disk, lsn), source, tls_addr).await
    }

    async fn start_for(
        &self,
        holder: Option<Holder>,
        (vm, disk, lsn): (&str, &str, u64),
        source: Arc<dyn ExportSource>,
        tls_addr: &str,
    ) -> Result<ExportInfo, ExportError> {
        let mut running = self.running.lock().await;
        if let Some(Holder { person, .. }) = &holder
            && running.values().filter(|running| running.is_of(Some(person))).count() >= PERSON_EXPORTS_MAX
        {
            return Err(ExportError::Invalid(format!(
                "{PERSON_EXPORTS_MAX} of your exports run, which is the most: stop one first"
            )));
        }
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
        running.insert(id, Running { info: info.clone(), stop, task, socket, holder });
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
        self.list_of(None).await
    }

    /// The running exports that a person started; all for an administrator (`None`).
    pub async fn list_of(&self, person: Option<&str>) -> Vec<ExportInfo> {
        let running = self.running.lock().await;
        running.values().filter(|running| running.is_of(person)).map(|running| running.info.clone()).collect()
    }

    /// The persons who started any.
    pub async fn persons(&self) -> Vec<String> {
        let running = self.running.lock().await;
        running.values().filter_map(|running| Some(running.holder.as_ref()?.person.clone())).collect()
    }

    /// Ends the exports of a person of VMs that it may not mount any more.
    pub async fn end_unless(&self, person: &str, may: impl Fn(VmId) -> bool) {
        let ends = |running: &Running| {
            running.holder.as_ref().is_some_and(|holder| holder.person == person && !may(holder.vm))
        };
        let mut running = self.running.lock().await;
        let ending: Vec<_> = running.extract_if(.., |_, running| ends(running)).collect();
        drop(running);
        for (id, running) in ending {
            tracing::info!(id, person, "an export ends: the right to it was revoked");
            running.end().await;
        }
    }

    /// Ends an export and its connections.
    ///
    /// # Errors
    /// [`ExportError::NotFound`] when there is none of that id.
    pub async fn stop(&self, id: &str) -> Result<(), ExportError> {
        self.stop_of(None, id).await
    }

    /// Ends an export that a person started; any for an administrator (`None`).
    ///
    /// # Errors
    /// [`ExportError::NotFound`] when there is none of that id that the caller may know of.
    pub async fn stop_of(&self, person: Option<&str>, id: &str) -> Result<(), ExportError> {
        let mut all = self.running.lock().await;
        let running =
            if all.get(id).is_some_and(|running| running.is_of(person)) { all.remove(id) } else { None };
        drop(all);
        let Some(running) = running else {
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
