//! A running guest.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use serde_json::json;

use super::builder::Builder;
use super::control::{COMMAND_TIMEOUT, Control, Outcome, wait_socket};
use super::disk::Disk;
use super::kernel::Kernel;
use super::machine::Machine;
use super::qmp::Qmp;
use crate::process::Daemon;

/// A boot takes 3 to 15 s in software emulation on a busy machine.
const BOOT_TIMEOUT: Duration = Duration::from_secs(180);
/// From the command to switch off to the end of qemu.
const POWER_OFF_TIMEOUT: Duration = Duration::from_secs(90);
/// From a change of the hardware until the guest's kernel has seen it.
const NOTICE_TIMEOUT: Duration = Duration::from_secs(60);

/// The device file of the disk with this serial number, wherever the kernel put it.
const FIND_DEVICE: &str = r#"
for folder in /sys/block/vd* /sys/block/sd*; do
    [ -e "$folder" ] || continue
    serial=$(cat "$folder/serial" 2>/dev/null || tail -c +5 "$folder/device/vpd_pg80" 2>/dev/null)
    [ "$serial" = "$wanted" ] && echo "/dev/${folder##*/}" && exit 0
done
exit 1
"#;

/// A running guest; dropping it cuts its power.
#[derive(Debug)]
pub struct Guest {
    // The process goes before its files.
    daemon: Daemon,
    control: Control,
    qmp: Qmp,
    machine: Machine,
}

impl Guest {
    /// Starts describing a guest.
    #[must_use]
    pub fn builder(kernel: Kernel) -> Builder {
        Builder::new(kernel)
    }

    pub(super) fn connect(machine: Machine, mut daemon: Daemon) -> Result<Self> {
        let folder = machine.folder();
        let console = folder.join("console");
        let deadline = Instant::now() + BOOT_TIMEOUT;
        let qmp = Qmp::new(wait_socket(&mut daemon, &folder.join("qmp"), deadline)?)?;
        let control = Control::connect(&mut daemon, &folder.join("control"), &console, BOOT_TIMEOUT)?;
        Ok(Self { daemon, control, qmp, machine })
    }

    /// Runs a shell script in the guest.
    ///
    /// # Errors
    /// When the guest dies or the script takes longer than `timeout`; a failing script is an [`Outcome`].
    pub fn run(&mut self, script: &str, timeout: Duration) -> Result<Outcome> {
        self.control.run(script, timeout)
    }

    /// Runs a script that must succeed and returns what it said.
    ///
    /// # Errors
    /// As [`Guest::run`], and when it fails.
    pub fn sh(&mut self, script: &str) -> Result<String> {
        self.control.sh(script)
    }

    /// The host's file behind a disk. Of a disk with a volatile cache it holds what was there at the boot.
    ///
    /// # Errors
    /// When there is no disk of that name.
    pub fn disk(&self, name: &str) -> Result<PathBuf> {
        self.machine.disk(name)
    }

    /// The content of a disk: all that the guest has flushed, and of the rest some or all.
    ///
    /// # Errors
    /// When there is no disk of that name or it cannot be read.
    pub fn content(&self, name: &str) -> Result<Vec<u8>> {
        self.machine.find(name)?.content(self.folder())
    }

    /// The device file of a disk in the guest, by its serial number.
    ///
    /// # Errors
    /// When the guest's kernel does not see it in time.
    pub fn device(&mut self, name: &str) -> Result<String> {
        let disk = self.machine.find(name)?;
        let serial = disk.serial.clone().unwrap_or_default();
        self.device_of(&serial)
    }

