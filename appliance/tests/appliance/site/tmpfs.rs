//! A small file system that a test fills.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A small file system of this test alone.
pub(crate) struct Tmpfs(PathBuf);

impl Tmpfs {
    pub(crate) fn mount(path: &Path, mebibytes: u32) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: mounting a small file system needs root");
            return None;
        }
        std::fs::create_dir_all(path).unwrap();
        let size = format!("size={mebibytes}m");
        let status =
            Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(path).status().unwrap();
        if !status.success() {
            println!("skipped: no file system can be mounted here");
            return None;
        }
        Some(Self(path.to_path_buf()))
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
