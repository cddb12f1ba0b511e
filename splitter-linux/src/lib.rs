//! The Linux splitter: capture of writes with an eBPF tap, the disks it protects, and the daemon around the engine.
//!
//! Architecture invariant: this crate knows kernels and disks. It does not know the journal or SQL.

pub mod capture;
pub mod cli;
pub mod control;
pub mod daemon;
pub mod disks;
pub mod enrol;
pub mod gate;
pub mod hold;
pub mod restore;
pub mod service;
pub mod spool;
pub mod state;
pub mod transport;
