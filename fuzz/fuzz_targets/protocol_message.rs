//! Messages of the stream in both directions, the chain over a frame made of anything, and questions by hash.
#![no_main]

use libfuzzer_sys::fuzz_target;
use prost::Message;
use tidemark_proto::chain;
use tidemark_proto::ids::ChainHash;
use tidemark_proto::limits::{QUESTION_MAX_BYTES, QUESTION_MAX_PIECES};
use tidemark_proto::pieces;
use tidemark_proto::v1::{
    ApplianceMessage, EnrolRequest, HashQuestion, SplitterMessage, appliance_message, splitter_message::Body,
};

/// What passes is bounded, rises, and is asked the same again.
fn question(question: &HashQuestion) {
    let Ok(found) = pieces::read(question) else { return };
    assert!(found.len() <= QUESTION_MAX_PIECES);
    assert!(found.iter().map(pieces::Piece::bytes).sum::<u64>() <= QUESTION_MAX_BYTES);
    assert!(found.is_sorted_by(|a, b| a.end_sector() <= b.start_sector));
    assert_eq!(pieces::ask(question.id, question.disk_id, question.line_lsn, &found), *question);
}

fuzz_target!(|data: &[u8]| {
    if let Ok(ApplianceMessage { body: Some(appliance_message::Body::HashAnswer(answer)) }) =
        ApplianceMessage::decode(data)
    {
        let known = (0..QUESTION_MAX_PIECES).filter(|index| pieces::is_known(&answer, *index)).count();
        assert!(known <= answer.known.len() * 8);
    }
    if let Ok(asked) = HashQuestion::decode(data) {
        question(&asked);
    }
    let _ = EnrolRequest::decode(data);
    if let Ok(message) = SplitterMessage::decode(data)
        && let Some(Body::Frame(frame)) = &message.body
    {
        let once = chain::next(&ChainHash::default(), frame);
        assert_eq!(once, chain::next(&ChainHash::default(), frame));
        assert_eq!(SplitterMessage::decode(message.encode_to_vec().as_slice()), Ok(message));
    }
});
