//! Commands and flags, as scripts depend on them.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use tidemark_proto::ids::DiskId;

use super::clone::CloneCommand;
use super::files::FilesCommand;
use super::grant::GrantCommand;
use super::history::DiffArguments;
use super::job::{JobCommand, VerifyArguments};
use super::object::ObjectCommand;
use super::retention::{HoldArguments, PolicyCommand};
use super::role::RoleCommand;
use super::search::{SearchArguments, parse_tag};
use super::set::SetCommand;
use crate::when::When;

/// Recover any protected virtual machine to any write.
#[derive(Debug, Parser)]
#[command(name = "tidemark", version, disable_help_subcommand = true)]
#[command(after_help = "Example: tidemark status\n\n\
WHEN is `latest`, a time (2026-11-21T19:04:05.123Z; without a zone it is local), -90s, -15m, -2h, lsn:1234 or bookmark:NAME.")]
pub(crate) struct Cli {
    /// The appliance's address and your credentials [default: ~/.config/tidemark/context]
    #[arg(long, global = true, value_name = "FILE", env = "TIDEMARK_CONTEXT")]
    pub(crate) context: Option<PathBuf>,
    /// Print JSON instead of text
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// One-time enrolment tokens for splitters
    #[command(subcommand, after_help = "Example: tidemark token create --vm web-1 --ttl 1h")]
    Token(TokenCommand),
    /// What persons may do who are no administrators
    #[command(
        subcommand,
        after_help = "Example: tidemark role grant anna bookmark --set shop\n\n\
        Whoever has a certificate of an administrator may do everything. Anybody else is a person by a name of your choice and \
        may do what it was granted, and nothing else:\n  \
        tidemark role grant anna bookmark --set shop       # create and list bookmarks of that set\n  \
        tidemark role grant anna recover --vm web-1        # read its disks to recover them\n  \
        tidemark role context anna --out anna.context      # what she uses with --context\n\n\
        Tags, and names that sets match on, are administrators' alone: with them go the rights of sets."
    )]
    Role(RoleCommand),
    /// Certificates of virtual machines, administrators and other persons
    #[command(subcommand, after_help = "Example: tidemark cert list")]
    Cert(CertCommand),
    /// Protected virtual machines
    #[command(subcommand, after_help = "Example: tidemark vm list")]
    Vm(VmCommand),
    /// Virtual machines that belong together, by rules over names and tags
    #[command(
        subcommand,
        after_help = "Example: tidemark set create shop --match 'name=web-*' --match 'tag:app=shop'"
    )]
    Set(SetCommand),
    /// Named recovery points
    #[command(subcommand, after_help = "Example: tidemark bookmark create before-upgrade --vm web-1")]
    Bookmark(BookmarkCommand),
    /// What is kept how long
    #[command(subcommand, after_help = "Example: tidemark policy apply -f policies.toml")]
    Policy(PolicyCommand),
    /// Recovery points, the windows they lie in, and gaps
    #[command(subcommand, after_help = "Example: tidemark point list web-1 --from -2h")]
    Point(PointCommand),
    /// Find bookmarks of all VMs by text, VM, tag, time and level
    #[command(after_help = "Examples:\n  \
        tidemark search upgrade\n  \
        tidemark search --vm 'web-*' --tag app=shop --from -48h --consistency application")]
    Search(SearchArguments),
    /// Which bytes of the disks differ between two points
    #[command(after_help = "Examples:\n  \
        tidemark diff web-1 --from bookmark:before-upgrade --to latest\n  \
        tidemark diff web-1 --from -2h --to latest --other web-2       # two VMs, by content\n\n\
        Reads what was written between the points, not the disks; a range rewritten with what it held is left out. \
        A gap between the points is no obstacle.")]
    Diff(DiffArguments),
    /// Files inside a disk (ext2, ext3, ext4): what is there, what changed, versions, and getting one back
    #[command(
        subcommand,
        after_help = "Example: tidemark files diff web-1 --from bookmark:before-upgrade --to latest /etc\n\n\
        Read at the appliance, without mounting and without root, as the guest's kernel would find them after replaying \
        the file system's journal. A whole disk, or a partition of a GPT or MBR; not LVM, XFS or NTFS: `tidemark mount`."
    )]
    Files(FilesCommand),
    /// Restore disks as of a point into files or onto a block device
    #[command(after_help = "Examples:\n  \
        tidemark recover web-1 --at -15m --to /restore                    # every disk, as /restore/<disk>.raw\n  \
        tidemark recover web-1 --at latest --disk disk-1 --to /dev/vdc    # one disk, onto an unused device\n  \
        tidemark recover web-1 --at latest --to /restore --certificate /restore/web-1.json\n  \
        tidemark recover --set shop --at bookmark:before-upgrade --to /restore    # every VM, as /restore/<vm>/<disk>.raw")]
    Recover(RecoverArguments),
    /// Grants to restore a disk onto the machine it is for, from a rescue system
    #[command(
        subcommand,
        after_help = "Example: tidemark grant create web-1 --at bookmark:before-upgrade --disk disk-1\n\n\
        The last word printed is the grant. On the machine that gets the disk, booted from something else:\n  \
        tidemark-splitter restore --appliance appliance.example.net:7440 --grant GRANT /dev/vda"
    )]
    Grant(GrantCommand),
    /// Show disks as of a point as files in a folder
    #[command(after_help = "Example: tidemark mount web-1 --at -15m /mnt/then --writable\n         \
        mount -o loop /mnt/then/disk-1.raw /mnt/files\n\n\
        ext4 and XFS replay their journal when they mount a crash-consistent disk and refuse to do so on a read-only one: \
        use --writable for them. Changes go to a private overlay that vanishes with the mount; those to a clone mounted \
        --at latest (or without --at) go into the clone and stay.")]
    Mount(MountArguments),
    /// End a `tidemark mount`
    #[command(after_help = "Example: tidemark unmount /mnt/then")]
    Unmount {
        /// The folder given to `tidemark mount`
        dir: PathBuf,
    },
    /// Write the manual pages into a folder
    #[command(hide = true, after_help = "Example: tidemark manual /usr/share/man/man1")]
    Manual {
        /// The folder
        dir: PathBuf,
    },
    /// Serve disks as of a point over NBD
    #[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
    #[command(after_help = "Examples:\n  tidemark export web-1 --at latest\n  tidemark export list\n  \
        tidemark export stop ID\n  tidemark export web-1-test --writable      # a clone, for writing\n  \
        tidemark export --set shop --at latest")]
    Export(ExportArguments),
    /// Writable copies of a point that last
    #[command(subcommand, after_help = "Example: tidemark clone create web-1 --at -15m --name web-1-test")]
    Clone(CloneCommand),
    /// ISOs, OVAs, templates and other files, kept and deduplicated at the appliance
    #[command(subcommand, after_help = "Example: tidemark object put debian-12.iso --tag os=debian")]
    Object(ObjectCommand),
    /// Long work that runs at the appliance
    #[command(subcommand, after_help = "Example: tidemark job list")]
    Job(JobCommand),
    /// Look into a journal's files, without an appliance
    #[command(subcommand, after_help = "Example: tidemark journal verify /var/lib/tidemark/vms/ID/journal")]
    Journal(JournalCommand),
    /// One screen: every VM, what would be lost now, gaps, alarms
    #[command(after_help = "Example: tidemark status")]
    Status,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Make a token that enrols one splitter; the last word printed is the token
    #[command(after_help = "Example: tidemark token create --vm web-1 --ttl 1h")]
    Create {
        /// Name of the virtual machine
        #[arg(long, value_name = "NAME")]
        vm: String,
        /// How long the token may be used (90s, 30m, 1h, 7d)
        #[arg(long, default_value = "1h", value_parser = parse_duration)]
        ttl: Duration,
        /// Enrol the VM anew: its old certificate is revoked, a quarantine ends
        #[arg(long)]
        replace: bool,
    },
    /// Tokens and whether they were used
    #[command(after_help = "Example: tidemark token list")]
    List,
    /// Make a token useless
    #[command(after_help = "Example: tidemark token revoke 1f2e3d4c")]
    Revoke {
        /// From `token list`
        id: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum CertCommand {
    /// Issued certificates
    #[command(after_help = "Example: tidemark cert list")]
    List,
    /// Refuse a certificate from now on
    #[command(after_help = "Example: tidemark cert revoke 0a1b2c3d")]
    Revoke {
        /// From `cert list`
        serial: String,
    },
}

/// The states of the command line contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum VmState {
    New,
    InitialSync,
    Protected,
    DirtyOnly,
    Resync,
    Verify,
    Disconnected,
    Quarantined,
    Error,
}

