//! Flags of the commands that concern retention.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::when::When;

/// How long a bookmark's point is kept beyond the window.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct HoldArguments {
    /// Keep the point beyond the window, until it is released
    #[arg(long, conflicts_with_all = ["hold_until", "lock_until"])]
    pub(crate) hold: bool,
    /// Keep the point beyond the window until this time (RFC 3339; without a zone it is local)
    #[arg(long, value_name = "TIME", conflicts_with = "lock_until")]
    pub(crate) hold_until: Option<When>,
    /// Keep the point until this time, and let nobody release it before, not even an administrator
    #[arg(long, value_name = "TIME")]
    pub(crate) lock_until: Option<When>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PolicyCommand {
    /// Make a policy
    #[command(
        after_help = "Example: tidemark policy create gold --window 72h --window-min 24h --hourly 24 --daily 14"
    )]
    Create(CreatePolicyArguments),
    /// Every policy and the VMs that have it
    #[command(after_help = "Example: tidemark policy list")]
    List,
    /// One policy, as TOML that can be applied again
    #[command(after_help = "Example: tidemark policy show gold > gold.toml")]
    Show {
        /// The policy
        name: String,
    },
    /// Make or change policies as a file says; the same file again changes nothing
    #[command(after_help = "Example: tidemark policy apply -f policies.toml\n\n\
        The file holds tables like this one; all but window may be left out:\n\n  \
        [policy.gold]\n  \
        window = \"72h\"           # any write of the last 72 hours\n  \
        window-min = \"24h\"       # no shortage of space makes it shorter [default: window]\n  \
        window-size = \"200GiB\"   # the window ends early beyond so much log\n  \
        hourly = 24              # then the last point of each of 24 hours, UTC\n  \
        daily = 14\n  \
        weekly = 8\n  \
        monthly = 12\n  \
        yearly = 3\n  \
        lock = \"30d\"             # nobody can give up these snapshots for 30 days")]
    Apply {
        /// A TOML file
        #[arg(short, long, value_name = "FILE")]
        file: PathBuf,
    },
    /// Give a VM a policy
    #[command(after_help = "Example: tidemark policy assign gold web-1")]
    Assign {
        /// The policy
        policy: String,
        /// The virtual machine
        vm: String,
    },
    /// Fold and thin at once what the policies give up, and free its space
    #[command(after_help = "Example: tidemark policy run web-1")]
    Run {
        /// Only this virtual machine
        vm: Option<String>,
    },
    /// Fold nothing until `policy resume` or the appliance's next start: journals grow meanwhile
    #[command(after_help = "Example: tidemark policy pause")]
    Pause,
    /// Go on folding
    #[command(after_help = "Example: tidemark policy resume")]
    Resume,
}

#[derive(Debug, Args)]
pub(crate) struct CreatePolicyArguments {
    /// Letters, digits, - and _
    pub(crate) name: String,
    /// Any write that is younger can be recovered (90s, 30m, 72h, 7d, 4w)
    #[arg(long, value_name = "TIME")]
    pub(crate) window: String,
    /// No shortage of space makes the window shorter than this [default: the window]
    #[arg(long, value_name = "TIME")]
    pub(crate) window_min: Option<String>,
    /// The window ends early beyond so much log (500MiB, 200GiB, 2TiB)
    #[arg(long, value_name = "SIZE")]
    pub(crate) window_size: Option<String>,
    /// Beyond the window, the last point of each of so many hours
    #[arg(long, default_value_t = 0)]
    pub(crate) hourly: u32,
    /// Likewise of days, UTC
    #[arg(long, default_value_t = 0)]
    pub(crate) daily: u32,
    /// Likewise of weeks, from Monday on
    #[arg(long, default_value_t = 0)]
    pub(crate) weekly: u32,
    /// Likewise of months
    #[arg(long, default_value_t = 0)]
    pub(crate) monthly: u32,
    /// Likewise of years
    #[arg(long, default_value_t = 0)]
    pub(crate) yearly: u32,
    /// Nobody can give up these snapshots for so long
    #[arg(long, value_name = "TIME")]
    pub(crate) lock: Option<String>,
}
