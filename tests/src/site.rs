//! A whole installation on this machine: a real appliance, real splitters, real loop devices, the real command line.

mod appliance;
mod console;
mod logs;
mod splitter;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

pub use appliance::Appliance;
pub use console::{Gap, PointList, View, Window};
pub use logs::{GATES_DISTURBED, unexpected_in, unexpected_lines};
pub use splitter::Splitter;

use crate::leftovers::{Resource, Undo, base, sweep};
use crate::process::output_of;

/// Ending in order includes a last sync and the closing of views.
pub const STOP_TIMEOUT: Duration = Duration::from_secs(30);

/// True, with the reason printed, where a test cannot run because it needs root.
#[must_use]
#[expect(clippy::print_stderr, reason = "the test's output says why it did nothing")]
pub fn skipped(what: &str) -> bool {
    let skip = !nix::unistd::geteuid().is_root();
    if skip {
        eprintln!("skipped: {what} need root; run `sudo tests/run`");
    }
    skip
}

/// True for the sizes that are run by hand (`TIDEMARK_TEST_SIZE=large`), false for those of CI.
#[must_use]
pub fn large() -> bool {
    std::env::var("TIDEMARK_TEST_SIZE").is_ok_and(|size| size == "large")
}

/// A program of this workspace, as the same build made it.
///
/// # Errors
/// When it is not built.
pub fn program(name: &str) -> Result<PathBuf> {
    let this = std::env::current_exe()?;
    // A test lies in target/PROFILE/deps, a program in target/PROFILE.
    let folder = this.ancestors().skip(1).find(|folder| !folder.ends_with("deps"));
    let folder = folder.context("a program lies in a folder")?;
    let path = folder.join(name);
    ensure!(
        path.exists(),
        "{} is not built: run tests/run, or cargo build --workspace first",
        path.display()
    );
    Ok(path)
}

/// A port of the loopback interface that was free a moment ago.
///
/// # Errors
/// As `bind(2)`.
pub fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// One installation: folders, appliance, splitters. Dropping it kills what runs and removes everything.
#[derive(Debug)]
pub struct Site {
    /// The appliance; `None` while it is down.
    appliance: Option<Appliance>,
    splitters: Vec<Splitter>,
    address: String,
    http: String,
    /// Further arguments of the appliance.
    appliance_arguments: Vec<String>,
    /// Pins of the splitters; their programs are detached when this goes, after the processes.
    pins: Resource,
    /// Everything else; goes last.
    _folder: Resource,
    path: PathBuf,
}

impl Site {
    /// A site with a running appliance.
    ///
    /// # Errors
    /// When the appliance does not start.
    pub fn start(name: &str) -> Result<Self> {
        Self::start_with(name, &[])
    }

    /// As [`Site::start`], with further arguments for the appliance.
    ///
    /// # Errors
    /// When the appliance does not start.
    pub fn start_with(name: &str, appliance_arguments: &[&str]) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        sweep()?;
        let unique = format!("{name}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::SeqCst));
        let path = base().join("sites").join(&unique);
        let folder = Resource::register(Undo::Folder(path.clone()))?;
        std::fs::create_dir_all(&path)?;
        let pins =
            Resource::register(Undo::Pins(Path::new("/sys/fs/bpf").join(format!("tidemark-test-{unique}"))))?;
        let mut site = Self {
            appliance: None,
            splitters: Vec::new(),
            address: format!("127.0.0.1:{}", free_port()?),
            http: format!("127.0.0.1:{}", free_port()?),
            appliance_arguments: appliance_arguments.iter().map(|word| (*word).to_owned()).collect(),
            pins,
            _folder: folder,
            path,
        };
        site.start_appliance()?;
        Ok(site)
    }

    /// The site's folder, removed at its end.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the appliance listens.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Where its metrics and health are.
    #[must_use]
    pub fn http(&self) -> &str {
        &self.http
    }

