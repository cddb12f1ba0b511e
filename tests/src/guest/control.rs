//! Commands to a guest over its second serial line.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::prelude::BASE64_STANDARD as BASE64;

use crate::process::{Daemon, tail};

/// For commands without a timeout of their own.
pub(super) const COMMAND_TIMEOUT: Duration = Duration::from_secs(120);
/// Lines of the console shown with a failure.
const SHOWN_LINES: usize = 25;

/// A command's result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Exit status.
    pub status: i32,
    /// Standard output and error, in the order written.
    pub output: String,
}

/// The line to one guest.
#[derive(Debug)]
pub(super) struct Control {
    reader: BufReader<UnixStream>,
    writer: UnixStream,
    console: PathBuf,
    next: u64,
}

impl Control {
    /// Connects and waits until the guest takes commands.
    pub(super) fn connect(
        daemon: &mut Daemon,
        socket: &Path,
        console: &Path,
        timeout: Duration,
    ) -> Result<Self> {
        let deadline = Instant::now() + timeout;
        let writer = wait_socket(daemon, socket, deadline)?;
        let reader = BufReader::new(writer.try_clone()?);
        let mut control = Self { reader, writer, console: console.to_owned(), next: 1 };
        loop {
            match control.read_line(deadline)?.as_str() {
                "@ready" => return Ok(control),
                "@failed" => {
                    bail!("a boot script failed; the console ends with:\n{}", tail(console, SHOWN_LINES))
                }
                _ => {}
            }
        }
    }

    pub(super) fn run(&mut self, script: &str, timeout: Duration) -> Result<Outcome> {
        let id = self.next;
        self.next += 1;
        self.send(id, script).context("send a command to the guest")?;
        let deadline = Instant::now() + timeout;
        let begin = format!("@begin {id}");
        let end = format!("@end {id} ");
        let mut body = String::new();
        let mut begun = false;
        loop {
            let line = self.read_line(deadline).with_context(|| format!("in the guest: {script}"))?;
            if line == begin {
                begun = true;
            } else if let Some(status) = line.strip_prefix(&end) {
                let output = String::from_utf8_lossy(&BASE64.decode(&body)?).into_owned();
                return Ok(Outcome { status: status.trim().parse()?, output });
            } else if begun {
                body.push_str(&line);
            }
        }
    }

    /// Runs a script that must succeed and returns what it said.
    pub(super) fn sh(&mut self, script: &str) -> Result<String> {
        let outcome = self.run(script, COMMAND_TIMEOUT)?;
        ensure!(outcome.status == 0, "in the guest: {script}: status {}: {}", outcome.status, outcome.output);
        Ok(outcome.output)
    }

    /// Sends a script whose end nobody waits for.
    pub(super) fn send(&mut self, id: u64, script: &str) -> Result<()> {
        self.writer.write_all(format!("{id} {}\n", BASE64.encode(script.as_bytes())).as_bytes())?;
        Ok(())
    }

    fn read_line(&mut self, deadline: Instant) -> Result<String> {
        let mut line = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!(
                    "the guest did not answer in time; its console ends with:\n{}",
                    tail(&self.console, SHOWN_LINES)
                );
            }
            self.writer.set_read_timeout(Some(left.min(Duration::from_secs(1))))?;
            match self.reader.read_until(b'\n', &mut line) {
                Ok(0) => {
                    bail!("the guest is gone; its console ends with:\n{}", tail(&self.console, SHOWN_LINES))
                }
                Ok(_) if line.ends_with(b"\n") => {
                    return Ok(String::from_utf8_lossy(&line).trim_end().to_owned());
                }
                Ok(_) => {}
                Err(error)
                    if matches!(
                        error.kind(),
                        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
                    ) => {}
                Err(error) => return Err(error).context("read from the guest"),
            }
        }
    }
}

/// Connects to a socket that qemu is about to make.
pub(super) fn wait_socket(daemon: &mut Daemon, socket: &Path, deadline: Instant) -> Result<UnixStream> {
    loop {
        if let Some(status) = daemon.ended()? {
            bail!("qemu ended ({status}): {}", tail(daemon.log(), 5));
        }
        match UnixStream::connect(socket) {
            Ok(stream) => return Ok(stream),
            Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(50)),
            Err(error) => return Err(error).with_context(|| format!("connect to {}", socket.display())),
        }
    }
}
