//! Files of a point: what `tidemark files` does beyond reading a file system.

mod compare;
mod history;
mod names;
mod pages;
mod partition;
mod ranges;
mod touched;
mod walk;

pub(crate) use compare::{Change, ChangeKind, Compared, compare};
pub(crate) use history::{Located, Moves, Search, Version, content_hash, find as find_versions};
pub(crate) use names::{shown, to_json as path_json};
pub(crate) use pages::{Pages, ReadCount};
pub(crate) use partition::choose;
pub(crate) use ranges::Ranges;
pub(crate) use touched::Facts;
pub(crate) use walk::walk;
