//! Enrolment: one-time tokens against certificates. The only service without a client certificate.

mod service;
pub(crate) use service::REQUEST_MAX_BYTES;
mod token;

pub use service::{EnrolmentService, issue_for_vm};
pub use token::{NewToken, TokenError, create_token};
pub(crate) use token::{check_name, fresh};
