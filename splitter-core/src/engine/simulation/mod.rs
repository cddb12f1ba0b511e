//! Deterministic simulation: the real engine between a model of the kernel and disks, and a model of the appliance.
//!
//! A seed fixes everything; a failure prints it. `TIDEMARK_SEED=n` runs one seed, `TIDEMARK_SEEDS=n` that many.
//! The checker knows the truth (what was on the disks and in flight when each captured write was appended to the
//! ring) and must fail on every deliberately broken variant in [`Broken`].

mod appliance;
mod checker;
mod kernel;
mod random;
mod world;

use tidemark_proto::v1::GapCause;
use world::{Broken, World};

fn run(seed: u64, broken: Broken) -> Result<world::Totals, String> {
    World::new(seed, broken).run().map_err(|problem| format!("seed {seed}: {problem}"))
}

/// Verifies at any time, and sectors that change behind the tap's back.
fn run_verifying(seed: u64, broken: Broken) -> Result<world::Totals, String> {
    World::new(seed, broken).verifying(8).run().map_err(|problem| format!("seed {seed}: {problem}"))
}

fn seeds() -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    match number("TIDEMARK_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("TIDEMARK_SEEDS").unwrap_or(2000),
    }
}

#[test]
fn every_point_outside_gaps_is_exact_whatever_happens() {
    let mut totals = world::Totals::default();
    for seed in seeds() {
        match run(seed, Broken::Nothing) {
            Ok(run) => totals.add(&run),
            Err(problem) => panic!("{problem}"),
        }
    }
    println!("{totals:?}");
    if seeds().count() >= 2000 {
        // The simulation is worth nothing if it never got where it hurts.
        for (name, count) in totals.counts() {
            // A question is on its way for a moment only.
            let least = if name.starts_with("questions") || name.starts_with("offers") { 20 } else { 50 };
            assert!(count > least, "only {count} {name} in all seeds");
        }
    }
}

#[test]
fn verifies_find_what_was_corrupted_and_nothing_else_whatever_happens() {
    let mut totals = world::Totals::default();
    for seed in seeds() {
        match run_verifying(seed, Broken::Nothing) {
            Ok(run) => totals.add(&run),
            Err(problem) => panic!("{problem}"),
        }
    }
    println!("{totals:?}");
    if seeds().count() >= 2000 {
        let counts = [totals.verifies, totals.corruptions, totals.found_blocks, totals.verify_lines];
        assert!(counts.iter().all(|count| *count > 1000), "{counts:?}");
        assert!(totals.cancelled > 100, "{totals:?}");
    }
}

#[test]
fn verifies_of_what_nobody_corrupted_open_no_gap() {
    for seed in seeds() {
        let run = World::new(seed, Broken::Nothing).verifying(0).run();
        let totals = run.unwrap_or_else(|problem| panic!("seed {seed}: {problem}"));
        assert!(totals.verifies > 0 && totals.verify_lines == 0, "seed {seed}: {totals:?}");
    }
}

/// False differences call a disk in doubt as a whole, which ends further ones: rarer, so more seeds.
#[test]
fn verifies_that_do_not_mind_writes_are_caught() {
    let caught = (0..900).filter(|seed| run_verifying(*seed, Broken::VerifyUnordered).is_err()).count();
    assert!(caught > 20, "{caught}");
}

#[test]
fn verifies_that_see_nothing_are_caught() {
    let caught = (0..300).filter(|seed| run_verifying(*seed, Broken::VerifyBlind).is_err()).count();
    assert!(caught > 250, "{caught}");
}

#[test]
fn a_first_protection_is_one_gap() {
    for seed in 0..50 {
        let lines = World::new(seed, Broken::Nothing).first_lines().unwrap();
        // One more where the disks turn out to have grown.
        assert!(lines.iter().all(|cause| *cause == GapCause::InitialCopy), "seed {seed}: {lines:?}");
        assert!(lines.len() == 1 || lines.len() == 3, "seed {seed}: {lines:?}");
    }
}

fn caught(broken: Broken) -> usize {
    (0..300).filter(|seed| run(*seed, broken).is_err()).count()
}

/// Wrong answers do harm only where the disk holds again what it once held: rarer, so more seeds.
fn caught_in_many(broken: Broken) -> usize {
    (0..4000).filter(|seed| run(*seed, broken).is_err()).count()
}

#[test]
fn base_blocks_stamped_when_their_read_began_are_caught() {
    assert!(caught(Broken::BaseAtReadLsn) > 20, "{}", caught(Broken::BaseAtReadLsn));
}

#[test]
fn swapped_dependent_writes_are_caught() {
    assert!(caught(Broken::SwappedWrites) > 100, "{}", caught(Broken::SwappedWrites));
}

#[test]
fn a_miss_that_nobody_reports_is_caught() {
    assert!(caught(Broken::SilentMiss) > 20, "{}", caught(Broken::SilentMiss));
}

#[test]
fn dirty_bits_forgotten_over_a_restart_are_caught() {
    assert!(caught(Broken::ForgottenBits) > 20, "{}", caught(Broken::ForgottenBits));
}

#[test]
fn pieces_that_were_known_once_are_caught() {
    let caught = caught_in_many(Broken::KnownFromHistory);
    assert!(caught > 3, "{caught}");
}

#[test]
fn answers_that_call_unknown_pieces_known_are_caught() {
    let caught = caught(Broken::WrongAnswers);
    assert!(caught > 20, "{caught}");
}

#[test]
fn content_of_a_template_that_is_not_what_was_named_is_caught() {
    // Most of what a first copy names is written again before its gap ends.
    let caught = caught(Broken::WrongTemplate);
    assert!(caught > 20, "{caught}");
}

#[test]
fn markers_placed_after_their_hold_are_caught() {
    // Where nothing was written while the place was reserved, late is not too late.
    let caught = caught(Broken::LateMarkers);
    assert!(caught > 30, "{caught}");
}
