//! The chunk store of this appliance: one for all VMs, at `DIR/store`. Images of disks lie in it, and whatever else is
//! kept as chunks. Everything in it is encrypted under a master key, which is never in the store.

mod master;
mod roots;
mod store;

pub use master::{InvalidMasterKeySource, MasterKeyError, MasterKeySource};
pub use roots::{Roots, RootsError};
pub use store::{Images, ImagesError, SHARED_DOMAIN};
