//! The enrolled splitter's connection: both sides show certificates of the appliance's authority.

use std::time::Duration;

use tidemark_proto::tls::SERVER_NAME;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use super::{CONNECT_TIMEOUT, TransportError};

/// An idle connection is probed this often, so that a dead appliance is noticed within seconds.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(3);
/// How long a probe may go unanswered before the stream ends and the splitter connects anew.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(6);
/// Bytes the peer may send ahead per stream and connection. Acknowledgements are small; the other direction is limited
/// by the window that the appliance announces.
const WINDOW_BYTES: u32 = 16 << 20;

/// Connects with the splitter's certificate.
///
/// # Errors
/// [`TransportError`]; all but `Unreachable` need a person.
pub async fn mutual(
    address: &str,
    ca_pem: &str,
    certificate_pem: &str,
    key_pem: &str,
) -> Result<Channel, TransportError> {
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(ca_pem))
        .identity(Identity::from_pem(certificate_pem, key_pem))
        .domain_name(SERVER_NAME);
    Endpoint::from_shared(format!("https://{address}"))
        .map_err(|_| TransportError::Address(address.to_owned()))?
        .tls_config(tls)
        .map_err(|error| TransportError::Credentials(error.to_string()))?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .connect()
        .await
        .map_err(|error| TransportError::from_transport(address, &error))
}
