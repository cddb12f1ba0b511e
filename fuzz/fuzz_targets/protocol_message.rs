//! Messages of the stream in both directions, and the chain over a frame made of anything.
#![no_main]

use libfuzzer_sys::fuzz_target;
use prost::Message;
use tidemark_proto::chain;
use tidemark_proto::ids::ChainHash;
use tidemark_proto::v1::{ApplianceMessage, EnrolRequest, SplitterMessage, splitter_message::Body};

fuzz_target!(|data: &[u8]| {
    let _ = ApplianceMessage::decode(data);
    let _ = EnrolRequest::decode(data);
    if let Ok(message) = SplitterMessage::decode(data)
        && let Some(Body::Frame(frame)) = &message.body
    {
        let once = chain::next(&ChainHash::default(), frame);
        assert_eq!(once, chain::next(&ChainHash::default(), frame));
        assert_eq!(SplitterMessage::decode(message.encode_to_vec().as_slice()), Ok(message));
    }
});
