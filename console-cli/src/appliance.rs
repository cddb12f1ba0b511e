//! The connection to the appliance.

use std::io;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use tidemark_proto::limits::MESSAGE_MAX_BYTES;
use tidemark_proto::tls::SERVER_NAME;
use tidemark_proto::v1::attest_client::AttestClient as GeneratedAttestClient;
use tidemark_proto::v1::clones_client::ClonesClient as GeneratedClonesClient;
use tidemark_proto::v1::console_client::ConsoleClient;
use tidemark_proto::v1::grants_client::GrantsClient as GeneratedGrantsClient;
use tidemark_proto::v1::history_client::HistoryClient as GeneratedHistoryClient;
use tidemark_proto::v1::jobs_client::JobsClient as GeneratedJobsClient;
use tidemark_proto::v1::objects_client::ObjectsClient as GeneratedObjectsClient;
use tidemark_proto::v1::retention_client::RetentionClient as GeneratedRetentionClient;
use tidemark_proto::v1::roles_client::RolesClient as GeneratedRolesClient;
use tidemark_proto::v1::search_client::SearchClient as GeneratedSearchClient;
use tidemark_proto::v1::sets_client::SetsClient as GeneratedSetsClient;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Status};

use crate::context::Context;

/// How long a connection may take. Beyond it the appliance counts as unreachable.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// An idle connection is probed this often, so that a dead appliance is noticed while a mount waits for data.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// How long a probe may go unanswered before every call on the connection fails.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes the appliance may send ahead per call and per connection: above the bandwidth-delay product of a LAN, so that
/// reads are limited by the link and not by acknowledgements.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;

/// Calls the appliance's console service.
pub(crate) type Client = ConsoleClient<Channel>;

/// Calls the appliance's history service.
pub(crate) type HistoryClient = GeneratedHistoryClient<Channel>;

/// Calls the appliance's retention service.
pub(crate) type RetentionClient = GeneratedRetentionClient<Channel>;

/// Calls the retention service over a channel.
pub(crate) fn retention(channel: Channel) -> RetentionClient {
    GeneratedRetentionClient::new(channel)
}

/// Calls the appliance's clones service.
pub(crate) type ClonesClient = GeneratedClonesClient<Channel>;

/// Calls the clones service over a channel.
pub(crate) fn clones(channel: Channel) -> ClonesClient {
    GeneratedClonesClient::new(channel)
        .max_decoding_message_size(MESSAGE_MAX_BYTES)
        .max_encoding_message_size(MESSAGE_MAX_BYTES)
}

/// Calls the appliance's search service.
pub(crate) type SearchClient = GeneratedSearchClient<Channel>;

/// Calls the search service over a channel.
pub(crate) fn search(channel: Channel) -> SearchClient {
    GeneratedSearchClient::new(channel).max_decoding_message_size(MESSAGE_MAX_BYTES)
}

/// Calls the appliance's objects service.
pub(crate) type ObjectsClient = GeneratedObjectsClient<Channel>;

/// Calls the sets service.
pub(crate) type SetsClient = GeneratedSetsClient<Channel>;

/// Calls the sets service over a channel.
pub(crate) fn sets(channel: Channel) -> SetsClient {
    GeneratedSetsClient::new(channel).max_decoding_message_size(MESSAGE_MAX_BYTES)
}

/// Calls the grants service.
pub(crate) type GrantsClient = GeneratedGrantsClient<Channel>;

/// Calls the grants service over a channel.
pub(crate) fn grants(channel: Channel) -> GrantsClient {
    GeneratedGrantsClient::new(channel).max_decoding_message_size(MESSAGE_MAX_BYTES)
}

/// Calls the roles service.
pub(crate) type RolesClient = GeneratedRolesClient<Channel>;

/// Calls the roles service over a channel.
pub(crate) fn roles(channel: Channel) -> RolesClient {
    GeneratedRolesClient::new(channel).max_decoding_message_size(MESSAGE_MAX_BYTES)
}

/// Calls the jobs service.
pub(crate) type JobsClient = GeneratedJobsClient<Channel>;

/// Calls the jobs service over a channel.
pub(crate) fn jobs(channel: Channel) -> JobsClient {
    GeneratedJobsClient::new(channel).max_decoding_message_size(MESSAGE_MAX_BYTES)
}

/// Calls the service that signs.
pub(crate) type AttestClient = GeneratedAttestClient<Channel>;

