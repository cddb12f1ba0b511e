//! Image descriptors, tree nodes and pages of delta tables. What decodes encodes to the same bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidemark_journal::image::{Image, decode_node, decode_page};

fuzz_target!(|data: &[u8]| {
    if let Ok(image) = Image::decode(data) {
        let (body, _) = data.split_at(data.len() - 32);
        assert!(image.encode().starts_with(body));
    }
    let _ = decode_node(data);
    let _ = decode_page(data);
});
