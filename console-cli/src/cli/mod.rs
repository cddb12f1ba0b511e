//! The grammar of the command line.

mod arguments;
mod clone;
mod files;
mod grant;
mod history;
mod job;
mod object;
mod retention;
mod role;
mod search;
mod set;
mod usage;

pub(crate) use arguments::{
    BookmarkCommand, CertCommand, Cli, Command, ExportArguments, ExportCommand, JournalCommand,
    MountArguments, PointCommand, RecoverArguments, TokenCommand, VmCommand, VmState,
};
pub(crate) use clone::CloneCommand;
pub(crate) use files::{
    DiffFilesArguments, FileHistoryArguments, FilesCommand, GetFileArguments, ListFilesArguments,
    VolumeArguments,
};
pub(crate) use grant::{GrantArguments, GrantCommand};
pub(crate) use history::DiffArguments;
pub(crate) use job::{JobCommand, VerifyArguments};
pub(crate) use object::{GetArguments, ListArguments, ObjectCommand, ObjectKind, PutArguments, SetArguments};
pub(crate) use retention::{CreatePolicyArguments, HoldArguments, PolicyCommand};
pub(crate) use role::{ContextArguments, RightArguments, RoleCommand};
pub(crate) use search::SearchArguments;
pub(crate) use set::{PointsArguments, SetCommand};
pub(crate) use usage::{UsageError, one_line};
