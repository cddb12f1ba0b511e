//! The negotiation as a state machine without I/O: an option in, bytes and the next step out.

use super::wire::{
    ClientFlags, Malformed, PREFERRED_BLOCK_BYTES, REQUEST_MAX_BYTES, decode_info_request,
    decode_meta_context, info, option, put_option_reply, reply, transmission,
};

/// The one metadata context we have, and its id in replies.
pub const BASE_ALLOCATION: &str = "base:allocation";
/// See [`BASE_ALLOCATION`].
pub const BASE_ALLOCATION_ID: u32 = 1;
/// Bytes of padding after `EXPORT_NAME` for clients that did not agree to leave it out.
const EXPORT_NAME_PADDING_BYTES: usize = 124;

/// What the connection has to do next, after sending the bytes.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Read the next option.
    Continue,
    /// Begin TLS, then read the next option.
    StartTls,
    /// Begin transmission.
    Transmit(Agreed),
    /// End the connection.
    Close,
}

/// What client and server agreed on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Agreed {
    /// Replies come in chunks.
    pub structured: bool,
    /// `base:allocation` may be asked for.
    pub block_status: bool,
}

/// Whether the connection is, or must become, encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Security {
    /// A Unix socket: there is no TLS.
    Local,
    /// Nothing but `STARTTLS` and `ABORT` is answered.
    TlsRequired,
    /// TLS is on, and the client has shown its certificate.
    Encrypted,
}

/// One connection's negotiation.
#[derive(Debug)]
pub struct Negotiation<'a> {
    name: &'a str,
    size: u64,
    client: ClientFlags,
    security: Security,
    agreed: Agreed,
    writable: bool,
}

impl<'a> Negotiation<'a> {
    /// For the export `name` of `size` bytes; the empty name means the same export.
    #[must_use]
    pub fn new(name: &'a str, size: u64, client: ClientFlags, security: Security) -> Self {
        Self { name, size, client, security, agreed: Agreed::default(), writable: false }
    }

    /// The export takes writes.
    #[must_use]
    pub fn writable(self, writable: bool) -> Self {
        Self { writable, ..self }
    }

    /// TLS is on. Whatever was said before does not count.
    pub fn encrypted(&mut self) {
        self.security = Security::Encrypted;
        self.agreed = Agreed::default();
    }

    /// Answers one option: appends to `out` and says what to do next.
    pub fn answer(&mut self, code: u32, data: &[u8], out: &mut Vec<u8>) -> Step {
        if self.security == Security::TlsRequired {
            return Self::answer_before_tls(code, data, out);
        }
        match code {
            option::EXPORT_NAME => return self.export_name(data, out),
            option::ABORT => {
                put_option_reply(out, code, reply::ACK, &[]);
                return Step::Close;
            }
            option::INFO | option::GO => return self.info(code, data, out),
            option::LIST => self.list(data, out),
            option::STRUCTURED_REPLY if data.is_empty() => {
                self.agreed.structured = true;
                put_option_reply(out, code, reply::ACK, &[]);
            }
            option::STRUCTURED_REPLY => invalid(out, code, Malformed("STRUCTURED_REPLY takes no data")),
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => self.meta_context(code, data, out),
            option::STARTTLS if self.security == Security::Encrypted => {
                invalid(out, code, Malformed("TLS is on already"));
            }
            option::STARTTLS => {
                put_option_reply(out, code, reply::ERR_POLICY, b"a local socket needs no TLS")
            }
            _ => put_option_reply(out, code, reply::ERR_UNSUP, &[]),
        }
        Step::Continue
    }

    fn answer_before_tls(code: u32, data: &[u8], out: &mut Vec<u8>) -> Step {
        match code {
            option::STARTTLS if data.is_empty() => {
                put_option_reply(out, code, reply::ACK, &[]);
                Step::StartTls
            }
            option::STARTTLS => {
                invalid(out, code, Malformed("STARTTLS takes no data"));
                Step::Continue
            }
            option::ABORT => {
                put_option_reply(out, code, reply::ACK, &[]);
                Step::Close
            }
            // It has no reply that could refuse.
            option::EXPORT_NAME => Step::Close,
            _ => {
                put_option_reply(out, code, reply::ERR_TLS_REQD, b"this export needs TLS");
                Step::Continue
            }
        }
    }

    fn is_ours(&self, name: &str) -> bool {
        name.is_empty() || name == self.name
    }

    fn transmission_flags(&self) -> u16 {
        let access = if self.writable {
            transmission::SEND_FUA
                | transmission::SEND_TRIM
                | transmission::SEND_WRITE_ZEROES
                | transmission::SEND_FAST_ZERO
        } else {
            transmission::READ_ONLY
        };
        // Several connections see one volume: a flush on one covers what was answered on all.
        let fixed = transmission::HAS_FLAGS
            | transmission::SEND_FLUSH
            | transmission::CAN_MULTI_CONN
            | transmission::SEND_CACHE
            | access;
        if self.agreed.structured { fixed | transmission::SEND_DF } else { fixed }
    }

