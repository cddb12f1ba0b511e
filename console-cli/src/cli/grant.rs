//! Flags of `tidemark grant`.

use std::time::Duration;

use clap::{Args, Subcommand};
use tidemark_proto::ids::DiskId;

use super::arguments::parse_duration;
use crate::when::When;

#[derive(Debug, Subcommand)]
pub(crate) enum GrantCommand {
    /// Allow one disk as of one point to be restored without a certificate; the last word printed is the grant
    #[command(after_help = "Example: tidemark grant create web-1 --at -15m --disk disk-1 --ttl 2h\n\n\
        Whoever has the word can read that disk as of that point until it expires; a restore that was begun may go on \
        beyond. It may be used again, so that an interrupted restore goes on.")]
    Create(GrantArguments),
    /// Grants and whether they can be used
    #[command(after_help = "Example: tidemark grant list")]
    List,
    /// Make a grant useless, and end the restore that uses it
    #[command(after_help = "Example: tidemark grant revoke 1f2e3d4c")]
    Revoke {
        /// From `grant list`
        id: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct GrantArguments {
    /// The virtual machine, or clone
    pub(crate) vm: String,
    /// The recovery point
    #[arg(long, value_name = "WHEN", allow_hyphen_values = true)]
    pub(crate) at: When,
    /// The disk (such as disk-1)
    #[arg(long, value_name = "ID")]
    pub(crate) disk: DiskId,
    /// How long a restore may be begun with it (30m, 1h), 24 hours at most
    #[arg(long, default_value = "1h", value_parser = parse_duration)]
    pub(crate) ttl: Duration,
}
