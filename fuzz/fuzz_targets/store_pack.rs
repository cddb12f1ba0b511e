//! Packs: header, records, directory and trailer, with every hash taken for right.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidemark_journal::store::pack;

fuzz_target!(|data: &[u8]| {
    let _ = pack::decode(data);
    if let Ok(header) = pack::decode_header(data) {
        let _ = pack::decode_directory(&header, data, data.len() as u64);
        let _ = pack::decode_record(&header, data, 104, 0);
    }
});
