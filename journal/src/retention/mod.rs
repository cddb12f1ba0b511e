//! Retention: what of a journal's history is kept, and how the rest becomes images in the chunk store.
//!
//! - [`Policy`] says what is wanted; [`window_start`] and [`plan`] turn it into points, as pure functions of what they
//!   are given; [`due`] and [`advance`] carry the plan out over a journal.
//! - [`fold_to`] moves a journal's base to a point: the images in the chunk store, durable, before the manifest names
//!   them. What it leaves half-done at any crash is garbage in the store, nothing else.
//! - [`ImageKeeper`] reads the images for views; [`mark_images`] marks what they need for collections.

mod advance;
mod build;
mod calendar;
mod keeper;
mod plan;
mod policy;
mod roots;

pub use advance::{Advanced, Due, SNAPSHOT_LOCK, Terms, advance, due, held_back, step_bytes};
pub use build::{FoldError, Folded, Pace, fold_to};
pub use calendar::Every;
pub use keeper::ImageKeeper;
pub use plan::{Plan, Points, plan, window_start};
pub use policy::{Policy, PolicyError, Pressure, Schedule};
pub use roots::{mark_all, mark_images};
