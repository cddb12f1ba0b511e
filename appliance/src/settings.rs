//! What an appliance is told: by the command line, and by a file for what is not there.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::Deserialize;
use thiserror::Error;

use crate::catalog::{CatalogUrl, InvalidCatalogUrl};
use crate::images::{InvalidMasterKeySource, MasterKeySource};
use crate::master_key::KeyCommand;
use crate::packs::{InvalidPackLocation, PackLocation, PackSettings};

/// The recovery appliance: takes the write streams of splitters and gives back any point of them.
#[derive(Debug, Parser)]
#[command(
    name = "tidemark-appliance",
    version,
    after_help = EXAMPLE,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
pub struct Program {
    /// Serves, unless something else is asked for.
    #[command(flatten)]
    pub serve: Option<Arguments>,
    /// What else.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What the program does besides serving.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Look at the master key, or change it
    #[command(subcommand)]
    Key(KeyCommand),
    /// Write the manual pages into a folder
    #[command(hide = true)]
    Manual {
        /// The folder
        dir: PathBuf,
    },
}

/// What an appliance that serves is told.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Folder of journals, catalog, certificate authority and admin.context; created when missing
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,
    /// Address for splitters and consoles [default: 127.0.0.1:7440]
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Option<SocketAddr>,
    /// Loopback address for /metrics and /healthz [default: 127.0.0.1:7441]
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub http: Option<SocketAddr>,
    /// Catalog: sqlite, sqlite:FILE or postgres://USER@HOST/DATABASE [default: sqlite]
    #[arg(long, value_name = "URL")]
    pub catalog: Option<String>,
    /// Further names or addresses under which clients reach this appliance (may repeat)
    #[arg(long = "name", value_name = "NAME")]
    pub names: Vec<String>,
    /// Master key of the chunk store: file:PATH, passphrase-file:PATH or command:CMD [default: a key file that is
    /// made in DIR/ca at the first start]
    #[arg(long, value_name = "SOURCE")]
    pub master_key: Option<String>,
    /// Where the packs of the chunk store lie: local or s3://BUCKET/PREFIX [default: local]
    #[arg(long, value_name = "URL")]
    pub packs: Option<String>,
    /// TOML file, mode 0600, with endpoint and keys of the object storage [default: the AWS_* variables]
    #[arg(long, value_name = "FILE")]
    pub packs_config: Option<PathBuf>,
    /// MiB of the local disk that keep what is read from object storage [default: 1024]
    #[arg(long, value_name = "MIB")]
    pub packs_cache_mib: Option<u64>,
    /// Form of the log on standard error [default: text]
    #[arg(long, value_name = "FORM")]
    pub log: Option<LogForm>,
    /// TOML file with the same settings (listen, http, catalog, names, master_key, packs, packs_config,
    /// packs_cache_mib, log); the command line wins
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

const EXAMPLE: &str = "Example:\n  tidemark-appliance --data /var/lib/tidemark --listen 0.0.0.0:7440\n  \
                       tidemark --context /var/lib/tidemark/admin.context token create --vm web-1";

/// The form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogForm {
    /// Lines for people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// The settings file. Unknown keys are refused: a misspelt one would silently do nothing.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    listen: Option<SocketAddr>,
    http: Option<SocketAddr>,
    catalog: Option<String>,
    #[serde(default)]
    names: Vec<String>,
    master_key: Option<String>,
    packs: Option<String>,
    packs_config: Option<PathBuf>,
    packs_cache_mib: Option<u64>,
    log: Option<LogForm>,
}

/// Checked settings.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The data folder.
    pub data: PathBuf,
    /// For splitters and consoles; port 0 takes a free one.
    pub listen: SocketAddr,
    /// For metrics and health; loopback.
    pub http: SocketAddr,
    /// Where the catalog is.
    pub catalog: CatalogUrl,
    /// Further names in the server's certificate.
    pub names: Vec<String>,
    /// Where the master key of the chunk store comes from.
    pub master_key: MasterKeySource,
    /// Where the packs of the chunk store lie.
    pub packs: PackSettings,
    /// The form of the log.
    pub log: LogForm,
}

