//! Bytes on the wire that both sides of every version must agree on.

use prost::Message;
use tidemark_proto::chain;
use tidemark_proto::ids::ChainHash;
use tidemark_proto::pieces::{self, HASH_BYTES, Piece};
use tidemark_proto::v1::{BaseBlocks, Consistency, Frame, Marker, MarkerRequest, Welcome, WriteEntry, frame};

#[test]
fn a_question_and_an_answer_have_these_bytes() {
    let piece = Piece { start_sector: 8, sectors: 16, hash: [9; HASH_BYTES] };
    let mut expected = vec![8, 5, 16, 1, 24, 3, 34, 1, 8, 42, 1, 16, 50, 32];
    expected.extend_from_slice(&[9; HASH_BYTES]);
    assert_eq!(pieces::ask(5, 1, 3, &[piece]).encode_to_vec(), expected);
    assert_eq!(pieces::answer(5, &[true, false, false, true]).encode_to_vec(), [8, 5, 18, 1, 0b1001]);
}

#[test]
fn an_offer_and_what_is_named_by_it_have_these_bytes() {
    let answer = pieces::offer(pieces::answer(5, &[true, false]), &[false, true]);
    assert_eq!(answer.encode_to_vec(), [8, 5, 18, 1, 0b01, 26, 1, 0b10]);
    // Without an offer it is an answer of version 2.
    let answer = pieces::offer(pieces::answer(5, &[true, false]), &[false, false]);
    assert_eq!(answer.encode_to_vec(), [8, 5, 18, 1, 0b01]);
    assert_eq!(Welcome { templates: true, ..Welcome::default() }.encode_to_vec(), [0x78, 1]);
    let hashes = vec![9; HASH_BYTES].into();
    let mut expected = vec![8, 3, 42, 32];
    expected.extend_from_slice(&[9; HASH_BYTES]);
    assert_eq!(BaseBlocks { line_lsn: 3, hashes, ..BaseBlocks::default() }.encode_to_vec(), expected);
}

#[test]
fn blocks_named_by_hashes_have_the_chain_of_the_same_blocks_with_their_payload() {
    let content = vec![3_u8; 8192];
    let entry = WriteEntry { disk_id: 1, kind: 1, start_sector: 8, sectors: 16, ..WriteEntry::default() };
    let crc32c = vec![8, 9];
    let whole = BaseBlocks {
        line_lsn: 3,
        entries: vec![entry],
        payload: content.into(),
        crc32c,
        ..BaseBlocks::default()
    };
    let named =
        BaseBlocks { payload: Vec::new().into(), hashes: vec![9; HASH_BYTES].into(), ..whole.clone() };
    let next = |base: BaseBlocks| {
        let frame = Frame { seq: 4, generation: 1, body: Some(frame::Body::Base(base)), ..Frame::default() };
        chain::next(&ChainHash([7; 32]), &frame)
    };
    assert_eq!(next(whole.clone()), next(named.clone()));
    // The control: another content has another chain.
    assert_ne!(next(BaseBlocks { crc32c: vec![1, 2], ..named }), next(whole));
}

#[test]
fn a_level_that_is_asked_for_and_one_that_was_achieved_have_these_bytes() {
    let ask = MarkerRequest { request_id: 5, name: "n".into(), ..MarkerRequest::default() };
    // Of version 3: no level.
    assert_eq!(ask.encode_to_vec(), [8, 5, 18, 1, b'n']);
    let ask = MarkerRequest { consistency: Consistency::Application.into(), allow_lower: true, ..ask };
    assert_eq!(ask.encode_to_vec(), [8, 5, 18, 1, b'n', 32, 3, 40, 1]);
    let plain = Marker { lsn: 7, name: "n".into(), ..Marker::default() };
    assert_eq!(plain.encode_to_vec(), [8, 7, 34, 1, b'n']);
    let level = Consistency::Filesystem.into();
    let frozen = Marker { consistency: level, hold_us: 300, reason: "r".into(), ..plain.clone() };
    assert_eq!(frozen.encode_to_vec(), [8, 7, 34, 1, b'n', 48, 2, 56, 0xac, 2, 66, 1, b'r']);
    // A side of an older version, which does not see the level, gets the same chain.
    let next = |marker: Marker| {
        let body = Some(frame::Body::Marker(marker));
        chain::next(&ChainHash([7; 32]), &Frame { seq: 4, generation: 1, body, ..Frame::default() })
    };
    assert_eq!(next(frozen.clone()), next(plain));
    assert_ne!(next(Marker { name: "m".into(), ..frozen.clone() }), next(frozen));
}
