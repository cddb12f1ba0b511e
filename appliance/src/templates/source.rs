//! Content that was found in a template.

use std::sync::{Arc, Weak};

use tidemark_proto::pieces::HashKey;

use super::Template;

/// Bytes of a published template, from an offset on, and the hash by which they were asked for. It does not keep the
/// template: that ends with being published.
#[derive(Debug, Clone)]
pub struct Source {
    template: Weak<Template>,
    offset: u64,
    key: HashKey,
    hash: [u8; 32],
}

impl Source {
    pub(super) fn new(template: &Arc<Template>, offset: u64, key: HashKey, hash: [u8; 32]) -> Self {
        Self { template: Arc::downgrade(template), offset, key, hash }
    }

    /// The hash by which it was asked for.
    #[must_use]
    pub fn hash(&self) -> &[u8; 32] {
        &self.hash
    }

    /// The template and the byte where it begins.
    #[must_use]
    pub fn place(&self) -> (&Weak<Template>, u64) {
        (&self.template, self.offset)
    }

    /// Fills the buffer with the content and verifies it by the hash. False when it is not to be had any more: the template
    /// was unpublished, or cannot be read. Blocks.
    #[must_use]
    pub fn read(&self, buffer: &mut [u8]) -> bool {
        let read = self.template.upgrade().is_some_and(|template| template.read(self.offset, buffer));
        read && self.key.hash(buffer) == self.hash
    }
}
