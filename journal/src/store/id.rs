//! Names of chunks, packs and key domains. Types only.

use std::fmt;

/// Bytes of a chunk at most: the unit of images.
pub const CHUNK_BYTES: usize = 64 << 10;

/// The name of a chunk: BLAKE3 of its content, keyed with the id key of its domain. Without that key it says nothing
/// about the content, and equal contents of two domains have different names.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkId(pub [u8; 32]);

/// The scope of one set of keys, and so of deduplication: chunks are shared within a domain and never across. A caller
/// that wants all VMs to share uses one domain for all; tenants that must not learn of each other get one each.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct KeyDomain(pub [u8; 16]);

/// The name of a pack: the first half of its salt.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PackId(pub [u8; 16]);

const PACK_PREFIX: &str = "pack-";

impl PackId {
    /// The name of its file or object.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{PACK_PREFIX}{self}")
    }

    /// `None`: no name of a pack.
    #[must_use]
    pub fn of_name(name: &str) -> Option<Self> {
        from_hex(name.strip_prefix(PACK_PREFIX)?).map(Self)
    }
}

/// Lower-case hexadecimal digits, exactly as many as fit.
pub(crate) fn from_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != 2 * N {
        return None;
    }
    let mut out = [0; N];
    for (byte, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
        let mut value = 0_u8;
        for digit in pair {
            let digit = match digit {
                b'0'..=b'9' => digit - b'0',
                b'a'..=b'f' => digit - b'a' + 10,
                _ => return None,
            };
            value = value << 4 | digit;
        }
        *byte = value;
    }
    Some(out)
}

fn hex(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

macro_rules! shown_as_hex {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                hex(&self.0, f)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                hex(&self.0, f)
            }
        }
    )*};
}
shown_as_hex!(ChunkId, KeyDomain, PackId);
