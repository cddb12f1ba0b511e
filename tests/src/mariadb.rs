//! A MariaDB server of our own: own folder, own socket, no TCP port; never an existing one.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::process::{Daemon, output_of, tail};

/// The server does not run as root; its packages of programs only make no user of its own.
const USER: &str = "nobody";

/// InnoDB recovers a few megabytes; on a busy machine that takes seconds.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// Why MariaDB cannot run on this machine; `None` when it can.
#[must_use]
pub fn unavailable() -> Option<String> {
    for (program, package) in [
        ("/usr/sbin/mariadbd", "mariadb-server-core"),
        ("/usr/bin/mariadb-install-db", "mariadb-server-core"),
        ("/usr/bin/mariadb", "mariadb-client-core"),
    ] {
        if !Path::new(program).exists() {
            return Some(format!("{program} is missing (package {package})"));
        }
    }
    None
}

/// A running server.
#[derive(Debug)]
pub struct MariaDb {
    socket: PathBuf,
    process: Daemon,
}

impl MariaDb {
    /// A new server with its data in `disk/data`, started; `run` takes its socket and log.
    ///
    /// # Errors
    /// When it cannot be created or does not start.
    pub fn create(disk: &Path, run: &Path) -> Result<Self> {
        let data = disk.join("data");
        fs::create_dir_all(&data)?;
        output_of(
            Command::new("mariadb-install-db")
                .args(["--no-defaults", "--auth-root-authentication-method=normal", "--skip-test-db"])
                .args(["--skip-name-resolve", "--force", "--innodb-log-file-size=16M"])
                .arg(format!("--datadir={}", data.display())),
        )?;
        Self::open(disk, run)
    }

    /// Starts the server on `disk/data`: with recovery, if that is due.
    ///
    /// # Errors
    /// When it does not start; with the end of its log.
    pub fn open(disk: &Path, run: &Path) -> Result<Self> {
        let data = disk.join("data");
        fs::create_dir_all(run)?;
        for folder in [&data, &run.to_owned()] {
            output_of(Command::new("chown").args(["-R", USER]).arg(folder))?;
        }
        // The server must reach its folders.
        for above in data.ancestors().skip(1).take(2).chain(run.ancestors().skip(1).take(2)) {
            output_of(Command::new("chmod").arg("a+x").arg(above))?;
        }
        let (socket, log) = (run.join("socket"), run.join("server.txt"));
        let mut command = Command::new("setpriv");
        command.args(["--reuid", USER, "--regid", "nogroup", "--clear-groups", "--", "mariadbd"]);
        command.args(["--no-defaults", "--skip-networking", "--skip-name-resolve", "--skip-log-bin"]);
        command.args(["--innodb-buffer-pool-size=32M", "--innodb-log-file-size=16M"]);
        command.arg(format!("--datadir={}", data.display()));
        command.arg(format!("--socket={}", socket.display()));
        command.arg(format!("--pid-file={}", run.join("pid").display()));
        let mut process = Daemon::spawn("mariadbd", &mut command, &log)?;
        let began = Instant::now();
        loop {
            if let Some(status) = process.ended()? {
                anyhow::bail!("MariaDB ended at its start ({status}):\n{}", tail(&log, 20));
            }
            let server = Self { socket: socket.clone(), process };
            if server.sql("select 1").is_ok() {
                return Ok(server);
            }
            ensure!(began.elapsed() < START_TIMEOUT, "MariaDB does not answer:\n{}", tail(&log, 20));
            process = server.process;
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// How a client connects.
    #[must_use]
    pub fn client_options(&self) -> String {
        format!("--no-defaults --user=root --socket={}", self.socket.display())
    }

    /// Runs statements and returns their rows, fields separated by tabs.
    ///
    /// # Errors
    /// When they fail.
    pub fn sql(&self, statements: &str) -> Result<String> {
        let options = self.client_options();
        let mut client = Command::new("mariadb");
        client.args(options.split(' ')).args(["--batch", "--skip-column-names", "-e", statements]);
        output_of(&mut client).map(|rows| rows.trim_end().to_owned())
    }

    /// Stops the server in order.
    ///
    /// # Errors
    /// When it does not stop.
    pub fn stop(self) -> Result<()> {
        self.process.stop(START_TIMEOUT)
    }
}
