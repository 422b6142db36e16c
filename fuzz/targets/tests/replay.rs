//! Every committed input through its target, and changes of them: `FUZZ_CHANGES` of each target, the same on every run.

#![expect(clippy::unwrap_used, reason = "what cannot be set up fails the test")]

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::Instant;

use flannel_fuzz::{Mutator, TARGETS, Target};

/// Enough to find what a search finds in its first seconds, and over in seconds itself.
const CHANGES: usize = 3_000;

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../corpus").join(name);
    let items = fs::read_dir(&folder).unwrap();
    let mut files: Vec<_> = items.map(|item| item.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{} is empty", folder.display());
    files.iter().map(|file| fs::read(file).unwrap()).collect()
}

fn run(name: &str, target: Target, input: &[u8]) {
    let outcome = catch_unwind(AssertUnwindSafe(|| target(input)));
    assert!(
        outcome.is_ok(),
        "{name} fails (above) on {}",
        input.escape_ascii()
    );
}

#[test]
fn committed_inputs() {
    for (name, target) in TARGETS {
        for input in corpus(name) {
            run(name, *target, &input);
        }
    }
}

/// What the environment asks for: targets whose names begin so, and how many inputs each.
fn asked() -> (Vec<(&'static str, Target)>, usize) {
    let begin = std::env::var("FUZZ_TARGET").unwrap_or_default();
    let chosen: Vec<_> = TARGETS
        .iter()
        .copied()
        .filter(|(name, _)| name.starts_with(&begin))
        .collect();
    let names: Vec<_> = TARGETS.iter().map(|(name, _)| *name).collect();
    assert!(
        !chosen.is_empty(),
        "FUZZ_TARGET is {begin:?}; expected how some of these begin: {}",
        names.join(", ")
    );
    let changes = std::env::var("FUZZ_CHANGES").map_or(CHANGES, |text| {
        let number = text.parse().ok();
        assert!(
            number.is_some_and(|n| n > 0),
            "FUZZ_CHANGES is {text:?}; expected a number above 0"
        );
        number.unwrap_or(CHANGES)
    });
    (chosen, changes)
}

#[test]
fn changed_inputs() {
    let (chosen, changes) = asked();
    println!(
        "{} targets, {changes} inputs each, of committed ones",
        chosen.len()
    );
    std::thread::scope(|scope| {
        for (name, target) in chosen {
            scope.spawn(move || {
                let (seeds, start) = (corpus(name), Instant::now());
                let mut mutator = Mutator::new(0x9E37_79B9_7F4A_7C15);
                for _ in 0..changes {
                    let (one, other) = (mutator.below(seeds.len()), mutator.below(seeds.len()));
                    let input = mutator.change(&seeds[one], &seeds[other]);
                    run(name, target, &input);
                }
                println!(
                    "{name}: {changes} inputs made of {} committed ones in {:.0?}, nothing amiss",
                    seeds.len(),
                    start.elapsed()
                );
            });
        }
    });
}

#[test]
fn every_target_has_its_program_for_libfuzzer() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz_targets");
    for (name, _) in TARGETS {
        let text = fs::read_to_string(folder.join(format!("{name}.rs"))).unwrap();
        assert!(text.contains("fuzz_target!"), "{name}");
    }
    assert_eq!(fs::read_dir(folder).unwrap().count(), TARGETS.len());
}
