//! The thread of one client.
//!
//! A client gets a thread with an event loop of its own: a read that waits for a disk then delays this client alone, and
//! an answer from memory leaves from the thread that received its request. [`CONNECTIONS_MAX`] and the number of exports
//! bound the threads.
//!
//! [`CONNECTIONS_MAX`]: super::registry

use std::io;
use std::sync::Arc;

use tokio::net::{TcpStream, UnixStream};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::connection::{self, Served};
use super::transmission::REQUESTS_AT_ONCE;

/// A client that was accepted, of either kind.
#[derive(Debug)]
pub(super) enum Client {
    Unix(std::os::unix::net::UnixStream),
    Tcp(std::net::TcpStream),
}

/// Serves a client on a thread of its own, until it leaves or `stop` is cancelled. Returns when the thread has ended;
/// dropping the future ends the client as well.
pub(super) async fn run(client: Client, served: Arc<Served>, stop: &CancellationToken) {
    let stop = stop.child_token();
    let _dropped = stop.clone().drop_guard();
    let (ended, wait) = oneshot::channel::<()>();
    let span = tracing::Span::current();
    let thread = std::thread::Builder::new().name("export".to_owned()).spawn(move || {
        // What a client does wrong is its own business: it is worth a line for whoever asks, no alarm.
        span.in_scope(|| {
            if let Err(error) = serve(client, &served, &stop) {
                tracing::info!("a client was disconnected: {error}");
            }
        });
        drop(ended);
    });
    match thread {
        // The sender is dropped at the thread's end, also by a panic.
        Ok(_) => drop(wait.await),
        Err(error) => tracing::warn!("a connection was closed, no thread can be started for it: {error}"),
    }
}

fn serve(client: Client, served: &Served, stop: &CancellationToken) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(REQUESTS_AT_ONCE)
        .thread_name("export-read")
        .build()?;
    let session = async {
        match client {
            Client::Unix(stream) => connection::serve(UnixStream::from_std(stream)?, served).await,
            Client::Tcp(stream) => connection::serve(TcpStream::from_std(stream)?, served).await,
        }
    };
    let result = runtime.block_on(
        async {
            tokio::select! {
                () = stop.cancelled() => Ok(()),
                result = session => result,
            }
        }
        .in_current_span(),
    );
    // A read that hangs on a disk must not keep the export from stopping.
    runtime.shutdown_background();
    result
}
