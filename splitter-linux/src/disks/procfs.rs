//! Tables in `/proc` that name files.

use std::fs::Metadata;
use std::path::PathBuf;

/// A field of such a table: spaces and the like are octal: `\040`.
pub(crate) fn unescape(text: &str) -> String {
    let bytes = text.as_bytes();
    let (mut out, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while let Some(&byte) = bytes.get(at) {
        let octal = bytes.get(at + 1..at + 4).filter(|_| byte == b'\\');
        let value = octal.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        out.push(value.unwrap_or(byte));
        at += if value.is_some() { 4 } else { 1 };
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// What is used as swap: devices and files, those that can be looked at.
pub(crate) fn swaps() -> Vec<(PathBuf, Metadata)> {
    let text = std::fs::read_to_string("/proc/swaps").unwrap_or_default();
    let look = |line: &str| {
        let path = PathBuf::from(unescape(line.split_whitespace().next()?));
        Some((path.clone(), std::fs::metadata(path).ok()?))
    };
    text.lines().skip(1).filter_map(look).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_that_are_none_stay() {
        for (text, meant) in
            [("a\\040b", "a b"), ("\\134", "\\"), ("\\9", "\\9"), ("\\", "\\"), ("\\04", "\\04")]
        {
            assert_eq!(unescape(text), meant);
        }
    }
}
