//! Flags of `tidemark clone`.

use clap::Subcommand;

use crate::when::When;

#[derive(Debug, Subcommand)]
pub(crate) enum CloneCommand {
    /// Make a writable copy of a point; it takes space only for what is written into it
    #[command(after_help = "Examples:\n  \
        tidemark clone create web-1 --at bookmark:before-upgrade --name web-1-test\n  \
        tidemark clone create web-1-test --at latest --name web-1-test-2     # a clone of a clone\n  \
        tidemark clone create --template web-template --name web-2\n\n\
        Use its name where a VM's is asked for: export, mount, recover, point list, diff. \
        `export --writable` and `mount --writable` write into it. The point stays recoverable as long as the clone is there, \
        and the template cannot be removed.")]
    Create {
        /// The virtual machine, or a clone
        #[arg(required_unless_present = "template")]
        vm: Option<String>,
        /// The recovery point
        #[arg(long, value_name = "WHEN", allow_hyphen_values = true, required_unless_present = "template")]
        at: Option<When>,
        /// Instead of a point: an object of kind template, a raw image (`tidemark object put`)
        #[arg(long, value_name = "OBJECT", conflicts_with_all = ["vm", "at"])]
        template: Option<String>,
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
