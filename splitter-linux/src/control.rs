//! Local commands to the running splitter: one JSON line each way on a Unix socket in the state folder.
//!
//! The socket is 0600 in a folder that is 0700: who can reach it could as well replace the splitter.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::gate::OnLapse;
use crate::service;
use crate::state::StateDir;

/// Bytes of one line at most: paths of 64 disks are far below. A longer line ends the connection.
pub const LINE_MAX_BYTES: u64 = 256 << 10;

/// How long a command waits for the running splitter: for a bookmark, its freeze hooks, and the appliance.
const REPLY_TIMEOUT: Duration = Duration::from_secs(150);

/// What a command asks of the running splitter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Protect these whole disks from now on.
    Protect {
        /// Device nodes.
        paths: Vec<PathBuf>,
    },
    /// Protect every disk of the machine from now on, also those that are added later.
    ProtectAll {
        /// Patterns of those to leave out.
        except: Vec<String>,
    },
    /// Protect this disk no longer.
    Unprotect {
        /// Device node.
        path: PathBuf,
    },
    /// Switch a volume between synchronous and asynchronous mode.
    Mode {
        /// The volume.
        path: PathBuf,
        /// Synchronous.
        sync: bool,
        /// What happens to writes when the appliance cannot be reached.
        on_lapse: OnLapse,
        /// For how many seconds they wait, with `hold`.
        hold_max_s: u32,
    },
    /// Protect no disk any longer, nor one that is added later.
    UnprotectAll,
    /// Place a bookmark in this VM's stream, or in those of all VMs of a set.
    Bookmark {
        /// Its name.
        name: String,
        /// The set; empty: this VM alone.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        set: String,
        /// `crash`, `filesystem` or `application`; empty is `crash`.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        consistency: String,
        /// A lower level will do.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        allow_lower: bool,
    },
    /// Report.
    Status,
}

/// What the running splitter answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "kebab-case")]
pub enum Reply {
    /// Done and stored.
    Done,
    /// The bookmark is durable at the appliance, and its point is offered for recovery.
    Bookmark(Bookmark),
    /// The report.
    Status(Status),
    /// Not done: one line that says what to do.
    Failed {
        /// The line.
        message: String,
    },
}

/// A bookmark placed inside the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bookmark {
    /// Its name.
    pub name: String,
    /// Its point.
    pub lsn: u64,
    /// The level that was asked for.
    pub requested: String,
    /// The level achieved.
    pub achieved: String,
    /// How long writers were held.
    pub hold_us: u64,
    /// Why the level is lower than was asked for; empty otherwise.
    pub reason: String,
}

/// `tidemark-splitter status --json`; fields as in the command line contract.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The VM's name at the appliance.
    pub vm: String,
    /// A session with the appliance is established.
    pub connected: bool,
    /// The splitter process is running.
    pub running: bool,
    /// Why nothing is accepted from this splitter, if so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quarantined: Option<String>,
    /// Every disk is to be protected, but those that match one of these patterns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub all_except: Option<Vec<String>>,
    /// Protected disks.
    pub disks: Vec<DiskStatus>,
    /// Volumes that are to be in synchronous mode.
    #[serde(default)]
    pub volumes: Vec<VolumeStatus>,
    /// Disks that `protect --all` means and that cannot be protected.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refused: Vec<RefusedDisk>,
    /// Newest LSN given.
    pub captured_lsn: u64,
    /// Newest LSN durable at the appliance.
    pub acked_lsn: u64,
    /// Bytes in the ring that are not given back yet.
    pub ring_bytes_used: u64,
    /// Bytes the ring holds.
    pub ring_bytes: u64,
    /// `ring`, `spool`, `dirty-only` or `resync`: which step of the ladder of overload is taken.
    #[serde(default)]
    pub ladder: String,
    /// Bytes of the spool on its disk.
    #[serde(default)]
    pub spool_bytes_used: u64,
    /// Bytes the spool may hold; 0 while it is not written.
    #[serde(default)]
    pub spool_bytes: u64,
    /// Bytes of frames in the spool that were not sent yet.
    #[serde(default)]
    pub spool_waiting_bytes: u64,
    /// Why the spool is not written, if it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spool_off: Option<String>,
    /// Writes that were not captured since the tap was loaded; their blocks are read again.
    pub dropped: u64,
    /// Resident memory of the splitter process without the ring.
    pub rss_bytes: u64,
}

/// A disk that cannot be protected, in [`Status`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedDisk {
    /// Device node.
    pub path: PathBuf,
    /// Why, and what to do.
    pub reason: String,
}

