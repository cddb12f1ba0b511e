//! Benchmarks: each figure beside a baseline of the same run.

mod fio;
pub mod journal;
mod processes;
mod table;

pub use fio::{Fio, Load, fio};
pub use processes::{cpu_seconds, folder_bytes, resident_bytes};
pub use table::{Goal, Table};
