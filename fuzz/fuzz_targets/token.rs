//! Enrolment tokens as typed: what parses prints as itself.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidemark_proto::token::Token;

fuzz_target!(|data: &[u8]| {
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok(token) = text.parse::<Token>()
    {
        assert_eq!(token.to_string().parse(), Ok(token));
    }
});
