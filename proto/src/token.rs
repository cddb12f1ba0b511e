//! The enrolment token as printed: `tm1.ID.SECRET.PIN`, one word. The pin is the SHA-256 of the CA certificate (DER),
//! so that the first connection of a new splitter already trusts nobody else. The parts are lower-case hexadecimal.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// A one-time enrolment token.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// Names the token in lists and logs; not secret.
    pub id: String,
    /// 32 random bytes; the appliance stores only their hash.
    pub secret: [u8; 32],
    /// SHA-256 of the CA certificate in DER.
    pub ca_sha256: [u8; 32],
}

/// Hexadecimal digits of a token's id.
pub const TOKEN_ID_DIGITS: usize = 8;

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("id", &self.id).finish_non_exhaustive()
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tm1.{}.{}.{}", self.id, hex(&self.secret), hex(&self.ca_sha256))
    }
}

/// The text is not a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("this is not an enrolment token: copy the whole last word that `tidemark token create` printed")]
pub struct InvalidToken;

impl FromStr for Token {
    type Err = InvalidToken;
    fn from_str(text: &str) -> Result<Self, InvalidToken> {
        let mut parts = text.trim().split('.');
        let (Some("tm1"), Some(id), Some(secret), Some(pin), None) =
            (parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(InvalidToken);
        };
        if id.len() != TOKEN_ID_DIGITS || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(InvalidToken);
        }
        Ok(Self {
            id: id.to_owned(),
            secret: unhex(secret).ok_or(InvalidToken)?,
            ca_sha256: unhex(pin).ok_or(InvalidToken)?,
        })
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    let mut bytes = [0; 32];
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * index..2 * index + 2)?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_printed_token_reads_back_and_a_damaged_one_does_not() {
        let token = Token { id: "0123abcd".into(), secret: [7; 32], ca_sha256: [0xfe; 32] };
        let text = token.to_string();
        assert_eq!(text.parse(), Ok(token.clone()));
        assert_eq!(format!(" {text}\n").parse(), Ok(token));
        for bad in [&text[1..], &text[..text.len() - 1], "tm1...", "", "tm2.0.0.0", "tm1.+123abcd.é"] {
            assert_eq!(bad.parse::<Token>(), Err(InvalidToken), "{bad}");
        }
    }
}
