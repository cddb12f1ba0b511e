//! qemu's own control line: disks that come, go and change their size.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

/// qemu answers at once; an unplug waits for the guest's kernel, which is slow in emulation.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A conversation with one qemu.
#[derive(Debug)]
pub(super) struct Qmp {
    reader: BufReader<UnixStream>,
    writer: UnixStream,
    /// Events that came while an answer was waited for.
    events: Vec<Value>,
}

impl Qmp {
    /// Takes the greeting and leaves negotiation mode.
    pub(super) fn new(stream: UnixStream) -> Result<Self> {
        stream.set_read_timeout(Some(TIMEOUT))?;
        let mut qmp =
            Self { reader: BufReader::new(stream.try_clone()?), writer: stream, events: Vec::new() };
        let greeting = qmp.receive()?;
        ensure!(greeting.get("QMP").is_some(), "not a greeting: {greeting}");
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Executes a command and returns its answer.
    pub(super) fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let request = json!({ "execute": command, "arguments": arguments });
        self.writer.write_all(format!("{request}\n").as_bytes()).context("send to qemu")?;
        loop {
            let mut message = self.receive()?;
            if let Some(error) = message.get("error") {
                bail!("qemu refused {request}: {}", error["desc"]);
            }
            match message.get_mut("return") {
                Some(answer) => return Ok(answer.take()),
                None => self.events.push(message),
            }
        }
    }

    /// Waits for an event about a device.
    pub(super) fn wait_event(&mut self, event: &str, device: &str) -> Result<()> {
        let is_it = |message: &Value| message["event"] == event && message["data"]["device"] == device;
        let deadline = Instant::now() + TIMEOUT;
        loop {
            if let Some(index) = self.events.iter().position(is_it) {
                self.events.remove(index);
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "no {event} of {device} came");
            let message = self.receive()?;
            self.events.push(message);
        }
    }

    fn receive(&mut self) -> Result<Value> {
        let mut line = String::new();
        let count = self.reader.read_line(&mut line).context("wait for qemu")?;
        ensure!(count > 0, "qemu is gone");
        serde_json::from_str(&line).with_context(|| format!("qemu said {line}"))
    }
}
