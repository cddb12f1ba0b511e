//! A throw-away PostgreSQL cluster: own folder, own Unix socket, no TCP port.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

/// A running cluster; ended and deleted when dropped.
pub(crate) struct Cluster {
    dir: TempDir,
    bin: PathBuf,
    user: Option<(u32, u32)>,
}

impl Cluster {
    /// Starts one, or says why not.
    pub(crate) fn start() -> Option<Self> {
        let Some(bin) = newest_bin() else {
            println!("skipped: PostgreSQL is not installed (/usr/lib/postgresql/*/bin)");
            return None;
        };
        // The server refuses to run as root.
        let root = nix::unistd::geteuid().is_root();
        let user = match (root, nix::unistd::User::from_name("postgres").ok().flatten()) {
            (false, _) => None,
            (true, Some(user)) => Some((user.uid.as_raw(), user.gid.as_raw())),
            (true, None) => {
                println!("skipped: there is no user 'postgres' to run PostgreSQL as");
                return None;
            }
        };
        let dir = tempfile::Builder::new().prefix("tmk-pg").tempdir().unwrap();
        if let Some((uid, gid)) = user {
            std::os::unix::fs::chown(dir.path(), Some(uid), Some(gid)).unwrap();
        }
        let cluster = Self { dir, bin, user };
        let data = cluster.dir.path().join("data");
        cluster.run(
            "initdb",
            &["-A", "trust", "-U", "postgres", "-N", "-E", "UTF8", "--locale=C", "-D", text(&data)],
        );
        let options =
            format!("-c listen_addresses='' -c unix_socket_directories='{}'", cluster.dir.path().display());
        let log = cluster.dir.path().join("log");
        cluster.run("pg_ctl", &["-w", "-D", text(&data), "-l", text(&log), "-o", &options, "start"]);
        Some(cluster)
    }

    /// For the catalog.
    pub(crate) fn url(&self) -> String {
        format!("postgres://postgres@localhost/postgres?host={}", self.dir.path().display())
    }

    /// Ends it.
    pub(crate) fn stop(self) {
        drop(self);
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.bin.join(program));
        command.current_dir(self.dir.path()).stdout(Stdio::null()).stdin(Stdio::null());
        if let Some((uid, gid)) = self.user {
            command.uid(uid).gid(gid);
        }
        command
    }

    fn run(&self, program: &str, arguments: &[&str]) {
        let status = self.command(program).args(arguments).status().unwrap();
        assert!(status.success(), "{program} {arguments:?}: {status}");
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let data = self.dir.path().join("data");
        let _ = self.command("pg_ctl").args(["-w", "-m", "immediate", "-D", text(&data), "stop"]).status();
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn newest_bin() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?.flatten();
    let bins = versions.map(|entry| entry.path().join("bin")).filter(|bin| bin.join("initdb").exists());
    bins.max_by_key(|bin| bin.parent().and_then(|path| path.file_name()?.to_str()?.parse::<u32>().ok()))
}
