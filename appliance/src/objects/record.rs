//! What is known of an object, and its file.
//!
//! ## File `DIR/objects/<UUID>`, version 1; integers are little-endian
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | magic `TMOBJECT` |
//! | 8 | 2 | version = 1 |
//! | 10 | 1 | kind: 0 file, 1 iso, 2 ova, 3 template |
//! | 11 | 1 | flags: bit 0 published, bit 1 hold |
//! | 12 | 4 | bytes of the file, all of it |
//! | 16 | 16 | id |
//! | 32 | 8 | bytes of content |
//! | 40 | 8 | created, microseconds since 1970 |
//! | 48 | 8 | cannot be removed before, microseconds since 1970; 0: no lock |
//! | 56 | 8 | bytes of content that were new to the store |
//! | 64 | 32 | BLAKE3 of the content |
//! | 96 | 2 | bytes of the name |
//! | 98 | 2 | tags |
//! | 100 | 4 | bytes of the image's descriptor |
//! | 104 | | the name; tags {bytes of key u16, bytes of value u16, key, value}, by key; the descriptor |
//! | end - 32 | 32 | BLAKE3 of all before |
//!
//! ## History
//! Version 1: first light.

use std::collections::BTreeMap;

use thiserror::Error;
use tidemark_journal::image::Image;
use tidemark_proto::limits::{NAME_MAX_CHARS, OBJECT_TAGS_MAX};
use uuid::Uuid;

use super::{ObjectError, limits};

const MAGIC: [u8; 8] = *b"TMOBJECT";
const VERSION: u16 = 1;
const FLAG_PUBLISHED: u8 = 1;
const FLAG_HOLD: u8 = 2;
const HASH_BYTES: usize = 32;

/// What an object is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ObjectKind {
    /// Anything.
    #[default]
    File,
    /// An image of an optical disc.
    Iso,
    /// A packed appliance.
    Ova,
    /// A raw disk that VMs are made from.
    Template,
}

impl ObjectKind {
    /// Its word in the command line and the protocol.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Iso => "iso",
            Self::Ova => "ova",
            Self::Template => "template",
        }
    }

    /// By its word.
    ///
    /// # Errors
    /// [`ObjectError::Invalid`].
    pub fn of_word(word: &str) -> Result<Self, ObjectError> {
        let all = [Self::File, Self::Iso, Self::Ova, Self::Template];
        let found = all.into_iter().find(|kind| kind.word() == word);
        found.ok_or_else(|| {
            ObjectError::Invalid("the kind of an object is iso, ova, template or file".to_owned())
        })
    }

    fn number(self) -> u8 {
        match self {
            Self::File => 0,
            Self::Iso => 1,
            Self::Ova => 2,
            Self::Template => 3,
        }
    }

    fn of_number(number: u8) -> Option<Self> {
        [Self::File, Self::Iso, Self::Ova, Self::Template].into_iter().find(|kind| kind.number() == number)
    }
}

/// An object as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// Its identity, and its file's name.
    pub id: Uuid,
    /// Unique among the objects.
    pub name: String,
    /// What it is for.
    pub kind: ObjectKind,
    /// Bytes of content.
    pub size_bytes: u64,
    /// BLAKE3 of the content.
    pub hash: [u8; 32],
    /// For searches.
    pub tags: BTreeMap<String, String>,
    /// Microseconds since 1970.
    pub created_us: u64,
    /// Whether splitters may be told which of its chunks are known. Templates only.
    pub published: bool,
    /// Cannot be removed until this is taken back.
    pub hold: bool,
    /// Cannot be removed before, microseconds since 1970; 0: no lock.
    pub locked_until_us: u64,
    /// Bytes of content that the store did not have when it was put, before compression.
    pub new_bytes: u64,
    /// Its content, padded to whole sectors.
    pub image: Image,
}

/// A record's file is not as written.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RecordError {
    /// What is wrong.
    #[error("it is damaged: {0}")]
    Damaged(&'static str),
    /// Written by a newer version.
    #[error("it needs a newer version of tidemark")]
    Newer,
}

