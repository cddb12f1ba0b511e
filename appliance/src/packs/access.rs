//! Endpoint and credentials of the object storage: from a private file, or from the usual environment.

use std::fmt;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey};
use object_store::{BackoffConfig, Certificate, ClientOptions, RetryConfig};
use serde::Deserialize;
use thiserror::Error;
use tonic::transport::Uri;

use super::{ObjectPlace, limits};

/// How the object storage is reached.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Access {
    /// URL of the server; none: the region's of the public service.
    endpoint: Option<String>,
    region: Option<String>,
    credentials: Credentials,
    ca_file: Option<PathBuf>,
    allow_http: bool,
    virtual_hosted: bool,
}

#[derive(Clone, Default, PartialEq, Eq)]
enum Credentials {
    #[default]
    None,
    Keys {
        id: String,
        secret: String,
        session_token: Option<String>,
    },
    /// What the machine's own identity gives, by the variables that name it.
    Role(Vec<(AmazonS3ConfigKey, String)>),
    /// The role of the machine, from its metadata service.
    Instance,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "None",
            Self::Keys { .. } => "Keys",
            Self::Role(_) => "Role",
            Self::Instance => "Instance",
        })
    }
}

/// The settings of the object storage cannot be used.
#[derive(Debug, Error)]
pub enum AccessError {
    /// The file cannot be read.
    #[error("reading {path}: {source}")]
    Read {
        /// Which.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// Others could read the secret key.
    #[error("{0} holds secret keys and others may read it: run `chmod 600` on it")]
    Open(String),
    /// The file is not what it should be.
    #[error("{path}: {problem}")]
    Parse {
        /// Which.
        path: String,
        /// Line and reason.
        problem: String,
    },
    /// Nothing says who we are.
    #[error(
        "no credentials for the object storage: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a file \
         with access_key_id and secret_access_key by --packs-config"
    )]
    NoCredentials,
    /// One of the two is missing.
    #[error("the object storage needs both an access key id and a secret access key; one of them is missing")]
    HalfCredentials,
    /// The endpoint is no URL.
    #[error("the endpoint '{0}' is no URL of a server: write https://HOST or https://HOST:PORT")]
    Endpoint(String),
    /// Packs and signatures would cross a network in the clear.
    #[error(
        "the endpoint {0} has no TLS: use https, or say allow_http = true (AWS_ALLOW_HTTP=true) if the network is yours alone"
    )]
    PlainHttp(String),
    /// The client cannot be set up.
    #[error("setting up the client of the object storage: {0}")]
    Client(String),
}

/// The file. Unknown keys are refused: a misspelt one would silently do nothing.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    endpoint: Option<String>,
    region: Option<String>,
    access_key_id: Option<String>,
    secret_access_key: Option<String>,
    session_token: Option<String>,
    ca_file: Option<PathBuf>,
    #[serde(default)]
    allow_http: bool,
    #[serde(default)]
    virtual_hosted: bool,
    #[serde(default)]
    instance_role: bool,
}

/// Variables that name an identity of the machine or the container.
const ROLE_VARIABLES: &[(&str, AmazonS3ConfigKey)] = &[
    ("AWS_WEB_IDENTITY_TOKEN_FILE", AmazonS3ConfigKey::WebIdentityTokenFile),
    ("AWS_ROLE_ARN", AmazonS3ConfigKey::RoleArn),
    ("AWS_ROLE_SESSION_NAME", AmazonS3ConfigKey::RoleSessionName),
    ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", AmazonS3ConfigKey::ContainerCredentialsRelativeUri),
    ("AWS_CONTAINER_CREDENTIALS_FULL_URI", AmazonS3ConfigKey::ContainerCredentialsFullUri),
    ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", AmazonS3ConfigKey::ContainerAuthorizationTokenFile),
];

