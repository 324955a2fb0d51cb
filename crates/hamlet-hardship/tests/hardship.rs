//! The simulation itself: the same seed tells the same story, some hundred seeds pass, and a few
//! seeded bugs are found. The long campaign and all the bugs are `cargo xtask hardship`.

use hamlet_core::seeded::SeededBug;
use hamlet_hardship::{Campaign, run_seed};

/// Seeds that every test run plays.
const SEEDS: u64 = 200;

#[test]
fn the_same_seed_tells_the_same_story() {
    for seed in [3, 17, 40, 59] {
        let (one, two) = (run_seed(seed, None, true).unwrap(), run_seed(seed, None, true).unwrap());
        assert!(one.log.len() > 20, "seed {seed} tells too little");
        let differs = one.log.iter().zip(&two.log).find(|(a, b)| a != b);
        assert_eq!(differs, None, "seed {seed}");
        assert_eq!((one.story, one.lived), (two.story, two.lived), "seed {seed}");
    }
    let (a, b) = (run_seed(1, None, false).unwrap(), run_seed(2, None, false).unwrap());
    assert_ne!(a.story, b.story);
}

#[test]
fn some_hundred_seeds_pass_and_much_happens_in_them() {
    let report = Campaign { first: 0, seeds: SEEDS, threads: 2 }.run().unwrap();
    let failed: Vec<String> = report.failed.iter().map(|(seed, v)| format!("seed {seed}: {v}")).collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    for what in [
        "restarts",
        "kills",
        "power cuts",
        "disk failures",
        "half-open links",
        "refusals, policy",
        "refusals, not persisted",
        "resumed, equal",
        "rounds over some",
        "buckets wanted",
        "replica switches",
        "second streams",
        "starts over dropped pages",
    ] {
        assert!(report.tally.of(what) > 0, "{what} never happened");
    }
}

#[test]
fn seeded_bugs_are_found_by_a_broken_invariant() {
    for (bug, seeds) in [
        (SeededBug::AckBeforeDurable, 50),
        (SeededBug::NeverSweep, 50),
        (SeededBug::RestartLeaves, 50),
        (SeededBug::AckWithoutStatus, 50),
    ] {
        let report = Campaign { first: 0, seeds, threads: 1 }.hunt(bug).unwrap();
        assert!(report.found.is_some(), "{} is not found in {seeds} seeds", bug.name());
    }
}
