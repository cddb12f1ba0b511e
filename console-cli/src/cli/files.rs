//! Flags of `tidemark files`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use tidemark_proto::ids::DiskId;

use crate::when::When;

#[derive(Debug, Subcommand)]
pub(crate) enum FilesCommand {
    /// What a folder holds at a point
    #[command(after_help = "Examples:\n  \
        tidemark files list web-1 --at -15m /etc\n  \
        tidemark files list web-1 --at bookmark:before-upgrade --recursive --json")]
    List(ListFilesArguments),
    /// Which files were added, removed, renamed and changed between two points
    #[command(
        after_help = "Example: tidemark files diff web-1 --from bookmark:before-upgrade --to latest /etc\n\n\
        Reads what changed between the points: inode tables, folders and journals in which bytes differ, and names until \
        each changed file is found; the content of files is not read. Of a changed file it says what differs: `content` \
        (its blocks were written or lie elsewhere; what was written may be what was there), mode, owner, mtime, links, \
        attributes, or `replaced` (another file has its name). A rename is told by the inode and its generation; what \
        lies in a renamed folder is not listed again, and a renamed folder above PATH is. Attributes are flags, the \
        project, extended attributes and ACLs, or a time of change alone. Up to 500,000 changed files and 1,048,576 changed names; beyond, \
        name nearer points."
    )]
    Diff(DiffFilesArguments),
    /// The versions of one file over the history, and from which to which point each is there
    #[command(after_help = "Example: tidemark files history web-1 /etc/passwd --from -48h\n\n\
        Looks at the ends of windows, at bookmarks and snapshots, and halves between two points where the file differs \
        until they are neighbours. FROM and TO are points at which the version was seen. A FROM marked `exact` is the \
        very write with which the version appears (the commit of the guest's journal, or data written in place); else the \
        version began after the point named beside it, because no point lies between or --looks ended the search. \
        Two points at which inode and change time agree, of the file and of each folder above it, count as equal: a version is missed only if the guest's clock was \
        set back, or if a file was made and removed within one tick. Files above 64 MiB are told apart by times and \
        blocks, not by content. Each look is a view, so it is in the appliance's audit.")]
    History(FileHistoryArguments),
    /// Restore one file
    #[command(after_help = "Example: tidemark files get web-1 /etc/passwd --at -15m --to /tmp/passwd\n\n\
        The file appears when it is whole, sparse, with permissions and time of change; with its owner when you are root. \
        Set-uid, set-gid and extended attributes are left out. Symbolic links are not followed.")]
    Get(GetFileArguments),
}

/// Which file system.
#[derive(Debug, Clone, Args)]
pub(crate) struct VolumeArguments {
    /// The virtual machine
    pub(crate) vm: String,
    /// The disk (such as disk-1), if the VM has several
    #[arg(long, value_name = "ID")]
    pub(crate) disk: Option<DiskId>,
    /// The partition, if the disk has several with ext4
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) partition: Option<u32>,
}

#[derive(Debug, Args)]
pub(crate) struct ListFilesArguments {
    #[command(flatten)]
    pub(crate) volume: VolumeArguments,
    /// A folder, from the top of its file system
    #[arg(default_value = "/")]
    pub(crate) path: PathBuf,
    /// The recovery point
    #[arg(long, value_name = "WHEN", allow_hyphen_values = true)]
    pub(crate) at: When,
    /// Everything below, too
    #[arg(short, long)]
    pub(crate) recursive: bool,
    /// The BLAKE3 hash of each file up to 1 TiB, too: reads the content
    #[arg(long)]
    pub(crate) blake3: bool,
    /// Read the disk as it lies, without the file system's journal
    #[arg(long, hide = true)]
    pub(crate) ignore_journal: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DiffFilesArguments {
    #[command(flatten)]
    pub(crate) volume: VolumeArguments,
    /// Only this file, or what is at or below this folder
    #[arg(default_value = "/")]
    pub(crate) path: PathBuf,
    /// The earlier point
    #[arg(long, value_name = "WHEN", allow_hyphen_values = true)]
    pub(crate) from: When,
    /// The later point
    #[arg(long, value_name = "WHEN", allow_hyphen_values = true)]
    pub(crate) to: When,
}

#[derive(Debug, Args)]
pub(crate) struct FileHistoryArguments {
    #[command(flatten)]
    pub(crate) volume: VolumeArguments,
    /// The file, from the top of its file system
    pub(crate) path: PathBuf,
    /// Nothing before this
    #[arg(long, value_name = "WHEN", allow_hyphen_values = true)]
    pub(crate) from: Option<When>,
    /// Nothing after this
    #[arg(long, value_name = "WHEN", allow_hyphen_values = true)]
    pub(crate) to: Option<When>,
    /// Points to look at, at most
    #[arg(long, value_name = "N", default_value_t = 2000, value_parser = clap::value_parser!(u32).range(2..=1_000_000))]
    pub(crate) looks: u32,
}

#[derive(Debug, Args)]
pub(crate) struct GetFileArguments {
    #[command(flatten)]
    pub(crate) volume: VolumeArguments,
    /// The file, from the top of its file system
    pub(crate) path: PathBuf,
    /// The recovery point
    #[arg(long, value_name = "WHEN", allow_hyphen_values = true)]
    pub(crate) at: When,
    /// Where to
    #[arg(long, value_name = "FILE")]
    pub(crate) to: PathBuf,
    /// Replace a file that exists already
    #[arg(long)]
    pub(crate) overwrite: bool,
}