impl Access {
    /// From a file of mode 0600: `endpoint`, `region`, `access_key_id`, `secret_access_key`, `session_token`,
    /// `ca_file`, `allow_http`, `virtual_hosted`, `instance_role`.
    ///
    /// # Errors
    /// When the file cannot be read, may be read by others, or makes no sense.
    pub fn from_file(path: &Path) -> Result<Self, AccessError> {
        let shown = || path.display().to_string();
        let unreadable = |source| AccessError::Read { path: shown(), source };
        let mode = std::fs::metadata(path).map_err(unreadable)?.permissions().mode();
        if mode & 0o077 != 0 {
            return Err(AccessError::Open(shown()));
        }
        let text = std::fs::read_to_string(path).map_err(unreadable)?;
        // The parser's message quotes the line at fault, which may be the secret.
        let file: File = toml::from_str(&text).map_err(|error| {
            let line = error
                .span()
                .and_then(|span| text.get(..span.start))
                .map_or(0, |before| before.lines().count());
            AccessError::Parse { path: shown(), problem: format!("line {line}: {}", error.message()) }
        })?;
        let credentials = match (file.access_key_id, file.secret_access_key) {
            (Some(id), Some(secret)) => Credentials::Keys { id, secret, session_token: file.session_token },
            (None, None) if file.instance_role => Credentials::Instance,
            (None, None) => Credentials::None,
            _ => return Err(AccessError::HalfCredentials),
        };
        let (endpoint, region, ca_file) = (file.endpoint, file.region, file.ca_file);
        let (allow_http, virtual_hosted) = (file.allow_http, file.virtual_hosted);
        Self { endpoint, region, credentials, ca_file, allow_http, virtual_hosted }.checked()
    }

    /// From variables, as `read` gives them: `AWS_ENDPOINT_URL_S3` or `AWS_ENDPOINT_URL`, `AWS_REGION` or
    /// `AWS_DEFAULT_REGION`, `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`, `AWS_CA_BUNDLE`,
    /// `AWS_ALLOW_HTTP`, `AWS_VIRTUAL_HOSTED_STYLE_REQUEST`, and those of web identities and containers.
    ///
    /// # Errors
    /// When they make no sense together.
    pub fn from_environment(read: impl Fn(&str) -> Option<String>) -> Result<Self, AccessError> {
        let get = |name: &str| read(name).filter(|value| !value.is_empty());
        let role = || {
            let named = ROLE_VARIABLES.iter().filter_map(|(name, key)| Some((*key, get(name)?)));
            named.collect::<Vec<_>>()
        };
        let credentials = match (get("AWS_ACCESS_KEY_ID"), get("AWS_SECRET_ACCESS_KEY")) {
            (Some(id), Some(secret)) => {
                Credentials::Keys { id, secret, session_token: get("AWS_SESSION_TOKEN") }
            }
            (None, None) => match role() {
                role if role.is_empty() => Credentials::None,
                role => Credentials::Role(role),
            },
            _ => return Err(AccessError::HalfCredentials),
        };
        let on = |name: &str| get(name).is_some_and(|value| value == "true" || value == "1");
        let access = Self {
            endpoint: get("AWS_ENDPOINT_URL_S3")
                .or_else(|| get("AWS_ENDPOINT_URL"))
                .or_else(|| get("AWS_ENDPOINT")),
            region: get("AWS_REGION").or_else(|| get("AWS_DEFAULT_REGION")),
            credentials,
            ca_file: get("AWS_CA_BUNDLE").map(PathBuf::from),
            allow_http: on("AWS_ALLOW_HTTP"),
            virtual_hosted: on("AWS_VIRTUAL_HOSTED_STYLE_REQUEST"),
        };
        access.checked()
    }

    fn checked(self) -> Result<Self, AccessError> {
        if self.credentials == Credentials::None {
            return Err(AccessError::NoCredentials);
        }
        if let Some(endpoint) = &self.endpoint {
            let invalid = || AccessError::Endpoint(endpoint.clone());
            let uri: Uri = endpoint.parse().map_err(|_| invalid())?;
            let host = uri.host().ok_or_else(invalid)?;
            match uri.scheme_str() {
                Some("https") => {}
                Some("http") if self.allow_http || is_loopback(host) => {}
                Some("http") => return Err(AccessError::PlainHttp(endpoint.clone())),
                _ => return Err(invalid()),
            }
        }
        Ok(self)
    }

    /// Where requests go, for messages.
    #[must_use]
    pub fn endpoint(&self) -> &str {
        self.endpoint.as_deref().unwrap_or("the public service")
    }

