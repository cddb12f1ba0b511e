//! A recovery certificate as its file holds it, to JSON and back. Takes anything, panics at nothing.

use serde::{Deserialize, Serialize};
use tidemark_journal::attest::{Certificate, Head, Provenance};
use tidemark_proto::ids::Lsn;

/// What a certificate's file begins with, so that it tells what it is.
pub(super) const FORMAT: &str = "tidemark recovery certificate 1";

/// Only what the signature covers counts; `time` and `issued` are for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Shown {
    pub(super) format: String,
    pub(super) vm: String,
    pub(super) vm_id: String,
    pub(super) disk: String,
    pub(super) lsn: u64,
    pub(super) time: Option<String>,
    pub(super) time_us: u64,
    pub(super) issued: Option<String>,
    pub(super) issued_us: u64,
    pub(super) size_bytes: u64,
    pub(super) blake3: String,
    pub(super) head: ShownHead,
    pub(super) segments: Vec<ShownSegment>,
    pub(super) image: Option<ShownImage>,
    pub(super) public_key: String,
    pub(super) signature: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ShownHead {
    pub(super) segment: u64,
    pub(super) frames: u64,
    pub(super) seq: u64,
    pub(super) lsn: u64,
    pub(super) time_us: u64,
    pub(super) hash: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ShownSegment {
    pub(super) segment: u64,
    pub(super) hash: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ShownImage {
    pub(super) lsn: u64,
    pub(super) root: String,
}

/// The certificates of a file.
///
/// # Errors
/// With line and column of what is none.
pub(super) fn parse(text: &str) -> Result<Vec<Shown>, serde_json::Error> {
    serde_json::from_str(text)
}

impl Shown {
    /// What the signature is over, and the signature; `None`: the fields cannot be those of a certificate.
    pub(super) fn signed(&self) -> Option<(Certificate, [u8; 64])> {
        if self.format != FORMAT {
            return None;
        }
        Some((self.certificate()?, bytes(&self.signature)?))
    }

    /// What the signature is over.
    pub(super) fn certificate(&self) -> Option<Certificate> {
        let segments = self.segments.iter().map(|one| Some((one.segment, bytes(&one.hash)?)));
        let image = match &self.image {
            None => None,
            Some(image) => Some((Lsn(image.lsn), bytes(&image.root)?)),
        };
        Some(Certificate {
            vm: self.vm_id.parse().ok()?,
            vm_name: self.vm.clone(),
            disk: self.disk.parse().ok()?,
            lsn: Lsn(self.lsn),
            time_us: self.time_us,
            issued_us: self.issued_us,
            size_bytes: self.size_bytes,
            content: bytes(&self.blake3)?,
            provenance: Provenance {
                head: Head {
                    segment: self.head.segment,
                    frames: self.head.frames,
                    seq: self.head.seq,
                    lsn: Lsn(self.head.lsn),
                    time_us: self.head.time_us,
                    hash: bytes(&self.head.hash)?,
                },
                segments: segments.collect::<Option<_>>()?,
                image,
            },
        })
    }
}

/// Hexadecimal digits, exactly as many as fit.
pub(super) fn bytes<const N: usize>(digits: &str) -> Option<[u8; N]> {
    let pair = |pair: &[u8]| {
        let digits = std::str::from_utf8(pair).ok().filter(|_| pair.iter().all(u8::is_ascii_hexdigit))?;
        u8::from_str_radix(digits, 16).ok()
    };
    if digits.len() != 2 * N {
        return None;
    }
    let decoded: Option<Vec<u8>> = digits.as_bytes().chunks(2).map(pair).collect();
    decoded?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_digits_and_as_many_as_fit() {
        assert_eq!(bytes("00ff"), Some([0, 255]));
        for bad in ["", "0", "00f", "00ff0", "+0+f", "00 f", "0xff", "\u{e9}\u{e9}"] {
            assert_eq!(bytes::<2>(bad), None, "{bad}");
        }
    }
}
