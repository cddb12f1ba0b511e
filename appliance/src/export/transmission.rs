//! Requests and replies after the negotiation. Reads run beside each other on blocking threads; replies leave in the
//! order in which they are ready.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::sync::{Mutex as AsyncMutex, OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

use super::negotiation::{Agreed, BASE_ALLOCATION_ID};
use super::source::ExportSource;
use super::wire::{
    CHUNK_HEADER_BYTES, Command, REQUEST_HEADER_BYTES, REQUEST_MAX_BYTES, Request, STATE_HOLE_ZERO, chunk,
    chunk_header, command_flag, decode_request, errno, simple_reply,
};

/// Requests of one connection that are worked on at once. Further ones wait in the socket.
const REQUESTS_AT_ONCE: usize = 16;
/// Unit in which the memory of requests is counted.
const BUDGET_UNIT_BYTES: u32 = 4096;
/// Memory of one connection's requests: one of the largest size, or many small ones. Further ones wait.
const BUDGET_UNITS: u32 = REQUEST_MAX_BYTES / BUDGET_UNIT_BYTES;
/// Zeroes are left out of a structured reply from this length on: shorter runs cost more in chunks than they save.
const HOLE_BYTES: usize = 16 << 10;
/// Zeroes are looked for in pieces of this size: what the journal verifies at once.
const PIECE_BYTES: usize = 4096;
/// Extents in one answer at most; clients ask again for the rest.
const EXTENTS_MAX: usize = 4096;
/// Buffers kept for the next read, and their largest size: what a busy client uses over and over.
const POOL_BUFFERS: usize = REQUESTS_AT_ONCE;
const POOL_BUFFER_BYTES: usize = 1 << 20;
/// Bytes read at once for `CACHE` and thrown away from a refused `WRITE`.
const SCRATCH_BYTES: usize = 256 << 10;
/// Bytes before the data of a structured read's only chunk: its header and the offset.
const DATA_CHUNK_PREFIX_BYTES: usize = CHUNK_HEADER_BYTES + 8;

/// Buffers of ended requests. Fresh memory for every read would cost a page fault per 4 KiB.
#[derive(Debug, Default)]
struct Pool(Mutex<Vec<Vec<u8>>>);

impl Pool {
    fn take(&self, length: usize) -> Vec<u8> {
        let mut buffer = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
        buffer.resize(length, 0);
        buffer
    }

    fn give(&self, buffer: Vec<u8>) {
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
    let requests = Arc::new(Semaphore::new(REQUESTS_AT_ONCE));
    let budget = Arc::new(Semaphore::new(BUDGET_UNITS as usize));
    // Ends with this connection, also when a client that does not read keeps replies waiting.
    let mut answers = JoinSet::new();
    let ended = receive(&mut reader, &connection, &requests, &budget, &mut answers).await;
    if ended.is_ok() {
        // Replies on the way are sent before the connection closes.
        while answers.join_next().await.is_some() {}
        connection.writer.lock().await.shutdown().await?;
    }
    ended
}

async fn receive<R, W>(
    reader: &mut R,
    connection: &Arc<Connection<W>>,
    requests: &Arc<Semaphore>,
    budget: &Arc<Semaphore>,
    answers: &mut JoinSet<()>,
) -> io::Result<()>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Send + Unpin + 'static,
{
    loop {
        let mut header = [0; REQUEST_HEADER_BYTES];
        match reader.read_exact(&mut header).await {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error),
        }
        let request =
            decode_request(header).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        match request.command {
            Command::Disconnect => return Ok(()),
            Command::Write => discard(reader, request.length).await?,
            _ => {}
        }
        let one = Arc::clone(requests).acquire_owned().await.map_err(io::Error::other)?;
        let memory = match refusal(&request, connection) {
            Some(_) => 1,
            None => request.length.div_ceil(BUDGET_UNIT_BYTES).clamp(1, BUDGET_UNITS),
        };
        let memory = Arc::clone(budget).acquire_many_owned(memory).await.map_err(io::Error::other)?;
        answers.spawn(answer(Arc::clone(connection), request, (one, memory)));
        while answers.try_join_next().is_some() {}
    }
}

/// The data of a refused write has to be read to find the next request. Only a client that ignores the flags sends it.
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
    let known_flags = match request.command {
        Command::Read if connection.agreed.structured => command_flag::DF,
        Command::BlockStatus => command_flag::REQ_ONE,
        _ => 0,
    };
    match request.command {
        Command::Write | Command::Trim | Command::WriteZeroes => {
            return Some((errno::EPERM, "the export is read-only"));
        }
        Command::Flush => return None,
        Command::Other(_) => return Some((errno::ENOTSUP, "unknown command")),
        Command::BlockStatus if !connection.agreed.block_status => {
            return Some((errno::EINVAL, "base:allocation was not negotiated"));
        }
        _ => {}
    }
    let end = request.offset.checked_add(u64::from(request.length));
    if request.flags & !known_flags != 0 {
        Some((errno::EINVAL, "unknown flags"))
    } else if request.length == 0 {
        Some((errno::EINVAL, "an empty range"))
    } else if end.is_none_or(|end| end > connection.source.size()) {
        Some((errno::EINVAL, "a range beyond the end"))
    } else if request.command == Command::Read && request.length > REQUEST_MAX_BYTES {
        Some((errno::EINVAL, "a read longer than announced as the most"))
    } else {
        None
    }
}

