//! Where the master key of the chunk store comes from. Losing it loses every image: back it up.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::str::FromStr;
use std::time::Duration;

use thiserror::Error;
use tidemark_journal::store::{MasterKey, MasterSecret, StoreError};
use tokio::io::AsyncReadExt;
use tokio::process::Command;

use crate::data_dir::{FileError, read_text, write_private};

/// How long the command may take: it may ask a key server, and nobody is served meanwhile. Beyond it the start fails.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);

/// Bytes of a key file, passphrase or command's output at most. More is no key and is refused.
const SECRET_MAX_BYTES: u64 = 4096;

/// The default source, in what is kept of a change.
const DEFAULT: &str = "default";

/// Where the master key comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MasterKeySource {
    /// `DIR/ca/store.key`, made at the first start.
    Default,
    /// `file:PATH`: 32 bytes, or 64 lower-case hexadecimal digits.
    File(PathBuf),
    /// `passphrase-file:PATH`: the first line is the passphrase.
    PassphraseFile(PathBuf),
    /// `command:CMD`: what a shell command writes to its standard output is the key, as in a key file.
    Command(String),
}

/// The text names no source of a master key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the master key comes from 'file:PATH', 'passphrase-file:PATH' or 'command:CMD'")]
pub struct InvalidMasterKeySource;

impl FromStr for MasterKeySource {
    type Err = InvalidMasterKeySource;
    fn from_str(text: &str) -> Result<Self, InvalidMasterKeySource> {
        match text.split_once(':').filter(|(_, rest)| !rest.trim().is_empty()) {
            Some(("file", path)) => Ok(Self::File(path.into())),
            Some(("passphrase-file", path)) => Ok(Self::PassphraseFile(path.into())),
            Some(("command", command)) => Ok(Self::Command(command.to_owned())),
            _ => Err(InvalidMasterKeySource),
        }
    }
}

/// The master key cannot be had.
#[derive(Debug, Error)]
pub enum MasterKeyError {
    /// The default key file is gone while the store is there.
    #[error(
        "the chunk store is here but its master key {0} is not: put the copy of that file back, or say with \
         --master-key where the key is"
    )]
    Lost(String),
    /// A file cannot be read or written.
    #[error("master key of the chunk store: {0}")]
    File(#[from] FileError),
    /// A file cannot be read.
    #[error("master key of the chunk store: reading {path}: {source}")]
    Read {
        /// Which.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// The command did not give a key.
    #[error("master key of the chunk store: the command '{command}' {problem}")]
    Command {
        /// As configured.
        command: String,
        /// What went wrong.
        problem: String,
    },
    /// What was read is no key.
    #[error("master key of the chunk store: {origin} holds no key: {source}")]
    Unusable {
        /// Where it was read.
        origin: String,
        /// What is wrong.
        source: StoreError,
    },
}

impl fmt::Display for MasterKeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str(DEFAULT),
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::PassphraseFile(path) => write!(f, "passphrase-file:{}", path.display()),
            Self::Command(command) => write!(f, "command:{command}"),
        }
    }
}

impl MasterKeySource {
    /// As it was written by its `Display`: unlike what people may give, also the default.
    #[must_use]
    pub fn of_text(text: &str) -> Option<Self> {
        if text == DEFAULT { Some(Self::Default) } else { text.parse().ok() }
    }

    /// The same with its path from the root, whatever folder the next process starts in.
    ///
    /// # Errors
    /// When the present folder is unknown, or the path is no text.
    pub fn absolute(self) -> Result<Self, MasterKeyError> {
        let whole = |path: PathBuf| {
            let fail = |source| MasterKeyError::Read { path: path.display().to_string(), source };
            let whole = std::path::absolute(&path).map_err(fail)?;
            if whole.to_str().is_none() {
                return Err(fail(std::io::Error::other("the path is not UTF-8")));
            }
            Ok(whole)
        };
        Ok(match self {
            Self::File(path) => Self::File(whole(path)?),
            Self::PassphraseFile(path) => Self::PassphraseFile(whole(path)?),
            other => other,
        })
    }

    /// Makes a new key in a file, 0600.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn make(file: &Path) -> Result<MasterSecret, MasterKeyError> {
        write_private(file, fresh_key().as_bytes())?;
        key(&read_limited(file)?, &file.display().to_string())
    }

    /// Reads the master key. `default_file` is the file of [`MasterKeySource::Default`]; it is made, 0600, when it is
    /// missing and there is no store yet.
    ///
    /// # Errors
    /// When the key cannot be read, or a key that a store is encrypted under is lost.
    pub async fn load(
        &self,
        default_file: &Path,
        store_exists: bool,
    ) -> Result<MasterSecret, MasterKeyError> {
        match self {
            Self::Default => {
                if !default_file.exists() {
                    if store_exists {
                        return Err(MasterKeyError::Lost(default_file.display().to_string()));
                    }
                    return Self::make(default_file);
                }
                key(&read_limited(default_file)?, &default_file.display().to_string())
            }
            Self::File(path) => key(&read_limited(path)?, &path.display().to_string()),
            Self::PassphraseFile(path) => {
                let text = read_text(path)?;
                Ok(MasterSecret::Passphrase(text.lines().next().unwrap_or_default().to_owned()))
            }
            Self::Command(command) => key(&output(command).await?, "the command's output"),
        }
    }
}

