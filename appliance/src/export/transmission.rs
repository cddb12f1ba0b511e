//! Requests and replies after the negotiation. Small reads are answered where they arrive, and the replies of all that
//! have arrived leave with one write; larger ones run beside each other on blocking threads, and their replies leave in
//! the order in which they are ready.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::sync::{Mutex as AsyncMutex, OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

use super::negotiation::Agreed;
use super::pace::Pace;
use super::reply;
use super::source::{ExportSource, ExportWriter};
use super::wire::{
    Command, REQUEST_HEADER_BYTES, REQUEST_MAX_BYTES, Request, command_flag, decode_request, errno,
};

/// Large requests of one connection that are worked on at once. Further ones wait in the socket.
pub(super) const REQUESTS_AT_ONCE: usize = 16;
/// Unit in which the memory of requests is counted.
const BUDGET_UNIT_BYTES: u32 = 4096;
/// Memory of one connection's large requests: one of the largest size, or many of fewer bytes. Further ones wait.
const BUDGET_UNITS: u32 = REQUEST_MAX_BYTES / BUDGET_UNIT_BYTES;
/// Reads up to this size are small: from memory they cost less than handing them to another thread.
const SMALL_BYTES: u32 = 32 << 10;
/// Replies to small requests that are kept for one write, at most: what a socket takes at once. One more may be added
/// to that.
const REPLIES_BYTES: usize = 192 << 10;
/// Buffers kept for the next large read, and their largest size: what a busy client uses over and over.
const POOL_BUFFERS: usize = REQUESTS_AT_ONCE;
const POOL_BUFFER_BYTES: usize = 1 << 20;
/// Bytes read at once for `CACHE` and thrown away.
const SCRATCH_BYTES: usize = 256 << 10;

/// Empty buffers of ended requests. Fresh memory for every read would cost a page fault per 4 KiB.
#[derive(Debug, Default)]
struct Pool(Mutex<Vec<Vec<u8>>>);

impl Pool {
    fn take(&self) -> Vec<u8> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }

    fn give(&self, mut buffer: Vec<u8>) {
        buffer.clear();
        let mut pool = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if buffer.capacity() <= POOL_BUFFER_BYTES && pool.len() < POOL_BUFFERS {
            pool.push(buffer);
        }
    }
}

/// One connection's shared parts.
struct Connection<W> {
    source: Arc<dyn ExportSource>,
    agreed: Agreed,
    writer: AsyncMutex<W>,
    pool: Pool,
}

impl<W: AsyncWrite + Unpin> Connection<W> {
    async fn send(&self, replies: &[u8]) -> io::Result<()> {
        let mut writer = self.writer.lock().await;
        writer.write_all(replies).await?;
        writer.flush().await
    }
}

/// The large requests of a connection that are worked on, and what bounds them.
struct Workers {
    requests: Arc<Semaphore>,
    budget: Arc<Semaphore>,
    /// End with the connection, also when a client that does not read keeps replies waiting.
    answers: JoinSet<()>,
}

impl Workers {
    fn new() -> Self {
        Self {
            requests: Arc::new(Semaphore::new(REQUESTS_AT_ONCE)),
            budget: Arc::new(Semaphore::new(BUDGET_UNITS as usize)),
            answers: JoinSet::new(),
        }
    }

    /// Room for a request, once there is some.
    async fn room(&self, request: &Request) -> io::Result<Room> {
        let one = Arc::clone(&self.requests).acquire_owned().await.map_err(io::Error::other)?;
        // Only of these does the length take memory: of the others it says what they are about.
        let memory = match request.command {
            Command::Read | Command::Write => {
                request.length.div_ceil(BUDGET_UNIT_BYTES).clamp(1, BUDGET_UNITS)
            }
            _ => 1,
        };
        let memory = Arc::clone(&self.budget).acquire_many_owned(memory).await.map_err(io::Error::other)?;
        Ok((one, memory))
    }

    /// Hands a request to a thread.
    fn start<W: AsyncWrite + Send + Unpin + 'static>(
        &mut self,
        connection: &Arc<Connection<W>>,
        request: Request,
        data: Vec<u8>,
        room: Room,
    ) {
        self.answers.spawn(answer(Arc::clone(connection), request, data, room));
        while self.answers.try_join_next().is_some() {}
    }
}

