//! The URL of the place where packs lie.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// Where packs lie.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum PackLocation {
    /// In the data folder.
    #[default]
    Local,
    /// In S3-compatible object storage.
    S3(ObjectPlace),
}

/// A bucket and the part of it that is ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectPlace {
    /// The bucket's name.
    pub bucket: String,
    /// Without slashes at its ends; empty: the whole bucket.
    pub prefix: String,
}

/// The text names no place for packs.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("'{0}' is no place for packs: write 'local' or 's3://BUCKET/PREFIX'")]
pub struct InvalidPackLocation(String);

/// Bytes of a prefix at most: names of objects have 1024, and ours need some.
const PREFIX_MAX_BYTES: usize = 512;

impl FromStr for PackLocation {
    type Err = InvalidPackLocation;

    fn from_str(text: &str) -> Result<Self, InvalidPackLocation> {
        if text == "local" {
            return Ok(Self::Local);
        }
        let invalid = || InvalidPackLocation(text.chars().take(200).collect());
        let rest = text.strip_prefix("s3://").ok_or_else(invalid)?;
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let prefix = prefix.trim_end_matches('/');
        let of_bucket =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-".contains(&byte);
        let of_prefix = |byte: u8| byte.is_ascii_alphanumeric() || b"._-=+".contains(&byte);
        let segment =
            |part: &str| !part.is_empty() && part != "." && part != ".." && part.bytes().all(of_prefix);
        let sound = (3..=63).contains(&bucket.len())
            && bucket.bytes().all(of_bucket)
            && prefix.len() <= PREFIX_MAX_BYTES
            && (prefix.is_empty() || prefix.split('/').all(segment));
        if !sound {
            return Err(invalid());
        }
        Ok(Self::S3(ObjectPlace { bucket: bucket.to_owned(), prefix: prefix.to_owned() }))
    }
}

impl fmt::Display for PackLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local => f.write_str("local"),
            Self::S3(place) => place.fmt(f),
        }
    }
}

impl fmt::Display for ObjectPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}", self.bucket)?;
        if self.prefix.is_empty() { Ok(()) } else { write!(f, "/{}", self.prefix) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_parse_and_print_the_same() {
        for text in ["local", "s3://backups", "s3://my.bucket-1/site-a/tidemark"] {
            assert_eq!(text.parse::<PackLocation>().unwrap().to_string(), text);
        }
        assert_eq!("s3://backups/a/".parse::<PackLocation>().unwrap().to_string(), "s3://backups/a");
        for bad in [
            "",
            "s3://",
            "s3://ab",
            "s3://UPPER",
            "s3://bucket//a",
            "s3://bucket/../x",
            "http://bucket",
            "s3:bucket",
            "s3://bucket/a b",
            "s3://bucket/a?x=1",
        ] {
            let error = bad.parse::<PackLocation>().unwrap_err().to_string();
            assert!(error.contains("s3://BUCKET/PREFIX"), "{error}");
        }
    }
}
