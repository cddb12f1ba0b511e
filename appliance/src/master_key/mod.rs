//! Another master key: over the chunk store's keys, and over the data keys of every VM's and clone's log.
//!
//! It is done by whoever has the data folder, while no appliance serves it: a key, or the command that fetches one, is for
//! root on the appliance to name and not for whoever reaches its port; and no journal can be made or opened meanwhile under
//! a key that is about to end. Splitters keep what is written in their rings and go on afterwards.
//!
//! ## The file `store/master-change`, version 1
//! TOML: `version`, `to` (where the new key comes from, as for `--master-key`, or `default`), `from_default` (the old one was
//! `DIR/ca/store.key`), `data_keys` (each log and domain gets a new data key too), `change` (hexadecimal digits: the
//! file of [`MasterChange`](tidemark_journal::store::keys::MasterChange)). It is durable before anything is wrapped anew
//! and goes after everything is; as long as it is there, the next start of the appliance or of the command goes on.

mod command;
mod record;
mod rotate;
mod show;

pub use command::{KeyArguments, KeyCommand, run};
pub use record::ChangeRecord;
pub(crate) use rotate::UNFINISHED;
pub use rotate::{Finished, RotateError, finish, pending, rotate};
pub use show::{KeyState, look};
