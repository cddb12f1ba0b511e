//! Heads of frames, with every hash taken for right: the table behind it must be decoded or refused, and what was
//! decoded must be usable.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidemark_journal::frame;

fuzz_target!(|data: &[u8]| {
    if let Ok(decoded) = frame::decode(data, &[7; 32]) {
        let payload = vec![0; decoded.payload_bytes().min(1 << 20)];
        let _ = frame::payload_damage(&payload, &decoded.crc32c);
        let _ = decoded.has_payload(&payload, &[7; 32]);
        let _ = decoded.frame(&payload);
    }
});
