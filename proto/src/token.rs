//! Secrets that a person carries from the console to a machine without a certificate, one word each: an enrolment token
//! (`tm1.ID.SECRET.PIN`) and a restore grant (`tg1.ID.SECRET.PIN`). The pin is the SHA-256 of the CA certificate (DER), so
//! that the first connection already trusts nobody else. The parts are lower-case hexadecimal.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// What a [`Token`] is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenKind {
    /// Enrols one VM, once.
    Enrolment,
    /// Restores one disk of one VM as of one point, until it expires.
    Grant,
}

impl TokenKind {
    fn prefix(self) -> &'static str {
        match self {
            Self::Enrolment => "tm1",
            Self::Grant => "tg1",
        }
    }
}

/// A secret word.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// What it is good for.
    pub kind: TokenKind,
    /// Names it in lists and logs; not secret.
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
        write!(f, "{}.{}.{}.{}", self.kind.prefix(), self.id, hex(&self.secret), hex(&self.ca_sha256))
    }
}

/// The text is not a token of the kind that is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum InvalidToken {
    /// An enrolment token was needed.
    #[error("this is not an enrolment token: copy the whole last word that `tidemark token create` printed")]
    Enrolment,
    /// A grant was needed.
    #[error("this is not a grant: copy the whole last word that `tidemark grant create` printed")]
    Grant,
}

impl Token {
    /// Reads what was printed.
    ///
    /// # Errors
    /// [`InvalidToken`] when it is none of this kind.
    pub fn read(kind: TokenKind, text: &str) -> Result<Self, InvalidToken> {
        Self::parse(kind, text.trim()).ok_or(match kind {
            TokenKind::Enrolment => InvalidToken::Enrolment,
            TokenKind::Grant => InvalidToken::Grant,
        })
    }

    fn parse(kind: TokenKind, text: &str) -> Option<Self> {
        let mut parts = text.split('.');
        let (prefix, id, secret, pin) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let whole = prefix == kind.prefix() && parts.next().is_none();
        let named = id.len() == TOKEN_ID_DIGITS && id.bytes().all(|byte| byte.is_ascii_hexdigit());
        (whole && named).then_some(())?;
        Some(Self { kind, id: id.to_owned(), secret: unhex(secret)?, ca_sha256: unhex(pin)? })
    }
}

impl FromStr for Token {
    type Err = InvalidToken;
    /// An enrolment token.
    fn from_str(text: &str) -> Result<Self, InvalidToken> {
        Self::read(TokenKind::Enrolment, text)
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
        let kind = TokenKind::Enrolment;
        let token = Token { kind, id: "0123abcd".into(), secret: [7; 32], ca_sha256: [0xfe; 32] };
        let text = token.to_string();
        assert_eq!(Token::read(TokenKind::Grant, &text), Err(InvalidToken::Grant));
        let grant = Token { kind: TokenKind::Grant, ..token.clone() };
        assert_eq!(Token::read(TokenKind::Grant, &grant.to_string()), Ok(grant.clone()));
        assert!(grant.to_string().parse::<Token>().is_err());
        assert_eq!(text.parse(), Ok(token.clone()));
        assert_eq!(format!(" {text}\n").parse(), Ok(token));
        for bad in [&text[1..], &text[..text.len() - 1], "tm1...", "", "tm2.0.0.0", "tm1.+123abcd.é"] {
            assert_eq!(bad.parse::<Token>(), Err(InvalidToken::Enrolment), "{bad}");
        }
    }
}
