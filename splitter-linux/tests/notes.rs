//! The notes of the completion programs (`src/bpf/notes.h`), compiled for this machine's own processor and run under
//! interrupts that nest anywhere.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test stops at the first surprise")]

use std::path::Path;
use std::process::Command;

/// Events per density of interrupts; four densities make some millions of events with the nested ones.
const ROUNDS: &str = "200000";

fn run(folder: &Path, flags: &[&str], seed: u32) -> (bool, String) {
    let clang = std::env::var("CLANG").unwrap_or_else(|_| "clang".to_owned());
    let program = folder.join("model");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/notes_model.c");
    let compiled = Command::new(clang)
        .args(["-O2", "-Wall", "-Werror", "-Wno-unused-function"])
        .args(flags)
        .args(["-o".as_ref(), program.as_os_str(), source.as_ref()])
        .status()
        .unwrap();
    assert!(compiled.success());
    let output = Command::new(&program).args([ROUNDS, &seed.to_string()]).output().unwrap();
    (output.status.success(), String::from_utf8(output.stdout).unwrap())
}

#[test]
fn each_completion_is_handled_once_however_interrupts_nest() {
    let folder = tempfile::tempdir().unwrap();
    for seed in 1..=3 {
        let (right, text) = run(folder.path(), &[], seed);
        assert!(right, "seed {seed}: {text}");
        assert!(text.contains("doubts 0"), "seed {seed}: {text}");
    }
}

#[test]
fn control_a_place_that_two_requests_share_fails() {
    let folder = tempfile::tempdir().unwrap();
    let (right, text) = run(folder.path(), &["-DNAIVE"], 1);
    assert!(!right, "{text}");
}

#[test]
fn control_too_few_places_come_to_doubts() {
    let folder = tempfile::tempdir().unwrap();
    let (_, text) = run(folder.path(), &["-DNOTES=2"], 1);
    assert!(!text.contains("doubts 0"), "{text}");
}
