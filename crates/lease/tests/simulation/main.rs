//! Nodes, a store and everything that goes wrong between them, in simulated time.
//!
//! Each seed is one history: some nodes take subnets from a small pool while links break, the store stops, is wiped or
//! restored from a backup, nodes crash, sleep and come back, and operators and strangers write into the range. What must
//! hold always is checked after every step, what must hold in the end after everything was repaired.
//!
//! A seed that fails is printed. `SIM_SEED=<seed> cargo test -p flannel-lease --test simulation` replays it with its whole
//! history; `SIM_SEEDS=<count>` runs another number of seeds than the usual 10,000.
//!
//! Beside the sample stands a model check (`model`, `search`): all histories of a few nodes within small bounds.

// cfg(test) says it of the whole module: here a panic is a failed test.
#[cfg(test)]
mod faults;
#[cfg(test)]
mod mirror;
#[cfg(test)]
mod model;
#[cfg(test)]
mod node;
#[cfg(test)]
mod real;
#[cfg(test)]
mod rng;
#[cfg(test)]
mod search;
#[cfg(test)]
mod store;
#[cfg(test)]
mod world;

use std::sync::atomic::{AtomicU64, Ordering};

use model::Bounds;
use search::search;
use world::{Calm, World};

const SEEDS: u64 = 10_000;

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn run(seed: u64, tell: bool) -> Result<(), String> {
    World::new(seed, tell)
        .run()
        .map_err(|problem| format!("seed {seed}: {problem}"))
}

#[test]
fn no_history_breaks_an_invariant() {
    if let Some(seed) = variable("SIM_SEED") {
        run(seed, true).unwrap();
        return;
    }
    let seeds = variable("SIM_SEEDS").unwrap_or(SEEDS);
    let next = AtomicU64::new(0);
    let workers = std::thread::available_parallelism().map_or(1, |n| n.get().min(8));
    let failures: Vec<String> = std::thread::scope(|scope| {
        let work = || {
            let mut failures = Vec::new();
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= seeds || failures.len() >= 3 {
                    return failures;
                }
                failures.extend(run(seed, false).err());
            }
        };
        let threads: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        threads.into_iter().flat_map(|t| t.join().unwrap()).collect()
    });
    assert!(
        failures.is_empty(),
        "{}\nreplay one with SIM_SEED=<seed> cargo test -p flannel-lease --test simulation",
        failures.join("\n")
    );
}

/// The simulation itself must be able to fail: a store that lets stale owners write is found out.
#[test]
fn a_store_without_fences_is_found_out() {
    let broken = (0..400).filter(|seed| World::new(*seed, false).without_fences().run().is_err());
    assert!(broken.take(3).count() == 3, "hardly any history needs the fence");
}

/// The same histories again and again: a seed is worth something only if it replays.
#[test]
fn a_seed_replays() {
    for seed in 0..20 {
        let digest = |seed| {
            let mut world = World::new(seed, false);
            world.run().unwrap();
            world.digest()
        };
        assert_eq!(digest(seed), digest(seed), "seed {seed}");
    }
}

/// Without any fault nothing moves: every node has a subnet within seconds and keeps it for a simulated day.
#[test]
fn a_calm_day_moves_nothing() {
    for seed in 0..20 {
        let mut world = World::calm(seed, Calm::Day);
        world.run().unwrap();
        assert!(
            world.claims() <= world.nodes() * 4,
            "seed {seed}: {} claims",
            world.claims()
        );
    }
}

/// Not a sample but every history of two or three nodes and two subnets within each of these bounds: about a million
/// moments.
#[test]
fn every_short_history_holds() {
    let three = Bounds {
        nodes: 3,
        steps: 1,
        ..Bounds::default()
    };
    let two = Bounds {
        nodes: 2,
        steps: 2,
        ..Bounds::default()
    };
    let all = [
        Bounds { crashes: 1, ..three },
        Bounds { losses: 1, ..three },
        Bounds { steps: 4, ..two },
        Bounds {
            losses: 1,
            late: 1,
            ..two
        },
        Bounds { deletions: 1, ..two },
        Bounds {
            dual: true,
            steps: 0,
            losses: 1,
            late: 1,
            ..two
        },
        Bounds {
            forgeries: 1,
            steps: 1,
            ..two
        },
        Bounds {
            nodes: 1,
            steps: 4,
            losses: 1,
            forgeries: 3,
            ..Bounds::default()
        },
    ];
    std::thread::scope(|scope| {
        for bounds in all {
            scope.spawn(move || {
                let states = search(bounds, true).unwrap_or_else(|problem| panic!("{bounds:?}: {problem}"));
                println!("{states} moments: {bounds:?}");
                assert!(states > 10_000, "{bounds:?} reach hardly anything: {states}");
            });
        }
    });
}

/// The model check must be able to fail as well.
#[test]
fn the_model_check_finds_out_a_store_without_fences() {
    let bounds = Bounds {
        nodes: 2,
        ..Bounds::default()
    };
    let problem = search(bounds, false).unwrap_err();
    assert!(problem.contains("of somebody else"), "{problem}");
}
