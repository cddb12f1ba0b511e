//! Flags of `tidemark set`.

use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use super::arguments::parse_duration;
use crate::when::When;

#[derive(Debug, Subcommand)]
pub(crate) enum SetCommand {
    /// Name the VMs that belong together, by rules: those of today and those that come later
    #[command(after_help = "Examples:\n  \
        tidemark set create shop --match 'name=web-*' --match 'tag:app=shop' --policy gold\n  \
        tidemark set create shop-db --match 'name=db-*,tag:app=shop'      # both must hold\n  \
        tidemark set create shop --match 'tag:app=shop' --every 10s --hold freeze --order 'web-*,queue,db-*'\n\n\
        A VM is in the set if any --match holds for it; * stands for any characters, ? for one. Try rules first with \
        `tidemark set preview`. A VM without a policy of its own has that of the oldest of its sets that has one.")]
    Create {
        /// Name of the set
        name: String,
        #[command(flatten)]
        rules: Rules,
        /// The retention policy of its members
        #[arg(long, value_name = "NAME")]
        policy: Option<String>,
        #[command(flatten)]
        points: PointsArguments,
    },
    /// Replace the rules of a set, or its policy
    #[command(after_help = "Example: tidemark set change shop --match 'tag:app=shop' --no-policy")]
    Change {
        /// Name of the set
        name: String,
        /// The rules from now on, all of them
        #[arg(long = "match", value_name = "RULE")]
        rules: Vec<String>,
        /// The retention policy of its members from now on
        #[arg(long, value_name = "NAME", conflicts_with = "no_policy")]
        policy: Option<String>,
        /// No policy from now on
        #[arg(long)]
        no_policy: bool,
        #[command(flatten)]
        points: PointsArguments,
        /// Freeze hooks in no particular order from now on
        #[arg(long, conflicts_with = "order")]
        no_order: bool,
    },
    /// Which VMs rules match now, without storing anything
    #[command(after_help = "Example: tidemark set preview --match 'name=web-*'")]
    Preview {
        #[command(flatten)]
        rules: Rules,
    },
    /// Every set, with its members and what would be lost now
    #[command(after_help = "Example: tidemark set list --json")]
    List,
    /// The members of a set, why they are in it, and who came and went
    #[command(after_help = "Example: tidemark set show shop")]
    Show {
        /// Name of the set
        name: String,
    },
    /// What the members have written since a point: what would contradict one of them that goes back alone
    #[command(after_help = "Example: tidemark set diverged shop --at bookmark:before-upgrade --vm web-1")]
    Diverged {
        /// Name of the set
        name: String,
        /// The point
        #[arg(long, value_name = "WHEN", allow_hyphen_values = true)]
        at: When,
        /// The VM that is to go back; the others are looked at
        #[arg(long, value_name = "VM")]
        vm: Option<String>,
    },
    /// Forget a set and its points; its VMs and their history stay
    #[command(after_help = "Example: tidemark set remove shop")]
    Remove {
        /// Name of the set
        name: String,
    },
}

/// How automatic points may hold writers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum HoldWord {
    Free,
    Freeze,
    Clock,
}

impl HoldWord {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Free => "free",
            Self::Freeze => "freeze",
            Self::Clock => "clock",
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct PointsArguments {
    /// Take a point of all members this often (5s, 1m), or never with 0 [default: 5s]
    #[arg(long, value_name = "TIME", value_parser = parse_every)]
    pub(crate) every: Option<Duration>,
    /// What automatic points may do: `free` holds writers where that takes milliseconds, `freeze` freezes file systems, too,
    /// `clock` holds nobody [default: free]
    #[arg(long, value_enum)]
    pub(crate) hold: Option<HoldWord>,
    /// Patterns of members' names in the order in which freeze hooks run; thaw hooks run in the reverse order
    #[arg(long, value_name = "PATTERN,…", value_delimiter = ',')]
    pub(crate) order: Vec<String>,
}

/// A length of time, or 0 for never.
fn parse_every(text: &str) -> Result<Duration, String> {
    if text == "0" { Ok(Duration::ZERO) } else { parse_duration(text) }
}

#[derive(Debug, Args)]
pub(crate) struct Rules {
    /// name=PATTERN or tag:KEY=PATTERN, or several with commas between, which must all hold; may be given several times
    #[arg(long = "match", value_name = "RULE", required = true)]
    pub(crate) rules: Vec<String>,
}
