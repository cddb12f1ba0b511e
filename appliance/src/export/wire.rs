//! The NBD protocol's encoding, big-endian throughout. Source: the NBD project's `doc/proto.md` (fixed newstyle
//! negotiation, structured replies, metadata contexts). Decoders take bytes and give values or [`Malformed`]; they
//! never panic and never allocate more than the input's length.

use thiserror::Error;

/// First bytes a server sends.
pub const INIT_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// "IHAVEOPT": the second, and the first of every option.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454F_5054;
/// First bytes of a reply to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// First bytes of a request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// First bytes of a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// First bytes of a chunk of a structured reply.
pub const CHUNK_MAGIC: u32 = 0x668e_33ef;

/// Handshake flags, the same bits in both directions: fixed newstyle, and no padding after `EXPORT_NAME`.
pub const FLAG_FIXED_NEWSTYLE: u16 = 1;
/// See [`FLAG_FIXED_NEWSTYLE`].
pub const FLAG_NO_ZEROES: u16 = 2;

/// Options of the negotiation.
pub mod option {
    #![allow(missing_docs, reason = "names of the protocol")]
    pub const EXPORT_NAME: u32 = 1;
    pub const ABORT: u32 = 2;
    pub const LIST: u32 = 3;
    pub const STARTTLS: u32 = 5;
    pub const INFO: u32 = 6;
    pub const GO: u32 = 7;
    pub const STRUCTURED_REPLY: u32 = 8;
    pub const LIST_META_CONTEXT: u32 = 9;
    pub const SET_META_CONTEXT: u32 = 10;
}

/// Types of replies to options.
pub mod reply {
    #![allow(missing_docs, reason = "names of the protocol")]
    pub const ACK: u32 = 1;
    pub const SERVER: u32 = 2;
    pub const INFO: u32 = 3;
    pub const META_CONTEXT: u32 = 4;
    const ERROR: u32 = 1 << 31;
    pub const ERR_UNSUP: u32 = ERROR | 1;
    pub const ERR_POLICY: u32 = ERROR | 2;
    pub const ERR_INVALID: u32 = ERROR | 3;
    pub const ERR_TLS_REQD: u32 = ERROR | 5;
    pub const ERR_UNKNOWN: u32 = ERROR | 6;
}

/// Types of information about an export.
pub mod info {
    #![allow(missing_docs, reason = "names of the protocol")]
    pub const EXPORT: u16 = 0;
    pub const NAME: u16 = 1;
    pub const BLOCK_SIZE: u16 = 3;
}

/// Transmission flags.
pub mod transmission {
    #![allow(missing_docs, reason = "names of the protocol")]
    pub const HAS_FLAGS: u16 = 1;
    pub const READ_ONLY: u16 = 1 << 1;
    pub const SEND_FLUSH: u16 = 1 << 2;
    pub const SEND_FUA: u16 = 1 << 3;
    pub const SEND_TRIM: u16 = 1 << 5;
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    pub const SEND_DF: u16 = 1 << 7;
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    pub const SEND_CACHE: u16 = 1 << 10;
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
}

/// Flags of a request that mean something to us.
pub mod command_flag {
    #![allow(missing_docs, reason = "names of the protocol")]
    /// Durable when answered.
    pub const FUA: u16 = 1;
    /// Zeroes must take space: that of a journal is never reserved, so it changes nothing.
    pub const NO_HOLE: u16 = 1 << 1;
    /// Zeroes must not be written out: they never are.
    pub const FAST_ZERO: u16 = 1 << 4;
    /// Do not fragment.
    pub const DF: u16 = 1 << 2;
    /// One extent is enough.
    pub const REQ_ONE: u16 = 1 << 3;
}

/// Error numbers of the protocol.
pub mod errno {
    #![allow(missing_docs, reason = "names of the protocol")]
    pub const EPERM: u32 = 1;
    pub const EIO: u32 = 5;
    pub const EINVAL: u32 = 22;
    pub const ENOSPC: u32 = 28;
    pub const ENOTSUP: u32 = 95;
}