    fn export_name(&self, data: &[u8], out: &mut Vec<u8>) -> Step {
        if !std::str::from_utf8(data).is_ok_and(|name| self.is_ours(name)) {
            return Step::Close;
        }
        out.extend(self.size.to_be_bytes());
        out.extend(self.transmission_flags().to_be_bytes());
        if !self.client.no_zeroes {
            out.extend([0; EXPORT_NAME_PADDING_BYTES]);
        }
        Step::Transmit(self.agreed)
    }

    fn info(&self, code: u32, data: &[u8], out: &mut Vec<u8>) -> Step {
        let (name, kinds) = match decode_info_request(data) {
            Ok(request) => request,
            Err(error) => {
                invalid(out, code, error);
                return Step::Continue;
            }
        };
        if !self.is_ours(name) {
            put_option_reply(out, code, reply::ERR_UNKNOWN, b"there is no export of this name");
            return Step::Continue;
        }
        let mut export = Vec::new();
        export.extend(info::EXPORT.to_be_bytes());
        export.extend(self.size.to_be_bytes());
        export.extend(self.transmission_flags().to_be_bytes());
        put_option_reply(out, code, reply::INFO, &export);
        if kinds.contains(&info::NAME) {
            let mut name = info::NAME.to_be_bytes().to_vec();
            name.extend(self.name.as_bytes());
            put_option_reply(out, code, reply::INFO, &name);
        }
        if kinds.contains(&info::BLOCK_SIZE) {
            let mut sizes = info::BLOCK_SIZE.to_be_bytes().to_vec();
            for size in [1, PREFERRED_BLOCK_BYTES, REQUEST_MAX_BYTES] {
                sizes.extend(size.to_be_bytes());
            }
            put_option_reply(out, code, reply::INFO, &sizes);
        }
        put_option_reply(out, code, reply::ACK, &[]);
        if code == option::GO { Step::Transmit(self.agreed) } else { Step::Continue }
    }

    fn list(&self, data: &[u8], out: &mut Vec<u8>) {
        if !data.is_empty() {
            return invalid(out, option::LIST, Malformed("LIST takes no data"));
        }
        let mut server = u32::try_from(self.name.len()).unwrap_or(0).to_be_bytes().to_vec();
        server.extend(self.name.as_bytes());
        put_option_reply(out, option::LIST, reply::SERVER, &server);
        put_option_reply(out, option::LIST, reply::ACK, &[]);
    }

    fn meta_context(&mut self, code: u32, data: &[u8], out: &mut Vec<u8>) {
        let set = code == option::SET_META_CONTEXT;
        if set {
            // A new set replaces the old one, even when it fails.
            self.agreed.block_status = false;
            if !self.agreed.structured {
                return invalid(out, code, Malformed("metadata needs structured replies"));
            }
        }
        let (name, queries) = match decode_meta_context(data) {
            Ok(request) => request,
            Err(error) => return invalid(out, code, error),
        };
        if !self.is_ours(name) {
            return put_option_reply(out, code, reply::ERR_UNKNOWN, b"there is no export of this name");
        }
        let everything = !set && (queries.is_empty() || queries.contains(&"base:"));
        if everything || queries.contains(&BASE_ALLOCATION) {
            let id = if set { BASE_ALLOCATION_ID } else { 0 };
            let mut context = id.to_be_bytes().to_vec();
            context.extend(BASE_ALLOCATION.as_bytes());
            put_option_reply(out, code, reply::META_CONTEXT, &context);
            self.agreed.block_status |= set;
        }
        put_option_reply(out, code, reply::ACK, &[]);
    }
}

