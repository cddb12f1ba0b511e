//! NBD exports of views, read-only, and of clones, writable: a server of the fixed newstyle protocol.
//!
//! [`Exports`] is what the console service calls. Below it: [`wire`] (the encoding), [`negotiation`] (a state machine
//! without I/O), and the connections. Nothing is served without either a Unix socket of mode 0600 or TLS with a client
//! certificate of that one export.

mod connection;
mod credentials;
mod listener;
pub mod negotiation;
mod pace;
mod registry;
mod reply;
mod source;
mod transmission;
pub mod wire;
mod worker;

pub use registry::{ExportError, Exports};
pub use source::{ExportSource, ExportWriter, SourceExtent, ViewSource};
