//! Virtual machines with stock Debian kernels, in software emulation: for what the machine that runs the tests cannot
//! show (other kernels, device-mapper, lockdown, power cuts).
//!
//! ```no_run
//! use tidemark_tests::guest::{Kernel, Guest};
//! let mut guest = Guest::builder(Kernel::V6_12).disk("data", 64 << 20).boot()?;
//! assert!(guest.sh("uname -r")?.starts_with("6.12"));
//! # anyhow::Ok(())
//! ```

mod image;
mod initramfs;
mod kernel;
mod machine;

pub use image::{System, SystemBuilder, system_unavailable};
pub use initramfs::Initramfs;
pub use kernel::{Kernel, KernelFiles};
pub use machine::{Builder, Guest, Outcome, host_program, unavailable};
