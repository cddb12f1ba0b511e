//! Connections: TLS before anything else, and who is at the other end.

mod gate;
mod listener;

pub use gate::{Gate, Peer};
pub use listener::{Incoming, bind};
