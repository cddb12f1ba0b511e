//! A machine that is off.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::builder::Builder;
use super::disk::Disk;
use super::kernel::Kernel;
use super::qemu;
use super::running::Guest;
use crate::process::{Daemon, output_of};

/// A machine that is off: its definition, and a folder with its disks.
#[derive(Debug)]
pub struct Machine {
    pub(super) definition: Builder,
    pub(super) folder: tempfile::TempDir,
}

impl Machine {
    pub(super) fn new(definition: Builder) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("tidemark-guest-").tempdir()?;
        for disk in &definition.disks {
            disk.create(folder.path())?;
        }
        Ok(Self { definition, folder })
    }

    /// Switches it on and waits until the guest takes commands.
    ///
    /// # Errors
    /// When the guest does not come up; the message carries the end of its console.
    pub fn boot(self) -> Result<Guest> {
        let kernel = self.definition.kernel.files()?;
        let initramfs = self.folder().join(format!("initramfs-{}", kernel.release));
        if !initramfs.exists() {
            self.definition.pack(&kernel, self.folder(), &initramfs)?;
        }
        for disk in &self.definition.disks {
            disk.open(self.folder())?;
        }
        for socket in ["control", "qmp"] {
            let _ = fs::remove_file(self.folder().join(socket));
        }
        let mut command = qemu::command(&self.definition, &kernel.image, &initramfs, self.folder());
        let daemon = Daemon::spawn("qemu", &mut command, &self.folder().join("qemu.log"))?;
        Guest::connect(self, daemon)
    }

    /// The host's file behind a disk.
    ///
    /// # Errors
    /// When there is no disk of that name.
    pub fn disk(&self, name: &str) -> Result<PathBuf> {
        Ok(self.find(name)?.raw(self.folder()))
    }

    /// The content of a disk.
    ///
    /// # Errors
    /// When there is no disk of that name or it cannot be read.
    pub fn content(&self, name: &str) -> Result<Vec<u8>> {
        Ok(fs::read(self.disk(name)?)?)
    }

    /// Attaches a disk to be there at the next boot. A disk that was detached before comes back with its content.
    ///
    /// # Errors
    /// When there is one of that name, or its file cannot be made.
    pub fn attach(&mut self, disk: Disk) -> Result<()> {
        ensure!(self.find(&disk.name).is_err(), "there is a disk {} already", disk.name);
        ensure!(disk.bus != super::Bus::VirtioScsi || self.definition.scsi, "call Builder::scsi first");
        disk.create(self.folder())?;
        self.definition.disks.push(disk);
        Ok(())
    }

    /// Detaches a disk; its file stays.
    ///
    /// # Errors
    /// When there is no disk of that name.
    pub fn detach(&mut self, name: &str) -> Result<()> {
        let index = self.definition.disks.iter().position(|disk| disk.name == name);
        self.definition.disks.remove(index.with_context(|| format!("no disk {name}"))?);
        Ok(())
    }

    /// The next boots are of another kernel.
    pub fn set_kernel(&mut self, kernel: Kernel) {
        self.definition.kernel = kernel;
    }

    /// Another machine with copies of the disks: with a new DMI UUID a clone, without one a snapshot of this machine.
    ///
    /// # Errors
    /// When there is no space.
    pub fn copy(&self, uuid: Option<&str>) -> Result<Self> {
        let mut definition = self.definition.clone();
        if let Some(uuid) = uuid {
            uuid.clone_into(&mut definition.uuid);
        }
        let folder = tempfile::Builder::new().prefix("tidemark-guest-").tempdir()?;
        for disk in &definition.disks {
            output_of(
                Command::new("cp")
                    .args(["--sparse=always", "--reflink=auto"])
                    .arg(disk.raw(self.folder()))
                    .arg(folder.path()),
            )?;
        }
        for entry in fs::read_dir(self.folder())? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default();
            if name.to_string_lossy().starts_with("initramfs-") {
                fs::hard_link(&path, folder.path().join(name))?;
            }
        }
        Ok(Self { definition, folder })
    }

    /// The folder of the machine's files, removed with it.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(super) fn find(&self, name: &str) -> Result<&Disk> {
        self.definition.disks.iter().find(|disk| disk.name == name).with_context(|| format!("no disk {name}"))
    }

    /// After the end of qemu.
    pub(super) fn switched_off(self) -> Result<Self> {
        for disk in &self.definition.disks {
            disk.close(self.folder())?;
        }
        Ok(self)
    }
}
