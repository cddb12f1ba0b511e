//! A view at the appliance, read over gRPC.

mod remote;

pub(crate) use remote::{Piece, RemoteView};