    fn device_of(&mut self, serial: &str) -> Result<String> {
        let deadline = Instant::now() + NOTICE_TIMEOUT;
        loop {
            let found = self.run(&format!("wanted='{serial}'\n{FIND_DEVICE}"), COMMAND_TIMEOUT)?;
            if found.status == 0 {
                return Ok(found.output.trim().to_owned());
            }
            ensure!(Instant::now() < deadline, "the guest sees no disk with serial {serial}");
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Attaches a disk to the running guest and waits until its kernel has it, if it has a serial number. A disk that
    /// was removed before comes back with its content.
    ///
    /// # Errors
    /// When qemu or the guest's kernel does not take it.
    pub fn hot_add(&mut self, disk: Disk) -> Result<()> {
        let serial = disk.serial.clone();
        self.machine.attach(disk.clone())?;
        disk.open(self.machine.folder())?;
        self.qmp.execute("blockdev-add", disk.block_device(self.machine.folder()))?;
        self.qmp.execute("device_add", disk.device())?;
        match serial {
            Some(serial) => self.device_of(&serial).map(drop),
            None => Ok(()),
        }
    }

    /// Takes a disk from the running guest, as its kernel agrees to, also while it is in use. Its file stays.
    ///
    /// # Errors
    /// When the guest's kernel does not let it go.
    pub fn hot_remove(&mut self, name: &str) -> Result<()> {
        let disk = self.machine.find(name)?.clone();
        let id = disk.device_id();
        self.qmp.execute("device_del", json!({ "id": id }))?;
        self.qmp.wait_event("DEVICE_DELETED", &id)?;
        self.qmp.execute("blockdev-del", json!({ "node-name": disk.node() }))?;
        disk.close(self.machine.folder())?;
        self.machine.detach(name)
    }

    /// Gives a disk another size, which the guest's kernel is told of.
    ///
    /// # Errors
    /// When qemu refuses, or the guest's kernel does not see it in time.
    pub fn resize(&mut self, name: &str, size_bytes: u64) -> Result<()> {
        let (node, serial) = {
            let disk = self.machine.find(name)?;
            (disk.node(), disk.serial.clone().unwrap_or_default())
        };
        self.qmp.execute("block_resize", json!({ "node-name": node, "size": size_bytes }))?;
        for disk in self.machine.definition.disks.iter_mut().filter(|disk| disk.name == name) {
            disk.size_bytes = size_bytes;
        }
        let device = self.device_of(&serial)?;
        let kernel_name = device.trim_start_matches("/dev/").to_owned();
        let script = format!(
            "f=/sys/block/{kernel_name}; [ -e $f/device/rescan ] && echo 1 >$f/device/rescan; cat $f/size"
        );
        let deadline = Instant::now() + NOTICE_TIMEOUT;
        while self.sh(&script)?.trim() != (size_bytes / 512).to_string() {
            ensure!(Instant::now() < deadline, "the guest does not see the new size of {name}");
            std::thread::sleep(Duration::from_millis(200));
        }
        Ok(())
    }

    /// The kernel's messages so far, of all boots.
    #[must_use]
    pub fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.folder().join("console")).unwrap_or_default()).into_owned()
    }

    /// The folder of the guest's files, removed with it.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.machine.folder()
    }

    /// Cuts the power. What the disks keep is [`Cache`](super::Cache)'s.
    ///
    /// # Errors
    /// When the guest had ended before.
    pub fn power_cut(self) -> Result<Machine> {
        self.daemon.kill()?;
        self.machine.switched_off()
    }

    /// Shuts down in order: the scripts of [`Builder::at_shutdown`], unmount, sync, off.
    ///
    /// # Errors
    /// When the guest does not end.
    pub fn power_off(self) -> Result<Machine> {
        self.end("poweroff")
    }

    /// Shuts down in order and boots again over the same disks.
    ///
    /// # Errors
    /// When the guest does not end, or does not come up again.
    pub fn reboot(self) -> Result<Self> {
        self.end("reboot")?.boot()
    }

    fn end(mut self, command: &str) -> Result<Machine> {
        self.control.send(0, &format!(". /etc/shutdown; {command} -f"))?;
        if let Err(error) = self.daemon.wait(POWER_OFF_TIMEOUT) {
            bail!(
                "{error}; the console ends with:\n{}",
                crate::process::tail(&self.folder().join("console"), 25)
            );
        }
        self.machine.switched_off()
    }
}
