//! A view as a folder of files: `DIR/<disk>.raw`, served by this process through FUSE.

mod cache;
mod disk;
mod filesystem;
mod mountpoint;
mod overlay;
mod server;

pub(crate) use mountpoint::{prepare, unmount};
pub(crate) use server::{Mounted, serve, serve_clone};
