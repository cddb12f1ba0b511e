//! Flags of `tidemark role`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use super::arguments::parse_duration;

#[derive(Debug, Subcommand)]
pub(crate) enum RoleCommand {
    /// Let a person do something from now on
    #[command(after_help = "Examples:\n  \
        tidemark role grant anna bookmark --set shop     # create, list and find its bookmarks\n  \
        tidemark role grant anna recover --set shop      # of every VM that is in the set then\n  \
        tidemark role grant anna mount --vm web-1        # and export it\n\n\
        To recover and to mount are rights of their own, though both read the same disks: they say for what somebody reads. A \
        right of a VM is of this VM, not of another that gets its name later.")]
    Grant(RightArguments),
    /// Take that away again, at once: what the person has open by it ends
    #[command(after_help = "Example: tidemark role revoke anna mount --vm web-1\n\n\
        A person without any right can do nothing with its certificate; `tidemark cert revoke` refuses it altogether.")]
    Revoke(RightArguments),
    /// Who may do what
    #[command(after_help = "Examples:\n  tidemark role list\n  tidemark role list anna --json")]
    List {
        /// The person; without it everybody
        name: Option<String>,
    },
    /// Make a key and a certificate for a person, in a file to be used with --context
    #[command(after_help = "Example: tidemark role context anna --out anna.context --valid 30d\n\n\
        The key is made here and in the file alone: give the person the file as you would give a password. The certificate \
        renews itself in its last third, as long as the person has a right.")]
    Context(ContextArguments),
}

#[derive(Debug, Args)]
pub(crate) struct RightArguments {
    /// The person: letters a-z, digits and -_.
    pub(crate) name: String,
    /// What it may do
    pub(crate) right: RightWord,
    #[command(flatten)]
    pub(crate) target: TargetArguments,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct TargetArguments {
    /// With this set; to recover or mount, with the VMs that are in it then
    #[arg(long, value_name = "SET")]
    pub(crate) set: Option<String>,
    /// With this VM or clone
    #[arg(long, value_name = "VM")]
    pub(crate) vm: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct ContextArguments {
    /// The person
    pub(crate) name: String,
    /// The file to be written; one that exists is refused
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// How long the certificate is valid (30d, 90d), 365 days at most
    #[arg(long, value_name = "TIME", default_value = "90d", value_parser = parse_duration)]
    pub(crate) valid: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum RightWord {
    Bookmark,
    Recover,
    Mount,
}

impl RightWord {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Bookmark => "bookmark",
            Self::Recover => "recover",
            Self::Mount => "mount",
        }
    }
}
