//! The appliance's own certificate authority: one ECDSA P-256 key that signs the server's certificate and those of
//! splitters, administrators and persons. A role is a URI in the subject alternative name; nothing else in a certificate
//! grants anything.

mod authority;
mod role;
mod rustls_setup;
mod server_certificate;

pub use authority::{Authority, AuthorityError, Issued, public_key_of_csr};
pub(crate) use role::PERSON_WORD;
pub use role::Role;
pub use rustls_setup::server_config;
pub use server_certificate::ServerCertificate;

use std::time::Duration;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// How long a VM's certificate is valid: long enough for a splitter that is offline over a holiday, short enough that a
/// forgotten copy dies by itself. The splitter renews from two thirds of it; beyond it the VM has to be enrolled again.
pub const VM_VALIDITY: Duration = Duration::from_secs(30 * DAY.as_secs());

/// How long an administrator's certificate is valid. The one in `admin.context` is renewed when the appliance starts.
pub const ADMIN_VALIDITY: Duration = Duration::from_secs(365 * DAY.as_secs());

/// How long a person's certificate is valid unless told otherwise: one that is not used for a quarter is forgotten.
pub const PERSON_VALIDITY: Duration = Duration::from_secs(90 * DAY.as_secs());

/// How long it can be valid: as an administrator's. Longer is refused.
pub const PERSON_VALIDITY_MAX: Duration = ADMIN_VALIDITY;

/// How long the server's certificate is valid. It renews itself from two thirds of it, without dropping a connection.
pub const SERVER_VALIDITY: Duration = Duration::from_secs(90 * DAY.as_secs());

/// How long the authority's certificate is valid: it is pinned by every splitter, so it outlives the machine.
pub const CA_VALIDITY: Duration = Duration::from_secs(20 * 365 * DAY.as_secs());

/// How far `not_before` lies in the past, for guests whose clock is behind. Beyond it their TLS library refuses us.
pub const CLOCK_SKEW: Duration = Duration::from_secs(60 * 60);
