//! `tidemark mount` and `tidemark unmount`.
//!
//! A background process serves the mount: this program again, told so by an environment variable. It reports on its
//! standard output, in one line of JSON, that the mount is there or why not; then nothing ties it to its parent.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

use anyhow::{Context as _, Result, anyhow, bail};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tidemark_proto::v1::ViewPurpose;

use super::{client, connected, runtime};
use crate::appliance::clones;
use crate::cli::{MountArguments, UsageError};
use crate::context::state_folder;
use crate::fuse::{self, Mounted};
use crate::view::{RemoteClone, RemoteView};
use crate::when::When;
use crate::{moment, output, size};

/// Set for the background process.
const BACKGROUND_VARIABLE: &str = "TIDEMARK_MOUNT_BACKGROUND";
/// A log that has grown beyond this is emptied when the next mount begins.
const LOG_BYTES: u64 = 1 << 20;

/// What the background process reports.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Report {
    Mounted(Mounted),
    Failed(String),
}

pub(super) fn run(context: Option<&Path>, arguments: &MountArguments, json: bool) -> Result<()> {
    if std::env::var_os(BACKGROUND_VARIABLE).is_some() {
        return background(context, arguments);
    }
    if arguments.foreground {
        log_to(std::io::stderr);
        return serve(context, arguments, |mounted| print(mounted, json));
    }
    // What can be refused at once is refused here, before a process starts.
    fuse::prepare(&arguments.dir)?;
    print(&spawn(arguments)?, json)
}

pub(super) fn unmount(dir: &Path, json: bool) -> Result<()> {
    let dir = fuse::unmount(dir)?;
    if json {
        output::json(&json!({ "dir": dir }))
    } else {
        output::line(&format!("{} is unmounted.", dir.display()))
    }
}

fn print(mounted: &Mounted, json: bool) -> Result<()> {
    if json {
        return output::json(mounted);
    }
    let kind = match (mounted.writable, mounted.kept) {
        (true, true) => "writable, changes stay in the clone",
        (true, false) => "writable, changes vanish with the mount",
        (false, _) => "read-only",
    };
    output::line(&format!(
        "Mounted as of {} (lsn:{}), {kind}:",
        moment::local(mounted.time_us),
        mounted.lsn
    ))?;
    for file in &mounted.files {
        output::line(&format!("  {}  {}", file.path.display(), size::show(file.size_bytes)))?;
    }
    output::line(&format!("End it with: tidemark unmount {}", mounted.dir.display()))
}

/// Serves in this process until unmounted.
fn serve(
    context: Option<&Path>,
    arguments: &MountArguments,
    ready: impl FnOnce(&Mounted) -> Result<()>,
) -> Result<()> {
    let dir = fuse::prepare(&arguments.dir)?;
    let runtime = runtime()?;
    let at_end = matches!(arguments.at, None | Some(When::Latest));
    if arguments.writable && at_end && arguments.overlay_dir.is_none() {
        let clone = runtime.block_on(async {
            let client = clones(connected(context).await?);
            RemoteClone::open(&client, &arguments.vm, arguments.disk).await
        })?;
        if let Some(clone) = clone {
            return fuse::serve_clone(clone, runtime.handle().clone(), &dir, ready);
        }
    }
    let Some(at) = &arguments.at else {
        bail!(UsageError(format!("'{}' is no clone: name the point to mount with --at", arguments.vm)));
    };
    let overlay_dir = arguments
        .writable
        .then(|| arguments.overlay_dir.clone().unwrap_or_else(std::env::temp_dir).canonicalize())
        .transpose()
        .context("find the folder for the overlay: name one with --overlay-dir")?;
    let view = runtime.block_on(async {
        let client = client(context).await?;
        RemoteView::open_to(ViewPurpose::Mount, &client, &arguments.vm, at, arguments.disk).await
    })?;
    fuse::serve(view, runtime.handle().clone(), &dir, overlay_dir.as_deref(), ready)
}

/// Starts the background process and waits for its report.
fn spawn(arguments: &MountArguments) -> Result<Mounted> {
    let program = std::env::current_exe().context("find this program")?;
    let mut child = Command::new(program)
        .args(std::env::args_os().skip(1))
        .env(BACKGROUND_VARIABLE, "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("start the background process")?;
    let stdout = child.stdout.take().context("listen to the background process")?;
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line).context("listen to the background process")?;
    match serde_json::from_str(&line) {
        Ok(Report::Mounted(mounted)) => Ok(mounted),
        Ok(Report::Failed(why)) => {
            let _ = child.wait();
            bail!("{why}")
        }
        Err(_) => {
            let status = child.wait().context("wait for the background process")?;
            bail!(
                "the background process ended ({status}): see {}, or try --foreground",
                log_path(arguments)?.display()
            )
        }
    }
}

/// The background process: free of its parent's terminal, files and folder.
fn background(context: Option<&Path>, arguments: &MountArguments) -> Result<()> {
    // SAFETY: nothing in this process has opened a descriptor of its own above 2 yet; those there are came from the
    // parent (locks, pipes) and would otherwise be held for as long as the mount lasts.
    unsafe { libc::close_range(3, libc::c_uint::MAX, 0) };
    // Fails only for the leader of a process group, which a child is not.
    let _ = nix::unistd::setsid();
    let mut reported = false;
    let served = open_log(arguments).and_then(|log| {
        log_to(Mutex::new(log));
        serve(context, arguments, |mounted| {
            report(&Report::Mounted(mounted.clone()))?;
            reported = true;
            // The parent reads to the end of the line; whoever inherited its pipe must not wait for us.
            let null = File::options().write(true).open("/dev/null").context("open /dev/null")?;
            nix::unistd::dup2_stdout(null).context("let go of standard output")?;
            std::env::set_current_dir("/").context("leave the folder")
        })
    });
    if let Err(error) = &served {
        if reported {
            tracing::error!("{error:#}");
        } else {
            report(&Report::Failed(format!("{error:#}")))?;
        }
    }
    served
}

fn report(report: &Report) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    let line = serde_json::to_string(report).context("encode the report")?;
    writeln!(stdout, "{line}").and_then(|()| stdout.flush()).context("report to the command that waits")
}

fn log_path(arguments: &MountArguments) -> Result<PathBuf> {
    let path = arguments
        .log
        .clone()
        .map_or_else(|| Ok(state_folder()?.join("mount.log")), Ok::<_, anyhow::Error>)?;
    std::path::absolute(path).context("find the log")
}

fn open_log(arguments: &MountArguments) -> Result<File> {
    let path = log_path(arguments)?;
    let fail =
        |error: std::io::Error| anyhow!("open log {}: {error}: name another with --log", path.display());
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(fail)?;
    }
    let file = File::options().append(true).create(true).mode(0o600).open(&path).map_err(fail)?;
    if file.metadata().map_err(fail)?.len() > LOG_BYTES {
        file.set_len(0).map_err(fail)?;
    }
    Ok(file)
}

fn log_to<W>(writer: W)
where
    W: for<'a> tracing_subscriber::fmt::MakeWriter<'a> + Send + Sync + 'static,
{
    let built =
        tracing_subscriber::fmt().with_ansi(false).with_max_level(tracing::Level::WARN).with_writer(writer);
    // Fails only when something else logs already.
    let _ = built.try_init();
}
