//! A program under test: started with its output in a file, ended by its pid only.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use crate::leftovers::{Resource, Undo, signal, start_of};

/// A running (or ended) child process.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    child: Child,
    log: PathBuf,
    _record: Resource,
}

impl Daemon {
    /// Starts `command` with standard output and error appended to `log`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(name: &str, command: &mut Command, log: &Path) -> Result<Self> {
        let output = open_log(log)?;
        let errors = output.try_clone()?;
        let child = command
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .spawn()
            .with_context(|| format!("start {name}: {}", command.get_program().display()))?;
        let pid = child.id();
        let record = Resource::register(Undo::Process { pid, start: start_of(pid).unwrap_or(0) })?;
        Ok(Self { name: name.to_owned(), child, log: log.to_owned(), _record: record })
    }

    /// The process's id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where its output goes.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// `Some` once it has ended.
    ///
    /// # Errors
    /// As `waitpid(2)`.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it is still running after `timeout`.
    pub fn wait(&mut self, timeout: Duration) -> Result<ExitStatus> {
        let began = Instant::now();
        loop {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            if began.elapsed() > timeout {
                bail!("{} (pid {}) is still running after {timeout:?}", self.name, self.pid());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Asks it to end and waits; a process that does not end in `timeout` is killed and reported.
    ///
    /// # Errors
    /// When it had ended before, did not end in time, or ended with a failure.
    pub fn stop(mut self, timeout: Duration) -> Result<()> {
        if let Some(status) = self.ended()? {
            bail!("{} had ended already ({status}); its log ends with:\n{}", self.name, tail(&self.log, 15));
        }
        signal(self.pid(), Signal::SIGTERM)?;
        let status = self.wait(timeout)?;
        if !status.success() {
            bail!("{} ended with {status}; its log ends with:\n{}", self.name, tail(&self.log, 15));
        }
        Ok(())
    }

    /// Kills it, as a power cut would, and reaps it.
    ///
    /// # Errors
    /// When it had ended by itself before.
    pub fn kill(mut self) -> Result<()> {
        if let Some(status) = self.ended()? {
            bail!(
                "{} had ended by itself ({status}); its log ends with:\n{}",
                self.name,
                tail(&self.log, 15)
            );
        }
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Stops it from running until [`Daemon::thaw`].
    ///
    /// # Errors
    /// When it is gone.
    pub fn freeze(&self) -> Result<()> {
        signal(self.pid(), Signal::SIGSTOP)
    }

    /// Lets it run again.
    ///
    /// # Errors
    /// When it is gone.
    pub fn thaw(&self) -> Result<()> {
        signal(self.pid(), Signal::SIGCONT)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn open_log(path: &Path) -> Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .with_context(|| format!("open the log {}", path.display()))
}

/// The last `lines` lines of a file, for messages.
#[must_use]
pub fn tail(path: &Path, lines: usize) -> String {
    let text = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// Runs a program to its end and returns its standard output.
///
/// # Errors
/// When it cannot be started or fails; the message carries what it said.
pub fn output_of(command: &mut Command) -> Result<String> {
    let line = format!("{command:?}");
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("start {line}"))?;
    if !output.status.success() {
        let (said, complained) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        bail!("{line} failed ({}): {} {}", output.status, complained.trim(), said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