/// Types of chunks of a structured reply.
pub mod chunk {
    #![allow(missing_docs, reason = "names of the protocol")]
    pub const NONE: u16 = 0;
    pub const OFFSET_DATA: u16 = 1;
    pub const OFFSET_HOLE: u16 = 2;
    pub const BLOCK_STATUS: u16 = 5;
    pub const ERROR: u16 = (1 << 15) | 1;
    /// Flag of the last chunk.
    pub const DONE: u16 = 1;
}

/// Bits of `base:allocation`: nothing is stored there, and it reads as zeroes.
pub const STATE_HOLE_ZERO: u32 = 3;

/// Bytes of an option's data at most: an export name of 4096 bytes, the protocol's limit for strings, and room for
/// queries. A longer option ends the connection.
pub const OPTION_MAX_BYTES: u32 = 16 << 10;
/// Bytes of a request's data at most, announced to clients. A longer read is refused, a longer write ends the connection.
pub const REQUEST_MAX_BYTES: u32 = 32 << 20;
/// Block size announced as preferred: what the journal verifies at once.
pub const PREFERRED_BLOCK_BYTES: u32 = 4096;

/// Bytes that are not NBD. The text is for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct Malformed(pub &'static str);

/// Takes big-endian values off the front.
#[derive(Debug, Clone, Copy)]
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, bytes: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(bytes).ok_or(Malformed("data ends too early"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(Malformed("data ends too early"))?;
        self.0 = rest;
        Ok(*taken)
    }

    fn u16(&mut self) -> Result<u16, Malformed> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    fn string(&mut self) -> Result<&'a str, Malformed> {
        let length = usize::try_from(self.u32()?).map_err(|_| Malformed("a string is too long"))?;
        std::str::from_utf8(self.take(length)?).map_err(|_| Malformed("a string is not UTF-8"))
    }

    fn end(self) -> Result<(), Malformed> {
        if self.0.is_empty() { Ok(()) } else { Err(Malformed("data goes on after its end")) }
    }
}

/// The client's handshake flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientFlags {
    /// No padding after `EXPORT_NAME`.
    pub no_zeroes: bool,
}

/// Decodes the client's flags.
///
/// # Errors
/// For clients that do not speak fixed newstyle, and unknown flags.
pub fn decode_client_flags(bytes: [u8; 4]) -> Result<ClientFlags, Malformed> {
    let flags = u32::from_be_bytes(bytes);
    if flags & u32::from(FLAG_FIXED_NEWSTYLE) == 0 {
        return Err(Malformed("the client does not speak the fixed newstyle protocol"));
    }
    if flags & !u32::from(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES) != 0 {
        return Err(Malformed("unknown client flags"));
    }
    Ok(ClientFlags { no_zeroes: flags & u32::from(FLAG_NO_ZEROES) != 0 })
}

/// Bytes of an option's header.
pub const OPTION_HEADER_BYTES: usize = 16;

/// Decodes an option's header into the option and the length of its data.
///
/// # Errors
/// For another magic, and for options beyond [`OPTION_MAX_BYTES`].
pub fn decode_option_header(bytes: [u8; OPTION_HEADER_BYTES]) -> Result<(u32, u32), Malformed> {
    let mut fields = Fields(&bytes);
    if fields.u64()? != OPTION_MAGIC {
        return Err(Malformed("an option does not begin with its magic"));
    }
    let (option, length) = (fields.u32()?, fields.u32()?);
    if length > OPTION_MAX_BYTES {
        return Err(Malformed("an option is too long"));
    }
    Ok((option, length))
}

/// Decodes the data of `INFO` and `GO`: the export's name and the kinds of information asked for.
///
/// # Errors
/// When the lengths do not add up, or the name is not UTF-8.
pub fn decode_info_request(data: &[u8]) -> Result<(&str, Vec<u16>), Malformed> {
    let mut fields = Fields(data);
    let name = fields.string()?;
    let count = fields.u16()?;
    let kinds = (0..count).map(|_| fields.u16()).collect::<Result<_, _>>()?;
    fields.end()?;
    Ok((name, kinds))
}

