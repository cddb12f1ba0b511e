//! Starting the gate's process so that it outlives the splitter.
//!
//! Where systemd runs the splitter, it starts the gate too, in a transient unit of its own: what stops, restarts or kills
//! the splitter's service ends everything in that service's control group, and a volume must never be without its server.
//! The service's sandbox would keep the gate from its devices besides. Elsewhere the gate is a child in a session of its
//! own.
//!
//! **The program** in the unit is the file on disk, not the one that the splitter runs: `/proc/PID/exe` of a process with
//! other capabilities cannot be opened. In the seconds of an upgrade in which they differ, a gate whose page has another
//! layout refuses, and the new splitter starts one that fits. A running gate of an older version is never exchanged.

use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::error::GateError;
use super::mapper::{Mapper, Target};
use super::page;
use super::volume::{Volume, private_name};
use crate::daemon::now_us;

/// How long a gate's process may take to be ready: taking over waits for requests of its predecessor.
const READY_MAX: Duration = Duration::from_secs(90);
/// How long the service manager may take besides, before it is given up.
const MANAGER_MAX: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(10);
/// The first character spares the process in systemd-shutdown's final killing, which comes before the last file systems
/// are unmounted: without the gate that would wait for ever.
pub(super) const SPARED_NAME: &str = "@tidemark-splitter";
/// Characters of an error message at most.
const REASON_MAX: u64 = 4096;

/// The sandbox of the unit, and that nothing but an order of the splitter ends it. All of it is known to Debian 12's
/// systemd (252).
const UNIT: [&str; 34] = [
    // Nothing orders or stops it: not the splitter's service, not a shutdown before the file systems are unmounted.
    "DefaultDependencies=no",
    "IgnoreOnIsolate=yes",
    "RefuseManualStop=yes",
    // The driver, which no alias loads.
    "Wants=modprobe@ublk_drv.service",
    "After=modprobe@ublk_drv.service",
    "NotifyAccess=main",
    "TimeoutStartSec=90",
    "OOMScoreAdjust=-1000",
    "ManagedOOMPreference=omit",
    "LimitMEMLOCK=infinity",
    // For the ublk driver, device-mapper, the tap's maps and the umount in its own namespace; to be an I/O flusher.
    "CapabilityBoundingSet=CAP_SYS_ADMIN CAP_SYS_RESOURCE",
    "NoNewPrivileges=yes",
    "SystemCallArchitectures=native",
    // mount and umount2: file systems on the volume are not kept busy by a namespace that shows them.
    "SystemCallFilter=@system-service bpf mount umount2",
    "SystemCallErrorNumber=EPERM",
    "RestrictNamespaces=mnt",
    "RestrictAddressFamilies=AF_UNIX",
    "PrivateNetwork=yes",
    "IPAddressDeny=any",
    "RestrictRealtime=yes",
    "RestrictSUIDSGID=yes",
    "LockPersonality=yes",
    "MemoryDenyWriteExecute=yes",
    "ProtectClock=yes",
    "ProtectControlGroups=yes",
    "ProtectHostname=yes",
    "ProtectKernelModules=yes",
    "ProtectSystem=strict",
    "ReadWritePaths=/run/tidemark-gate",
    "UMask=0077",
    "DevicePolicy=closed",
    "DeviceAllow=/dev/ublk-control rw",
    "DeviceAllow=char-ublk-char rw",
    // Of device-mapper, and the kernel's log, which never blocks.
    "DeviceAllow=/dev/mapper/control rw",
];

/// What the process is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Work {
    /// Serve the volume's gate.
    Serve,
    /// Remove the device of a gate that was killed and that no volume lies on.
    Clear,
}

/// A started process.
#[derive(Debug)]
pub(super) enum Process {
    /// A child of this process.
    Child(Child),
    /// The service manager looks after it.
    Unit,
}

