//! Flags of `tidemark set`.

use clap::{Args, Subcommand};

#[derive(Debug, Subcommand)]
pub(crate) enum SetCommand {
    /// Name the VMs that belong together, by rules: those of today and those that come later
    #[command(after_help = "Examples:\n  \
        tidemark set create shop --match 'name=web-*' --match 'tag:app=shop' --policy gold\n  \
        tidemark set create shop-db --match 'name=db-*,tag:app=shop'      # both must hold\n\n\
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
    /// Forget a set; its VMs and their history stay
    #[command(after_help = "Example: tidemark set remove shop")]
    Remove {
        /// Name of the set
        name: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Rules {
    /// name=PATTERN or tag:KEY=PATTERN, or several with commas between, which must all hold; may be given several times
    #[arg(long = "match", value_name = "RULE", required = true)]
    pub(crate) rules: Vec<String>,
}