/// Decodes the data of `LIST_META_CONTEXT` and `SET_META_CONTEXT`: the export's name and the queries.
///
/// # Errors
/// When the lengths do not add up, or a string is not UTF-8.
pub fn decode_meta_context(data: &[u8]) -> Result<(&str, Vec<&str>), Malformed> {
    let mut fields = Fields(data);
    let name = fields.string()?;
    let count = fields.u32()?;
    // Stops at the first query that is not there, whatever the count says.
    let queries = (0..count).map(|_| fields.string()).collect::<Result<_, _>>()?;
    fields.end()?;
    Ok((name, queries))
}

/// Bytes of a request's header.
pub const REQUEST_HEADER_BYTES: usize = 28;

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Data.
    Read,
    /// Data follows the header.
    Write,
    /// End of the connection.
    Disconnect,
    /// Make durable what was written.
    Flush,
    /// Forget a range.
    Trim,
    /// Read into the page cache.
    Cache,
    /// Write zeroes without sending them.
    WriteZeroes,
    /// Which parts are data.
    BlockStatus,
    /// Not known to us.
    Other(u16),
}

/// A request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// See [`command_flag`].
    pub flags: u16,
    /// What.
    pub command: Command,
    /// Returned with the reply.
    pub cookie: u64,
    /// Byte offset.
    pub offset: u64,
    /// Bytes.
    pub length: u32,
}

/// Decodes a request's header.
///
/// # Errors
/// For another magic.
pub fn decode_request(bytes: [u8; REQUEST_HEADER_BYTES]) -> Result<Request, Malformed> {
    let mut fields = Fields(&bytes);
    if fields.u32()? != REQUEST_MAGIC {
        return Err(Malformed("a request does not begin with its magic"));
    }
    let flags = fields.u16()?;
    let command = match fields.u16()? {
        0 => Command::Read,
        1 => Command::Write,
        2 => Command::Disconnect,
        3 => Command::Flush,
        4 => Command::Trim,
        5 => Command::Cache,
        6 => Command::WriteZeroes,
        7 => Command::BlockStatus,
        other => Command::Other(other),
    };
    Ok(Request { flags, command, cookie: fields.u64()?, offset: fields.u64()?, length: fields.u32()? })
}

/// Encodes the server's greeting.
#[must_use]
pub fn greeting() -> Vec<u8> {
    let mut out = Vec::with_capacity(18);
    out.extend(INIT_MAGIC.to_be_bytes());
    out.extend(OPTION_MAGIC.to_be_bytes());
    out.extend((FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES).to_be_bytes());
    out
}

/// Appends a reply to an option. Replies are short: texts, names and sizes of our own.
pub fn put_option_reply(out: &mut Vec<u8>, option: u32, kind: u32, data: &[u8]) {
    out.extend(OPTION_REPLY_MAGIC.to_be_bytes());
    out.extend(option.to_be_bytes());
    out.extend(kind.to_be_bytes());
    out.extend(u32::try_from(data.len()).unwrap_or(0).to_be_bytes());
    out.extend(data);
}

/// Encodes a simple reply without data.
#[must_use]
pub fn simple_reply(cookie: u64, error: u32) -> [u8; 16] {
    let mut out = [0; 16];
    out[..4].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
    out[4..8].copy_from_slice(&error.to_be_bytes());
    out[8..].copy_from_slice(&cookie.to_be_bytes());
    out
}

/// Bytes of a chunk's header.
pub const CHUNK_HEADER_BYTES: usize = 20;