    /// The client of a bucket. Nothing is asked of the server yet.
    ///
    /// # Errors
    /// When the certificate file cannot be read, or the client refuses the settings.
    pub fn client(&self, place: &ObjectPlace) -> Result<AmazonS3, AccessError> {
        let plain = self.endpoint.as_deref().is_some_and(|endpoint| endpoint.starts_with("http://"));
        let mut options = ClientOptions::new()
            .with_timeout(limits::REQUEST_TIMEOUT)
            .with_connect_timeout(limits::CONNECT_TIMEOUT)
            // What is not plain on purpose stays encrypted, redirects included.
            .with_allow_http(plain);
        if let Some(path) = &self.ca_file {
            let pem = std::fs::read(path)
                .map_err(|source| AccessError::Read { path: path.display().to_string(), source })?;
            for certificate in Certificate::from_pem_bundle(&pem).map_err(client)? {
                options = options.with_root_certificate(certificate);
            }
        }
        let retry = RetryConfig {
            backoff: BackoffConfig::default(),
            max_retries: limits::RETRIES_MAX,
            retry_timeout: limits::RETRY_TIMEOUT,
        };
        let mut builder = AmazonS3Builder::new()
            .with_bucket_name(&place.bucket)
            .with_client_options(options)
            .with_retry(retry)
            .with_virtual_hosted_style_request(self.virtual_hosted)
            // Packs are deleted one by one, and not every server has the call for many.
            .with_disable_bulk_delete(true);
        if let Some(endpoint) = &self.endpoint {
            builder = builder.with_endpoint(endpoint).with_allow_http(plain);
        }
        if let Some(region) = &self.region {
            builder = builder.with_region(region);
        }
        match &self.credentials {
            Credentials::Keys { id, secret, session_token } => {
                builder = builder.with_access_key_id(id).with_secret_access_key(secret);
                if let Some(token) = session_token {
                    builder = builder.with_token(token);
                }
            }
            Credentials::Role(named) => {
                for (key, value) in named {
                    builder = builder.with_config(*key, value);
                }
            }
            Credentials::Instance | Credentials::None => {}
        }
        builder.build().map_err(client)
    }
}

fn client(error: object_store::Error) -> AccessError {
    AccessError::Client(error.to_string())
}

fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(named: &[(&str, &str)]) -> Result<Access, AccessError> {
        Access::from_environment(|name| {
            named.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        })
    }

    const KEYS: [(&str, &str); 2] = [("AWS_ACCESS_KEY_ID", "id"), ("AWS_SECRET_ACCESS_KEY", "s3cret")];

    #[test]
    fn plain_http_goes_to_loopback_alone_unless_told() {
        let with = |endpoint, more: &[(&'static str, &'static str)]| {
            let mut named = KEYS.to_vec();
            named.push(("AWS_ENDPOINT_URL", endpoint));
            named.extend_from_slice(more);
            environment(&named)
        };
        for endpoint in
            ["https://s3.example.net", "http://127.0.0.1:9000", "http://localhost:1", "http://[::1]:2"]
        {
            with(endpoint, &[]).unwrap();
        }
        for endpoint in ["http://192.0.2.1", "http://127.0.0.1.example.net", "http://localhost.example.net:1"]
        {
            assert!(matches!(with(endpoint, &[]), Err(AccessError::PlainHttp(_))), "{endpoint}");
            with(endpoint, &[("AWS_ALLOW_HTTP", "true")]).unwrap();
        }
        for endpoint in ["s3.example.net", "ftp://x", "https://", "not a url"] {
            assert!(matches!(with(endpoint, &[]), Err(AccessError::Endpoint(_))), "{endpoint}");
        }
    }

    #[test]
    fn credentials_are_whole_or_refused_and_never_shown() {
        assert!(matches!(environment(&[]), Err(AccessError::NoCredentials)));
        assert!(matches!(environment(&KEYS[..1]), Err(AccessError::HalfCredentials)));
        let access = environment(&KEYS).unwrap();
        assert!(!format!("{access:?}").contains("s3cret"));
        let role = [("AWS_ROLE_ARN", "arn"), ("AWS_WEB_IDENTITY_TOKEN_FILE", "/t")];
        assert!(
            matches!(environment(&role).unwrap().credentials, Credentials::Role(named) if named.len() == 2)
        );
    }

    #[test]
    fn the_file_is_private_and_its_errors_do_not_quote_secrets() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("packs.toml");
        let write = |text: &str, mode| {
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            Access::from_file(&path)
        };
        let good =
            "endpoint = 'https://s3.example.net'\naccess_key_id = 'id'\nsecret_access_key = 's3cret'\n";
        assert!(matches!(write(good, 0o640), Err(AccessError::Open(_))));
        let access = write(good, 0o600).unwrap();
        assert_eq!(access.endpoint(), "https://s3.example.net");
        let error =
            write("access_key_id = 'id'\nsecret_acces_key = 's3cret'\n", 0o600).unwrap_err().to_string();
        assert!(!error.contains("s3cret") && error.contains("secret_acces_key"), "{error}");
        let instance = write("instance_role = true\nregion = 'eu-1'\n", 0o600).unwrap();
        assert_eq!(instance.credentials, Credentials::Instance);
    }
}
