//! Where clients connect: a Unix socket that only its owner can open, or a TCP port that speaks nothing but TLS.

use std::io;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use tokio::net::{TcpListener, UnixListener};
use tokio_rustls::TlsAcceptor;

use super::credentials::{self, ClientCredentials};
use super::registry::ExportError;

/// A bound listener.
#[derive(Debug)]
pub(super) enum Listener {
    Unix(UnixListener, PathBuf),
    Tcp(TcpListener),
}

/// A listener with what a client needs to use it.
pub(super) struct Bound {
    pub(super) listener: Listener,
    pub(super) uri: String,
    pub(super) tls: Option<(TlsAcceptor, ClientCredentials)>,
}

/// Binds `DIR/ID.sock`, mode 0600. The folder is 0700, so nobody gets in between binding and the change of mode.
pub(super) fn bind_unix(dir: &Path, id: &str, export_name: &str) -> Result<Bound, ExportError> {
    let path = dir.join(format!("{id}.sock"));
    let shown = path.display().to_string();
    let bound = UnixListener::bind(&path).and_then(|listener| {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        Ok(listener)
    });
    let listener = bound.map_err(|error| match error.kind() {
        io::ErrorKind::InvalidInput => ExportError::Failed(format!(
            "{shown} is too long for a socket: start the appliance with a shorter --data folder, or export with --tls"
        )),
        _ => ExportError::Failed(format!("cannot listen on {shown}: {error}")),
    })?;
    let uri = format!("nbd+unix:///{export_name}?socket={}", escape(&shown));
    Ok(Bound { listener: Listener::Unix(listener, path), uri, tls: None })
}

/// Binds HOST[:PORT]; without a port, or with port 0, a free one.
pub(super) async fn bind_tls(address: &str, export_name: &str) -> Result<Bound, ExportError> {
    let (host, port) = split_address(address).ok_or_else(|| {
        ExportError::Invalid(format!(
            "'{address}' is not HOST or HOST:PORT: name an address of the appliance"
        ))
    })?;
    let resolved = tokio::net::lookup_host((host, port)).await;
    let resolved: Vec<_> = resolved
        .map_err(|error| ExportError::Invalid(format!("'{host}' is no address of the appliance: {error}")))?
        .collect();
    let addresses: Vec<IpAddr> = resolved.iter().map(std::net::SocketAddr::ip).collect();
    if addresses.iter().any(IpAddr::is_unspecified) {
        return Err(ExportError::Invalid(format!(
            "'{host}' stands for every address: name the one that clients will connect to, its certificate shows it"
        )));
    }
    let listener = TcpListener::bind(resolved.as_slice()).await.map_err(|error| {
        ExportError::Invalid(format!(
            "cannot listen on {address}: {error}; name an address of the appliance and a free port"
        ))
    })?;
    let port = listener.local_addr().map_err(|error| ExportError::Failed(error.to_string()))?.port();
    let tls = credentials::make(host, &addresses, SystemTime::now())
        .map_err(|error| ExportError::Failed(error.to_string()))?;
    let shown_host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    Ok(Bound {
        listener: Listener::Tcp(listener),
        uri: format!("nbds://{shown_host}:{port}/{export_name}"),
        tls: Some(tls),
    })
}

/// `host`, `host:port`, `[v6]`, `[v6]:port` or a bare IPv6 address.
fn split_address(address: &str) -> Option<(&str, u16)> {
    let (host, port) = if let Some(rest) = address.strip_prefix('[') {
        let (host, after) = rest.split_once(']')?;
        (host, if after.is_empty() { None } else { Some(after.strip_prefix(':')?) })
    } else if address.parse::<std::net::Ipv6Addr>().is_ok() {
        (address, None)
    } else {
        match address.rsplit_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (address, None),
        }
    };
    let port = port.map_or(Some(0), |port| port.parse().ok())?;
    (!host.is_empty()).then_some((host, port))
}

/// Percent-encodes what a URI's query may not hold.
fn escape(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/-._~".contains(&byte);
    text.bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_in_all_their_forms() {
        for (text, means) in [
            ("127.0.0.1", Some(("127.0.0.1", 0))),
            ("host.example:10809", Some(("host.example", 10809))),
            ("[::1]:7", Some(("::1", 7))),
            ("[::1]", Some(("::1", 0))),
            ("::1", Some(("::1", 0))),
            ("", None),
            (":7", None),
            ("host:", None),
            ("host:99999", None),
            ("[::1", None),
            ("[::1]7", None),
        ] {
            assert_eq!(split_address(text), means, "{text}");
        }
    }

    #[test]
    fn paths_in_uris_are_escaped() {
        assert_eq!(escape("/a b/ü&x"), "/a%20b/%C3%BC%26x");
    }
}