/// Encodes the header of a chunk of `length` bytes.
#[must_use]
pub fn chunk_header(cookie: u64, flags: u16, kind: u16, length: u32) -> [u8; CHUNK_HEADER_BYTES] {
    let mut out = [0; CHUNK_HEADER_BYTES];
    out[..4].copy_from_slice(&CHUNK_MAGIC.to_be_bytes());
    out[4..6].copy_from_slice(&flags.to_be_bytes());
    out[6..8].copy_from_slice(&kind.to_be_bytes());
    out[8..16].copy_from_slice(&cookie.to_be_bytes());
    out[16..].copy_from_slice(&length.to_be_bytes());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Any bytes: a small generator, so that a failure can be run again.
    fn random_bytes(seed: &mut u64, length: usize) -> Vec<u8> {
        (0..length)
            .map(|_| {
                *seed ^= *seed << 13;
                *seed ^= *seed >> 7;
                *seed ^= *seed << 17;
                // Many small numbers: lengths that nearly fit are the interesting ones.
                let bytes = seed.to_be_bytes();
                if *seed & 3 == 0 { bytes[2] } else { bytes[0] & bytes[1] & 7 }
            })
            .collect()
    }

    #[test]
    fn hostile_options_are_errors_and_nothing_else() {
        let mut seed = 0x2545_F491_4F6C_DD1D;
        for length in (0..400).cycle().take(200_000) {
            let bytes = random_bytes(&mut seed, length);
            let _ = decode_info_request(&bytes);
            let _ = decode_meta_context(&bytes);
            if let Some(header) = bytes.first_chunk() {
                let _ = decode_request(*header);
            }
            if let Some(header) = bytes.first_chunk() {
                let _ = decode_option_header(*header);
            }
        }
    }

    #[test]
    fn every_truncation_of_a_good_option_is_refused() {
        let mut good = Vec::new();
        good.extend(6u32.to_be_bytes());
        good.extend(b"disk-1");
        let mut info = good.clone();
        info.extend([0, 2, 0, 0, 0, 3]);
        assert_eq!(decode_info_request(&info), Ok(("disk-1", vec![0, 3])));
        let mut context = good.clone();
        context.extend(1u32.to_be_bytes());
        context.extend(15u32.to_be_bytes());
        context.extend(b"base:allocation");
        assert_eq!(decode_meta_context(&context), Ok(("disk-1", vec!["base:allocation"])));
        for length in 0..info.len() {
            assert!(decode_info_request(&info[..length]).is_err(), "{length}");
        }
        for length in 0..context.len() {
            assert!(decode_meta_context(&context[..length]).is_err(), "{length}");
        }
        info.push(0);
        context.push(0);
        assert!(decode_info_request(&info).is_err() && decode_meta_context(&context).is_err());
        // A count that promises four billion queries costs nothing.
        assert!(decode_meta_context(&[0, 0, 0, 0, 255, 255, 255, 255]).is_err());
        assert!(decode_info_request(&[0, 0, 0, 1, 0xFF, 0, 0]).is_err(), "not UTF-8");
    }

    #[test]
    fn old_clients_and_unknown_flags_are_refused() {
        assert!(decode_client_flags([0; 4]).is_err());
        assert!(decode_client_flags([0, 0, 0, 2]).is_err());
        assert!(decode_client_flags([0, 0, 0, 5]).is_err());
        assert_eq!(decode_client_flags([0, 0, 0, 3]), Ok(ClientFlags { no_zeroes: true }));
    }

    #[test]
    fn golden_bytes() {
        assert_eq!(greeting(), *b"NBDMAGICIHAVEOPT\0\x03");
        assert_eq!(
            simple_reply(0x0102_0304_0506_0708, 5),
            *b"\x67\x44\x66\x98\0\0\0\x05\x01\x02\x03\x04\x05\x06\x07\x08"
        );
        let mut header = *b"\x25\x60\x95\x13\0\x04\0\0\0\0\0\0\0\0\0\x09\0\0\0\0\0\0\x10\0\0\0\x02\0";
        let read = Request { flags: 4, command: Command::Read, cookie: 9, offset: 4096, length: 512 };
        assert_eq!(decode_request(header), Ok(read));
        header[0] = 0;
        assert!(decode_request(header).is_err());
    }
}
