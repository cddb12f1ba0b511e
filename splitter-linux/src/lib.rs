//! The Linux splitter: capture of writes with an eBPF tap, and the disks it protects.
//!
//! Architecture invariant: this crate knows kernels and disks. It does not know the journal or SQL.

pub mod capture;
pub mod disks;
