//! The appliance's process.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::ops::Deref;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::process::{Daemon, tail};

/// The first start makes a CA and a catalog; later ones recover journals.
const READY_TIMEOUT: Duration = Duration::from_secs(60);

/// A running appliance.
#[derive(Debug)]
pub struct Appliance(Daemon);

impl Appliance {
    pub(super) fn spawn(command: &mut Command, log: &Path) -> Result<Self> {
        Ok(Self(Daemon::spawn("tidemark-appliance", command, log)?))
    }

    pub(super) fn wait_ready(&mut self, http: &str, context: &Path) -> Result<()> {
        let began = Instant::now();
        loop {
            if let Some(status) = self.0.ended()? {
                bail!("the appliance ended at its start ({status}):\n{}", tail(self.0.log(), 15));
            }
            if context.exists() && http_get(http, "/healthz").is_ok_and(|answer| answer.contains(" 200 ")) {
                return Ok(());
            }
            if began.elapsed() > READY_TIMEOUT {
                bail!("the appliance is not healthy after {READY_TIMEOUT:?}:\n{}", tail(self.0.log(), 15));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub(super) fn kill(self) -> Result<()> {
        self.0.kill()
    }

    pub(super) fn stop(self, timeout: Duration) -> Result<()> {
        self.0.stop(timeout)
    }
}

impl Deref for Appliance {
    type Target = Daemon;

    fn deref(&self) -> &Daemon {
        &self.0
    }
}

/// A plain GET: status line, headers and body.
///
/// # Errors
/// When nobody answers.
pub(super) fn http_get(address: &str, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