async fn answer<W: AsyncWrite + Send + Unpin + 'static>(
    connection: Arc<Connection<W>>,
    request: Request,
    _permits: (OwnedSemaphorePermit, OwnedSemaphorePermit),
) {
    let reply = match (refusal(&request, &connection), request.command) {
        (Some((error, why)), _) => error_reply(&connection, &request, error, why),
        (None, Command::Flush) => done_reply(&connection, &request),
        (None, _) => {
            let worker = Arc::clone(&connection);
            match tokio::task::spawn_blocking(move || work(&worker, &request)).await {
                Ok(Ok(reply)) => reply,
                Ok(Err(error)) => {
                    tracing::error!(
                        offset = request.offset,
                        length = request.length,
                        "export read failed: {error}"
                    );
                    error_reply(&connection, &request, errno::EIO, "the appliance cannot read this range")
                }
                Err(_) => error_reply(&connection, &request, errno::EIO, "the appliance failed"),
            }
        }
    };
    let mut writer = connection.writer.lock().await;
    // A broken connection is noticed by the receiving side.
    if writer.write_all(&reply).await.and(writer.flush().await).is_ok() {
        drop(writer);
        connection.pool.give(reply);
    }
}

fn work<W>(connection: &Connection<W>, request: &Request) -> io::Result<Vec<u8>> {
    match request.command {
        Command::Read => read(connection, request),
        Command::BlockStatus => block_status(connection, request),
        Command::Cache => warm(connection, request),
        _ => Ok(error_reply(connection, request, errno::ENOTSUP, "unknown command")),
    }
}

fn read<W>(connection: &Connection<W>, request: &Request) -> io::Result<Vec<u8>> {
    let prefix =
        if connection.agreed.structured { DATA_CHUNK_PREFIX_BYTES } else { simple_reply(0, 0).len() };
    let length = usize::try_from(request.length).map_err(io::Error::other)?;
    let mut reply = connection.pool.take(prefix + length);
    let (head, data) = reply.split_at_mut(prefix);
    connection.source.read_at(request.offset, data)?;
    if !connection.agreed.structured {
        head.copy_from_slice(&simple_reply(request.cookie, 0));
        return Ok(reply);
    }
    if request.flags & command_flag::DF == 0 {
        let runs = runs(data);
        if runs.len() > 1 || runs.iter().any(|run| run.zero) {
            let sparse = sparse_reply(connection, request, data, &runs);
            connection.pool.give(reply);
            return Ok(sparse);
        }
    }
    let (header, offset) = head.split_at_mut(CHUNK_HEADER_BYTES);
    // At most REQUEST_MAX_BYTES and the offset.
    let chunk_bytes = request.length.saturating_add(8);
    header.copy_from_slice(&chunk_header(request.cookie, chunk::DONE, chunk::OFFSET_DATA, chunk_bytes));
    offset.copy_from_slice(&request.offset.to_be_bytes());
    Ok(reply)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    length: usize,
    zero: bool,
}

/// Data and zeroes in turn; runs of zeroes shorter than [`HOLE_BYTES`] count as data.
fn runs(data: &[u8]) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for piece in data.chunks(PIECE_BYTES) {
        let zero = all_zero(piece);
        match runs.last_mut() {
            Some(last) if last.zero == zero => last.length += piece.len(),
            _ => runs.push(Run { length: piece.len(), zero }),
        }
    }
    let mut joined: Vec<Run> = Vec::new();
    for run in runs {
        let zero = run.zero && run.length >= HOLE_BYTES;
        match joined.last_mut() {
            Some(last) if last.zero == zero => last.length += run.length,
            _ => joined.push(Run { zero, ..run }),
        }
    }
    joined
}

fn all_zero(bytes: &[u8]) -> bool {
    let (words, tail) = bytes.as_chunks::<64>();
    words.iter().all(|word| *word == [0; 64]) && tail.iter().all(|byte| *byte == 0)
}