/// Room for one request and for its memory; given back when dropped.
type Room = (OwnedSemaphorePermit, OwnedSemaphorePermit);

/// Serves requests until the client leaves.
///
/// # Errors
/// When the connection breaks, or the client sends what is not NBD.
pub(super) async fn serve<S>(stream: S, source: Arc<dyn ExportSource>, agreed: Agreed) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let (reader, writer) = tokio::io::split(stream);
    let mut reader = BufReader::new(reader);
    let connection =
        Arc::new(Connection { source, agreed, writer: AsyncMutex::new(writer), pool: Pool::default() });
    let mut workers = Workers::new();
    let ended = receive(&mut reader, &connection, &mut workers).await;
    if ended.is_ok() {
        // Replies on the way are sent before the connection closes.
        while workers.answers.join_next().await.is_some() {}
        connection.writer.lock().await.shutdown().await?;
    }
    ended
}

async fn receive<R, W>(
    reader: &mut BufReader<R>,
    connection: &Arc<Connection<W>>,
    workers: &mut Workers,
) -> io::Result<()>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Send + Unpin + 'static,
{
    let mut pace = Pace::default();
    let mut replies = Vec::new();
    loop {
        // What has been answered leaves before this waits for further requests.
        let waits = reader.buffer().len() < REQUEST_HEADER_BYTES;
        if !replies.is_empty() && (waits || replies.len() >= REPLIES_BYTES) {
            connection.send(&replies).await?;
            replies.clear();
        }
        let mut header = [0; REQUEST_HEADER_BYTES];
        match reader.read_exact(&mut header).await {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error),
        }
        let request =
            decode_request(header).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        if request.command == Command::Disconnect {
            return if replies.is_empty() { Ok(()) } else { connection.send(&replies).await };
        }
        let small = request.command == Command::Read && request.length <= SMALL_BYTES;
        if let Some((error, why)) = refusal(&request, connection) {
            if request.command == Command::Write {
                discard(reader, request.length).await?;
            }
            reply::error(&connection.agreed, &request, error, why, &mut replies);
        } else if request.command == Command::Flush && connection.source.writer().is_none() {
            reply::done(&connection.agreed, &request, &mut replies);
        } else if small && pace.here() {
            let started = Instant::now();
            work(connection, &request, &mut replies);
            pace.took(started.elapsed());
        } else {
            let room = workers.room(&request).await?;
            let mut data = Vec::new();
            if request.command == Command::Write {
                // Its data may take a while to come.
                if !replies.is_empty() {
                    connection.send(&replies).await?;
                    replies.clear();
                }
                data = connection.pool.take();
                data.resize(usize::try_from(request.length).map_err(io::Error::other)?, 0);
                reader.read_exact(&mut data).await?;
            }
            workers.start(connection, request, data, room);
        }
    }
}

/// The data of a refused write has to be read to find the next request.
async fn discard<R: AsyncRead + Unpin>(reader: &mut R, length: u32) -> io::Result<()> {
    if length > REQUEST_MAX_BYTES {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "a write is longer than announced as the most",
        ));
    }
    let skipped = tokio::io::copy(&mut reader.take(u64::from(length)), &mut tokio::io::sink()).await?;
    if skipped < u64::from(length) { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
}

/// Why a request cannot be served, if so.
fn refusal<W>(request: &Request, connection: &Connection<W>) -> Option<(u32, &'static str)> {
    let writable = connection.source.writer().is_some();
    let known_flags = match request.command {
        Command::Read if connection.agreed.structured => command_flag::DF,
        Command::BlockStatus => command_flag::REQ_ONE,
        Command::Write | Command::Trim => command_flag::FUA,
        Command::WriteZeroes => command_flag::FUA | command_flag::NO_HOLE | command_flag::FAST_ZERO,
        _ => 0,
    };
    match request.command {
        Command::Write | Command::Trim | Command::WriteZeroes if !writable => {
            return Some((errno::EPERM, "the export is read-only"));
        }
        Command::Flush => return None,
        Command::Other(_) => return Some((errno::ENOTSUP, "unknown command")),
        Command::BlockStatus if !connection.agreed.block_status => {
            return Some((errno::EINVAL, "base:allocation was not negotiated"));
        }
        _ => {}
    }
    let takes_space = matches!(request.command, Command::Write | Command::WriteZeroes);
    let has_data = matches!(request.command, Command::Read | Command::Write);
    let end = request.offset.checked_add(u64::from(request.length));
    if request.flags & !known_flags != 0 {
        Some((errno::EINVAL, "unknown flags"))
    } else if request.length == 0 {
        Some((errno::EINVAL, "an empty range"))
    } else if end.is_none_or(|end| end > connection.source.size()) {
        Some((if takes_space { errno::ENOSPC } else { errno::EINVAL }, "a range beyond the end"))
    } else if has_data && request.length > REQUEST_MAX_BYTES {
        Some((errno::EINVAL, "longer than announced as the most"))
    } else {
        None
    }
}