impl Object {
    /// Refuses names, tags and marks that cannot be.
    ///
    /// # Errors
    /// [`ObjectError::Invalid`].
    pub fn check(&self) -> Result<(), ObjectError> {
        check_name(&self.name)?;
        check_tags(&self.tags)?;
        if self.published && self.kind != ObjectKind::Template {
            return Err(ObjectError::Invalid(format!(
                "only templates can be published, and '{}' is of kind {}: put it with --kind template",
                self.name,
                self.kind.word()
            )));
        }
        Ok(())
    }

    /// The content of its file.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let descriptor = self.image.encode();
        let mut out = Vec::with_capacity(512 + descriptor.len());
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.push(self.kind.number());
        out.push(u8::from(self.published) * FLAG_PUBLISHED + u8::from(self.hold) * FLAG_HOLD);
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(self.id.as_bytes());
        for number in [self.size_bytes, self.created_us, self.locked_until_us, self.new_bytes] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&self.hash);
        let short = |length: usize| u16::try_from(length).unwrap_or(u16::MAX).to_le_bytes();
        out.extend_from_slice(&short(self.name.len()));
        out.extend_from_slice(&short(self.tags.len()));
        out.extend_from_slice(&u32::try_from(descriptor.len()).unwrap_or(u32::MAX).to_le_bytes());
        out.extend_from_slice(self.name.as_bytes());
        for (key, value) in &self.tags {
            out.extend_from_slice(&short(key.len()));
            out.extend_from_slice(&short(value.len()));
            out.extend_from_slice(key.as_bytes());
            out.extend_from_slice(value.as_bytes());
        }
        out.extend_from_slice(&descriptor);
        let bytes = u32::try_from(out.len() + HASH_BYTES).unwrap_or(u32::MAX);
        if let Some(place) = out.get_mut(12..16) {
            place.copy_from_slice(&bytes.to_le_bytes());
        }
        let hash = blake3::hash(&out);
        out.extend_from_slice(hash.as_bytes());
        out
    }

    /// Decodes a record's file. Takes anything, panics at nothing.
    ///
    /// # Errors
    /// When it is damaged or of a newer version.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let Some((body, hash)) = bytes.split_last_chunk::<HASH_BYTES>() else {
            return Err(RecordError::Damaged("it is cut off"));
        };
        if !body.starts_with(&MAGIC) {
            return Err(RecordError::Damaged("it does not begin as an object"));
        }
        if blake3::hash(body).as_bytes() != hash {
            return Err(RecordError::Damaged("its hash does not match"));
        }
        let mut reader = Reader(body.get(MAGIC.len()..).unwrap_or_default());
        if reader.u16() != Some(VERSION) {
            return Err(RecordError::Newer);
        }
        parse(&mut reader, bytes.len()).ok_or(RecordError::Damaged("it breaks the format"))
    }
}

fn parse(reader: &mut Reader<'_>, bytes: usize) -> Option<Object> {
    let kind = ObjectKind::of_number(reader.u8()?)?;
    let flags = reader.u8().filter(|flags| flags & !(FLAG_PUBLISHED | FLAG_HOLD) == 0)?;
    reader.u32().filter(|stated| usize::try_from(*stated) == Ok(bytes))?;
    let id = Uuid::from_bytes(reader.array()?);
    let (size_bytes, created_us) = (reader.u64()?, reader.u64()?);
    let (locked_until_us, new_bytes) = (reader.u64()?, reader.u64()?);
    let hash = reader.array()?;
    let (name, tag_count) = (reader.u16()?, reader.u16()?);
    let descriptor = reader.u32()?;
    let name = reader.text(name.into())?;
    let mut tags = BTreeMap::new();
    for _ in 0..tag_count {
        let (key, value) = (reader.u16()?, reader.u16()?);
        let (key, value) = (reader.text(key.into())?, reader.text(value.into())?);
        if tags.last_key_value().is_some_and(|(last, _)| *last >= key) {
            return None;
        }
        tags.insert(key, value);
    }
    let image = Image::decode(reader.take(usize::try_from(descriptor).ok()?)?).ok()?;
    if !reader.0.is_empty() || image.size_bytes() < size_bytes {
        return None;
    }
    let (published, hold) = (flags & FLAG_PUBLISHED != 0, flags & FLAG_HOLD != 0);
    Some(Object {
        id,
        name,
        kind,
        size_bytes,
        hash,
        tags,
        created_us,
        published,
        hold,
        locked_until_us,
        new_bytes,
        image,
    })
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(bytes)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn text(&mut self, bytes: usize) -> Option<String> {
        String::from_utf8(self.take(bytes)?.to_vec()).ok()
    }
}

