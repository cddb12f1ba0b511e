//! Accepts connections and finishes their TLS handshake before the HTTP/2 server sees them.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::{Connected, TcpConnectInfo, TlsConnectInfo};

use crate::metrics::Metrics;

/// Connections at most, in handshake or open: 1,000 splitters with a reconnect each, and consoles. Further clients wait
/// in the kernel's accept queue.
const CONNECTIONS_MAX: usize = 4096;

/// How long a client may take for its TLS handshake. A slower one is dropped.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// First byte of a TLS handshake record. Anything else is dropped without an answer.
const TLS_HANDSHAKE: u8 = 22;

/// How long accepting pauses after it failed (no file descriptors left, say).
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Connections whose handshake is done.
pub type Incoming = ReceiverStream<io::Result<Connection>>;

/// An accepted connection; counts against [`CONNECTIONS_MAX`] until dropped.
#[derive(Debug)]
pub struct Connection {
    stream: TlsStream<TcpStream>,
    _permit: OwnedSemaphorePermit,
}

/// Listens on `address` and accepts until the returned stream is dropped.
///
/// # Errors
/// When the address cannot be bound.
pub async fn bind(
    address: SocketAddr,
    tls: Arc<rustls::ServerConfig>,
    metrics: Arc<Metrics>,
) -> io::Result<(SocketAddr, Incoming)> {
    let listener = TcpListener::bind(address).await?;
    let local = listener.local_addr()?;
    let (sender, receiver) = mpsc::channel(16);
    tokio::spawn(accept(listener, TlsAcceptor::from(tls), sender, metrics));
    Ok((local, ReceiverStream::new(receiver)))
}

async fn accept(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    sender: mpsc::Sender<io::Result<Connection>>,
    metrics: Arc<Metrics>,
) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = Arc::clone(&slots).acquire_owned().await else { return };
        let (stream, peer) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
            () = sender.closed() => return,
        };
        let (acceptor, sender, metrics) = (acceptor.clone(), sender.clone(), Arc::clone(&metrics));
        tokio::spawn(async move {
            match tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake(acceptor, stream)).await {
                Ok(Ok(stream)) => {
                    // A closed channel means that the server is ending.
                    let _ = sender.send(Ok(Connection { stream, _permit: permit })).await;
                }
                Ok(Err(error)) => {
                    metrics.rejected("handshake");
                    tracing::debug!(%peer, %error, "connection refused: no valid TLS handshake");
                }
                Err(_) => {
                    metrics.rejected("handshake");
                    tracing::debug!(%peer, "connection refused: TLS handshake took too long");
                }
            }
        });
    }
}

async fn handshake(acceptor: TlsAcceptor, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
    stream.set_nodelay(true)?;
    let mut first = [0];
    if stream.peek(&mut first).await? == 0 || first != [TLS_HANDSHAKE] {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not TLS"));
    }
    acceptor.accept(stream).await
}

impl Connected for Connection {
    type ConnectInfo = TlsConnectInfo<TcpConnectInfo>;
    fn connect_info(&self) -> Self::ConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
