//! Bytes on the wire that both sides of every version must agree on.

use prost::Message;
use tidemark_proto::pieces::{self, HASH_BYTES, Piece};

#[test]
fn a_question_and_an_answer_have_these_bytes() {
    let piece = Piece { start_sector: 8, sectors: 16, hash: [9; HASH_BYTES] };
    let mut expected = vec![8, 5, 16, 1, 24, 3, 34, 1, 8, 42, 1, 16, 50, 32];
    expected.extend_from_slice(&[9; HASH_BYTES]);
    assert_eq!(pieces::ask(5, 1, 3, &[piece]).encode_to_vec(), expected);
    assert_eq!(pieces::answer(5, &[true, false, false, true]).encode_to_vec(), [8, 5, 18, 1, 0b1001]);
}
