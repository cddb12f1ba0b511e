//! End-to-end tests of Tidemark: oracles, the harnesses that run the real programs, and house checks.
//!
//! * [`stamp`]: the workload whose every sector says which write it came from, and the checker that judges an image.
//! * [`house`]: the dependency direction between the crates.

pub mod house;
pub mod stamp;
