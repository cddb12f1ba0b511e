//! Flags of `tidemark job` and `tidemark vm verify`.

use std::time::Duration;

use clap::{Args, Subcommand};
use tidemark_proto::ids::DiskId;

use super::arguments::parse_duration;

#[derive(Debug, Subcommand)]
pub(crate) enum JobCommand {
    /// Every verify that runs, and the last ones that ended; the newest first
    #[command(after_help = "Example: tidemark job list --json")]
    List,
    /// End a job before its time; what it found so far stays
    #[command(after_help = "Example: tidemark job cancel 3f2a9c1e-6d5b-4c1f-9a57-0f6f0a1e2b3c")]
    Cancel {
        /// The job
        id: String,
    },
    /// Wait until a job has ended; fails if the job did, or found something
    #[command(after_help = "Example: tidemark job wait 3f2a9c1e-6d5b-4c1f-9a57-0f6f0a1e2b3c --timeout 2h")]
    Wait {
        /// The job
        id: String,
        /// Give up after this long (90s, 30m, 1h); the job goes on
        #[arg(long, value_parser = parse_duration)]
        timeout: Option<Duration>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct VerifyArguments {
    /// The VM
    pub(crate) name: String,
    /// Only this disk (disk-1)
    #[arg(long, value_name = "ID")]
    pub(crate) disk: Option<DiskId>,
    /// Wait until it has ended, and fail if anything differed
    #[arg(long)]
    pub(crate) wait: bool,
}
