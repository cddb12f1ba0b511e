//! What the answer to one request is, as bytes. Every function appends a whole reply to `out`, so that the replies of
//! several requests can leave with one write.

use std::io;

use tidemark_proto::pieces::is_zero;

use super::negotiation::{Agreed, BASE_ALLOCATION_ID};
use super::source::ExportSource;
use super::wire::{
    CHUNK_HEADER_BYTES, REQUEST_MAX_BYTES, Request, STATE_HOLE_ZERO, chunk, chunk_header, command_flag,
    simple_reply,
};

/// Zeroes are left out of a structured reply from this length on: shorter runs cost more in chunks than they save.
const HOLE_BYTES: usize = 16 << 10;
/// Zeroes are looked for in pieces of this size: what the journal verifies at once.
const PIECE_BYTES: usize = 4096;
/// Extents in one answer at most; clients ask again for the rest.
const EXTENTS_MAX: usize = 4096;
/// Bytes before the data of a chunk with data: its header and the offset.
const DATA_PREFIX_BYTES: usize = CHUNK_HEADER_BYTES + 8;

/// Appends the answer to a read. On an error `out` is as it was.
///
/// # Errors
/// As [`ExportSource::read_at`].
pub(super) fn read(
    source: &dyn ExportSource,
    agreed: &Agreed,
    request: &Request,
    out: &mut Vec<u8>,
) -> io::Result<()> {
    let start = out.len();
    let prefix = if agreed.structured { DATA_PREFIX_BYTES } else { simple_reply(0, 0).len() };
    let length = usize::try_from(request.length).map_err(io::Error::other)?;
    out.resize(start + prefix + length, 0);
    let (_, reply) = out.split_at_mut(start);
    let (head, data) = reply.split_at_mut(prefix);
    if let Err(error) = source.read_at(request.offset, data) {
        out.truncate(start);
        return Err(error);
    }
    if !agreed.structured {
        head.copy_from_slice(&simple_reply(request.cookie, 0));
        return Ok(());
    }
    if request.flags & command_flag::DF == 0 && data.len() >= HOLE_BYTES {
        let runs = runs(data);
        if runs.iter().any(|run| run.zero) {
            let bytes = leave_zeroes_out(request, reply, &runs);
            out.truncate(start + bytes);
            return Ok(());
        }
    }
    let (header, offset) = head.split_at_mut(CHUNK_HEADER_BYTES);
    // At most REQUEST_MAX_BYTES and the offset.
    let chunk_bytes = request.length.min(REQUEST_MAX_BYTES) + 8;
    header.copy_from_slice(&chunk_header(request.cookie, chunk::DONE, chunk::OFFSET_DATA, chunk_bytes));
    offset.copy_from_slice(&request.offset.to_be_bytes());
    Ok(())
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
        let zero = is_zero(piece);
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

/// Turns `reply`, a prefix and the data that `runs` describe, into a chunk per run, in place; returns its new length.
///
/// Data only ever moves towards the front: the first run's prefix is there already, and each later run of data stands
/// behind a hole, which is longer than the two headers that replace it.
fn leave_zeroes_out(request: &Request, reply: &mut [u8], runs: &[Run]) -> usize {
    let mut from = DATA_PREFIX_BYTES;
    let mut to = 0;
    let mut offset = request.offset;
    for (index, run) in runs.iter().enumerate() {
        let flags = if index + 1 == runs.len() { chunk::DONE } else { 0 };
        // A run is part of a request, whose length is a u32.
        let length = u32::try_from(run.length).unwrap_or(0);
        let kind = if run.zero { chunk::OFFSET_HOLE } else { chunk::OFFSET_DATA };
        let chunk_bytes = if run.zero { 12 } else { length.saturating_add(8) };
        put(reply, &mut to, &chunk_header(request.cookie, flags, kind, chunk_bytes));
        put(reply, &mut to, &offset.to_be_bytes());
        if run.zero {
            put(reply, &mut to, &length.to_be_bytes());
        } else {
            reply.copy_within(from..from + run.length, to);
            to += run.length;
        }
        from += run.length;
        offset += u64::from(length);
    }
    to
}

fn put(reply: &mut [u8], at: &mut usize, bytes: &[u8]) {
    let end = *at + bytes.len();
    if let Some(place) = reply.get_mut(*at..end) {
        place.copy_from_slice(bytes);
    }
    *at = end;
}

/// Appends the answer to a question about extents.
///
/// # Errors
/// As [`ExportSource::extents`].
pub(super) fn block_status(
    source: &dyn ExportSource,
    request: &Request,
    out: &mut Vec<u8>,
) -> io::Result<()> {
    let extents = source.extents(request.offset, u64::from(request.length))?;
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
    out.extend(chunk_header(request.cookie, chunk::DONE, chunk::BLOCK_STATUS, chunk_bytes));
    out.extend(BASE_ALLOCATION_ID.to_be_bytes());
    for (length, zero) in merged {
        out.extend(length.to_be_bytes());
        out.extend(if zero { STATE_HOLE_ZERO } else { 0 }.to_be_bytes());
    }
    Ok(())
}

/// Appends success without data. Only reads and block status demand structured replies.
pub(super) fn done(agreed: &Agreed, request: &Request, out: &mut Vec<u8>) {
    if agreed.structured {
        out.extend(chunk_header(request.cookie, chunk::DONE, chunk::NONE, 0));
    } else {
        out.extend(simple_reply(request.cookie, 0));
    }
}

/// Appends a refusal or a failure; the text reaches clients that have negotiated structured replies.
pub(super) fn error(agreed: &Agreed, request: &Request, error: u32, why: &str, out: &mut Vec<u8>) {
    if !agreed.structured {
        out.extend(simple_reply(request.cookie, error));
        return;
    }
    // Texts are ours, a line each.
    let text_bytes = u16::try_from(why.len()).unwrap_or(0);
    out.extend(chunk_header(request.cookie, chunk::DONE, chunk::ERROR, 6 + u32::from(text_bytes)));
    out.extend(error.to_be_bytes());
    out.extend(text_bytes.to_be_bytes());
    out.extend(why.bytes().take(usize::from(text_bytes)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::source::SourceExtent;
    use crate::export::wire::Command;

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

    struct Ram(Vec<u8>);

    impl ExportSource for Ram {
        fn size(&self) -> u64 {
            self.0.len() as u64
        }
        fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
            let start = usize::try_from(offset).unwrap();
            buffer.copy_from_slice(self.0.get(start..start + buffer.len()).ok_or(io::ErrorKind::Other)?);
            Ok(())
        }
        fn extents(&self, _offset: u64, length: u64) -> io::Result<Vec<SourceExtent>> {
            Ok(vec![SourceExtent { length, zero: false }])
        }
    }

    /// A client's reading of a structured reply: the bytes it describes.
    fn decode(mut reply: &[u8], offset: u64, length: usize) -> Vec<u8> {
        let mut data = vec![0xAA; length];
        loop {
            let (header, rest) = reply.split_at(CHUNK_HEADER_BYTES);
            let field = |range: std::ops::Range<usize>| u32::from_be_bytes(header[range].try_into().unwrap());
            let (done, kind, bytes) =
                (header[5] & 1 != 0, u16::from_be_bytes([header[6], header[7]]), field(16..20) as usize);
            let (body, rest) = rest.split_at(bytes);
            let at = u64::from_be_bytes(body[..8].try_into().unwrap()) - offset;
            let at = usize::try_from(at).unwrap();
            if kind == chunk::OFFSET_DATA {
                data[at..at + bytes - 8].copy_from_slice(&body[8..]);
            } else {
                let hole = u32::from_be_bytes(body[8..12].try_into().unwrap()) as usize;
                data[at..at + hole].fill(0);
            }
            reply = rest;
            if done {
                assert!(reply.is_empty(), "nothing follows the last chunk");
                return data;
            }
        }
    }

    #[test]
    fn replies_append_and_describe_every_byte_wherever_the_holes_are() {
        let agreed = Agreed { structured: true, block_status: false };
        for holes in 0..64_u32 {
            // Six parts of 20 KiB and a bit, each data or zeroes.
            let part = (20 << 10) + 100;
            let mut volume = vec![7; 512 + 6 * part];
            for index in (0..6).filter(|index| holes & (1 << index) != 0) {
                volume[512 + index * part..512 + (index + 1) * part].fill(0);
            }
            let ram = Ram(volume.clone());
            let mut out = b"before".to_vec();
            let length = u32::try_from(6 * part).unwrap();
            let request = Request { flags: 0, command: Command::Read, cookie: 5, offset: 512, length };
            read(&ram, &agreed, &request, &mut out).unwrap();
            let (before, reply) = out.split_at(6);
            assert_eq!(before, b"before");
            assert!(decode(reply, 512, 6 * part) == volume[512..], "{holes:b}");
            let beyond = Request { offset: u64::from(length), ..request };
            let before = out.clone();
            assert!(read(&ram, &agreed, &beyond, &mut out).is_err());
            assert!(out == before, "a failed read leaves nothing behind");
        }
    }
}
