//! Taking a point of a set: one moment across its members.
//!
//! Members that can are held by a [barrier](super::barrier) and stand at their markers. The others stand where they were at
//! the moment when the last of those that count said that it holds, by their own clocks, whose error against the
//! appliance's is measured: the point says by how much two members may be apart, and is never called a barrier's.
//! Who cannot be placed at all is missing from the point, with the reason.

mod clock_cut;
mod hold;
mod hooks;
mod orders;
mod take;
#[cfg(test)]
mod tests;
mod wish;

pub(super) use take::BY_CLOCK;
pub use take::{NotTaken, take};
pub use wish::Wish;
