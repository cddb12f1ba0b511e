//! A view at the appliance, read over gRPC.

mod clone;
mod remote;

pub(crate) use clone::RemoteClone;
pub(crate) use remote::{Piece, RemoteView};
