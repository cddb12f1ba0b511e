//! Files of recovery certificates. What parses is the same after it was written and parsed again, and what it says is signed
//! does not depend on what is only for people.
#![no_main]

// The file itself: the console's crate would bring its transport into the fuzzer.
#[allow(dead_code, unreachable_pub, reason = "only the parser is driven here")]
#[path = "../../console-cli/src/commands/certificate_file.rs"]
mod certificate_file;

use libfuzzer_sys::fuzz_target;
use tidemark_journal::attest::{Signer, SigningKey};

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(certificates) = certificate_file::parse(text) else { return };
    let written = serde_json::to_string(&certificates).expect("what was read can be written");
    assert!(certificate_file::parse(&written).is_ok_and(|again| again == certificates));
    let Ok(key) = SigningKey::from_seed(&[5; 32]).map(|key| key.public_key()) else { return };
    for shown in &certificates {
        let Some((certificate, signature)) = shown.signed() else { continue };
        // Nobody has signed with that key.
        assert!(!certificate.is_signed(&key, &signature));
        let mut other = shown.clone();
        (other.time, other.issued, other.public_key) = (None, Some("x".into()), String::new());
        assert!(other.signed() == Some((certificate, signature)));
    }
});
