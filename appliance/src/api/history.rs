//! The history service: the same callers and rights as the console's.

use std::sync::Arc;

use tidemark_proto::v1::DiffRequest;
use tidemark_proto::v1::history_server::History;
use tonic::{Request, Response, Status};

use super::{caller, diff};
use crate::core::Core;

/// Answers questions about history.
#[derive(Debug)]
pub struct HistoryService {
    core: Arc<Core>,
}

impl HistoryService {
    /// Serves `core`.
    #[must_use]
    pub fn new(core: Arc<Core>) -> Self {
        Self { core }
    }
}

#[tonic::async_trait]
impl History for HistoryService {
    type DiffStream = diff::Differences;

    async fn diff(&self, request: Request<DiffRequest>) -> Result<Response<Self::DiffStream>, Status> {
        let caller = caller(&request)?;
        diff::diff(&self.core, &caller, request.into_inner()).await.map(Response::new)
    }
}
