//! One client: greeting, negotiation, TLS where the export demands it, then transmission.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::negotiation::{Agreed, Negotiation, Security, Step};
use super::source::ExportSource;
use super::transmission;
use super::wire::{ClientFlags, OPTION_HEADER_BYTES, decode_client_flags, decode_option_header, greeting};

/// From accepting a connection to the end of its negotiation, TLS included. Slower clients are disconnected.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(20);
/// Options of one negotiation at most: real clients need six. Beyond it the client is disconnected.
const OPTIONS_MAX: usize = 64;

/// What every connection of an export shares.
pub(super) struct Served {
    pub(super) name: String,
    pub(super) source: Arc<dyn ExportSource>,
    /// Present on exports that demand TLS.
    pub(super) tls: Option<TlsAcceptor>,
}

/// Serves one client to its end.
pub(super) async fn serve<S>(mut stream: S, served: &Served) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let Some(acceptor) = &served.tls else {
        let negotiated = within_limit(async {
            let client = greet(&mut stream).await?;
            let mut negotiation = negotiation(served, client, Security::Local);
            negotiate(&mut stream, &mut negotiation).await
        });
        return match negotiated.await? {
            Outcome::Agreed(agreed) => transmission::serve(stream, Arc::clone(&served.source), agreed).await,
            Outcome::Left | Outcome::StartTls => Ok(()),
        };
    };
    let negotiated = within_limit(async {
        let client = greet(&mut stream).await?;
        let mut negotiation = negotiation(served, client, Security::TlsRequired);
        if !matches!(negotiate(&mut stream, &mut negotiation).await?, Outcome::StartTls) {
            return Ok(None);
        }
        let mut stream = acceptor.accept(stream).await?;
        negotiation.encrypted();
        Ok(match negotiate(&mut stream, &mut negotiation).await? {
            Outcome::Agreed(agreed) => Some((stream, agreed)),
            Outcome::Left | Outcome::StartTls => None,
        })
    });
    match negotiated.await? {
        Some((stream, agreed)) => transmission::serve(stream, Arc::clone(&served.source), agreed).await,
        None => Ok(()),
    }
}

fn negotiation(served: &Served, client: ClientFlags, security: Security) -> Negotiation<'_> {
    Negotiation::new(&served.name, served.source.size(), client, security)
        .writable(served.source.writer().is_some())
}

async fn within_limit<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(HANDSHAKE_LIMIT, work)
        .await
        .unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "the negotiation took too long")))
}

enum Outcome {
    Agreed(Agreed),
    StartTls,
    Left,
}

async fn greet<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S) -> io::Result<ClientFlags> {
    stream.write_all(&greeting()).await?;
    stream.flush().await?;
    let mut flags = [0; 4];
    stream.read_exact(&mut flags).await?;
    decode_client_flags(flags).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

async fn negotiate<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    negotiation: &mut Negotiation<'_>,
) -> io::Result<Outcome> {
    let mut out = Vec::new();
    for _ in 0..OPTIONS_MAX {
        let mut header = [0; OPTION_HEADER_BYTES];
        match stream.read_exact(&mut header).await {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(Outcome::Left),
            Err(error) => return Err(error),
        }
        let (option, length) = decode_option_header(header)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        let mut data = vec![0; usize::try_from(length).map_err(io::Error::other)?];
        stream.read_exact(&mut data).await?;
        out.clear();
        let step = negotiation.answer(option, &data, &mut out);
        stream.write_all(&out).await?;
        stream.flush().await?;
        match step {
            Step::Continue => {}
            Step::StartTls => return Ok(Outcome::StartTls),
            Step::Transmit(agreed) => return Ok(Outcome::Agreed(agreed)),
            Step::Close => return Ok(Outcome::Left),
        }
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "the client never stops negotiating"))
}
