//! Which method is called, and which of them persons may call who are no administrators.

use tonic::codegen::http;

/// The full name of the method that a request calls, in its extensions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Method(pub String);

/// Notes in a request which method it calls: services see their messages only.
pub(crate) fn noted<B>(mut request: http::Request<B>) -> http::Request<B> {
    let method = Method(request.uri().path().to_owned());
    request.extensions_mut().insert(method);
    request
}

/// What persons may call; each of these judges by itself whether the caller has a right to what it names. A method that is
/// not here is an administrator's.
pub const PERSON_METHODS: &[&str] = &[
    "/tidemark.v1.Sets/CreateSetBookmark",
    "/tidemark.v1.Sets/ListSetPoints",
    "/tidemark.v1.Sets/FindSetPoint",
    "/tidemark.v1.Sets/Diverged",
    "/tidemark.v1.Console/OpenView",
    "/tidemark.v1.Console/ReadView",
    "/tidemark.v1.Console/StartExport",
    "/tidemark.v1.Console/ListExports",
    "/tidemark.v1.Console/StopExport",
    "/tidemark.v1.Console/ListPoints",
    "/tidemark.v1.Console/RenewAdmin",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_persons_may_call_exists() {
        for method in PERSON_METHODS {
            assert!(tidemark_proto::METHODS.contains(method), "{method}");
        }
    }

    #[test]
    fn a_request_says_what_it_calls() {
        let uri = "https://appliance:7440/tidemark.v1.Sets/CreateSet?x=/tidemark.v1.Sets/Diverged";
        let request = noted(http::Request::builder().uri(uri).body(()).unwrap());
        assert_eq!(request.extensions().get(), Some(&Method("/tidemark.v1.Sets/CreateSet".into())));
    }
}
