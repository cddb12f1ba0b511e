//! A guest's disks, and the files on the host that hold them.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::process::output_of;

/// What a disk is attached to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bus {
    /// `/dev/vdX`.
    VirtioBlk,
    /// `/dev/sdX`.
    VirtioScsi,
}

/// What a power cut does to writes that completed and were not flushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cache {
    /// Nothing is lost.
    Kept,
    /// The first write to each 4 KiB since the last flush is lost, later ones to the same 4 KiB are kept. (Writes go
    /// into a qcow2 overlay whose tables qemu keeps in memory until a flush; it is merged when the machine is off.)
    Volatile,
}

/// A disk to attach.
#[derive(Debug, Clone)]
pub struct Disk {
    pub(super) name: String,
    pub(super) size_bytes: u64,
    pub(super) bus: Bus,
    pub(super) serial: Option<String>,
    pub(super) cache: Cache,
}

impl Disk {
    /// A virtio-blk disk of zeroes that loses nothing in a power cut; `name` is its serial number, too.
    #[must_use]
    pub fn new(name: &str, size_bytes: u64) -> Self {
        let serial = Some(name.to_owned());
        Self { name: name.to_owned(), size_bytes, bus: Bus::VirtioBlk, serial, cache: Cache::Kept }
    }

    /// On virtio-scsi instead.
    #[must_use]
    pub fn scsi(mut self) -> Self {
        self.bus = Bus::VirtioScsi;
        self
    }

    /// With a cache that forgets in a power cut.
    #[must_use]
    pub fn volatile(mut self) -> Self {
        self.cache = Cache::Volatile;
        self
    }

    /// With another size.
    #[must_use]
    pub fn size(mut self, size_bytes: u64) -> Self {
        self.size_bytes = size_bytes;
        self
    }

    /// With another serial number than its name.
    #[must_use]
    pub fn serial(mut self, serial: &str) -> Self {
        self.serial = Some(serial.to_owned());
        self
    }

    /// Without a serial number; [`Guest::device`](super::Guest::device) cannot find it.
    #[must_use]
    pub fn without_serial(mut self) -> Self {
        self.serial = None;
        self
    }

    /// The node in qemu's block layer.
    pub(super) fn node(&self) -> String {
        format!("node-{}", self.name)
    }

    /// The id of the device in qemu.
    pub(super) fn device_id(&self) -> String {
        format!("disk-{}", self.name)
    }

    /// The host's file that holds it while the machine is off.
    pub(super) fn raw(&self, folder: &Path) -> PathBuf {
        folder.join(format!("{}.raw", self.name))
    }

    fn overlay(&self, folder: &Path) -> PathBuf {
        folder.join(format!("{}.overlay", self.name))
    }

    /// Makes the file, unless it is there.
    pub(super) fn create(&self, folder: &Path) -> Result<()> {
        let raw = self.raw(folder);
        if !raw.exists() {
            File::create(&raw)?.set_len(self.size_bytes)?;
        }
        Ok(())
    }

    /// Before the machine is switched on.
    pub(super) fn open(&self, folder: &Path) -> Result<()> {
        if self.cache == Cache::Volatile {
            output_of(
                Command::new("qemu-img")
                    .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-o", "cluster_size=4096", "-b"])
                    .arg(self.raw(folder))
                    .arg(self.overlay(folder)),
            )?;
        }
        Ok(())
    }

    /// When the machine is off: what the disk kept is in its file.
    pub(super) fn close(&self, folder: &Path) -> Result<()> {
        let overlay = self.overlay(folder);
        if overlay.exists() {
            output_of(Command::new("qemu-img").args(["commit", "-q", "-d"]).arg(&overlay))
                .with_context(|| format!("merge the cache of disk {}", self.name))?;
            fs::remove_file(overlay)?;
        }
        // A merge does not make the file smaller.
        File::options().write(true).open(self.raw(folder))?.set_len(self.size_bytes)?;
        Ok(())
    }

    /// Its content, while the machine runs: what was flushed at least.
    pub(super) fn content(&self, folder: &Path) -> Result<Vec<u8>> {
        if self.cache == Cache::Kept {
            return Ok(fs::read(self.raw(folder))?);
        }
        let merged = folder.join(format!("{}.merged", self.name));
        output_of(
            Command::new("qemu-img")
                .args(["convert", "-U", "-f", "qcow2", "-O", "raw"])
                .arg(self.overlay(folder))
                .arg(&merged),
        )?;
        let content = fs::read(&merged)?;
        fs::remove_file(merged)?;
        Ok(content)
    }

    /// `blockdev-add`.
    pub(super) fn block_device(&self, folder: &Path) -> Value {
        let (driver, file) = match self.cache {
            Cache::Kept => ("raw", self.raw(folder)),
            Cache::Volatile => ("qcow2", self.overlay(folder)),
        };
        json!({
            "driver": driver,
            "node-name": self.node(),
            "discard": "unmap",
            "file": { "driver": "file", "filename": file },
        })
    }

    /// `device_add`.
    pub(super) fn device(&self) -> Value {
        let mut device = json!({ "id": self.device_id(), "drive": self.node() });
        match self.bus {
            Bus::VirtioBlk => device["driver"] = json!("virtio-blk-pci"),
            Bus::VirtioScsi => {
                device["driver"] = json!("scsi-hd");
                device["bus"] = json!("scsi.0");
            }
        }
        if let Some(serial) = &self.serial {
            device["serial"] = json!(serial);
        }
        device
    }
}
