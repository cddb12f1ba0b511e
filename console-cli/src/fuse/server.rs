//! Serving one mount until it is unmounted.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context as _, Result, anyhow};
use bytes::Bytes;
use fuser::{Config, MountOption, Session};
use serde::{Deserialize, Serialize};
use tidemark_proto::v1::ViewDisk;
use tokio::runtime::Handle;

use super::cache::{Cache, Fetch, Keep};
use super::disk::MountedDisk;
use super::filesystem::ViewFolder;
use super::mountpoint::source_name;
use super::overlay::Overlay;
use crate::view::{Piece, RemoteClone, RemoteView};

/// Threads that answer the kernel; each may wait for one read from the appliance.
const THREADS: usize = 8;

/// The JSON of the command line contract.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Mounted {
    pub(crate) dir: PathBuf,
    pub(crate) files: Vec<MountedFile>,
    pub(crate) lsn: u64,
    /// RFC 3339, UTC.
    pub(crate) time: Option<String>,
    /// For people: microseconds since 1970.
    pub(crate) time_us: u64,
    pub(crate) writable: bool,
    /// Changes stay, in the clone.
    pub(crate) kept: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct MountedFile {
    pub(crate) disk: String,
    pub(crate) path: PathBuf,
    pub(crate) size_bytes: u64,
}

/// Reads over gRPC from threads that may block.
struct RemoteFetch {
    view: RemoteView,
    handle: Handle,
}

impl Fetch for RemoteFetch {
    fn fetch(&self, disk: usize, offset: u64, length: u64) -> Result<Vec<Piece>> {
        let disk = self.view.disks().get(disk).ok_or_else(|| anyhow!("no such disk"))?;
        self.handle.block_on(self.view.read(&disk.id, offset, length))
    }

    fn spawn(&self, work: Box<dyn FnOnce() + Send>) {
        drop(self.handle.spawn_blocking(work));
    }

    fn size(&self, disk: usize) -> u64 {
        self.view.disks().get(disk).map_or(0, |disk| disk.size_bytes)
    }
}

/// Reads and writes a clone over gRPC from threads that may block.
struct CloneFetch {
    clone: RemoteClone,
    handle: Handle,
}

impl Fetch for CloneFetch {
    fn fetch(&self, disk: usize, offset: u64, length: u64) -> Result<Vec<Piece>> {
        self.handle.block_on(self.clone.read(disk, offset, length))
    }

    fn spawn(&self, work: Box<dyn FnOnce() + Send>) {
        drop(self.handle.spawn_blocking(work));
    }

    fn size(&self, disk: usize) -> u64 {
        self.clone.description().disks.get(disk).map_or(0, |disk| disk.size_bytes)
    }

    fn keeper(&self) -> Option<&dyn Keep> {
        Some(self)
    }
}

impl Keep for CloneFetch {
    fn write(&self, disk: usize, offset: u64, data: &[u8]) -> Result<()> {
        self.handle.block_on(self.clone.write(disk, offset, Bytes::copy_from_slice(data), 0))
    }

    fn zero(&self, disk: usize, offset: u64, length: u64) -> Result<()> {
        self.handle.block_on(self.clone.write(disk, offset, Bytes::new(), length))
    }

    fn flush(&self) -> Result<()> {
        self.handle.block_on(self.clone.flush())
    }
}

/// Mounts `view` at `dir`, calls `ready`, and serves until somebody unmounts it. A failing `ready` unmounts at once.
/// `overlay_dir` makes it writable.
pub(crate) fn serve(
    view: RemoteView,
    handle: Handle,
    dir: &Path,
    overlay_dir: Option<&Path>,
    ready: impl FnOnce(&Mounted) -> Result<()>,
) -> Result<()> {
    let (vm, time_us) = (view.vm().to_owned(), view.time_us());
    let mounted = describe(view.disks(), dir, (view.lsn(), time_us), overlay_dir.is_some());
    let fetch = RemoteFetch { view, handle: handle.clone() };
    serve_disks(fetch, &vm, mounted, &handle, overlay_dir, ready)
}

/// As [`serve`], of a clone: what is written stays in it.
pub(crate) fn serve_clone(
    clone: RemoteClone,
    handle: Handle,
    dir: &Path,
    ready: impl FnOnce(&Mounted) -> Result<()>,
) -> Result<()> {
    let description = clone.description();
    let name = description.vm.clone();
    let mut mounted = describe(&description.disks, dir, (description.lsn, description.time_us), true);
    mounted.kept = true;
    let fetch = CloneFetch { clone, handle: handle.clone() };
    serve_disks(fetch, &name, mounted, &handle, None, ready)
}

fn serve_disks<F: Fetch>(
    fetch: F,
    vm: &str,
    mounted: Mounted,
    handle: &Handle,
    overlay_dir: Option<&Path>,
    ready: impl FnOnce(&Mounted) -> Result<()>,
) -> Result<()> {
    let dir = mounted.dir.as_path();
    let time = UNIX_EPOCH + Duration::from_micros(mounted.time_us);
    let mut config = Config::default();
    config.n_threads = Some(THREADS);
    config.mount_options = vec![
        MountOption::FSName(source_name(vm, mounted.lsn)),
        MountOption::DefaultPermissions,
        MountOption::NoExec,
        if mounted.writable { MountOption::RW } else { MountOption::RO },
    ];
    let cache = Cache::new(fetch);
    let mut disks = Vec::new();
    for (index, file) in mounted.files.iter().enumerate() {
        let overlay = overlay_dir.map(|folder| Overlay::create(folder, file.size_bytes)).transpose()?;
        disks.push(MountedDisk::new(Arc::clone(&cache), index, format!("{}.raw", file.disk), overlay));
    }
    let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    let folder = ViewFolder { disks, time, uid, gid };
    let mut session = Session::new(folder, dir, &config).map_err(|error| {
        let advice =
            "is FUSE available (modprobe fuse), and for other users than root fusermount3 installed?";
        anyhow!("mount at {}: {error}: {advice}", dir.display())
    })?;
    unmount_on_signals(handle, session.unmount_callable());
    // Serves from now on, so that whoever waits for `ready` finds answers.
    let session = session.spawn().context("start serving")?;
    if let Err(error) = ready(&mounted) {
        let _ = session.umount_and_join();
        return Err(error);
    }
    session.join().context("serve the mount")
}

fn describe(disks: &[ViewDisk], dir: &Path, (lsn, time_us): (u64, u64), writable: bool) -> Mounted {
    let files = disks.iter().map(|disk| MountedFile {
        disk: disk.id.clone(),
        path: dir.join(format!("{}.raw", disk.id)),
        size_bytes: disk.size_bytes,
    });
    Mounted {
        dir: dir.to_owned(),
        files: files.collect(),
        lsn,
        time: crate::moment::json(time_us),
        time_us,
        writable,
        kept: false,
    }
}

/// SIGINT and SIGTERM unmount; a busy mount stays and says so.
fn unmount_on_signals(handle: &Handle, mut unmounter: fuser::SessionUnmounter) {
    handle.spawn(async move {
        use tokio::signal::unix::{SignalKind, signal};
        let (Ok(mut interrupt), Ok(mut terminate)) =
            (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
        else {
            return;
        };
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            match unmounter.unmount() {
                Ok(()) => return,
                Err(error) => tracing::error!("cannot unmount, something still uses the files: {error}"),
            }
        }
    });
}
