//! Connections to the appliance. Before enrolment the authority is known by its hash only (`pinned`), afterwards by its
//! certificate, and the splitter shows its own (`mutual`).

mod mutual;
mod pinned;

pub use mutual::mutual;
pub use pinned::pinned;

use std::error::Error;
use std::io;
use std::time::Duration;

/// How long a connection may take. Beyond it the appliance counts as unreachable and the splitter tries again.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The appliance cannot be connected to.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The address does not parse.
    #[error("'{0}' is not an appliance address: it has the form HOST:PORT")]
    Address(String),
    /// Nobody answers.
    #[error(
        "cannot reach the appliance at {address} ({cause}): check that it runs and that the address is right"
    )]
    Unreachable {
        /// HOST:PORT.
        address: String,
        /// The innermost cause.
        cause: String,
    },
    /// Somebody answers who is not the appliance, or who does not take our certificate.
    #[error(
        "the appliance at {address} and this splitter do not trust each other ({cause}): enrol with a new token"
    )]
    Untrusted {
        /// HOST:PORT.
        address: String,
        /// The innermost cause.
        cause: String,
    },
    /// The stored credentials do not parse.
    #[error("the stored credentials cannot be used ({0}): enrol with a new token")]
    Credentials(String),
}

impl TransportError {
    /// Sorts the transport's error by its innermost cause, the only one that tells something.
    fn from_transport(address: &str, error: &(dyn Error + 'static)) -> Self {
        let mut cause = error;
        while let Some(next) = cause.source() {
            cause = next;
        }
        // A peer that is killed in the middle of a handshake has said nothing about trust.
        let ended = cause.downcast_ref::<io::Error>().is_some_and(|error| {
            matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset)
        });
        let cause = cause.to_string();
        let address = address.to_owned();
        let lower = cause.to_lowercase();
        if !ended && (lower.contains("certificate") || lower.contains("tls") || lower.contains("handshake")) {
            Self::Untrusted { address, cause }
        } else {
            Self::Unreachable { address, cause }
        }
    }
}
