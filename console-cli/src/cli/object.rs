//! Flags of `tidemark object`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use jiff::Timestamp;

use super::arguments::parse_duration;
use crate::when::When;

#[derive(Debug, Subcommand)]
pub(crate) enum ObjectCommand {
    /// Keep a file at the appliance; an interrupted upload goes on where it was when the command is run again
    #[command(after_help = "Examples:\n  tidemark object put debian-12.iso --tag os=debian\n  \
        tidemark object put golden.raw --name web-template --kind template --publish\n  \
        tidemark object put audit.tar --lock-until 365d          # nobody can remove it before")]
    Put(PutArguments),
    /// Fetch a file; it appears under its name when it is whole and verified
    #[command(after_help = "Example: tidemark object get debian-12.iso --to /var/lib/isos/debian-12.iso")]
    Get(GetArguments),
    /// What is kept
    #[command(after_help = "Example: tidemark object list --kind template --tag os=debian")]
    List(ListArguments),
    /// Change marks and tags
    #[command(after_help = "Examples:\n  tidemark object set web-template --publish --tag os=debian\n  \
        tidemark object set debian-12.iso --hold")]
    Set(SetArguments),
    /// Remove a file; refused while it is held or locked
    #[command(after_help = "Example: tidemark object remove debian-12.iso")]
    Remove {
        /// From `object list`
        name: String,
    },
}

/// What an object is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ObjectKind {
    Iso,
    Ova,
    Template,
    File,
}

impl ObjectKind {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Iso => "iso",
            Self::Ova => "ova",
            Self::Template => "template",
            Self::File => "file",
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct PutArguments {
    /// A file or a block device
    pub(crate) file: PathBuf,
    /// Unique among the objects [default: the file's name]
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// What it is for [default: by the file's ending]
    #[arg(long, value_enum, value_name = "KIND")]
    pub(crate) kind: Option<ObjectKind>,
    /// KEY=VALUE, to find it by (may repeat)
    #[arg(long = "tag", value_name = "KEY=VALUE", value_parser = parse_tag)]
    pub(crate) tags: Vec<(String, String)>,
    /// Let splitters skip what a template has when they copy a disk for the first time
    #[arg(long)]
    pub(crate) publish: bool,
    /// Refuse to remove it until `object set --release`
    #[arg(long)]
    pub(crate) hold: bool,
    /// Let nobody remove it before this time, or for so long (90s, 30m, 1h, 365d)
    #[arg(long, value_name = "TIME|DURATION", value_parser = parse_until)]
    pub(crate) lock_until: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct GetArguments {
    /// From `object list`
    pub(crate) name: String,
    /// Where to
    #[arg(long, value_name = "FILE")]
    pub(crate) to: PathBuf,
    /// Replace a file that exists already
    #[arg(long)]
    pub(crate) overwrite: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ListArguments {
    /// Only this kind
    #[arg(long, value_enum, value_name = "KIND")]
    pub(crate) kind: Option<ObjectKind>,
    /// Only what has this tag (may repeat)
    #[arg(long = "tag", value_name = "KEY=VALUE", value_parser = parse_tag)]
    pub(crate) tags: Vec<(String, String)>,
    /// Only names that contain this
    #[arg(long, value_name = "TEXT")]
    pub(crate) search: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct SetArguments {
    /// From `object list`
    pub(crate) name: String,
    /// Publish a template
    #[arg(long, conflicts_with = "unpublish")]
    pub(crate) publish: bool,
    /// Take that back
    #[arg(long)]
    pub(crate) unpublish: bool,
    /// Refuse to remove it
    #[arg(long, conflicts_with = "release")]
    pub(crate) hold: bool,
    /// End a hold
    #[arg(long)]
    pub(crate) release: bool,
    /// Let nobody remove it before this time, or for so long; a lock cannot be shortened
    #[arg(long, value_name = "TIME|DURATION", value_parser = parse_until)]
    pub(crate) lock_until: Option<u64>,
    /// Set a tag (may repeat)
    #[arg(long = "tag", value_name = "KEY=VALUE", value_parser = parse_tag)]
    pub(crate) tags: Vec<(String, String)>,
    /// Remove a tag (may repeat)
    #[arg(long = "untag", value_name = "KEY")]
    pub(crate) untags: Vec<String>,
}

fn parse_tag(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("'{text}' is no tag: write KEY=VALUE")),
    }
}

/// Microseconds since 1970: a time, or so long from now.
fn parse_until(text: &str) -> Result<u64, String> {
    let micros = |time: Timestamp| u64::try_from(time.as_microsecond()).unwrap_or(0);
    if let Ok(length) = parse_duration(text) {
        let length = u64::try_from(length.as_micros()).unwrap_or(u64::MAX);
        return Ok(micros(Timestamp::now()).saturating_add(length));
    }
    match text.parse::<When>() {
        Ok(When::Time(time)) => Ok(micros(time)),
        Ok(_) => Err(format!(
            "'{text}' is neither a time nor a length of time: write 2027-01-31T00:00:00Z or 365d"
        )),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locks_take_times_and_lengths() {
        assert_eq!(parse_until("1970-01-01T00:00:01Z"), Ok(1_000_000));
        let now = u64::try_from(Timestamp::now().as_microsecond()).unwrap();
        let day = parse_until("1d").unwrap();
        assert!((now + 86_399_000_000..now + 86_500_000_000).contains(&day));
        for bad in ["latest", "-90s", "lsn:1", "365", "", "soon"] {
            assert!(parse_until(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_tag("a=b=c"), Ok(("a".to_owned(), "b=c".to_owned())));
        assert!(parse_tag("=b").is_err() && parse_tag("a").is_err());
    }
}
