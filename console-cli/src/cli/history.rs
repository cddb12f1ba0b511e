//! Flags of the commands that ask about history.

use clap::Args;
use tidemark_proto::ids::DiskId;

use crate::when::When;

#[derive(Debug, Args)]
pub(crate) struct DiffArguments {
    /// The virtual machine
    pub(crate) vm: String,
    /// The earlier point
    #[arg(long, value_name = "WHEN", allow_hyphen_values = true)]
    pub(crate) from: When,
    /// The later point; with --other a point of that VM
    #[arg(long, value_name = "WHEN", allow_hyphen_values = true)]
    pub(crate) to: When,
    /// Compare with another VM's disks of the same ids: reads what is data in either
    #[arg(long, value_name = "VM")]
    pub(crate) other: Option<String>,
    /// Only this disk (such as disk-1)
    #[arg(long, value_name = "ID")]
    pub(crate) disk: Option<DiskId>,
    /// Print every range, not only the first 20 of a disk
    #[arg(long)]
    pub(crate) all: bool,
}