/// 32 random bytes as hexadecimal digits and a line feed, which survive being copied by hand.
fn fresh_key() -> String {
    let key: [u8; 32] = rand::random();
    let mut text: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
    text.push('\n');
    text
}

fn key(bytes: &[u8], origin: &str) -> Result<MasterSecret, MasterKeyError> {
    let key = MasterKey::from_bytes(bytes)
        .map_err(|source| MasterKeyError::Unusable { origin: origin.to_owned(), source })?;
    Ok(MasterSecret::Key(key))
}

fn read_limited(path: &Path) -> Result<Vec<u8>, MasterKeyError> {
    use std::io::Read;
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(SECRET_MAX_BYTES).read_to_end(&mut bytes))
        .map_err(|source| MasterKeyError::Read { path: path.display().to_string(), source })?;
    Ok(bytes)
}

/// What the command writes to its standard output. Its standard error goes to the appliance's.
async fn output(command: &str) -> Result<Vec<u8>, MasterKeyError> {
    let failed = |problem: String| MasterKeyError::Command { command: command.to_owned(), problem };
    let mut child = Command::new("/bin/sh")
        .args(["-c", command])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| failed(format!("cannot be started: {error}")))?;
    let stdout = child.stdout.take();
    let run = async {
        let mut bytes = Vec::new();
        if let Some(stdout) = stdout {
            stdout.take(SECRET_MAX_BYTES).read_to_end(&mut bytes).await?;
        }
        Ok::<_, std::io::Error>((child.wait().await?, bytes))
    };
    match tokio::time::timeout(COMMAND_TIMEOUT, run).await {
        Err(_) => Err(failed(format!("did not end in {} s", COMMAND_TIMEOUT.as_secs()))),
        Ok(Err(error)) => Err(failed(format!("cannot be read: {error}"))),
        Ok(Ok((status, _))) if !status.success() => Err(failed(format!("failed ({status})"))),
        Ok(Ok((_, bytes))) => Ok(bytes),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn bytes(secret: MasterSecret) -> MasterKey {
        match secret {
            MasterSecret::Key(key) => key,
            MasterSecret::Passphrase(_) => panic!("a key was asked for"),
        }
    }

    #[test]
    fn sources_are_told_by_their_prefix() {
        assert_eq!("file:/k".parse(), Ok(MasterKeySource::File("/k".into())));
        assert_eq!("passphrase-file:/p".parse(), Ok(MasterKeySource::PassphraseFile("/p".into())));
        assert_eq!("command:get a:b".parse(), Ok(MasterKeySource::Command("get a:b".into())));
        for bad in ["", "/k", "file:", "command: ", "env:KEY"] {
            assert_eq!(bad.parse::<MasterKeySource>(), Err(InvalidMasterKeySource), "{bad}");
        }
    }

    #[tokio::test]
    async fn the_default_key_is_made_once_private_and_never_again_over_a_store() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.key");
        let first = bytes(MasterKeySource::Default.load(&path, false).await.unwrap());
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(bytes(MasterKeySource::Default.load(&path, true).await.unwrap()), first);
        std::fs::remove_file(&path).unwrap();
        let lost = MasterKeySource::Default.load(&path, true).await.unwrap_err().to_string();
        assert!(lost.contains("put the copy of that file back"), "{lost}");
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn keys_come_from_files_and_commands_and_everything_else_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        std::fs::write(&path, "ab".repeat(32)).unwrap();
        let none = dir.path().join("none");
        let from_file = MasterKeySource::File(path.clone()).load(&none, true).await.unwrap();
        let command = MasterKeySource::Command(format!("cat {}", path.display()));
        assert_eq!(bytes(command.load(&none, true).await.unwrap()), bytes(from_file));
        std::fs::write(&path, "too short").unwrap();
        for source in [MasterKeySource::File(path.clone()), MasterKeySource::File(none.clone()), command] {
            assert!(source.load(&none, false).await.is_err(), "{source:?}");
        }
        let failing = MasterKeySource::Command("exit 3".into()).load(&none, false).await.unwrap_err();
        assert!(failing.to_string().contains("failed"), "{failing}");
        std::fs::write(&path, "correct horse\nsecond line").unwrap();
        let secret = MasterKeySource::PassphraseFile(path).load(&none, false).await.unwrap();
        assert!(matches!(secret, MasterSecret::Passphrase(text) if text == "correct horse"));
    }
}