fn sparse_reply<W>(connection: &Connection<W>, request: &Request, data: &[u8], runs: &[Run]) -> Vec<u8> {
    let stored: usize = runs.iter().filter(|run| !run.zero).map(|run| run.length).sum();
    let mut reply = connection.pool.take(0);
    reply.reserve(stored + runs.len() * (DATA_CHUNK_PREFIX_BYTES + 4));
    let mut rest = data;
    let mut offset = request.offset;
    for (index, run) in runs.iter().enumerate() {
        let flags = if index + 1 == runs.len() { chunk::DONE } else { 0 };
        let (now, later) = rest.split_at(run.length);
        // A run is part of a request, whose length is a u32.
        let length = u32::try_from(run.length).unwrap_or(0);
        if run.zero {
            reply.extend(chunk_header(request.cookie, flags, chunk::OFFSET_HOLE, 12));
            reply.extend(offset.to_be_bytes());
            reply.extend(length.to_be_bytes());
        } else {
            let chunk_bytes = length.saturating_add(8);
            reply.extend(chunk_header(request.cookie, flags, chunk::OFFSET_DATA, chunk_bytes));
            reply.extend(offset.to_be_bytes());
            reply.extend_from_slice(now);
        }
        offset += u64::from(length);
        rest = later;
    }
    reply
}

fn block_status<W>(connection: &Connection<W>, request: &Request) -> io::Result<Vec<u8>> {
    let extents = connection.source.extents(request.offset, u64::from(request.length))?;
    let mut left = u64::from(request.length);
    let mut merged: Vec<(u32, bool)> = Vec::new();
    for extent in extents {
        let length = u32::try_from(extent.length.min(left)).map_err(io::Error::other)?;
        left -= u64::from(length);
        match merged.last_mut() {
            _ if length == 0 => {}
            Some((run, zero)) if *zero == extent.zero => *run = run.saturating_add(length),
            _ => merged.push((length, extent.zero)),
        }
    }
    let most = if request.flags & command_flag::REQ_ONE != 0 { 1 } else { EXTENTS_MAX };
    merged.truncate(most);
    if merged.is_empty() {
        return Err(io::Error::other("the volume describes no extent here"));
    }
    let chunk_bytes = u32::try_from(4 + merged.len() * 8).map_err(io::Error::other)?;
    let mut reply = connection.pool.take(0);
    reply.extend(chunk_header(request.cookie, chunk::DONE, chunk::BLOCK_STATUS, chunk_bytes));
    reply.extend(BASE_ALLOCATION_ID.to_be_bytes());
    for (length, zero) in merged {
        reply.extend(length.to_be_bytes());
        reply.extend(if zero { STATE_HOLE_ZERO } else { 0 }.to_be_bytes());
    }
    Ok(reply)
}

/// Reads a range and throws it away: afterwards it comes from the page cache.
fn warm<W>(connection: &Connection<W>, request: &Request) -> io::Result<Vec<u8>> {
    let end = request.offset + u64::from(request.length);
    let mut at = request.offset;
    let mut scratch = connection.pool.take(SCRATCH_BYTES);
    while at < end {
        let now = usize::try_from(end - at).map_or(SCRATCH_BYTES, |left| left.min(SCRATCH_BYTES));
        scratch.truncate(now);
        connection.source.read_at(at, &mut scratch)?;
        at += now as u64;
    }
    connection.pool.give(scratch);
    Ok(done_reply(connection, request))
}

/// Success without data. Only reads and block status demand structured replies.
fn done_reply<W>(connection: &Connection<W>, request: &Request) -> Vec<u8> {
    if connection.agreed.structured {
        chunk_header(request.cookie, chunk::DONE, chunk::NONE, 0).to_vec()
    } else {
        simple_reply(request.cookie, 0).to_vec()
    }
}

fn error_reply<W>(connection: &Connection<W>, request: &Request, error: u32, why: &str) -> Vec<u8> {
    if !connection.agreed.structured {
        return simple_reply(request.cookie, error).to_vec();
    }
    // Texts are ours, a line each.
    let text_bytes = u16::try_from(why.len()).unwrap_or(0);
    let mut reply =
        chunk_header(request.cookie, chunk::DONE, chunk::ERROR, 6 + u32::from(text_bytes)).to_vec();
    reply.extend(error.to_be_bytes());
    reply.extend(text_bytes.to_be_bytes());
    reply.extend(why.bytes().take(usize::from(text_bytes)));
    reply
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_zeroes_are_data_and_long_ones_are_holes() {
        let mut data = vec![1; 64 << 10];
        data[4096..8192].fill(0);
        assert_eq!(runs(&data), [Run { length: 64 << 10, zero: false }]);
        data[8192..8192 + HOLE_BYTES].fill(0);
        let hole = Run { length: HOLE_BYTES + 4096, zero: true };
        let rest = Run { length: (64 << 10) - 8192 - HOLE_BYTES, zero: false };
        assert_eq!(runs(&data), [Run { length: 4096, zero: false }, hole, rest]);
        assert_eq!(runs(&[0; HOLE_BYTES]), [Run { length: HOLE_BYTES, zero: true }]);
    }
}