/// One disk in [`Status`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskStatus {
    /// `disk-1`; empty before the appliance has given one.
    pub id: String,
    /// Device node.
    pub path: PathBuf,
    /// `async`; synchronous mode is one of volumes.
    pub mode: String,
    /// `initial-sync`, `protected`, `dirty-only`, `resync`, `verify`, `missing`, or `waiting` before the first session.
    pub state: String,
    /// What it is known by, wherever it is.
    #[serde(default)]
    pub identity: String,
    /// Why it is missing.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Bytes that must be read again.
    pub dirty_bytes: u64,
    /// Bytes read, and sent or known to the appliance, under the present gap.
    #[serde(default)]
    pub copied_bytes: u64,
    /// Of them, bytes that travelled.
    #[serde(default)]
    pub sent_bytes: u64,
}

/// One volume in [`Status`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeStatus {
    /// As it was named.
    pub path: PathBuf,
    /// `sync`: what was asked for.
    pub mode: String,
    /// Now, no write completes before it is durable at the appliance.
    pub in_force: bool,
    /// `in-place`, or `missing`: after a reboot, or when something changed the volume.
    pub gate: String,
    /// Why it is not in force.
    pub cause: String,
    /// Until when that is promised, µs since 1970; absent while it is not in force.
    pub proven_until_us: Option<u64>,
    /// `async`, or `hold N s`.
    pub on_lapse: String,
    /// How often it lapsed since the gate was put in place.
    pub lapses: u64,
    /// Writes that wait now.
    pub waiting_writes: u64,
    /// Writes that waited.
    pub waited_writes: u64,
    /// How long altogether.
    pub waited_us: u64,
    /// How long at most.
    pub waited_max_us: u64,
    /// Writes that completed without the appliance because the lease had lapsed.
    pub unreplicated_writes: u64,
    /// The gate's process.
    pub process: u64,
}

/// The running splitter cannot be asked.
#[derive(Debug, Error)]
pub enum ControlError {
    /// No splitter is running on this folder.
    #[error("no splitter is running on {folder}: start it with '{start}'")]
    NotRunning {
        /// The state folder.
        folder: String,
        /// The command that starts one.
        start: String,
    },
    /// It answered that it will not.
    #[error("{0}")]
    Refused(String),
    /// The conversation broke off.
    #[error("the running splitter did not answer ({0}): see its log")]
    Broken(String),
}

/// Asks the running splitter.
///
/// # Errors
/// [`ControlError`].
pub fn ask(state: &StateDir, request: &Request) -> Result<Reply, ControlError> {
    let path = state.control_socket();
    let stream = UnixStream::connect(&path).map_err(|_| ControlError::NotRunning {
        folder: state.root().display().to_string(),
        start: service::start_command(state),
    })?;
    let reply = converse(stream, request).map_err(|error| ControlError::Broken(error.to_string()))?;
    match reply {
        Reply::Failed { message } => Err(ControlError::Refused(message)),
        reply => Ok(reply),
    }
}

fn converse(mut stream: UnixStream, request: &Request) -> io::Result<Reply> {
    stream.set_read_timeout(Some(REPLY_TIMEOUT))?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut reply = String::new();
    BufReader::new(stream.take(LINE_MAX_BYTES)).read_line(&mut reply)?;
    Ok(serde_json::from_str(&reply)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_replies_have_a_stable_form() {
        let request = Request::Protect { paths: vec!["/dev/vdb".into()] };
        assert_eq!(serde_json::to_string(&request).unwrap(), r#"{"request":"protect","paths":["/dev/vdb"]}"#);
        assert_eq!(serde_json::to_string(&Request::Status).unwrap(), r#"{"request":"status"}"#);
        let crash = r#"{"request":"bookmark","name":"b"}"#;
        let request = Request::Bookmark {
            name: "b".into(),
            set: String::new(),
            consistency: String::new(),
            allow_lower: false,
        };
        assert_eq!(serde_json::to_string(&request).unwrap(), crash, "as an older splitter takes it");
        assert_eq!(serde_json::from_str::<Request>(crash).unwrap(), request);
        let reply = Reply::Failed { message: "no".into() };
        assert_eq!(serde_json::to_string(&reply).unwrap(), r#"{"reply":"failed","message":"no"}"#);
        assert!(serde_json::from_str::<Request>(r#"{"request":"explode"}"#).is_err());
    }

    #[test]
    fn without_a_running_splitter_the_command_to_start_one_is_named() {
        let root = tempfile::tempdir().unwrap();
        let error = ask(&StateDir::new(root.path()), &Request::Status).unwrap_err();
        assert!(error.to_string().contains("tidemark-splitter run --state"), "{error}");
    }
}
