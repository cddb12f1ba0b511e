//! Leaf indexes, with every hash taken for right.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = tidemark_journal::node::decode(data, &[7; 32]);
});
