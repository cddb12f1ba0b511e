//! What published templates have, by the hashes that splitters ask with.
//!
//! The chunk store names chunks by a key that never leaves it, so a splitter cannot ask by those names. This is an index of
//! its own: of each published template, the hash of every chunk of 64 KiB under one key that all sessions which may use
//! templates are told. It leads to a place in a template and to nothing else: no content of a VM is in it, and what it leads
//! to is read, verified by the store, and hashed again before it is believed.
//!
//! - [`Templates`] follows what is published, and answers.
//! - [`Source`] is content that was found. It ends when its template is unpublished.
//! - The index of a template is kept in `DIR/templates`, so that a start does not read all templates again.

mod index;
mod registry;
mod source;

pub use index::{IndexError, TemplateIndex};
pub use registry::{Template, Templates};
pub use source::Source;

/// Limits of the index. Each says its unit, its reason and what happens beyond it.
pub mod limits {
    /// Templates whose content is known at most: each question may look into all of them. Of further ones everything
    /// travels, and the log says so.
    pub const TEMPLATES_MAX: usize = 64;

    /// Chunks of all templates in the index at most: 64 GiB of content without holes in 20 MiB of memory. What lies
    /// beyond travels, and the log says so.
    pub const CHUNKS_MAX: usize = 1 << 20;
}