/// Refuses names that cannot be an object's.
pub(super) fn check_name(name: &str) -> Result<(), ObjectError> {
    if name.is_empty() || name.chars().count() > NAME_MAX_CHARS || name.chars().any(char::is_control) {
        return Err(ObjectError::Invalid(format!(
            "an object's name has 1 to {NAME_MAX_CHARS} characters and no control characters"
        )));
    }
    Ok(())
}

fn check_tags(tags: &BTreeMap<String, String>) -> Result<(), ObjectError> {
    if tags.len() > OBJECT_TAGS_MAX {
        return Err(ObjectError::Invalid(format!("an object has {OBJECT_TAGS_MAX} tags at most")));
    }
    let text = |text: &str, most: usize| text.chars().count() <= most && !text.chars().any(char::is_control);
    for (key, value) in tags {
        let key_fits = text(key, limits::TAG_KEY_MAX_CHARS) && !key.is_empty() && !key.contains('=');
        if !key_fits || !text(value, limits::TAG_VALUE_MAX_CHARS) {
            return Err(ObjectError::Invalid(format!(
                "a tag is KEY=VALUE: a key of 1 to {} characters without '=', a value of {} at most, no control \
                 characters",
                limits::TAG_KEY_MAX_CHARS,
                limits::TAG_VALUE_MAX_CHARS
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tidemark_journal::store::KeyDomain;
    use tidemark_proto::ids::{DiskId, Lsn};

    use super::*;

    fn object() -> Object {
        Object {
            id: Uuid::from_u128(7),
            name: "debian-12.iso".to_owned(),
            kind: ObjectKind::Template,
            size_bytes: 1000,
            hash: [3; 32],
            tags: BTreeMap::from([("os".to_owned(), "débian".to_owned()), ("v".to_owned(), String::new())]),
            created_us: 5,
            published: true,
            hold: false,
            locked_until_us: 9,
            new_bytes: 512,
            image: Image::empty(KeyDomain([1; 16]), DiskId(1), Lsn(0), 1024),
        }
    }

    #[test]
    fn records_come_back_as_they_were_and_every_flipped_bit_is_found() {
        let bytes = object().encode();
        assert_eq!(Object::decode(&bytes), Ok(object()));
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut damaged = bytes.clone();
                damaged[at] ^= 1 << bit;
                assert!(Object::decode(&damaged).is_err(), "byte {at}");
            }
            assert!(Object::decode(&bytes[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn the_golden_record_stays_readable() {
        let bytes = object().encode();
        assert_eq!(&bytes[..16], b"TMOBJECT\x01\0\x03\x01\x1f\x01\0\0");
        assert_eq!(blake3::hash(&bytes).to_hex()[..16], *GOLDEN);
        let mut newer = bytes.clone();
        newer[8] = 2;
        let body = newer.len() - 32;
        let hash = *blake3::hash(&newer[..body]).as_bytes();
        newer[body..].copy_from_slice(&hash);
        assert_eq!(Object::decode(&newer), Err(RecordError::Newer));
    }

    const GOLDEN: &str = "f879eda04daf36f8";

    #[test]
    fn what_cannot_be_is_refused() {
        object().check().unwrap();
        let tags = |key: &str, value: &str| BTreeMap::from([(key.to_owned(), value.to_owned())]);
        for bad in [
            Object { name: String::new(), ..object() },
            Object { name: "a\nb".to_owned(), ..object() },
            Object { name: "x".repeat(129), ..object() },
            Object { tags: tags("", "x"), ..object() },
            Object { tags: tags("a=b", "x"), ..object() },
            Object { tags: tags("a", &"x".repeat(257)), ..object() },
            Object { kind: ObjectKind::Iso, ..object() },
        ] {
            assert!(matches!(bad.check(), Err(ObjectError::Invalid(_))), "{bad:?}");
        }
        assert!(ObjectKind::of_word("ISO").is_err());
        assert_eq!(ObjectKind::of_word("iso").unwrap(), ObjectKind::Iso);
    }
}
