//! Enrolment: one-time tokens against certificates. The only service without a client certificate.

mod rate;
mod service;
pub(crate) use service::REQUEST_MAX_BYTES;
mod token;

pub use service::{EnrolmentService, issue_for_vm};
pub(crate) use token::check_name;
pub use token::{NewToken, TokenError, create_token};
