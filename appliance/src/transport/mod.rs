//! Connections: TLS before anything else, and who is at the other end.

mod gate;
mod listener;
mod method;
mod rate;

pub use gate::{Gate, Peer};
pub use listener::{Incoming, bind};
pub(crate) use method::noted;
pub use method::{Method, PERSON_METHODS};
pub(crate) use rate::Rate;
