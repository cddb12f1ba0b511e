//! A PostgreSQL server of our own: own folder, own socket, no TCP port; never an existing cluster.

pub mod two_phase;

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};

use crate::leftovers::{Resource, Undo, start_of};
use crate::process::{output_of, tail};

/// PostgreSQL refuses to run as root.
const USER: &str = "postgres";

/// Why PostgreSQL cannot run on this machine; `None` when it can.
#[must_use]
pub fn unavailable() -> Option<String> {
    match programs() {
        Err(error) => Some(format!("{error:#}")),
        Ok(_) => nix::unistd::User::from_name(USER)
            .ok()
            .flatten()
            .is_none()
            .then(|| format!("there is no user {USER} (package postgresql)")),
    }
}

/// The newest installed version's programs.
fn programs() -> Result<PathBuf> {
    let versions =
        fs::read_dir("/usr/lib/postgresql").context("PostgreSQL is missing (package postgresql)")?;
    let mut found: Vec<PathBuf> = versions
        .filter_map(|version| Some(version.ok()?.path().join("bin")))
        .filter(|bin| {
            bin.join("postgres").exists() && bin.join("pgbench").exists() && bin.join("pg_amcheck").exists()
        })
        .collect();
    found.sort();
    found.pop().context("PostgreSQL is missing (packages postgresql and postgresql-contrib)")
}

/// A running server.
#[derive(Debug)]
pub struct Postgres {
    data: PathBuf,
    run: PathBuf,
    process: Option<Resource>,
}

impl Postgres {
    /// A new cluster in `disk/data`, started; `run` takes its socket and log.
    ///
    /// # Errors
    /// When it cannot be created or does not start.
    pub fn create(disk: &Path, run: &Path) -> Result<Self> {
        let data = disk.join("data");
        fs::create_dir_all(&data)?;
        give(&data)?;
        let mut initdb = as_user("initdb")?;
        initdb.arg("-D").arg(&data).args(["-A", "trust", "-U", USER, "--no-sync", "--no-instructions"]);
        output_of(&mut initdb)?;
        Self::open(disk, run)
    }

    /// Starts the cluster in `disk/data`: with crash recovery, if that is due.
    ///
    /// # Errors
    /// When it does not start; with the end of its log.
    pub fn open(disk: &Path, run: &Path) -> Result<Self> {
        let data = disk.join("data");
        fs::create_dir_all(run)?;
        give(run)?;
        let log = run.join("server.txt");
        // A lock file of the recovered state names a process of the past.
        let _ = fs::remove_file(data.join("postmaster.pid"));
        let options = format!(
            "-c listen_addresses='' -c max_prepared_transactions=16 -c unix_socket_directories={}",
            run.display()
        );
        let mut start = as_user("pg_ctl")?;
        start
            .arg("-D")
            .arg(&data)
            .args(["-w", "-t", "60", "-s", "-o", &options, "-l"])
            .arg(&log)
            .arg("start");
        // Its output must not be a pipe: the server keeps it open.
        let status = start.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status()?;
        ensure!(status.success(), "PostgreSQL does not start:\n{}", tail(&log, 20));
        let pid = fs::read_to_string(data.join("postmaster.pid"))?;
        let pid: u32 = pid.lines().next().context("postmaster.pid names a process")?.trim().parse()?;
        let process = Resource::register(Undo::Process { pid, start: start_of(pid).unwrap_or(0) })?;
        Ok(Self { data, run: run.to_owned(), process: Some(process) })
    }

    /// Runs one statement and returns its rows, fields separated by `|`.
    ///
    /// # Errors
    /// When it fails.
    pub fn sql(&self, statement: &str) -> Result<String> {
        let mut psql = as_user("psql")?;
        psql.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", USER, "-h"]).arg(&self.run);
        output_of(psql.args(["-c", statement])).map(|rows| rows.trim_end().to_owned())
    }

    /// Runs `pgbench`.
    ///
    /// # Errors
    /// When it fails.
    pub fn bench(&self, arguments: &[&str]) -> Result<String> {
        output_of(as_user("pgbench")?.arg("-h").arg(&self.run).args(arguments).arg(USER))
    }

    /// The invariant of pgbench's transactions.
    ///
    /// # Errors
    /// When the four sums are not equal.
    pub fn check_bench_sums(&self) -> Result<()> {
        let sums = self.sql(
            "select (select sum(abalance) from pgbench_accounts), (select sum(tbalance) from pgbench_tellers),
                    (select sum(bbalance) from pgbench_branches),
                    (select coalesce(sum(delta), 0) from pgbench_history)",
        )?;
        let distinct: BTreeSet<&str> = sums.split('|').collect();
        ensure!(distinct.len() == 1, "the sums differ: {sums}");
        Ok(())
    }

