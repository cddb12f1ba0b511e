//! The journal from outside: formats, models, crashes, damage. One program, because linking takes longer than most of
//! what is tried here.
#![allow(
    clippy::panic,
    clippy::print_stdout,
    clippy::unreachable,
    clippy::unwrap_used,
    reason = "a test states what must hold, and says what it saw"
)]

mod attest;
mod below;
mod branch;
mod changed;
mod costs;
mod damage;
mod encryption;
mod fold;
mod folder_damage;
mod format;
mod image;
mod journal;
mod master_change;
mod model;
mod nodes;
mod retention;
mod retention_plan;
mod settle;
mod store;
mod store_crash;
mod store_support;
mod support;
mod world;
