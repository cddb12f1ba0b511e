//! The BPF file system: where the capture stays alive while no splitter runs.

use std::io;
use std::path::{Path, PathBuf};

use super::error::CaptureError;

/// Where bpffs is by convention.
const DEFAULT_ROOT: &str = "/sys/fs/bpf";
/// Moves the root, for tests and unusual systems. Must be a bpffs, or an empty folder where one can be mounted.
const ROOT_VARIABLE: &str = "TIDEMARK_BPFFS";
/// Folder of all captures below the root.
const FOLDER: &str = "tidemark";

fn is_bpffs(path: &Path) -> bool {
    nix::sys::statfs::statfs(path)
        .is_ok_and(|found| found.filesystem_type() == nix::sys::statfs::BPF_FS_MAGIC)
}

/// The folder of this program's pins, mounting bpffs when it is not there.
///
/// # Errors
/// When bpffs cannot be mounted or the folder cannot be made.
pub(crate) fn folder() -> Result<PathBuf, CaptureError> {
    let root = std::env::var_os(ROOT_VARIABLE).map_or_else(|| PathBuf::from(DEFAULT_ROOT), PathBuf::from);
    if !is_bpffs(&root) {
        provide(&root).map_err(|source| CaptureError::Bpffs { path: root.clone(), source })?;
    }
    let folder = root.join(FOLDER);
    match std::fs::create_dir(&folder) {
        Ok(()) => Ok(folder),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(folder),
        Err(source) => Err(CaptureError::Bpffs { path: folder, source }),
    }
}

/// Makes `root` part of a bpffs: of the one at the usual place when it lies below that, otherwise of one of its own.
fn provide(root: &Path) -> io::Result<()> {
    if root.starts_with(DEFAULT_ROOT) {
        let default = Path::new(DEFAULT_ROOT);
        if !is_bpffs(default) {
            mount(default)?;
        }
        return std::fs::create_dir_all(root);
    }
    std::fs::create_dir_all(root)?;
    mount(root)
}

fn mount(root: &Path) -> io::Result<()> {
    nix::mount::mount(Some("bpf"), root, Some("bpf"), nix::mount::MsFlags::empty(), Some("mode=0700"))?;
    Ok(())
}

/// A name for the capture of a splitter, derived from its state folder: two splitters with different state never
/// share a capture. bpffs allows no dots in names.
#[must_use]
pub fn name_for(state_folder: &Path) -> String {
    let text = state_folder.as_os_str().as_encoded_bytes();
    // FNV-1a, 64 bits: names must be stable and short, not secret; a collision only makes the second splitter find
    // the lock taken.
    let hash = text.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("state-{hash:016x}")
}
