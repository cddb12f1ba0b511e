//! The catalog: VMs, nonces, tokens, certificates, bookmarks and the audit trail, in SQLite or PostgreSQL through one
//! schema and one set of queries. It never decides what is recoverable: that is the journals' business, and bookmarks
//! are copied here from them.

mod audit;
mod bookmarks;
mod certificates;
mod grants;
mod objects;
mod policies;
mod pool;
mod rights;
mod search;
mod set_points;
mod sets;
mod spools;
mod tags;
mod tokens;
mod verifications;
mod vms;

pub use audit::AuditEntry;
pub use bookmarks::BookmarkRow;
pub use certificates::CertificateRow;
pub use grants::{GrantRow, GrantState, GrantedPoint};
pub use policies::{AssignmentRow, PolicyRow};
pub use pool::{Catalog, CatalogError, CatalogUrl, InvalidCatalogUrl};
pub use rights::RightRow;
pub use search::{FoundPoint, PointSearch};
pub use set_points::{MissingRow, NewSetPoint, PointMemberRow, SetPointRow};
pub use sets::{ChangeRow, MemberRow, Pointing, SetRow, VmTagRow};
pub use spools::SpoolRow;
pub use tags::TagRow;
pub use tokens::{TokenRow, TokenState};
pub use verifications::{VerifyRow, doubts_of};
pub use vms::{HelloRecord, NewCertificate, VmRow};

/// Microseconds as the databases store them. Saturates in the year 294,000.
pub(crate) fn to_db(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// The reverse of [`to_db`]; a negative value, which we never store, reads as 0.
pub(crate) fn from_db(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

/// The hash under which a secret (token, nonce) is stored. The secrets are 256 random bits, so a plain hash suffices.
#[must_use]
pub fn secret_hash(secret: &[u8]) -> String {
    blake3::hash(secret).to_hex().to_string()
}

/// Whether a secret is the one whose hash is stored. Where none is stored it costs the same comparison.
#[must_use]
pub fn secret_matches(given: &[u8], stored: Option<&str>) -> bool {
    let none = secret_hash(b"");
    hashes_equal(&secret_hash(given), stored.unwrap_or(&none)) && stored.is_some()
}

/// Compares two stored hashes in constant time.
#[must_use]
pub fn hashes_equal(a: &str, b: &str) -> bool {
    aws_lc_rs::constant_time::verify_slices_are_equal(a.as_bytes(), b.as_bytes()).is_ok()
}
