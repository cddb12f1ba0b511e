//! The gate: synchronous mode for LVM volumes, and the hold of a barrier.
//!
//! A gate captures nothing. It is a ublk device that lies under a volume while it is in use (`insertion`), served by a
//! process of its own (`server`, `queue`): a request goes to the volume's old place (a private mapping), and when it has
//! completed there, a write's completion is held until everything that the tap had recorded by then is acknowledged by
//! the appliance. There is one capture and one order; going in or out of synchronous mode needs no resync.
//!
//! - `abi`, `device`: the kernel's ublk interface. Our own, not a library: the part used is a dozen commands, the queue
//!   must not panic, allocate or meet an asynchronous run time on the way of a request, and a binding generator (libclang)
//!   at build time would be the larger dependency.
//! - `mapper`, `volume`: device-mapper, and which volumes are suitable.
//! - `page`: memory shared between splitter and gate. What is acknowledged and what is promised is read there for every
//!   write, without a message; both sides survive the other's death.
//! - `sampler`: the tap's position and generation, from the pinned maps.
//! - `barrier`: holding everything for a moment.
//! - `launch`: how the process is started, so that it outlives the splitter.
//! - `keeper`, `shared`: the splitter's side: has gates in place and in force, makes and renews promises.
//!
//! **The lease.** The splitter promises the appliance, in pings: until this moment (of the guest's boot time) no write of
//! that volume completes before it is durable there. It renews while acknowledgements come. When they stop, the promise
//! runs out, at the latest `SYNC_LEASE_US` and `FRESH_US` after the last acknowledgement; only then, with `on-lapse async`,
//! are writes completed without the appliance. So the appliance knows "sync proven until T" whatever became of the guest.
//!
//! **Deaths.** The gate's process: the driver keeps its requests and issues them again to the next process, which the
//! keeper starts. The splitter: the gate goes on, writes wait for the next one, at most as long as the lease. Both: the
//! next splitter finds both.

mod abi;
mod barrier;
mod buffers;
mod device;
mod error;
mod insertion;
mod keeper;
mod launch;
mod mapper;
mod page;
mod queue;
mod sampler;
mod server;
mod shared;
mod volume;

pub use barrier::{HOLD_MAX, Hold, hold_all};
pub use error::GateError;
pub use page::OnLapse;
pub use server::{clear, run};

pub(crate) use keeper::{Order, start, take_out};
pub(crate) use mapper::Mapper;
pub(crate) use page::Page;
pub(crate) use shared::Gates;
pub(crate) use volume::MAPPING_PREFIX;

use std::path::Path;

/// The volume in synchronous mode that lies on a disk, if any: the disk must stay protected.
pub(crate) fn on_disk(gates: &Gates, disk: &Path) -> Option<std::path::PathBuf> {
    let lies_on = |name: &str| {
        let mapper = Mapper::open().ok()?;
        let private = volume::Volume::named(&mapper, &volume::private_name(name)).ok()??;
        let leaves = crate::disks::sysfs::leaves(&private.folder());
        leaves.iter().any(|leaf| Path::new(&crate::disks::sysfs::device_file(leaf)) == disk).then_some(())
    };
    gates.list().iter().find(|gate| lies_on(&gate.name).is_some()).map(|gate| gate.path.clone())
}
