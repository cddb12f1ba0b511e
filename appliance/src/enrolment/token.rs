//! Making enrolment tokens.

use std::time::Duration;

use thiserror::Error;
use tidemark_proto::limits::NAME_MAX_CHARS;
use tidemark_proto::token::{TOKEN_ID_DIGITS, Token, TokenKind};

use crate::catalog::{Catalog, CatalogError, TokenRow, secret_hash};
use crate::clock::micros;
use crate::pki::Authority;

/// How long a token is valid unless told otherwise: long enough to walk to another terminal.
const TTL_DEFAULT: Duration = Duration::from_secs(60 * 60);

/// How long a token can be valid: a roll-out of a week. Longer ones are refused.
const TTL_MAX: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// How long ended tokens stay listed, for the auditor.
const KEEP_ENDED: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// A token could not be made.
#[derive(Debug, Error)]
pub enum TokenError {
    /// The request makes no sense; the text says what to do.
    #[error("{0}")]
    Invalid(String),
    /// The catalog failed.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}

/// A token, to be shown once.
#[derive(Debug)]
pub struct NewToken {
    /// The token.
    pub token: Token,
    /// When it ends, microseconds since 1970.
    pub expires_us: u64,
}

/// Makes a token that enrols `vm_name`, or with `replace` enrols it again. `ttl_seconds` 0 means an hour.
///
/// # Errors
/// When the name is unusable, or exists and is not to be replaced, or the other way round.
pub async fn create_token(
    catalog: &Catalog,
    authority: &Authority,
    vm_name: &str,
    ttl_seconds: u64,
    replace: bool,
    now_us: u64,
) -> Result<NewToken, TokenError> {
    check_name(vm_name)?;
    let ttl = if ttl_seconds == 0 { TTL_DEFAULT } else { Duration::from_secs(ttl_seconds) };
    if ttl > TTL_MAX {
        return Err(TokenError::Invalid("a token is valid for 7 days at most".into()));
    }
    match (catalog.vm_by_name(vm_name).await?, replace) {
        (Some(_), false) => {
            return Err(TokenError::Invalid(format!(
                "a VM named '{vm_name}' is enrolled: --replace enrols it again and keeps its history"
            )));
        }
        (None, true) => {
            return Err(TokenError::Invalid(format!(
                "no VM named '{vm_name}' is enrolled: leave --replace out"
            )));
        }
        _ => {}
    }
    let token = fresh(TokenKind::Enrolment, authority);
    let expires_us = now_us.saturating_add(micros(ttl));
    let row = TokenRow::new(
        token.id.clone(),
        secret_hash(&token.secret),
        vm_name.to_owned(),
        replace,
        now_us,
        expires_us,
    );
    catalog.add_token(&row, micros(KEEP_ENDED)).await?;
    Ok(NewToken { token, expires_us })
}

/// A secret word that did not exist before.
pub(crate) fn fresh(kind: TokenKind, authority: &Authority) -> Token {
    let id: [u8; TOKEN_ID_DIGITS / 2] = rand::random();
    let id = id.iter().map(|byte| format!("{byte:02x}")).collect();
    Token { kind, id, secret: rand::random(), ca_sha256: authority.sha256() }
}

/// A VM's name, or a clone's, stands in commands, paths people type, and metrics.
pub(crate) fn check_name(name: &str) -> Result<(), TokenError> {
    let characters = name.chars().count();
    let plain = |c: char| c.is_alphanumeric() || "-_.:@+".contains(c);
    if (1..=NAME_MAX_CHARS).contains(&characters) && name.chars().all(plain) && !name.starts_with('-') {
        return Ok(());
    }
    Err(TokenError::Invalid(format!(
        "a name has 1 to {NAME_MAX_CHARS} letters, digits and -_.:@+ and does not begin with '-'"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_confuse_commands_are_refused() {
        for good in ["web-1", "größe", "a.b:c@d+e_f"] {
            check_name(good).unwrap();
        }
        for bad in ["", "-x", "a b", "a/b", "a\nb", "..\\x", &"x".repeat(NAME_MAX_CHARS + 1)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }
}
