//! NBD: whatever a client sends in a negotiation gets an answer, and a request header is decoded or refused.
#![no_main]

// The files themselves: the appliance's crate would bring its database and transport into the fuzzer.
#[allow(dead_code, unreachable_pub, reason = "only the decoders are driven here")]
#[path = "../../appliance/src/export/negotiation.rs"]
mod negotiation;
#[allow(dead_code, unreachable_pub, reason = "only the decoders are driven here")]
#[path = "../../appliance/src/export/wire.rs"]
mod wire;

use libfuzzer_sys::fuzz_target;
use negotiation::{Negotiation, Security, Step};

fuzz_target!(|data: &[u8]| {
    if let Some(header) = data.first_chunk() {
        let _ = wire::decode_request(*header);
    }
    let Some((flags, mut rest)) = data.split_first_chunk() else { return };
    let Ok(client) = wire::decode_client_flags(*flags) else { return };
    let security = if rest.len() % 2 == 0 { Security::Local } else { Security::TlsRequired };
    let mut talk = Negotiation::new("disk-1", 1 << 30, client, security);
    while let Some((header, after)) = rest.split_first_chunk() {
        let Ok((option, length)) = wire::decode_option_header(*header) else { return };
        let Some((option_data, after)) = after.split_at_checked(length as usize) else { return };
        let mut reply = Vec::new();
        match talk.answer(option, option_data, &mut reply) {
            Step::Continue => assert!(!reply.is_empty(), "every option that goes on is answered"),
            Step::StartTls => talk.encrypted(),
            Step::Transmit(_) | Step::Close => return,
        }
        // Replies hold names and sizes of our own, never what the client sent.
        assert!(reply.len() < 1024);
        rest = after;
    }
});