impl VmState {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::InitialSync => "initial-sync",
            Self::Protected => "protected",
            Self::DirtyOnly => "dirty-only",
            Self::Resync => "resync",
            Self::Verify => "verify",
            Self::Disconnected => "disconnected",
            Self::Quarantined => "quarantined",
            Self::Error => "error",
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum VmCommand {
    /// Every VM with its state
    #[command(after_help = "Example: tidemark vm list --json")]
    List,
    /// One VM in detail
    #[command(after_help = "Example: tidemark vm show web-1")]
    Show {
        /// The VM
        name: String,
    },
    /// Forget a VM and delete its journal: no point of it can be recovered afterwards
    #[command(after_help = "Example: tidemark vm remove web-1")]
    Remove {
        /// The VM
        name: String,
        /// Do not ask on a terminal
        #[arg(long)]
        yes: bool,
    },
    /// Set a tag of a VM, remove it (key=), or show all
    #[command(
        after_help = "Examples:\n  tidemark vm tag web-1 app=shop\n  tidemark vm tag web-1 app=\n  tidemark vm tag web-1"
    )]
    Tag {
        /// The VM
        name: String,
        /// The tag; of an empty value it is removed
        #[arg(value_name = "KEY=VALUE", value_parser = parse_tag)]
        tag: Option<(String, String)>,
    },
    /// Read a VM's disks again, while it runs, and compare them with the journal
    #[command(after_help = "Examples:\n  \
        tidemark vm verify web-1 --wait\n  \
        tidemark vm verify web-1 --disk disk-1\n\n\
        What differs is read again under a gap of its own, and the points that may hold it wrong are shown as in doubt by \
        `tidemark point list`. With --wait the command fails if anything differed. Nothing is interrupted while \
        all agrees. A broken connection goes on where it was; a restarted splitter begins anew.")]
    Verify(VerifyArguments),
    /// Wait until a VM reaches a state
    #[command(after_help = "Example: tidemark vm wait web-1 --state protected --timeout 60s")]
    Wait {
        /// The VM
        name: String,
        #[arg(long, value_enum)]
        state: VmState,
        /// Give up after this long (90s, 30m, 1h)
        #[arg(long, default_value = "60s", value_parser = parse_duration)]
        timeout: Duration,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ConsistencyLevel {
    Crash,
    Filesystem,
    Application,
}

impl ConsistencyLevel {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Crash => "crash",
            Self::Filesystem => "filesystem",
            Self::Application => "application",
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum BookmarkCommand {
    /// Name the present moment; fails when the asked level was not achieved
    #[command(after_help = "Examples:\n  tidemark bookmark create before-upgrade --vm web-1\n  \
        tidemark bookmark create nightly --vm web-1 --consistency application --allow-lower\n  \
        tidemark bookmark create year-end --vm web-1 --hold-until 2030-01-01T00:00:00Z\n  \
        tidemark bookmark create before-upgrade --set shop --consistency application      # one moment of all its VMs")]
    Create {
        /// Unique among the VM's bookmarks, or the set's
        name: String,
        /// The virtual machine
        #[arg(long, value_name = "VM", required_unless_present = "set")]
        vm: Option<String>,
        /// One moment of all virtual machines of this set
        #[arg(long, value_name = "SET", conflicts_with_all = ["vm", "hold", "hold_until", "lock_until"])]
        set: Option<String>,
        /// What the point must be good for: `filesystem` freezes the file systems on the protected disks for a moment,
        /// `application` has the guest's freeze hooks run besides
        #[arg(long, value_enum, default_value = "crash")]
        consistency: ConsistencyLevel,
        /// Accept a lower level than the one asked for
        #[arg(long)]
        allow_lower: bool,
        #[command(flatten)]
        keep: HoldArguments,
    },
    /// Keep a bookmark's point beyond the window
    #[command(after_help = "Examples:\n  tidemark bookmark hold before-upgrade --vm web-1\n  \
        tidemark bookmark hold audit --vm web-1 --lock-until 2030-01-01T00:00:00Z\n  \
        tidemark bookmark holds --vm web-1")]
    Hold {
        /// The bookmark
        name: String,
        /// The virtual machine
        #[arg(long, value_name = "VM")]
        vm: String,
        #[command(flatten)]
        keep: HoldArguments,
    },
    /// Let retention have a held bookmark's point again; a lock cannot be released
    #[command(after_help = "Example: tidemark bookmark release before-upgrade --vm web-1")]
    Release {
        /// The bookmark
        name: String,
        /// The virtual machine
        #[arg(long, value_name = "VM")]
        vm: String,
    },
    /// What keeps points of a VM beyond its window
    #[command(after_help = "Example: tidemark bookmark holds --vm web-1")]
    Holds {
        /// The virtual machine
        #[arg(long, value_name = "VM")]
        vm: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum PointCommand {
    /// Where a VM, or a set as one, can be recovered to
    #[command(after_help = "Examples:\n  tidemark point list web-1 --from -2h --search upgrade\n  \
        tidemark point list --set shop --from -2h")]
    List {
        /// The virtual machine
        #[arg(required_unless_present = "set")]
        vm: Option<String>,
        /// Points of all virtual machines of this set
        #[arg(long, value_name = "SET", conflicts_with = "vm")]
        set: Option<String>,
        /// Nothing before this
        #[arg(long, value_name = "WHEN", allow_hyphen_values = true)]
        from: Option<When>,
        /// Nothing after this
        #[arg(long, value_name = "WHEN", allow_hyphen_values = true)]
        to: Option<When>,
        /// Only points whose name contains this
        #[arg(long, value_name = "TEXT")]
        search: Option<String>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct RecoverArguments {
    /// The virtual machine
    #[arg(required_unless_present = "set")]
    pub(crate) vm: Option<String>,
    /// All virtual machines of this set at one of its points, each into DIR/VM
    #[arg(long, value_name = "SET", conflicts_with_all = ["vm", "disk"])]
    pub(crate) set: Option<String>,
    /// The recovery point
    #[arg(long, value_name = "WHEN", allow_hyphen_values = true)]
    pub(crate) at: When,
    /// A folder for all disks; with --disk, a file or an unused block device
    #[arg(long, value_name = "DIR|FILE|DEVICE")]
    pub(crate) to: PathBuf,
    /// Only this disk (such as disk-1)
    #[arg(long, value_name = "ID")]
    pub(crate) disk: Option<DiskId>,
    /// Replace files that exist already
    #[arg(long)]
    pub(crate) overwrite: bool,
    /// Have the appliance certify what was recovered, and write that to this file (read the disks once more)
    #[arg(long, value_name = "FILE")]
    pub(crate) certificate: Option<PathBuf>,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct MountArguments {
    /// The virtual machine
    pub(crate) vm: String,
    /// The recovery point; not needed to write into a clone
    #[arg(long, value_name = "WHEN", required_unless_present = "writable", allow_hyphen_values = true)]
    pub(crate) at: Option<When>,
    /// An empty folder; made when missing
    pub(crate) dir: PathBuf,
    /// Only this disk (such as disk-1)
    #[arg(long, value_name = "ID")]
    pub(crate) disk: Option<DiskId>,
    /// Allow changes, kept in a private overlay until unmounted, or in the clone
    #[arg(long)]
    pub(crate) writable: bool,
    /// Where the overlay lies; it may grow to the size of the disks [default: $TMPDIR or /tmp]
    #[arg(long, value_name = "DIR", requires = "writable")]
    pub(crate) overlay_dir: Option<PathBuf>,
    /// Serve from this process instead of a background one
    #[arg(long, short)]
    pub(crate) foreground: bool,
    /// Where the background process writes what goes wrong [default: ~/.local/state/tidemark/mount.log]
    #[arg(long, value_name = "FILE")]
    pub(crate) log: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct ExportArguments {
    #[command(subcommand)]
    pub(crate) command: Option<ExportCommand>,
    /// The virtual machine
    #[arg(required_unless_present = "set")]
    pub(crate) vm: Option<String>,
    /// All virtual machines of this set at one of its points
    #[arg(long, value_name = "SET", conflicts_with_all = ["vm", "writable", "disk"])]
    pub(crate) set: Option<String>,
    /// The recovery point
    #[arg(long, value_name = "WHEN", required_unless_present = "writable", allow_hyphen_values = true)]
    pub(crate) at: Option<When>,
    /// Write into a clone: each write is a recovery point of it
    #[arg(long)]
    pub(crate) writable: bool,
    /// Only this disk (such as disk-1)
    #[arg(long, value_name = "ID")]
    pub(crate) disk: Option<DiskId>,
    /// Serve over mutual TLS on the appliance's address HOST or HOST:PORT instead of a Unix socket
    #[arg(long, value_name = "ADDR")]
    pub(crate) tls: Option<String>,
    /// Where the client's credentials are written, one folder per export [default: ~/.config/tidemark/exports]
    #[arg(long, value_name = "DIR", requires = "tls")]
    pub(crate) credentials: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ExportCommand {
    /// Running exports
    #[command(after_help = "Example: tidemark export list")]
    List,
    /// Stop an export and disconnect its clients
    #[command(after_help = "Example: tidemark export stop 7c1f")]
    Stop {
        /// From `export list`
        id: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum JournalCommand {
    /// Check every checksum and rule of a journal; exit 1 when something is wrong
    #[command(after_help = "Examples:\n  tidemark journal verify /var/lib/tidemark/vms/ID/journal\n  \
        tidemark journal verify COPY --public-key signing.pub --at bookmark:before-upgrade\n\n\
        With --public-key it also proves that the log is as it was signed, up to which point, from the files alone.")]
    Verify {
        /// The journal's folder
        path: PathBuf,
        /// The appliance's public key, from DIR/signing/signing.pub: prove what it signed
        #[arg(long, value_name = "FILE")]
        public_key: Option<PathBuf>,
        /// The recovery point that must be proven
        #[arg(long, value_name = "WHEN", allow_hyphen_values = true, requires = "public_key")]
        at: Option<When>,
    },
    /// Check a recovery certificate, and with --file that a file is what it says
    #[command(
        after_help = "Example: tidemark journal verify-certificate web-1.json --public-key signing.pub --file /restore/disk-1.raw"
    )]
    VerifyCertificate {
        /// As `tidemark recover --certificate` wrote it
        certificate: PathBuf,
        /// The appliance's public key, from DIR/signing/signing.pub
        #[arg(long, value_name = "FILE")]
        public_key: PathBuf,
        /// The recovered file or device
        #[arg(long, value_name = "FILE|DEVICE")]
        file: Option<PathBuf>,
        /// Which disk of the certificate the file is (such as disk-1); needed when there are several
        #[arg(long, value_name = "ID", requires = "file")]
        disk: Option<DiskId>,
    },
    /// Print a journal's records, oldest first
    #[command(after_help = "Example: tidemark journal dump /var/lib/tidemark/vms/ID/journal | less")]
    Dump {
        /// The journal's folder
        path: PathBuf,
    },
}

/// A length of time with its unit: `90s`, `30m`, `1h`, `7d`.
pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("'{text}' is not a length of time: write 500ms, 90s, 30m, 1h or 7d");
    if let Some(digits) = text.strip_suffix("ms") {
        let number = digits.parse().ok().filter(|number: &u64| *number > 0);
        return number.map(Duration::from_millis).ok_or_else(wrong);
    }
    let unit = text.chars().last().ok_or_else(wrong)?;
    let seconds_per_unit = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        _ => return Err(wrong()),
    };
    let number: u64 = text.strip_suffix(unit).and_then(|digits| digits.parse().ok()).ok_or_else(wrong)?;
    let seconds = number.checked_mul(seconds_per_unit).filter(|seconds| *seconds > 0).ok_or_else(wrong)?;
    Ok(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_grammar_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_shows_an_example() {
        fn visit(command: &clap::Command, path: &str) {
            let path = format!("{path} {}", command.get_name());
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Example"), "{path} has no example");
            command.get_subcommands().for_each(|command| visit(command, &path));
        }
        visit(&Cli::command(), "");
    }

    #[test]
    fn relative_points_parse_as_they_stand() {
        for arguments in [
            vec!["tidemark", "mount", "web-1", "--at", "-90s", "/mnt"],
            vec!["tidemark", "recover", "web-1", "--at", "-15m", "--to", "/r"],
            vec!["tidemark", "export", "web-1", "--at", "-2h"],
            vec!["tidemark", "point", "list", "web-1", "--from", "-2h", "--to", "-1s"],
            vec!["tidemark", "point", "list", "--set", "shop", "--from", "-2h"],
            vec!["tidemark", "recover", "--set", "shop", "--at", "-15m", "--to", "/r"],
            vec!["tidemark", "export", "--set", "shop", "--at", "latest"],
            vec!["tidemark", "bookmark", "create", "x", "--set", "shop", "--allow-lower"],
            vec!["tidemark", "set", "change", "shop", "--every", "0", "--hold", "clock", "--order", "a,b"],
            vec!["tidemark", "export", "copy", "--writable"],
            vec!["tidemark", "mount", "copy", "/mnt", "--writable"],
            vec!["tidemark", "clone", "create", "web-1", "--at", "-2h", "--name", "copy"],
            vec!["tidemark", "role", "grant", "anna", "bookmark", "--set", "shop"],
            vec!["tidemark", "role", "revoke", "anna", "mount", "--vm", "web-1"],
            vec!["tidemark", "role", "list"],
            vec!["tidemark", "role", "context", "anna", "--out", "f", "--valid", "90d"],
            vec!["tidemark", "export", "list"],
            vec!["tidemark", "export", "stop", "7"],
        ] {
            Cli::try_parse_from(&arguments).unwrap_or_else(|error| panic!("{arguments:?}: {error}"));
        }
        for nobody in
            [["bookmark", "create", "x"].as_slice(), &["point", "list"], &["export", "--at", "latest"]]
        {
            let arguments = ["tidemark"].iter().chain(nobody);
            assert!(Cli::try_parse_from(arguments).is_err(), "{nobody:?}: a VM or a set is required");
        }
        for neither in [["--set", "s", "--vm", "v"].as_slice(), &[]] {
            let arguments = ["tidemark", "role", "grant", "anna", "mount"].iter().chain(neither);
            assert!(Cli::try_parse_from(arguments).is_err(), "{neither:?}: a right is of one of both");
        }
        assert!(Cli::try_parse_from(["tidemark", "export", "web-1"]).is_err(), "--at is required");
        assert!(Cli::try_parse_from(["tidemark", "mount", "web-1", "/mnt"]).is_err(), "--at is required");
    }

    #[test]
    fn durations_need_a_unit() {
        assert_eq!(parse_duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("7d"), Ok(Duration::from_secs(7 * 86_400)));
        for bad in
            ["", "90", "h", "0s", "-1h", "1.5h", "99999999999999999999s", "1й", "18446744073709551615d"]
        {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }
}
