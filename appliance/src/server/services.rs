//! What is served: each service behind the gate that its callers pass.

use std::sync::Arc;
use std::time::Duration;

use tidemark_proto::limits::MESSAGE_MAX_BYTES;
use tidemark_proto::v1::attest_server::AttestServer;
use tidemark_proto::v1::clones_server::ClonesServer;
use tidemark_proto::v1::console_server::ConsoleServer;
use tidemark_proto::v1::enrolment_server::EnrolmentServer;
use tidemark_proto::v1::grants_server::GrantsServer;
use tidemark_proto::v1::history_server::HistoryServer;
use tidemark_proto::v1::jobs_server::JobsServer;
use tidemark_proto::v1::objects_server::ObjectsServer;
use tidemark_proto::v1::restore_server::RestoreServer;
use tidemark_proto::v1::retention_server::RetentionServer;
use tidemark_proto::v1::roles_server::RolesServer;
use tidemark_proto::v1::search_server::SearchServer;
use tidemark_proto::v1::sets_server::SetsServer;
use tidemark_proto::v1::splitter_server::SplitterServer;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Server;
use tower::util::MapRequestLayer;

use crate::api::{
    self, AttestService, ClonesService, ConsoleService, GrantsService, HistoryService, JobsService,
    ObjectsService, RetentionService, RolesService, SearchService, SetsService,
};
use crate::core::Core;
use crate::enrolment::{self, EnrolmentService};
use crate::ingest::SplitterService;
use crate::restoring::{self, RestoreService};
use crate::transport::{Incoming, noted};

/// Bytes of HTTP/2 flow control per stream and per connection: a stream at 400 MB/s with 40 ms of round trip and
/// scheduling. A splitter that sends more waits.
const HTTP2_WINDOW_BYTES: u32 = 16 << 20;

/// Bytes of one HTTP/2 data frame at most: fewer, larger ones cost less per byte.
const HTTP2_FRAME_BYTES: u32 = 1 << 20;

/// Calls at a time on one connection at most. Further ones wait.
const HTTP2_STREAMS_MAX: u32 = 128;

/// Silence after which a connection is pinged, and how long the answer may take: a dead console's view ends with it.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// Serves until `ending`.
pub(super) async fn serve(
    core: Arc<Core>,
    incoming: Incoming,
    ending: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let splitter = SplitterServer::new(SplitterService::new(Arc::clone(&core)))
        .max_decoding_message_size(MESSAGE_MAX_BYTES);
    let vm_gate = Arc::clone(&core.gate);
    let splitter = InterceptedService::new(splitter, move |request| vm_gate.admit_vm(request));
    /// A service that administrators call, and persons what the gate lets them.
    macro_rules! for_consoles {
        ($server:ident, $service:ident, $max_bytes:expr) => {{
            let gate = Arc::clone(&core.gate);
            let server = $server::new($service::new(Arc::clone(&core))).max_decoding_message_size($max_bytes);
            InterceptedService::new(server, move |request| gate.admit_console(request))
        }};
    }
    // These two judge for themselves: by a token, by a grant.
    let restore = RestoreServer::new(RestoreService::new(Arc::clone(&core)))
        .max_decoding_message_size(restoring::REQUEST_MAX_BYTES);
    let enrolment = EnrolmentServer::new(EnrolmentService::new(Arc::clone(&core)))
        .max_decoding_message_size(enrolment::REQUEST_MAX_BYTES);
    Server::builder()
        // The gate judges by the method, which services do not see.
        .layer(MapRequestLayer::new(noted::<Body>))
        .initial_stream_window_size(HTTP2_WINDOW_BYTES)
        .initial_connection_window_size(HTTP2_WINDOW_BYTES)
        .max_frame_size(HTTP2_FRAME_BYTES)
        .max_concurrent_streams(HTTP2_STREAMS_MAX)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .add_service(splitter)
        .add_service(for_consoles!(ConsoleServer, ConsoleService, api::REQUEST_MAX_BYTES))
        .add_service(for_consoles!(HistoryServer, HistoryService, api::REQUEST_MAX_BYTES))
        .add_service(for_consoles!(RetentionServer, RetentionService, api::REQUEST_MAX_BYTES))
        .add_service(for_consoles!(ClonesServer, ClonesService, api::CLONE_REQUEST_MAX_BYTES))
        .add_service(for_consoles!(SearchServer, SearchService, api::REQUEST_MAX_BYTES))
        .add_service(for_consoles!(ObjectsServer, ObjectsService, api::OBJECT_MESSAGE_MAX_BYTES))
        .add_service(for_consoles!(AttestServer, AttestService, api::REQUEST_MAX_BYTES))
        .add_service(for_consoles!(JobsServer, JobsService, api::REQUEST_MAX_BYTES))
        .add_service(for_consoles!(SetsServer, SetsService, api::REQUEST_MAX_BYTES))
        .add_service(for_consoles!(GrantsServer, GrantsService, api::REQUEST_MAX_BYTES))
        .add_service(for_consoles!(RolesServer, RolesService, api::REQUEST_MAX_BYTES))
        .add_service(restore)
        .add_service(enrolment)
        .serve_with_incoming_shutdown(incoming, ending.cancelled_owned())
        .await
}
