//! `tidemark-appliance key ...`: offline, with the data folder.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, Subcommand};

use super::{Finished, RotateError, UNFINISHED, finish, look, pending, rotate};
use crate::data_dir::DataDir;
use crate::images::{Images, MasterKeySource};
use crate::settings;

/// Looks at the master key, or changes it.
#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// Say where the master key comes from and whether it opens the keys of the chunk store and of every log
    #[command(after_help = "Example:\n  tidemark-appliance key show --data /var/lib/tidemark")]
    Show {
        #[command(flatten)]
        folder: KeyArguments,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Wrap the keys of the chunk store and of every log under another master key, while the appliance is stopped.
    ///
    /// It may be killed at any time: run again, or started, the appliance goes on. Afterwards the old key opens nothing here;
    /// copies of key files made before still open under it, so destroy them with it, and make new ones.
    #[command(after_help = "Examples:\n  tidemark-appliance key rotate --data /var/lib/tidemark\n  \
                            tidemark-appliance key rotate --data /var/lib/tidemark --new file:/etc/tidemark/key-2 --data-keys")]
    Rotate {
        #[command(flatten)]
        folder: KeyArguments,
        /// Where the new key comes from: file:PATH, passphrase-file:PATH or command:CMD [default: a new key file in DIR/ca,
        /// in place of the old one]
        #[arg(long, value_name = "SOURCE")]
        new: Option<String>,
        /// Give the chunk store and every log a new data key as well: what is written from then on is encrypted under it
        #[arg(long)]
        data_keys: bool,
    },
}

/// Which data folder, and where its present key comes from.
#[derive(Debug, Args)]
pub struct KeyArguments {
    /// The appliance's data folder
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,
    /// Where the present master key comes from, as the appliance is told [default: the key file in DIR/ca]
    #[arg(long, value_name = "SOURCE")]
    pub master_key: Option<String>,
    /// The appliance's settings file, for its master_key
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

impl KeyArguments {
    fn open(&self) -> anyhow::Result<(DataDir, MasterKeySource)> {
        // Not made by the way: a mistyped folder is no new appliance.
        if !Images::exist(&self.data.join("store")) {
            return Err(RotateError::NoStore.into());
        }
        let source = settings::master_key(self.config.as_deref(), self.master_key.as_deref())?;
        Ok((DataDir::open(&self.data)?, source))
    }
}

fn say(text: &str) -> anyhow::Result<()> {
    writeln!(std::io::stdout(), "{text}").context("writing to standard output")
}

/// Does what was asked.
///
/// # Errors
/// In one line that says what to do.
pub async fn run(command: KeyCommand) -> anyhow::Result<()> {
    match command {
        KeyCommand::Show { folder, json } => {
            let (data, source) = folder.open()?;
            let state = look(&data, &source).await?;
            if json {
                say(&serde_json::to_string_pretty(&state)?)?;
            } else {
                say(&format!("master key: {} ({})", state.source, state.kind))?;
                say(&format!("logs whose keys it opens: {}", state.logs))?;
                for (count, what) in [(state.logs_without_keys, "logs that are not encrypted")] {
                    if count > 0 {
                        say(&format!("{what}: {count}"))?;
                    }
                }
                for problem in &state.unreadable {
                    say(&format!("does not open: {problem}"))?;
                }
                if let Some(to) = &state.changing_to {
                    say(&format!("a change to {to} is under way: start the appliance, or run `key rotate`"))?;
                }
            }
            anyhow::ensure!(state.unreadable.is_empty(), "{} logs do not open", state.unreadable.len());
            Ok(())
        }
        KeyCommand::Rotate { folder, new, data_keys } => {
            let (data, source) = folder.open()?;
            let new = new.map(|new| new.parse::<MasterKeySource>()).transpose().context("--new")?;
            let new = new.map(MasterKeySource::absolute).transpose()?;
            let told = &mut |done: &str| {
                tracing::debug!(done, "master key");
                true
            };
            let finished = match pending(&data)? {
                Some(record) => {
                    let asked = new.or(Some(MasterKeySource::Default));
                    let finished = finish(&data, &record, told).await?;
                    report(&finished)?;
                    anyhow::ensure!(
                        asked.as_ref() == Some(&finished.source),
                        "that change was begun earlier and is done now: run this again for yours"
                    );
                    return Ok(());
                }
                None => rotate(&data, &source, new, data_keys, told).await?,
            };
            report(&finished)
        }
    }
}

fn report(finished: &Finished) -> anyhow::Result<()> {
    say(&format!(
        "the chunk store and {} logs are under the master key from {}",
        finished.logs, finished.source
    ))?;
    for log in &finished.unreadable {
        say(&format!("does not open under either key: {log}"))?;
    }
    anyhow::ensure!(finished.unreadable.is_empty(), UNFINISHED);
    if finished.source == MasterKeySource::Default {
        return say("copy DIR/ca/store.key and DIR/store/chunk-keys now");
    }
    say(&format!(
        "start the appliance with --master-key '{}', and copy DIR/store/chunk-keys now",
        finished.source
    ))
}
