//! What splitter, appliance and console agree on: identifiers, limits, the protocol version and, with the feature
//! `services`, the gRPC services. This crate knows neither storage nor disks.
//!
//! `PROTOCOL.md` explains the stream.

#[cfg(feature = "messages")]
pub mod chain;
pub mod ids;
#[cfg(feature = "messages")]
mod level;
pub mod limits;
#[cfg(feature = "messages")]
pub mod pieces;
pub mod tls;
pub mod token;
pub mod version;

/// The full names of all methods of all services, as they are called: whoever judges by names can be held against it.
#[cfg(feature = "messages")]
pub const METHODS: &[&str] = include!(concat!(env!("OUT_DIR"), "/methods.rs"));

/// Messages, and with the feature `services` the services, generated from `schema/`.
#[cfg(feature = "messages")]
pub mod v1 {
    #![allow(
        clippy::all,
        clippy::pedantic,
        clippy::allow_attributes_without_reason,
        missing_debug_implementations,
        unreachable_pub,
        unused_qualifications,
        reason = "generated code"
    )]
    include!(concat!(env!("OUT_DIR"), "/tidemark.v1.rs"));
}
