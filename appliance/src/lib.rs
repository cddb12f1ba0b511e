//! The recovery appliance: takes the streams of splitters into journals, and gives back any point of them.

pub mod admin_context;
pub mod api;
pub mod catalog;
pub mod clock;
pub mod clones;
pub mod core;
pub mod data_dir;
pub mod enrolment;
pub mod export;
pub mod fleet;
pub mod http;
pub mod images;
pub mod ingest;
pub mod master_key;
pub mod metrics;
pub mod objects;
pub mod packs;
pub mod pki;
pub mod recovery;
pub mod retention;
pub mod server;
pub mod settings;
pub mod signing;
pub mod space;
pub mod tasks;
pub mod transport;
