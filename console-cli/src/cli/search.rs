//! Flags of `tidemark search`.

use clap::Args;

use super::arguments::ConsistencyLevel;
use crate::when::When;

/// A tag as `key=value`; of an empty value it is removed.
pub(crate) fn parse_tag(text: &str) -> Result<(String, String), String> {
    let (key, value) =
        text.split_once('=').ok_or_else(|| format!("'{text}' is no tag: write it as key=value"))?;
    Ok((key.to_owned(), value.to_owned()))
}

#[derive(Debug, Args)]
pub(crate) struct SearchArguments {
    /// Part of a bookmark's name, in any case
    pub(crate) text: Option<String>,
    /// Only VMs of this name; * stands for any characters
    #[arg(long, value_name = "PATTERN")]
    pub(crate) vm: Option<String>,
    /// Only VMs with this tag
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_tag)]
    pub(crate) tag: Option<(String, String)>,
    /// Nothing before this time
    #[arg(long, value_name = "WHEN", allow_hyphen_values = true)]
    pub(crate) from: Option<When>,
    /// Nothing after this time
    #[arg(long, value_name = "WHEN", allow_hyphen_values = true)]
    pub(crate) to: Option<When>,
    /// Only points of this level
    #[arg(long, value_enum)]
    pub(crate) consistency: Option<ConsistencyLevel>,
    /// Show at most this many, the newest
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) limit: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_have_a_key_and_a_value() {
        assert_eq!(parse_tag("app=shop"), Ok(("app".to_owned(), "shop".to_owned())));
        assert_eq!(parse_tag("app=a=b"), Ok(("app".to_owned(), "a=b".to_owned())));
        assert!(parse_tag("app").is_err());
    }
}
