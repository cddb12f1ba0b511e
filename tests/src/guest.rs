//! Virtual machines with stock Debian kernels, in software emulation: for what the machine that runs the tests cannot
//! show (other kernels, device-mapper, lockdown, reboots, power cuts, disks that come and go).
//!
//! ```no_run
//! use tidemark_tests::guest::{Disk, Guest, Kernel};
//! let mut guest = Guest::builder(Kernel::V6_12).disk("data", 64 << 20).boot()?;
//! assert!(guest.sh("uname -r")?.starts_with("6.12"));
//! let mut guest = guest.reboot()?; // in order; the same disks
//! guest.hot_add(Disk::new("more", 32 << 20).scsi())?;
//! let device = guest.device("more")?; // /dev/sda
//! guest.resize("data", 96 << 20)?;
//! guest.hot_remove("more")?;
//! let machine = guest.power_cut()?; // qemu is killed: a machine that is off
//! let copy = machine.copy(Some("7d1dea2c-0000-4000-8000-00000000a002"))?; // a clone, or a snapshot to revert to
//! let guest = machine.boot()?;
//! # drop((copy, device, guest));
//! # anyhow::Ok(())
//! ```
//!
//! A boot takes about 3 s. [`Builder::file_systems`], [`Builder::lvm`] and [`Builder::splitter`] put whole sets of programs,
//! modules and boot scripts into the guest; scripts of [`Builder::at_boot`] run in the order given, before the guest takes
//! commands. A command is a shell script: [`Guest::sh`] for one that must succeed, [`Guest::run`] for any.
//!
//! **Power cuts.** A guest's disk has a volatile write cache by what it tells the kernel. What a power cut does with it is
//! [`Cache`]: `Kept` loses nothing that had completed (qemu hands writes to the host's page cache, which outlives it);
//! `Volatile` keeps what was flushed, and of the rest some: the first write to a block of 4 KiB since the last flush is
//! lost, a later one to the same block stays. So writes without a flush between them are reordered, as on a real disk.

mod builder;
mod control;
mod disk;
mod image;
mod initramfs;
mod kernel;
mod machine;
mod qemu;
mod qmp;
mod running;
mod splitter;

pub use builder::{Builder, host_program, unavailable};
pub use control::Outcome;
pub use disk::{Bus, Cache, Disk};
pub use image::{System, SystemBuilder, system_unavailable};
pub use initramfs::Initramfs;
pub use kernel::{Kernel, KernelFiles};
pub use machine::Machine;
pub use running::Guest;
pub use splitter::STATE;
