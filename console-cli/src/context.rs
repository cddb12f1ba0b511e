//! The context file: which appliance, and the credentials of the person at the keyboard.
//!
//! TOML with `address` (HOST:PORT), `ca_pem`, `certificate_pem` and `key_pem`. The appliance writes one for its first
//! administrator (`admin.context`).

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

/// Where to connect and as whom.
#[derive(Deserialize)]
pub(crate) struct Context {
    /// HOST:PORT of the appliance.
    pub(crate) address: String,
    /// The appliance's CA: nobody else is trusted.
    pub(crate) ca_pem: String,
    pub(crate) certificate_pem: String,
    pub(crate) key_pem: String,
    /// The file itself.
    #[serde(skip)]
    pub(crate) path: PathBuf,
}

impl Context {
    /// Reads the context named by `--context` or `TIDEMARK_CONTEXT`, or the default one.
    pub(crate) fn load(named: Option<&Path>) -> Result<Self> {
        let path = match named {
            Some(path) => path.to_owned(),
            None => default_path()?,
        };
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => bail!(
                "no context at {}: copy the appliance's admin.context there, or name it with --context FILE or TIDEMARK_CONTEXT",
                path.display()
            ),
            Err(error) => return Err(error).with_context(|| format!("read context {}", path.display())),
        };
        let context = Self::parse(&text).with_context(|| {
            format!("context {} is damaged: copy the appliance's admin.context again", path.display())
        })?;
        Ok(Self { path, ..context })
    }

    fn parse(text: &str) -> Result<Self> {
        // The parser's own message would quote the offending line, which may be the private key.
        let context: Self = toml::from_str(text)
            .map_err(|error| anyhow::anyhow!("{}", error.message().replace('\n', " ")))?;
        if context
            .address
            .rsplit_once(':')
            .is_none_or(|(host, port)| host.is_empty() || port.parse::<u16>().is_err())
        {
            bail!("address '{}' is not HOST:PORT", context.address);
        }
        Ok(context)
    }
}

fn default_path() -> Result<PathBuf> {
    Ok(configuration_folder()?.join("context"))
}

/// `~/.config/tidemark`, or under `XDG_CONFIG_HOME`.
pub(crate) fn configuration_folder() -> Result<PathBuf> {
    home_folder("XDG_CONFIG_HOME", ".config")
}

/// `~/.local/state/tidemark`, or under `XDG_STATE_HOME`.
pub(crate) fn state_folder() -> Result<PathBuf> {
    home_folder("XDG_STATE_HOME", ".local/state")
}

fn home_folder(variable: &str, below_home: &str) -> Result<PathBuf> {
    if let Some(folder) = std::env::var_os(variable).filter(|folder| !folder.is_empty()) {
        return Ok(PathBuf::from(folder).join("tidemark"));
    }
    let home = std::env::var_os("HOME")
        .filter(|home| !home.is_empty())
        .context("HOME is not set: name the context with --context FILE")?;
    Ok(PathBuf::from(home).join(below_home).join("tidemark"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_needs_its_four_fields_and_a_port() {
        let good =
            "address='a:1'\nca_pem='c'\ncertificate_pem='d'\nkey_pem='k'\nname='later versions may add'";
        assert_eq!(Context::parse(good).unwrap_or_else(|error| panic!("{error}")).address, "a:1");
        for bad in [
            "",
            "address='a:1'",
            &good.replace("a:1", "a"),
            &good.replace("a:1", ":1"),
            &good.replace("a:1", "a:x"),
        ] {
            assert!(Context::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_error_never_shows_the_key() {
        let error = Context::parse("address='a:1'\nkey_pem='SECRET\n").err().unwrap();
        assert!(!format!("{error:#}").contains("SECRET"), "{error:#}");
    }
}
