//! Key files, with every hash taken for right.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidemark_journal::store::keys::KeyFile;

fuzz_target!(|data: &[u8]| {
    let _ = KeyFile::decode(data);
});
