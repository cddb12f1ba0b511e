//! The recovery appliance: takes the streams of splitters into journals, and gives back any point of them.

pub mod catalog;
pub mod clock;
pub mod data_dir;
pub mod export;
pub mod metrics;
pub mod pki;
pub mod recovery;
pub mod transport;
