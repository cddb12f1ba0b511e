//! End-to-end tests of Tidemark: oracles, the harnesses that run the real programs, and house checks.
//!
//! * [`stamp`]: the workload whose every sector says which write it came from, and the checker that judges an image.
//! * [`mod@bench`]: what benchmarks share.
//! * [`disks`]: block devices to protect, among them one with slow writes and fast reads.
//! * [`faults`]: splitters that lie, for negative controls.
//! * [`filetree`]: what a file system holds, by the kernel and by `tidemark files`.
//! * [`filework`]: a guest that works with files.
//! * [`freeze`]: whether a file system is as a freeze leaves it.
//! * [`guest`]: virtual machines with stock kernels.
//! * [`leftovers`]: what must be gone after a test, also after a killed one.
//! * [`mariadb`]: another database of our own.
//! * [`meter`]: a relay that counts what passes.
//! * [`process`]: programs under test.
//! * [`site`]: a whole installation on this machine.
//! * [`oracle`]: random points of an installation, judged.
//! * [`postgres`]: a database of our own, and the log of its commits.
//! * [`synthetic`]: a splitter without a kernel.
//! * [`witness`]: writes whose completion was seen from outside.
//! * [`house`]: the dependency direction between the crates.

pub mod bank;
pub mod bench;
pub mod disks;
pub mod faults;
pub mod filetree;
pub mod filework;
pub mod freeze;
pub mod guest;
pub mod house;
pub mod leftovers;
pub mod mariadb;
pub mod meter;
pub mod oracle;
pub mod postgres;
pub mod process;
pub mod site;
pub mod stamp;
pub mod synthetic;
pub mod witness;