impl Process {
    /// Collects what an ended child leaves behind; the page's lock tells whether a gate runs.
    pub(super) fn collect(&mut self) {
        if let Self::Child(child) = self {
            let _ = child.try_wait();
        }
    }

    /// Waits for the end of a process that was told to end.
    pub(super) fn wait(self) {
        if let Self::Child(mut child) = self {
            let _ = child.wait();
        }
    }
}

/// Whether a service manager runs this process that can run gates, too.
fn managed() -> bool {
    std::env::var_os("INVOCATION_ID").is_some() && Path::new("/run/systemd/system").is_dir()
}

/// Whether this machine can have a gate. In a service's sandbox only the gate itself can tell, by not starting.
///
/// # Errors
/// The reason, and what to do.
pub(super) fn check() -> Result<(), GateError> {
    if managed() { Ok(()) } else { super::device::check() }
}

/// Starts a gate's process and waits until it serves, or has done its work.
pub(super) fn start(capture: &str, volume: &str, work: Work) -> Result<Process, GateError> {
    let mut arguments = vec!["gate", "--capture", capture, "--volume", volume];
    if work == Work::Clear {
        arguments.push("--clear");
    }
    if managed() { start_unit(capture, volume, &arguments) } else { start_child(&arguments) }
}

fn start_child(arguments: &[&str]) -> Result<Process, GateError> {
    // The file that runs, also when an upgrade has replaced it on disk.
    let mut child = Command::new("/proc/self/exe")
        .arg0(SPARED_NAME)
        .args(arguments)
        // It is not what the splitter's service manager waits for.
        .env_remove("NOTIFY_SOCKET")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(GateError::os("start the gate's process"))?;
    let (said, hearing) = mpsc::channel();
    if let Some(out) = child.stdout.take() {
        std::thread::spawn(move || {
            let mut line = String::new();
            let _ = BufReader::new(out).read_line(&mut line);
            let _ = said.send(line);
        });
    }
    let line = hearing.recv_timeout(READY_MAX).unwrap_or_default();
    if line.starts_with("ready ") {
        return Ok(Process::Child(child));
    }
    let _ = child.kill();
    let text = said_by(&mut child);
    let _ = child.wait();
    let reason = text.lines().next_back().unwrap_or("it said nothing").trim();
    Err(GateError::NotStarted(reason.trim_start_matches("tidemark-splitter: ").to_owned()))
}

fn said_by(child: &mut Child) -> String {
    let mut text = String::new();
    if let Some(errors) = child.stderr.take() {
        let _ = errors.take(REASON_MAX).read_to_string(&mut text);
    }
    text
}

fn start_unit(capture: &str, volume: &str, arguments: &[&str]) -> Result<Process, GateError> {
    let failure = page::folder(capture, volume).join(page::FAILURE);
    let _ = std::fs::remove_file(&failure);
    let mut command = Command::new("systemd-run");
    command.args(["--quiet", "--collect", "--no-ask-password", "--service-type=notify"]);
    command.arg(format!("--unit={}", unit_name(volume)));
    command.arg(format!("--description=Tidemark gate: synchronous mode of {volume}"));
    for property in UNIT.iter().copied().map(str::to_owned).chain(devices(volume)?) {
        command.arg(format!("--property={property}"));
    }
    // systemd would replace variables.
    command.arg("--").arg(program()?).args(arguments.iter().map(|word| word.replace('$', "$$")));
    let (status, said) = run(&mut command, READY_MAX + MANAGER_MAX)
        .map_err(GateError::os("have the service manager start the gate's process (systemd-run)"))?;
    if status.success() {
        return Ok(Process::Unit);
    }
    // The gate's own reason, else that of the service manager, which could not start it.
    let reason = std::fs::read_to_string(&failure).unwrap_or(said);
    Err(GateError::NotStarted(reason.lines().next().unwrap_or("systemd-run said nothing").trim().to_owned()))
}

