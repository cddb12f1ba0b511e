//! The splitter in a guest, with its state on a disk of its own that outlives a boot.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::builder::Builder;
use super::disk::Disk;
use super::running::Guest;
use crate::site::{Site, program, unexpected_in};

/// Loading and testing the tap takes some seconds in emulation.
const TIMEOUT: Duration = Duration::from_secs(240);

/// The disk of the state folder. It is never protected.
const STATE_DISK_BYTES: u64 = 16 << 20;

/// `--state` of every command.
pub const STATE: &str = "--state /state/splitter";

/// Mounts the state disk (made at the first boot) and starts the daemon, once it is enrolled.
const BOOT: &str = r#"
mkdir -p /state
mount -t bpf bpf /sys/fs/bpf
for folder in /sys/block/vd*; do
    if [ "$(cat $folder/serial)" = tidemark-state ]; then state=/dev/${folder##*/}; fi
done
mount -t ext4 $state /state 2>/dev/null || { mkfs.ext4 -q -F $state; mount -t ext4 $state /state; }
[ ! -e /state/splitter/identity.toml ] || . /etc/start-splitter
"#;

impl Builder {
    /// The splitter of this build, a network to the host, and a disk `tidemark-state` for its state. From its enrolment
    /// on it is started at each boot, where this call stands among those of [`Builder::at_boot`]; `run_arguments` go to
    /// `tidemark-splitter run`.
    ///
    /// # Errors
    /// When it is not built.
    pub fn splitter(self, run_arguments: &str) -> Result<Self> {
        let start = format!(
            "NO_COLOR=1 tidemark-splitter run {STATE} {run_arguments} >>/state/splitter.log 2>&1 &\n\
             echo $! >/run/splitter.pid\n"
        );
        let stop = "[ ! -e /run/splitter.pid ] || { kill $(cat /run/splitter.pid); \
                    while kill -0 $(cat /run/splitter.pid) 2>/dev/null; do sleep 0.1; done; }";
        Ok(self
            .network()
            .module("crc32c_generic")
            .module("ext4")
            .programs(&["mkfs.ext4"])
            .program(program("tidemark-splitter")?)
            .program(program("tidemark-lab")?)
            .attach(Disk::new("tidemark-state", STATE_DISK_BYTES))
            .text("/etc/start-splitter", &start)
            .at_boot(BOOT)
            .at_shutdown(stop))
    }
}

impl Guest {
    /// Enrols the guest as `vm` and starts its daemon; `address` is where the host reaches the appliance
    /// ([`Site::address`], or that of a relay).
    ///
    /// # Errors
    /// When the token is refused or the daemon does not answer.
    pub fn enrol(&mut self, site: &Site, vm: &str, address: &str, token_options: &[&str]) -> Result<()> {
        let token = site.token(vm, token_options)?;
        let port = address.rsplit_once(':').context("an address has a port")?.1;
        let enrol = format!("tidemark-splitter enroll --appliance 10.0.2.2:{port} --token {token} {STATE}");
        // On a busy machine the emulated handshake takes longer than the appliance waits; the token is not used then.
        let mut outcome = self.run(&enrol, TIMEOUT)?;
        for _ in 0..5 {
            if !outcome.output.contains("tls handshake eof") {
                break;
            }
            outcome = self.run(&enrol, TIMEOUT)?;
        }
        ensure!(outcome.status == 0, "{}", outcome.output);
        self.start_splitter()
    }

    /// Starts the daemon and waits until it answers.
    ///
    /// # Errors
    /// When it does not.
    pub fn start_splitter(&mut self) -> Result<()> {
        self.sh(". /etc/start-splitter")?;
        self.wait_splitter()
    }

    /// Kills the daemon; the tap goes on in the kernel.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill_splitter(&mut self) -> Result<()> {
        self.sh("kill -9 $(cat /run/splitter.pid)").map(drop)
    }

    /// Waits until the daemon answers commands.
    ///
    /// # Errors
    /// When it does not; with its log.
    pub fn wait_splitter(&mut self) -> Result<()> {
        let began = Instant::now();
        while self.splitter_status()?["running"] != true {
            if began.elapsed() > TIMEOUT {
                bail!("the splitter does not answer:\n{}", self.splitter_log().unwrap_or_default());
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        Ok(())
    }

    /// `tidemark-splitter status --json`.
    ///
    /// # Errors
    /// When it fails.
    pub fn splitter_status(&mut self) -> Result<Value> {
        let printed = self.sh(&format!("tidemark-splitter status {STATE} --json"))?;
        serde_json::from_str(&printed).with_context(|| format!("`status --json` printed {printed}"))
    }

    /// The daemon's log, of all boots.
    ///
    /// # Errors
    /// When the guest does not answer.
    pub fn splitter_log(&mut self) -> Result<String> {
        self.sh("cat /state/splitter.log")
    }

    /// Looks for warnings and errors in the daemon's log, of all boots, but lines with one of these words.
    ///
    /// # Errors
    /// When there is another; all of them.
    pub fn check_splitter_log(&mut self, expected: &[&str]) -> Result<()> {
        let unexpected = unexpected_in(&self.splitter_log()?, "splitter.log", expected);
        ensure!(
            unexpected.is_empty(),
            "{} unexpected lines in the log:\n{}",
            unexpected.len(),
            unexpected.join("\n")
        );
        Ok(())
    }

    /// Protects disks, given as arguments of `tidemark-splitter protect`, and waits for their first copy.
    ///
    /// # Errors
    /// When it is refused; with the daemon's log.
    pub fn protect(&mut self, arguments: &str) -> Result<()> {
        let outcome = self.run(&format!("tidemark-splitter protect {STATE} {arguments} --wait"), TIMEOUT)?;
        let log = self.splitter_log()?;
        ensure!(outcome.status == 0, "{}\n{log}", outcome.output);
        Ok(())
    }
}
