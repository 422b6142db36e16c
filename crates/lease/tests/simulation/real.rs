//! Histories of the kinds that find most, on a real etcd.
//!
//! `TRACE_SEED=<seed> cargo test -p flannel-lease --test simulation real` replays any one, with its whole history.

use std::collections::{BTreeMap, BTreeSet};

use crate::mirror::Mirror;
use crate::store::Deed;
use crate::variable;
use crate::world::{Found, World};

/// Histories of each kind; `TRACE_EACH` sets another number.
const EACH: u64 = 2;
/// Seeds that are looked through for them.
const SEEDS: u64 = 2_000;

const KINDS: [Found; 8] = [
    Found::Taken,
    Found::LateAnswer,
    Found::LostAnswer,
    Found::Restored,
    Found::Wiped,
    Found::Compacted,
    Found::SharedAddress,
    Found::Younger,
];

/// The first seeds that hold each kind, with all that each holds.
fn chosen() -> BTreeMap<u64, BTreeSet<Found>> {
    let each = variable("TRACE_EACH").unwrap_or(EACH);
    let mut chosen: BTreeMap<u64, BTreeSet<Found>> = BTreeMap::new();
    for seed in 0..SEEDS {
        let mut world = World::new(seed, false);
        world.run().unwrap();
        let rare = |kind: &Found| count(&chosen, *kind) < each;
        if world.found().iter().any(rare) {
            chosen.insert(seed, world.found().clone());
        }
        if KINDS.iter().all(|kind| count(&chosen, *kind) >= each) {
            break;
        }
    }
    for kind in KINDS {
        assert!(count(&chosen, kind) >= each, "hardly any history holds {kind:?}");
    }
    chosen
}

fn count(chosen: &BTreeMap<u64, BTreeSet<Found>>, kind: Found) -> u64 {
    chosen.values().filter(|found| found.contains(&kind)).count() as u64
}

#[test]
fn what_finds_most_holds_on_a_real_etcd() {
    let seeds = match variable("TRACE_SEED") {
        Some(seed) => BTreeMap::from([(seed, BTreeSet::new())]),
        None => chosen(),
    };
    let tell = seeds.len() == 1;
    let mut etcd = Mirror::start();
    for (seed, found) in seeds {
        etcd.clear().unwrap();
        let mut world = World::new(seed, tell).on(etcd);
        let outcome = world.run();
        etcd = world.into_etcd().unwrap();
        println!("seed {seed}: {found:?}, {} calls", etcd.calls());
        if let Err(problem) = outcome {
            panic!("seed {seed} {found:?}: {problem}\nreplay it with TRACE_SEED={seed}");
        }
        assert!(etcd.calls() > 20, "seed {seed}: only {} calls", etcd.calls());
    }
}

/// The comparison must be able to fail: an etcd with a key that the history does not have.
#[test]
fn an_etcd_that_has_something_else_is_found_out() {
    let mut etcd = Mirror::start();
    let more = Deed::Put {
        key: "10.5.0.4-30".into(),
        value: "{}".into(),
        lease: 0,
    };
    etcd.repeat(&more).unwrap();
    let mut world = World::new(1, false).on(etcd);
    let problem = world.run().unwrap_err();
    assert!(
        problem.contains("etcd lists") || problem.contains("etcd says"),
        "{problem}"
    );
}