async fn answer<W: AsyncWrite + Send + Unpin + 'static>(
    connection: Arc<Connection<W>>,
    request: Request,
    data: Vec<u8>,
    _room: Room,
) {
    let worker = Arc::clone(&connection);
    let worked = tokio::task::spawn_blocking(move || {
        let mut reply = worker.pool.take();
        if worker.source.writer().is_some_and(|writer| change(writer, &worker, &request, &data, &mut reply)) {
            worker.pool.give(data);
        } else {
            work(&worker, &request, &mut reply);
        }
        reply
    });
    let reply = worked.await.unwrap_or_else(|_| {
        let mut reply = Vec::new();
        reply::error(&connection.agreed, &request, errno::EIO, "the appliance failed", &mut reply);
        reply
    });
    // A broken connection is noticed by the receiving side.
    if connection.send(&reply).await.is_ok() {
        connection.pool.give(reply);
    }
}

/// Carries out a request that changes the volume or makes changes durable, and appends the answer; false: it is none.
fn change<W>(
    writer: &dyn ExportWriter,
    connection: &Connection<W>,
    request: &Request,
    data: &[u8],
    out: &mut Vec<u8>,
) -> bool {
    let (offset, length) = (request.offset, u64::from(request.length));
    let changed = match request.command {
        Command::Write => writer.write_at(offset, data),
        Command::Trim => writer.zero(offset, length, true),
        Command::WriteZeroes => writer.zero(offset, length, false),
        Command::Flush => writer.flush(),
        _ => return false,
    };
    let durable = request.flags & command_flag::FUA != 0;
    match changed.and_then(|()| if durable { writer.flush() } else { Ok(()) }) {
        Ok(()) => reply::done(&connection.agreed, request, out),
        Err(error) if error.kind() == io::ErrorKind::StorageFull => {
            reply::error(&connection.agreed, request, errno::ENOSPC, "the appliance's disk is full", out);
        }
        Err(error) => {
            tracing::error!(offset, length, "export write failed: {error}");
            reply::error(
                &connection.agreed,
                request,
                errno::EIO,
                "the appliance cannot write this range",
                out,
            );
        }
    }
    true
}

/// Appends the answer to a request that is not refused. Blocks while the source reads.
fn work<W>(connection: &Connection<W>, request: &Request, out: &mut Vec<u8>) {
    let Connection { source, agreed, .. } = connection;
    let worked = match request.command {
        Command::Read => reply::read(&**source, agreed, request, out),
        Command::BlockStatus => reply::block_status(&**source, request, out),
        Command::Cache => warm(connection, request).map(|()| reply::done(agreed, request, out)),
        _ => {
            reply::error(agreed, request, errno::ENOTSUP, "unknown command", out);
            Ok(())
        }
    };
    if let Err(error) = worked {
        tracing::error!(offset = request.offset, length = request.length, "export read failed: {error}");
        reply::error(agreed, request, errno::EIO, "the appliance cannot read this range", out);
    }
}

/// Reads a range and throws it away: afterwards it comes from the page cache.
fn warm<W>(connection: &Connection<W>, request: &Request) -> io::Result<()> {
    let end = request.offset + u64::from(request.length);
    let mut at = request.offset;
    let mut scratch = connection.pool.take();
    while at < end {
        let now = usize::try_from(end - at).map_or(SCRATCH_BYTES, |left| left.min(SCRATCH_BYTES));
        scratch.resize(now, 0);
        connection.source.read_at(at, &mut scratch)?;
        at += now as u64;
    }
    connection.pool.give(scratch);
    Ok(())
}