/// A name of its own for each start: the unit of one that was killed may not be gone yet.
fn unit_name(volume: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "_.-".contains(c) { c } else { '_' };
    format!("tidemark-gate-{}-{:x}.service", volume.chars().map(plain).collect::<String>(), now_us())
}

/// The private mapping, which holds the volume's data, and the kernel's log.
fn devices(volume: &str) -> Result<Vec<String>, GateError> {
    let private = Volume::named(&Mapper::open()?, &private_name(volume))?;
    let mapping = private.map(|private| {
        format!("DeviceAllow=/dev/block/{}:{} rw", private.mapped.major, private.mapped.minor)
    });
    Ok(mapping.into_iter().chain(["DeviceAllow=/dev/kmsg w".to_owned()]).collect())
}

/// The path of this program's file, or of the one that an upgrade put in its place.
fn program() -> Result<PathBuf, GateError> {
    let path = std::env::current_exe().map_err(GateError::os("find the splitter's program"))?;
    let replaced = path.to_str().and_then(|text| text.strip_suffix(" (deleted)")).map(PathBuf::from);
    Ok(replaced.unwrap_or(path))
}

/// Runs a short command to its end; what it said on standard error.
fn run(command: &mut Command, at_most: Duration) -> io::Result<(ExitStatus, String)> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    let until = Instant::now() + at_most;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok((status, said_by(&mut child)));
        }
        if Instant::now() > until {
            let _ = child.kill();
            let _ = child.wait();
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the service manager does not answer"));
        }
        std::thread::sleep(POLL);
    }
}

/// Loads a table. The kernel opens the devices in it in the name of this process: a service that may only read disks is
/// granted the writing of these by its service manager, until the machine is started again.
pub(super) fn load(mapper: &Mapper, name: &str, table: &[Target]) -> Result<(), GateError> {
    let loaded = mapper.load(name, table);
    let refused = matches!(&loaded, Err(GateError::Mapper { source, .. }) if source.kind() == io::ErrorKind::PermissionDenied);
    if !refused || !managed() {
        return loaded;
    }
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let Some(unit) = own_unit(&groups) else { return loaded };
    let mut command = Command::new("systemctl");
    command.args(["--no-ask-password", "--runtime", "set-property", unit]);
    let mut devices: Vec<&str> =
        table.iter().filter_map(|target| target.parameters.split_whitespace().next()).collect();
    devices.sort_unstable();
    devices.dedup();
    command.args(devices.iter().map(|device| format!("DeviceAllow=/dev/block/{device} rw")));
    let (status, said) = run(&mut command, MANAGER_MAX)
        .map_err(GateError::os("have the service manager allow the volume's disks (systemctl)"))?;
    if !status.success() {
        let reason = said.lines().next().unwrap_or("systemctl said nothing").trim();
        return Err(GateError::NotStarted(format!("the volume's disks are not allowed to {unit}: {reason}")));
    }
    mapper.load(name, table)
}

/// The unit that a process belongs to, by its `/proc/PID/cgroup`.
fn own_unit(groups: &str) -> Option<&str> {
    let service =
        |line: &'_ str| line.rsplit(['/', ':']).next().is_some_and(|name| name.ends_with(".service"));
    groups.lines().find(|line| service(line))?.rsplit('/').next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_is_found_in_either_version_of_control_groups() {
        let (two, one) =
            ("0::/system.slice/tidemark-splitter.service\n", "12:devices:/system.slice/a.service\n0::/\n");
        assert_eq!(own_unit(two), Some("tidemark-splitter.service"));
        assert_eq!(own_unit(one), Some("a.service"));
        assert_eq!(own_unit("0::/user.slice/session-1.scope\n"), None);
    }

    #[test]
    fn names_of_units_have_no_character_that_systemd_refuses() {
        let name = unit_name("vg-a b\\x20$é");
        assert!(name.starts_with("tidemark-gate-vg-a_b_x20__-") && name.ends_with(".service"), "{name}");
        assert!(name.len() < 200);
    }
}