    /// The appliance's data folder.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.path.join("appliance")
    }

    /// The root of the splitters' pins.
    #[must_use]
    pub fn pins(&self) -> &Path {
        match self.pins.undo() {
            Undo::Pins(path) => path,
            _ => &self.path,
        }
    }

    /// The running appliance.
    ///
    /// # Errors
    /// When it is down.
    pub fn appliance(&self) -> Result<&Appliance> {
        self.appliance.as_ref().context("the appliance is down")
    }

    /// Starts the appliance (again), on the same address and data, and waits until it answers.
    ///
    /// # Errors
    /// When it ends or does not answer in time; with the end of its log.
    pub fn start_appliance(&mut self) -> Result<()> {
        ensure!(self.appliance.is_none(), "the appliance is running");
        let mut command = Command::new(program("tidemark-appliance")?);
        command.arg("--data").arg(self.data()).args(["--listen", &self.address, "--http", &self.http]);
        command.args(&self.appliance_arguments).env("NO_COLOR", "1");
        let log = self.path.join("appliance.log");
        let mut appliance = Appliance::spawn(&mut command, &log)?;
        appliance.wait_ready(&self.http, &self.data().join("admin.context"))?;
        self.appliance = Some(appliance);
        Ok(())
    }

    /// Kills the appliance.
    ///
    /// # Errors
    /// When it had ended by itself.
    pub fn kill_appliance(&mut self) -> Result<()> {
        self.appliance.take().context("the appliance is down")?.kill()
    }

    /// Stops the appliance in order.
    ///
    /// # Errors
    /// When it does not end cleanly.
    pub fn stop_appliance(&mut self) -> Result<()> {
        self.appliance.take().context("the appliance is down")?.stop(STOP_TIMEOUT)
    }

    /// Enrols a new VM and starts its splitter; `run_arguments` go to `tidemark-splitter run`. Returns its index.
    ///
    /// # Errors
    /// When enrolment fails or the splitter does not start.
    pub fn add_splitter(&mut self, vm: &str, run_arguments: &[&str]) -> Result<usize> {
        let address = self.address.clone();
        self.add_splitter_at(vm, &address, run_arguments)
    }

    /// As [`Site::add_splitter`], where the splitter reaches the appliance at another address.
    ///
    /// # Errors
    /// As [`Site::add_splitter`].
    pub fn add_splitter_at(&mut self, vm: &str, address: &str, run_arguments: &[&str]) -> Result<usize> {
        let token = self.token(vm, &[])?;
        let mut splitter = Splitter::new(vm, &self.path, self.pins(), run_arguments);
        splitter.enrol(address, &token)?;
        splitter.start()?;
        self.splitters.push(splitter);
        Ok(self.splitters.len() - 1)
    }

    /// A new enrolment token.
    ///
    /// # Errors
    /// As the command line.
    pub fn token(&self, vm: &str, options: &[&str]) -> Result<String> {
        let printed = self.cli(&[&["token", "create", "--vm", vm], options].concat())?;
        printed.split_whitespace().last().map(str::to_owned).context("`token create` printed no token")
    }

    /// A splitter by its index.
    ///
    /// # Errors
    /// When there is none.
    pub fn splitter(&mut self, index: usize) -> Result<&mut Splitter> {
        self.splitters.get_mut(index).context("no such splitter")
    }

    /// Ends everything in order and checks that the logs are quiet: no panic, and no warning or error but those that
    /// contain one of `expected`.
    ///
    /// # Errors
    /// When a part does not end cleanly, or on unexpected lines.
    pub fn finish(mut self, expected: &[&str]) -> Result<()> {
        for splitter in &mut self.splitters {
            if splitter.is_running() {
                splitter.stop()?;
            }
        }
        if self.appliance.is_some() {
            self.stop_appliance()?;
        }
        let mut unexpected = Vec::new();
        for entry in std::fs::read_dir(&self.path)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "log") {
                unexpected.extend(unexpected_lines(&path, expected)?);
            }
        }
        if !unexpected.is_empty() {
            bail!("{} unexpected lines in the logs:\n{}", unexpected.len(), unexpected.join("\n"));
        }
        Ok(())
    }

    /// Copies the logs to `TIDEMARK_TEST_KEEP_LOGS/NAME`, if that is set: for looking at a failure afterwards.
    fn keep_logs(&self) {
        let Some(target) = std::env::var_os("TIDEMARK_TEST_KEEP_LOGS") else { return };
        let target = Path::new(&target).join(self.path.file_name().unwrap_or_default());
        let _ = std::fs::create_dir_all(&target);
        for entry in std::fs::read_dir(&self.path).into_iter().flatten().flatten() {
            if entry.path().extension().is_some_and(|extension| extension == "log") {
                let _ = std::fs::copy(entry.path(), target.join(entry.file_name()));
            }
        }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.keep_logs();
        if std::thread::panicking() {
            logs::print_ends(&self.path);
        }
    }
}

/// Runs `program` of this workspace to its end.
///
/// # Errors
/// As [`output_of`].
pub fn run_program(name: &str, arguments: &[&str]) -> Result<String> {
    output_of(Command::new(program(name)?).args(arguments).env("NO_COLOR", "1"))
}
