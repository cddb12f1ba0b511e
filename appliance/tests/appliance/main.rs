//! The appliance from outside: its ports, its folders, its process. One program, because linking the appliance takes longer
//! than most of what is tried here.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::panic,
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test states what must hold, and says what it saw"
)]

mod attest;
mod catalog;
mod clones;
mod compare;
mod diff;
mod enrolment;
mod full_disk;
mod grants;
mod master_key;
mod nbd_clients;
mod objects;
mod pack_suite;
mod packs;
mod points;
mod postgres;
mod process;
mod retention;
mod roles;
mod s3_server;
mod search;
mod set_points;
mod sets;
mod site;
mod stream;
mod templates;
mod upgrade;
mod verify;