/// Calls the service that signs over a channel.
pub(crate) fn attest(channel: Channel) -> AttestClient {
    GeneratedAttestClient::new(channel).max_decoding_message_size(MESSAGE_MAX_BYTES)
}

/// Calls the console service over a channel.
pub(crate) fn console(channel: Channel) -> Client {
    ConsoleClient::new(channel)
        .max_decoding_message_size(MESSAGE_MAX_BYTES)
        .max_encoding_message_size(MESSAGE_MAX_BYTES)
}

/// Calls the history service over a channel.
pub(crate) fn history(channel: Channel) -> HistoryClient {
    GeneratedHistoryClient::new(channel).max_decoding_message_size(MESSAGE_MAX_BYTES)
}

/// Calls the objects service over a channel.
pub(crate) fn objects(channel: Channel) -> ObjectsClient {
    GeneratedObjectsClient::new(channel).max_decoding_message_size(MESSAGE_MAX_BYTES)
}

/// Connects with the credentials of `context`; for several services.
pub(crate) async fn channel(context: &Context) -> Result<Channel> {
    let tls = ClientTlsConfig::new()
        .domain_name(SERVER_NAME)
        .ca_certificate(Certificate::from_pem(&context.ca_pem))
        .identity(Identity::from_pem(&context.certificate_pem, &context.key_pem));
    Endpoint::from_shared(format!("https://{}", context.address))
        .with_context(|| format!("the context's address '{}' is not HOST:PORT", context.address))?
        .tls_config(tls)
        .context("the context's certificates cannot be used: copy the appliance's admin.context again")?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .connect()
        .await
        .map_err(|error| unreachable(&context.address, &error))
}

/// The innermost cause is the one that tells something ("connection refused", "invalid peer certificate").
fn innermost<'a>(error: &'a (dyn std::error::Error + 'static)) -> &'a (dyn std::error::Error + 'static) {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause
}

fn unreachable(address: &str, error: &(dyn std::error::Error + 'static)) -> anyhow::Error {
    let cause = innermost(error);
    // A peer that is killed in the middle of a handshake has said nothing about trust.
    let ended = cause.downcast_ref::<io::Error>().is_some_and(|error| {
        matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset)
    });
    let lower = cause.to_string().to_lowercase();
    if !ended && (lower.contains("certificate") || lower.contains("tls") || lower.contains("handshake")) {
        anyhow!(
            "the appliance at {address} and this context do not trust each other ({cause}): \
             copy its admin.context again, or have your certificate renewed"
        )
    } else {
        anyhow!(
            "cannot reach the appliance at {address} ({cause}): check that it runs and that the address is right"
        )
    }
}

/// A refusal or failure of one call, in one line that says what to do.
pub(crate) fn refused(status: &Status) -> anyhow::Error {
    let said = status.message().replace(['\r', '\n'], " ");
    match status.code() {
        // With a cause it is the transport's own; without one the appliance says so.
        Code::Unavailable if std::error::Error::source(status).is_some() || said.is_empty() => anyhow!(
            "the connection to the appliance broke ({}): check that it runs, then try again",
            std::error::Error::source(status).map_or(said, |error| innermost(error).to_string())
        ),
        Code::Unimplemented => anyhow!("the appliance does not know this command: upgrade the appliance"),
        Code::PermissionDenied | Code::Unauthenticated if said.is_empty() => {
            anyhow!("your certificate does not allow this: ask an administrator of the appliance")
        }
        Code::DeadlineExceeded => {
            anyhow!("the appliance did not answer in time: try again, then look at its log")
        }
        _ if said.is_empty() => anyhow!("the appliance failed ({}): look at its log", status.code()),
        _ => anyhow!("{said}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handshake_that_ends_early_says_nothing_about_trust() {
        let ended = io::Error::new(io::ErrorKind::UnexpectedEof, "tls handshake eof");
        assert!(unreachable("a:1", &ended).to_string().starts_with("cannot reach"));
        let refused = io::Error::new(io::ErrorKind::InvalidData, "received fatal alert: HandshakeFailure");
        assert!(unreachable("a:1", &refused).to_string().contains("do not trust each other"));
    }

    #[test]
    fn refusals_are_one_line() {
        let text = refused(&Status::failed_precondition("inside a gap\nnearest: lsn:7")).to_string();
        assert_eq!(text, "inside a gap nearest: lsn:7");
        assert!(refused(&Status::new(Code::Internal, "")).to_string().contains("log"));
    }
}