    /// `amcheck` over all tables and indexes, heap tuples included.
    ///
    /// # Errors
    /// When it finds damage.
    pub fn check_indexes(&self) -> Result<()> {
        let mut check = as_user("pg_amcheck")?;
        check.arg("-h").arg(&self.run).args([
            "-d",
            USER,
            "--heapallindexed",
            "--no-dependent-toast",
            "--jobs",
            "2",
        ]);
        output_of(&mut check).map(drop)
    }

    /// Stops the server in order.
    ///
    /// # Errors
    /// When it does not stop.
    pub fn stop(mut self) -> Result<()> {
        let mut stop = as_user("pg_ctl")?;
        output_of(stop.arg("-D").arg(&self.data).args(["-m", "fast", "-w", "-s", "stop"]))?;
        self.process = None;
        Ok(())
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if self.process.is_some()
            && let Ok(mut stop) = as_user("pg_ctl")
        {
            let _ = output_of(stop.arg("-D").arg(&self.data).args(["-m", "immediate", "-w", "-s", "stop"]));
        }
    }
}

/// One commit whose success a client was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Commit {
    /// The client.
    pub client: usize,
    /// The client's count.
    pub number: u64,
    /// When the client knew, in microseconds of the wall clock.
    pub known_us: u64,
}

/// Commits, logged outside the database and its disk.
#[derive(Debug, Clone, Default)]
pub struct CommitLog {
    /// In no order.
    pub entries: Vec<Commit>,
}

impl CommitLog {
    /// Lets `clients` insert rows into `commits (client, number)` for a while, one transaction each.
    ///
    /// # Errors
    /// When a client cannot connect or an insert fails.
    pub fn record(database: &Postgres, clients: usize, duration: Duration) -> Result<Self> {
        let logs: Vec<Result<Vec<Commit>>> = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..clients)
                .map(|client| scope.spawn(move || client_log(database, client, duration)))
                .collect();
            workers
                .into_iter()
                .map(|worker| worker.join().unwrap_or_else(|_| bail!("a client panicked")))
                .collect()
        });
        let mut entries = Vec::new();
        for log in logs {
            entries.extend(log?);
        }
        Ok(Self { entries })
    }

    /// Number of commits known before a time.
    #[must_use]
    pub fn before(&self, time_us: u64) -> usize {
        self.entries.iter().filter(|commit| commit.known_us < time_us).count()
    }

    /// Commits known before `time_us` that `database` does not hold.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub fn missing(&self, database: &Postgres, time_us: u64) -> Result<Vec<(usize, u64)>> {
        let rows = database.sql("select client, number from commits")?;
        let mut held = BTreeSet::new();
        for row in rows.lines() {
            let (client, number) = row.split_once('|').with_context(|| format!("a row {row}"))?;
            held.insert((client.parse::<usize>()?, number.parse::<u64>()?));
        }
        let known = self.entries.iter().filter(|commit| commit.known_us < time_us);
        Ok(known
            .map(|commit| (commit.client, commit.number))
            .filter(|commit| !held.contains(commit))
            .collect())
    }
}

fn client_log(database: &Postgres, client: usize, duration: Duration) -> Result<Vec<Commit>> {
    let mut psql = as_user("psql")?;
    psql.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", USER, "-h"]).arg(&database.run);
    let mut child = psql.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut input = child.stdin.take().context("psql has an input")?;
    let mut answers = BufReader::new(child.stdout.take().context("psql has an output")?).lines();
    let began = Instant::now();
    let mut log = Vec::new();
    for number in 0.. {
        if began.elapsed() >= duration {
            break;
        }
        // The echo comes after the insert's commit was reported.
        writeln!(input, "insert into commits values ({client}, {number});\n\\echo done {number}")?;
        let answer = answers.next().context("psql ended")??;
        ensure!(answer == format!("done {number}"), "psql said {answer}");
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
        log.push(Commit { client, number, known_us: u64::try_from(now.as_micros())? });
    }
    drop(input);
    ensure!(child.wait()?.success(), "psql failed");
    Ok(log)
}

fn as_user(program: &str) -> Result<Command> {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", USER, "--regid", USER, "--init-groups", "--"]).arg(programs()?.join(program));
    command.current_dir("/").env("LC_ALL", "C").env("HOME", "/tmp");
    Ok(command)
}

/// Makes a folder the server's own, and lets it reach it.
fn give(folder: &Path) -> Result<()> {
    output_of(Command::new("chown").arg(USER).arg(folder))?;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700))?;
    // The test's own folders only: whatever is above them is readable or not the test's business.
    for above in folder.ancestors().skip(1).take(2) {
        let mode = fs::metadata(above)?.permissions().mode();
        if mode & 0o001 == 0 {
            fs::set_permissions(above, fs::Permissions::from_mode(mode | 0o011))?;
        }
    }
    Ok(())
}
