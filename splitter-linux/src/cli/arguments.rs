//! What may be typed.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

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
    #[command(after_help = "Example:\n  tidemark-splitter protect /dev/vdb /dev/vdc --wait")]
    Protect {
        /// Folder for keys and state.
        #[arg(long, value_name = "DIR", default_value = DEFAULT_STATE)]
        state: PathBuf,
        /// Whole disks.
        #[arg(required = true, value_name = "DISK")]
        disks: Vec<PathBuf>,
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
        /// The disk.
        #[arg(value_name = "DISK")]
        disk: PathBuf,
    },
    /// Run the splitter (a service: speaks the systemd notify protocol, logs to standard error).
    #[command(after_help = "Example:\n  tidemark-splitter run --ring-mib 512")]
    Run(RunOptions),
    /// Switch a disk between asynchronous and synchronous mode.
    #[command(after_help = "Example:\n  tidemark-splitter mode /dev/vg/data async")]
    Mode {
        /// Folder for keys and state.
        #[arg(long, value_name = "DIR", default_value = DEFAULT_STATE)]
        state: PathBuf,
        /// The disk.
        #[arg(value_name = "DISK")]
        disk: PathBuf,
        /// The mode.
        mode: Mode,
    },
    /// Name the present moment of this VM.
    #[command(after_help = "Example:\n  tidemark-splitter bookmark before-upgrade")]
    Bookmark {
        /// Its name, unique for this VM.
        name: String,
        /// Folder for keys and state.
        #[arg(long, value_name = "DIR", default_value = DEFAULT_STATE)]
        state: PathBuf,
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
    /// Take the tap out of the kernel without changing what is to be protected.
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
    /// Scheduling priority of the splitter's threads, 0 (as any program) to 19 (last). Where processors are scarce a
    /// higher number favours the guest's applications, and a gap comes earlier.
    #[arg(long, env = "TIDEMARK_NICE", value_name = "LEVEL", default_value_t = 10, value_parser = clap::value_parser!(u8).range(0..=19))]
    pub nice: u8,
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

/// How the log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Modes of a disk.
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
    fn a_ring_is_a_power_of_two() {
        assert_eq!(ring_size("256"), Ok(256));
        for bad in ["0", "3", "2048", "-1", "x"] {
            assert!(ring_size(bad).is_err(), "{bad}");
        }
    }
}
