//! One VM's splitter: enrolment, the daemon, its commands.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use serde_json::Value;

use super::{STOP_TIMEOUT, program};
use crate::faults::{FAULT_VARIABLE, Fault, STUCK_VARIABLE};
use crate::process::{Daemon, output_of, tail};

/// Loading and testing the tap takes a second or two.
const READY_TIMEOUT: Duration = Duration::from_secs(60);

/// A splitter and its state folder.
#[derive(Debug)]
pub struct Splitter {
    vm: String,
    state: PathBuf,
    pins: PathBuf,
    log: PathBuf,
    run_arguments: Vec<String>,
    fault: Option<Fault>,
    daemon: Option<Daemon>,
}

impl Splitter {
    /// A splitter that is neither enrolled nor running.
    #[must_use]
    pub fn new(vm: &str, folder: &Path, pins: &Path, run_arguments: &[&str]) -> Self {
        Self {
            vm: vm.to_owned(),
            state: folder.join(format!("splitter-{vm}")),
            pins: pins.to_owned(),
            log: folder.join(format!("splitter-{vm}.log")),
            run_arguments: run_arguments.iter().map(|word| (*word).to_owned()).collect(),
            fault: None,
            daemon: None,
        }
    }

    /// From the next start on the daemon is one with a fault.
    pub fn set_fault(&mut self, fault: Fault) {
        self.fault = Some(fault);
    }

    /// The VM's name.
    #[must_use]
    pub fn vm(&self) -> &str {
        &self.vm
    }

    /// Its state folder.
    #[must_use]
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// Its log.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// The file that stops a splitter with [`Fault::Stuck`] while it exists.
    #[must_use]
    pub fn stuck_by(&self) -> PathBuf {
        self.state.with_extension("stuck")
    }

    /// The running daemon.
    ///
    /// # Errors
    /// When it is down.
    pub fn daemon(&self) -> Result<&Daemon> {
        self.daemon.as_ref().with_context(|| format!("the splitter of {} is down", self.vm))
    }

    /// Changes what `run` is called with, from the next start on.
    pub fn set_run_arguments(&mut self, arguments: &[&str]) {
        self.run_arguments = arguments.iter().map(|word| (*word).to_owned()).collect();
    }

    /// Enrols with a token.
    ///
    /// # Errors
    /// When it is refused.
    pub fn enrol(&self, address: &str, token: &str) -> Result<()> {
        self.command(&["enroll", "--appliance", address, "--token", token]).map(drop)
    }

    /// Starts the daemon and waits until it answers.
    ///
    /// # Errors
    /// When it ends or does not answer; with the end of its log.
    pub fn start(&mut self) -> Result<()> {
        ensure!(self.daemon.is_none(), "the splitter of {} is running", self.vm);
        let mut command = self.run_command()?;
        let mut daemon =
            Daemon::spawn(&format!("tidemark-splitter of {}", self.vm), &mut command, &self.log)?;
        let began = Instant::now();
        loop {
            if let Some(status) = daemon.ended()? {
                anyhow::bail!("the splitter ended at its start ({status}):\n{}", tail(&self.log, 15));
            }
            // The command answers without a daemon, too, and says so.
            if self.status().is_ok_and(|status| status["running"] == true) {
                break;
            }
            ensure!(
                began.elapsed() < READY_TIMEOUT,
                "the splitter does not answer:\n{}",
                tail(&self.log, 15)
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        self.daemon = Some(daemon);
        Ok(())
    }

    /// Starts the daemon without waiting for anything.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_unattended(&mut self) -> Result<()> {
        ensure!(self.daemon.is_none(), "the splitter of {} is running", self.vm);
        let mut command = self.run_command()?;
        self.daemon = Some(Daemon::spawn("tidemark-splitter", &mut command, &self.log)?);
        Ok(())
    }

    fn run_command(&self) -> Result<Command> {
        let mut command = match self.fault {
            None => Command::new(program("tidemark-splitter")?),
            Some(fault) => {
                let mut command = Command::new(program("tidemark-splitter-faulty")?);
                let name = fault.to_possible_value().context("a fault has a name")?;
                command.env(FAULT_VARIABLE, name.get_name());
                command.env(STUCK_VARIABLE, self.stuck_by());
                command
            }
        };
        command.arg("run").arg("--state").arg(&self.state).args(&self.run_arguments);
        command.env("TIDEMARK_BPFFS", &self.pins).env("NO_COLOR", "1");
        Ok(command)
    }

    /// True while the daemon is meant to run.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.daemon.is_some()
    }

    /// Kills the daemon. The tap goes on in the kernel.
    ///
    /// # Errors
    /// When it had ended by itself.
    pub fn kill(&mut self) -> Result<()> {
        self.daemon.take().context("the splitter is down")?.kill()
    }

    /// Stops the daemon in order.
    ///
    /// # Errors
    /// When it does not end cleanly.
    pub fn stop(&mut self) -> Result<()> {
        self.daemon.take().context("the splitter is down")?.stop(STOP_TIMEOUT)
    }

    /// Protects a disk; with `wait`, until its initial copy is done.
    ///
    /// # Errors
    /// When it is refused.
    pub fn protect(&self, device: &Path, wait: bool) -> Result<String> {
        let device = device.to_string_lossy();
        let arguments = ["protect", device.as_ref(), "--wait"];
        self.command(&arguments[..if wait { 3 } else { 2 }])
    }

    /// What `status --json` says.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub fn status(&self) -> Result<Value> {
        let printed = self.command(&["status", "--json"])?;
        serde_json::from_str(&printed).with_context(|| format!("`status --json` printed {printed}"))
    }

    /// Runs a command of the splitter on its state folder.
    ///
    /// # Errors
    /// When it fails; with what it said.
    pub fn command(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(program("tidemark-splitter")?);
        command.args(arguments).arg("--state").arg(&self.state);
        output_of(command.env("TIDEMARK_BPFFS", &self.pins).env("NO_COLOR", "1"))
    }
}