/// The settings are unusable.
#[derive(Debug, Error)]
pub enum SettingsError {
    /// The file cannot be read.
    #[error("reading {path}: {source}")]
    Read {
        /// Which.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not what it should be.
    #[error("{path}: {problem}")]
    Parse {
        /// Which.
        path: String,
        /// Line and reason.
        problem: String,
    },
    /// Not a catalog.
    #[error(transparent)]
    Catalog(#[from] InvalidCatalogUrl),
    /// Not a source of a key.
    #[error("--master-key: {0}")]
    MasterKey(#[from] InvalidMasterKeySource),
    /// Not a place for packs.
    #[error("--packs: {0}")]
    Packs(#[from] InvalidPackLocation),
    /// Metrics would be reachable by anyone.
    #[error(
        "--http {0} is not a loopback address: metrics and health are unauthenticated; use 127.0.0.1 and a proxy"
    )]
    OpenHttp(SocketAddr),
}

impl Settings {
    /// Settings for `data` with all defaults and free ports on loopback: for tests and embedding.
    #[must_use]
    pub fn local(data: &Path) -> Self {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        Self {
            data: data.to_path_buf(),
            listen: any,
            http: any,
            catalog: CatalogUrl::Sqlite(None),
            names: Vec::new(),
            master_key: MasterKeySource::Default,
            packs: PackSettings::default(),
            log: LogForm::Text,
        }
    }

    /// Settings from the command line and its file.
    ///
    /// # Errors
    /// When the file is unreadable or a value unusable.
    pub fn load(arguments: Arguments) -> Result<Self, SettingsError> {
        let file = arguments.config.as_deref().map(read).transpose()?.unwrap_or_default();
        let default = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let http = arguments.http.or(file.http).unwrap_or_else(|| default(7441));
        if !http.ip().is_loopback() {
            return Err(SettingsError::OpenHttp(http));
        }
        let mut names = file.names;
        names.extend(arguments.names);
        let master_key = arguments.master_key.or(file.master_key);
        let location = arguments.packs.or(file.packs).as_deref().map(str::parse::<PackLocation>);
        let cache_mib = arguments.packs_cache_mib.or(file.packs_cache_mib);
        let packs = PackSettings {
            location: location.transpose()?.unwrap_or_default(),
            access_file: arguments.packs_config.or(file.packs_config),
            cache_bytes: cache_mib.map(|mib| mib.saturating_mul(1 << 20)),
        };
        Ok(Self {
            data: arguments.data,
            listen: arguments.listen.or(file.listen).unwrap_or_else(|| default(7440)),
            http,
            catalog: arguments.catalog.or(file.catalog).as_deref().unwrap_or("sqlite").parse()?,
            names,
            master_key: source_of(master_key.as_deref())?,
            packs,
            log: arguments.log.or(file.log).unwrap_or_default(),
        })
    }
}

fn source_of(text: Option<&str>) -> Result<MasterKeySource, InvalidMasterKeySource> {
    text.map_or(Ok(MasterKeySource::Default), str::parse)
}

/// Where the master key comes from, by the settings file and what the command line says of it.
///
/// # Errors
/// When the file is unreadable or the source is none.
pub fn master_key(config: Option<&Path>, given: Option<&str>) -> Result<MasterKeySource, SettingsError> {
    let file = config.map(read).transpose()?.unwrap_or_default();
    Ok(source_of(given.or(file.master_key.as_deref()))?)
}

fn read(path: &Path) -> Result<File, SettingsError> {
    let shown = || path.display().to_string();
    let text =
        std::fs::read_to_string(path).map_err(|source| SettingsError::Read { path: shown(), source })?;
    toml::from_str(&text).map_err(|error| SettingsError::Parse { path: shown(), problem: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(arguments: &[&str]) -> Result<Settings, SettingsError> {
        let program = Program::try_parse_from(["tidemark-appliance", "--data", "/d"].iter().chain(arguments));
        Settings::load(program.unwrap().serve.unwrap())
    }

    #[test]
    fn the_command_line_is_sound_and_serves_unless_told_otherwise() {
        use clap::CommandFactory;
        Program::command().debug_assert();
        let parse =
            |arguments: &[&str]| Program::try_parse_from(["tidemark-appliance"].iter().chain(arguments));
        assert!(parse(&["--data", "/d"]).unwrap().command.is_none());
        assert!(parse(&[]).is_err(), "no folder");
        let program = parse(&["key", "rotate", "--data", "/d"]).unwrap();
        assert!(program.serve.is_none() && program.command.is_some());
        assert!(parse(&["key", "rotate"]).is_err(), "no folder");
    }

    #[test]
    fn defaults_are_loopback_and_the_command_line_wins_over_the_file() {
        let settings = load(&[]).unwrap();
        assert_eq!(settings.listen.to_string(), "127.0.0.1:7440");
        assert_eq!(settings.catalog, CatalogUrl::Sqlite(None));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.toml");
        std::fs::write(
            &path,
            "listen = '127.0.0.1:1'\ncatalog = 'postgres://x/y'\nnames = ['a']\nlog = 'json'",
        )
        .unwrap();
        let path = path.to_str().unwrap();
        let settings = load(&["--config", path, "--listen", "127.0.0.1:2", "--name", "b"]).unwrap();
        assert_eq!(settings.listen.port(), 2);
        assert_eq!(settings.catalog, CatalogUrl::Postgres("postgres://x/y".into()));
        assert_eq!((settings.names, settings.log), (vec!["a".to_owned(), "b".to_owned()], LogForm::Json));
    }

    #[test]
    fn unknown_keys_open_metrics_and_strange_catalogs_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.toml");
        std::fs::write(&path, "lisen = '127.0.0.1:1'").unwrap();
        let error = load(&["--config", path.to_str().unwrap()]).unwrap_err().to_string();
        assert!(error.contains("lisen"), "{error}");
        let error = load(&["--http", "0.0.0.0:7441"]).unwrap_err().to_string();
        assert!(error.contains("not a loopback address"), "{error}");
        assert!(load(&["--catalog", "mysql://x"]).is_err());
        let error = load(&["--master-key", "/etc/key"]).unwrap_err().to_string();
        assert!(error.contains("--master-key") && error.contains("command:CMD"), "{error}");
        let settings = load(&["--master-key", "file:/etc/key"]).unwrap();
        assert_eq!(settings.master_key, MasterKeySource::File("/etc/key".into()));
        let error = load(&["--packs", "bucket"]).unwrap_err().to_string();
        assert!(error.contains("--packs") && error.contains("s3://BUCKET/PREFIX"), "{error}");
        let packs = load(&["--packs", "s3://bucket/a", "--packs-cache-mib", "2"]).unwrap().packs;
        assert_eq!(
            (packs.location.to_string().as_str(), packs.cache_bytes),
            ("s3://bucket/a", Some(2 << 20))
        );
    }
}
