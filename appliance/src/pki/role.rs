//! What a certificate allows: read from its subject alternative name.

use std::fmt;

use tidemark_proto::ids::VmId;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::X509Certificate;

const VM_PREFIX: &str = "tidemark://vm/";
const ADMIN_PREFIX: &str = "tidemark://admin/";
const PERSON_PREFIX: &str = "tidemark://person/";

/// What [`Role::word`] says of a person.
pub(crate) const PERSON_WORD: &str = "person";

/// The holder of a client certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// The splitter of one VM.
    Vm(VmId),
    /// An administrator by name.
    Admin(String),
    /// A person by name who is no administrator and may do what it was granted.
    Person(String),
}

impl Role {
    /// The role as the URI that a certificate carries.
    #[must_use]
    pub fn uri(&self) -> String {
        match self {
            Self::Vm(vm) => format!("{VM_PREFIX}{vm}"),
            Self::Admin(name) => format!("{ADMIN_PREFIX}{name}"),
            Self::Person(name) => format!("{PERSON_PREFIX}{name}"),
        }
    }

    /// Reads a role; `None` for anything that is not exactly one.
    #[must_use]
    pub fn from_uri(uri: &str) -> Option<Self> {
        if let Some(vm) = uri.strip_prefix(VM_PREFIX) {
            return vm.parse().ok().map(Self::Vm);
        }
        if let Some(name) = uri.strip_prefix(ADMIN_PREFIX) {
            return is_name(name).then(|| Self::Admin(name.to_owned()));
        }
        let name = uri.strip_prefix(PERSON_PREFIX)?;
        is_name(name).then(|| Self::Person(name.to_owned()))
    }

    /// The role of a certificate whose chain has been verified. A certificate with no role, or with several, has none.
    #[must_use]
    pub fn of(certificate: &X509Certificate<'_>) -> Option<Self> {
        let names = certificate.subject_alternative_name().ok().flatten()?;
        let mut roles = names.value.general_names.iter().filter_map(|name| match name {
            GeneralName::URI(uri) => Some(Self::from_uri(uri)),
            _ => None,
        });
        match (roles.next(), roles.next()) {
            (Some(role), None) => role,
            _ => None,
        }
    }

    /// "vm", "admin" or "person".
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Vm(_) => "vm",
            Self::Admin(_) => "admin",
            Self::Person(_) => PERSON_WORD,
        }
    }
}

/// Whether administrators and persons can be named so.
fn is_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_exact_roles_are_read() {
        let vm = VmId::random();
        assert_eq!(Role::from_uri(&Role::Vm(vm).uri()), Some(Role::Vm(vm)));
        assert_eq!(Role::from_uri("tidemark://admin/local"), Some(Role::Admin("local".into())));
        let anna = Role::Person("anna.b-c_1".into());
        assert_eq!((anna.uri().as_str(), anna.word()), ("tidemark://person/anna.b-c_1", "person"));
        assert_eq!(Role::from_uri(&anna.uri()), Some(anna));
        for bad in [
            "tidemark://person/",
            "tidemark://person/a/b",
            "tidemark://person/a b",
            "tidemark://person/a%2Fb",
            "tidemark://person/../admin/a",
            "tidemark://person/größe",
            "tidemark://Person/a",
            "tidemark://persons/a",
            " tidemark://person/a",
            "tidemark://vm/",
            "tidemark://vm/x",
            "tidemark://admin/",
            "tidemark://admin/a/b",
            "https://admin/a",
            "",
        ] {
            assert_eq!(Role::from_uri(bad), None, "{bad}");
        }
    }
}
