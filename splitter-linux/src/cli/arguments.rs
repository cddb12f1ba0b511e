//! What may be typed.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use tidemark_proto::v1::Consistency;

use crate::gate::OnLapse;
use crate::spool::limits::{LIMIT_DEFAULT_MIB, LIMIT_MAX_MIB, LIMIT_MIN_MIB};
use crate::state::DEFAULT_STATE;

/// Protects this machine's disks: every write goes to the appliance.
#[derive(Debug, Parser)]
#[command(
    name = "tidemark-splitter",
    version,
    after_help = "Examples:\n  tidemark-splitter enroll --appliance appliance:7440 --token TOKEN\n  tidemark-splitter protect /dev/vdb --wait\n  tidemark-splitter status"
)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Turn a one-time token into this machine's certificate.
    ///
    /// Where the splitter was installed as a package, its service is started and will start with the machine.
    #[command(
        after_help = "Example:\n  tidemark-splitter enroll --appliance appliance:7440 --token \"$TOKEN\""
    )]
    Enroll {
        /// The appliance.
        #[arg(long, value_name = "HOST:PORT")]
        appliance: String,
        /// The last word that `tidemark token create --vm NAME` printed.
        #[arg(long)]
        token: String,
        /// Folder for keys and state.
        #[arg(long, value_name = "DIR", default_value = DEFAULT_STATE)]
        state: PathBuf,
        /// Do not start the service.
        #[arg(long)]
        no_start: bool,
    },
    /// Protect whole disks from now on, also while they are mounted and busy.
    #[command(
        after_help = "Examples:\n  tidemark-splitter protect /dev/vdb /dev/vdc --wait\n  tidemark-splitter protect --all --except /dev/vdc --except 'serial:scratch-*'\n\n--all stays in force: a disk that is added to the running machine is protected by itself within seconds, beginning\nwith its first copy. Loop devices, network block devices and removable media are not meant. Whole disks are\nprotected: to leave out swap or scratch space, put it on a disk of its own and name that with --except."
    )]
    Protect {
        /// Folder for keys and state.
        #[arg(long, value_name = "DIR", default_value = DEFAULT_STATE)]
        state: PathBuf,
        /// Whole disks.
        #[arg(required_unless_present = "all", conflicts_with = "all", value_name = "DISK")]
        disks: Vec<PathBuf>,
        /// Every disk of this machine, also those that are added later.
        #[arg(long)]
        all: bool,
        /// With --all: leave out disks whose path, kernel name or identity (as in `status --json`) matches; `*` stands
        /// for any characters, `?` for one. What is given replaces what was given before.
        #[arg(long, value_name = "PATTERN", requires = "all")]
        except: Vec<String>,
        /// Return only when the initial copy is complete at the appliance.
        #[arg(long)]
        wait: bool,
    },
    /// Protect a disk no longer. Its history stays at the appliance.
    #[command(after_help = "Example:\n  tidemark-splitter unprotect /dev/vdb")]
    Unprotect {
        /// Folder for keys and state.
        #[arg(long, value_name = "DIR", default_value = DEFAULT_STATE)]
        state: PathBuf,
        /// The disk: its path, or the identity of one that is missing. While `protect --all` is in force it becomes an
        /// exception.
        #[arg(required_unless_present = "all", conflicts_with = "all", value_name = "DISK")]
        disk: Option<PathBuf>,
        /// Every disk, and end `protect --all`.
        #[arg(long)]
        all: bool,
    },
    /// Run the splitter (a service: speaks the systemd notify protocol, logs to standard error).
    #[command(after_help = "Example:\n  tidemark-splitter run --ring-mib 512")]
    Run(RunOptions),
    /// Switch an LVM volume between asynchronous and synchronous mode, live.
    ///
    /// In synchronous mode a write completes only when it is durable at the appliance. The volume stays mounted, and
    /// nothing is copied again. Its disks must be protected.
    #[command(after_help = "Example:\n  tidemark-splitter mode /dev/vg/data sync --on-lapse async")]
    Mode {
        /// Folder for keys and state.
        #[arg(long, value_name = "DIR", default_value = DEFAULT_STATE)]
        state: PathBuf,
        /// The volume.
        #[arg(value_name = "VOLUME")]
        volume: PathBuf,
        /// The mode.
        mode: Mode,
        /// What happens to writes when the appliance cannot be reached and the lease is over: they complete and are sent
        /// later, or they wait, at most --hold-max.
        #[arg(long, value_enum, default_value_t = OnLapse::Async)]
        on_lapse: OnLapse,
        /// With --on-lapse hold: for how many seconds writes wait before they complete after all.
        #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u32).range(1..=86400))]
        hold_max: u32,
    },
    /// Name the present moment of this VM, or of a consistency set that it is in.
    #[command(
        after_help = "Examples:\n  tidemark-splitter bookmark before-upgrade\n  tidemark-splitter bookmark nightly --consistency application --allow-lower\n  tidemark-splitter bookmark release-7 --set shop"
    )]
    Bookmark {
        /// Its name, unique for this VM or set.
        name: String,
        /// The set whose VMs are to have this moment in common; this VM must be in it.
        #[arg(long, value_name = "SET")]
        set: Option<String>,
        /// Folder for keys and state.
        #[arg(long, value_name = "DIR", default_value = DEFAULT_STATE)]
        state: PathBuf,
        /// What the point must be good for: `filesystem` freezes the file systems on the protected disks for a moment,
        /// `application` runs the freeze hooks besides.
        #[arg(long, value_enum, default_value_t = Level::Crash)]
        consistency: Level,
        /// Accept a lower level than the one asked for.
        #[arg(long)]
        allow_lower: bool,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Restore a disk of this machine that is not in use, from a rescue system, by a grant.
    ///
    /// The appliance is told by hashes what the disk has, and sends what differs. Then all of the disk is read again and
    /// compared. Interrupted, it is run again and goes on. Needs no enrolment and no state.
    #[command(
        after_help = "Example:\n  tidemark-splitter restore --appliance appliance:7440 --grant \"$GRANT\" /dev/vda"
    )]
    Restore {
        /// The appliance.
        #[arg(long, value_name = "HOST:PORT")]
        appliance: String,
        /// The last word that `tidemark grant create` printed.
        #[arg(long)]
        grant: String,
        /// The disk to write to: all that it has is replaced.
        #[arg(value_name = "DISK")]
        disk: PathBuf,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show what is protected and how far the appliance is behind.
    #[command(after_help = "Example:\n  tidemark-splitter status --json")]
    Status {
        /// Folder for keys and state.
        #[arg(long, value_name = "DIR", default_value = DEFAULT_STATE)]
        state: PathBuf,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Serve the gate of one volume; the splitter starts it.
    #[command(hide = true)]
    Gate {
        /// Name of the splitter's capture.
        #[arg(long)]
        capture: String,
        /// Device-mapper name of the volume.
        #[arg(long)]
        volume: String,
        /// Remove the device of one that was killed instead.
        #[arg(long)]
        clear: bool,
    },
    /// Hold every volume in synchronous mode for a moment, reads too.
    #[command(hide = true)]
    Hold {
        /// Folder for keys and state.
        #[arg(long, value_name = "DIR")]
        state: PathBuf,
        /// How long.
        #[arg(long, value_name = "MILLISECONDS")]
        hold_ms: u64,
        /// When the gates release by themselves.
        #[arg(long, value_name = "MILLISECONDS", default_value_t = 5000)]
        deadline_ms: u64,
    },
    /// Let go what is held when the splitter dies or takes too long: started by the running splitter.
    #[command(hide = true)]
    HoldWatchdog {
        /// How long hooks and hold may take, in milliseconds.
        quiesce_ms: u64,
        /// How long the hold may take, in milliseconds.
        deadline_ms: u64,
    },
    /// Switch every volume to async, with or without a running splitter: before the package goes.
    #[command(hide = true)]
    Ungate {
        /// Folder for keys and state.
        #[arg(long, value_name = "DIR", default_value = DEFAULT_STATE)]
        state: PathBuf,
    },
    /// Take the tap out of the kernel without changing what is to be protected; volumes are switched to async before.
    #[command(hide = true)]
    Unload {
        /// Folder for keys and state.
        #[arg(long, value_name = "DIR", default_value = DEFAULT_STATE)]
        state: PathBuf,
    },
    /// Load the tap and let it note what changes on the protected disks, until `run` finds it: for the initramfs,
    /// before a file system is mounted. May be repeated when more disks have come up.
    #[command(hide = true)]
    Attach {
        /// Folder for keys and state.
        #[arg(long, value_name = "DIR", default_value = DEFAULT_STATE)]
        state: PathBuf,
        /// Size of the ring, as for `run`.
        #[arg(long, env = "TIDEMARK_RING_MIB", value_name = "MIB", default_value_t = 256, value_parser = ring_size)]
        ring_mib: u32,
    },
    /// Note where this kernel keeps page memory, for a splitter that may not find it: a privileged step of the service.
    #[command(hide = true)]
    Calibrate,
    /// Print what names the protected disks, a line each: what an initramfs must know of them.
    #[command(hide = true)]
    Identities {
        /// Folder for keys and state.
        #[arg(long, value_name = "DIR", default_value = DEFAULT_STATE)]
        state: PathBuf,
    },
    /// Write the manual pages into a folder.
    #[command(hide = true)]
    Manual {
        /// The folder.
        dir: PathBuf,
    },
}

/// Options of `run`.
#[derive(Debug, Clone, Args)]
pub struct RunOptions {
    /// Folder for keys and state.
    #[arg(long, value_name = "DIR", default_value = DEFAULT_STATE)]
    pub state: PathBuf,
    /// Size of the ring between kernel and splitter in MiB, a power of two. Takes effect when the tap is next loaded.
    #[arg(long, env = "TIDEMARK_RING_MIB", value_name = "MIB", default_value_t = 256, value_parser = ring_size)]
    pub ring_mib: u32,
    /// Size of the spool in MiB: what may wait, encrypted, on a disk of the guest when the appliance takes less than is
    /// written and the ring fills. Beyond it changed blocks are only noted, and read again later. 0 turns it off.
    #[arg(long, env = "TIDEMARK_SPOOL_MIB", value_name = "MIB", default_value_t = LIMIT_DEFAULT_MIB, value_parser = spool_size)]
    pub spool_mib: u32,
    /// Folder of the spool, on a disk that is not protected [default: `spool` in the state folder]. Do not change it while
    /// frames wait there.
    #[arg(long, env = "TIDEMARK_SPOOL", value_name = "DIR")]
    pub spool: Option<PathBuf>,
    /// Scheduling priority of the splitter's threads, 0 (as any program) to 19 (last). Where processors are scarce a
    /// higher number favours the guest's applications, and a gap comes earlier.
    #[arg(long, env = "TIDEMARK_NICE", value_name = "LEVEL", default_value_t = 10, value_parser = clap::value_parser!(u8).range(0..=19))]
    pub nice: u8,
    /// Folder of freeze hooks, run for bookmarks with `--consistency application`. Those of QEMU's guest agent
    /// (`/etc/qemu/fsfreeze-hook.d`), `/usr/sbin/pre-freeze-script` and `post-thaw-script` are run besides.
    #[arg(long, value_name = "DIR", default_value = crate::hold::HOOKS_FOLDER)]
    pub hooks: PathBuf,
    /// Format of the log.
    #[arg(long, env = "TIDEMARK_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log: LogFormat,
}

fn ring_size(text: &str) -> Result<u32, String> {
    let mib: u32 = text.parse().map_err(|_| "not a number".to_owned())?;
    if mib.is_power_of_two() && (1..=1024).contains(&mib) {
        Ok(mib)
    } else {
        Err("the ring has a power of two from 1 to 1024 MiB".to_owned())
    }
}

fn spool_size(text: &str) -> Result<u32, String> {
    let mib: u32 = text.parse().map_err(|_| "not a number".to_owned())?;
    if mib == 0 || (LIMIT_MIN_MIB..=LIMIT_MAX_MIB).contains(&mib) {
        Ok(mib)
    } else {
        Err(format!("the spool has from {LIMIT_MIN_MIB} to {LIMIT_MAX_MIB} MiB, or 0 to have none"))
    }
}

/// How the log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// What a point is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Level {
    /// Writes in their order: what a power cut leaves.
    Crash,
    /// The file systems on the protected disks were frozen.
    Filesystem,
    /// Besides, the freeze hooks had run.
    Application,
}

impl From<Level> for Consistency {
    fn from(level: Level) -> Self {
        match level {
            Level::Crash => Self::Crash,
            Level::Filesystem => Self::Filesystem,
            Level::Application => Self::Application,
        }
    }
}

/// Modes of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Completions wait for the appliance.
    Sync,
    /// Completions wait for nothing.
    Async,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed_and_every_visible_command_has_an_example() {
        let command = Arguments::command();
        command.clone().debug_assert();
        for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
            let help = sub.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains(sub.get_name()), "{} has no example", sub.get_name());
        }
    }

    #[test]
    fn a_spool_is_off_or_of_a_useful_size() {
        assert_eq!((spool_size("0"), spool_size("64"), spool_size("1000")), (Ok(0), Ok(64), Ok(1000)));
        for bad in ["1", "63", "-1", "x", "4194304"] {
            assert!(spool_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_ring_is_a_power_of_two() {
        assert_eq!(ring_size("256"), Ok(256));
        for bad in ["0", "3", "2048", "-1", "x"] {
            assert!(ring_size(bad).is_err(), "{bad}");
        }
    }
}
