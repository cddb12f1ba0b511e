//! Flags of `tidemark clone`.

use clap::Subcommand;

use crate::when::When;

#[derive(Debug, Subcommand)]
pub(crate) enum CloneCommand {
    /// Make a writable copy of a point; it takes space only for what is written into it
    #[command(after_help = "Examples:\n  \
        tidemark clone create web-1 --at bookmark:before-upgrade --name web-1-test\n  \
        tidemark clone create web-1-test --at latest --name web-1-test-2     # a clone of a clone\n\n\
        Use its name where a VM's is asked for: export, mount, recover, point list, diff. \
        `export --writable` and `mount --writable` write into it. The point stays recoverable as long as the clone is there.")]
    Create {
        /// The virtual machine, or a clone
        vm: String,
        /// The recovery point
        #[arg(long, value_name = "WHEN", allow_hyphen_values = true)]
        at: When,
        /// What the clone is called; no VM and no other clone is
        #[arg(long, value_name = "NAME")]
        name: String,
    },
    /// Every clone, what it was made from, and what it takes
    #[command(after_help = "Example: tidemark clone list --json")]
    List,
    /// Delete a clone and what was written into it
    #[command(after_help = "Example: tidemark clone remove web-1-test")]
    Remove {
        /// The clone
        name: String,
    },
}