fn invalid(out: &mut Vec<u8>, code: u32, why: Malformed) {
    put_option_reply(out, code, reply::ERR_INVALID, why.0.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn negotiation(security: Security) -> Negotiation<'static> {
        Negotiation::new("disk-1", 1 << 30, ClientFlags { no_zeroes: true }, security)
    }

    /// Types of the replies in `out`.
    fn kinds(mut out: &[u8]) -> Vec<u32> {
        let mut kinds = Vec::new();
        while let Some((header, rest)) = out.split_first_chunk::<20>() {
            kinds.push(u32::from_be_bytes(header[12..16].try_into().unwrap()));
            let length = u32::from_be_bytes(header[16..].try_into().unwrap());
            out = &rest[length as usize..];
        }
        assert!(out.is_empty());
        kinds
    }

    fn ask(negotiation: &mut Negotiation<'_>, code: u32, data: &[u8]) -> (Step, Vec<u32>) {
        let mut out = Vec::new();
        let step = negotiation.answer(code, data, &mut out);
        (step, kinds(&out))
    }

    const NO_NAME: &[u8] = &[0, 0, 0, 0, 0, 0];

    #[test]
    fn nothing_is_told_before_tls() {
        let mut tls = negotiation(Security::TlsRequired);
        for code in
            [option::LIST, option::INFO, option::GO, option::STRUCTURED_REPLY, option::SET_META_CONTEXT, 77]
        {
            assert_eq!(ask(&mut tls, code, NO_NAME), (Step::Continue, vec![reply::ERR_TLS_REQD]), "{code}");
        }
        assert_eq!(ask(&mut tls, option::EXPORT_NAME, b""), (Step::Close, vec![]));
        assert_eq!(ask(&mut tls, option::STARTTLS, b"x"), (Step::Continue, vec![reply::ERR_INVALID]));
        assert_eq!(ask(&mut tls, option::STARTTLS, b""), (Step::StartTls, vec![reply::ACK]));
        tls.encrypted();
        assert_eq!(ask(&mut tls, option::STARTTLS, b""), (Step::Continue, vec![reply::ERR_INVALID]));
        assert_eq!(ask(&mut tls, option::GO, NO_NAME).0, Step::Transmit(Agreed::default()));
    }

    #[test]
    fn what_was_agreed_in_plain_text_is_forgotten() {
        let mut one = negotiation(Security::Local);
        ask(&mut one, option::STRUCTURED_REPLY, b"");
        one.encrypted();
        assert_eq!(ask(&mut one, option::GO, NO_NAME).0, Step::Transmit(Agreed::default()));
    }

    #[test]
    fn metadata_needs_structured_replies_and_the_known_context() {
        let mut one = negotiation(Security::Local);
        let mut query = vec![0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 15];
        query.extend(BASE_ALLOCATION.as_bytes());
        assert_eq!(ask(&mut one, option::SET_META_CONTEXT, &query).1, [reply::ERR_INVALID]);
        ask(&mut one, option::STRUCTURED_REPLY, b"");
        assert_eq!(ask(&mut one, option::SET_META_CONTEXT, &query).1, [reply::META_CONTEXT, reply::ACK]);
        let agreed = Agreed { structured: true, block_status: true };
        assert_eq!(ask(&mut one, option::GO, NO_NAME).0, Step::Transmit(agreed));
        *query.last_mut().unwrap() = b'x';
        assert_eq!(ask(&mut one, option::SET_META_CONTEXT, &query).1, [reply::ACK]);
        assert_eq!(
            ask(&mut one, option::GO, NO_NAME).0,
            Step::Transmit(Agreed { structured: true, block_status: false })
        );
        assert_eq!(ask(&mut one, option::LIST_META_CONTEXT, &[0; 8]).1, [reply::META_CONTEXT, reply::ACK]);
    }

    #[test]
    fn other_names_and_malformed_options_are_refused_and_the_talk_goes_on() {
        let mut one = negotiation(Security::Local);
        assert_eq!(ask(&mut one, option::GO, b"\0\0\0\x01x\0\0"), (Step::Continue, vec![reply::ERR_UNKNOWN]));
        assert_eq!(ask(&mut one, option::GO, b"\0\0\0\x09x\0\0"), (Step::Continue, vec![reply::ERR_INVALID]));
        assert_eq!(ask(&mut one, option::EXPORT_NAME, b"\xff").0, Step::Close);
        assert_eq!(ask(&mut one, option::LIST, b"x").1, [reply::ERR_INVALID]);
        assert_eq!(ask(&mut one, 4, b"").1, [reply::ERR_UNSUP]);
        assert_eq!(ask(&mut one, option::LIST, b"").1, [reply::SERVER, reply::ACK]);
        let kinds = b"\0\0\0\x06disk-1\0\x02\0\x03\0\x01";
        assert_eq!(ask(&mut one, option::INFO, kinds).1, [reply::INFO, reply::INFO, reply::INFO, reply::ACK]);
        assert_eq!(ask(&mut one, option::ABORT, b""), (Step::Close, vec![reply::ACK]));
    }

    #[test]
    fn any_option_with_any_data_gets_an_answer() {
        let mut seed = 0x9E37_79B9_7F4A_7C15u64;
        let mut one = negotiation(Security::Local);
        for _ in 0..100_000 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let data: Vec<u8> = (0..u32::from(seed.to_be_bytes()[0] >> 2))
                .map(|at| seed.rotate_left(at * 7).to_le_bytes()[0] & 15)
                .collect();
            let _ = ask_any(&mut one, (seed >> 32) as u32 % 13, &data);
        }
        fn ask_any(one: &mut Negotiation<'_>, code: u32, data: &[u8]) -> Step {
            one.answer(code, data, &mut Vec::new())
        }
    }
}
