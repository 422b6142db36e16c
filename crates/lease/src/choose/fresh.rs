//! A subnet that nobody holds.

use std::collections::HashMap;
use std::time::Duration;

use flannel_model::{Pool, Subnet};

use super::taken::TakenOf;
use crate::used::HOLD_DOWN;

/// flannel picks at random among the first hundred free subnets, which makes two nodes that start together rarely meet.
const WINDOW: usize = 100;

/// One that was never in use, at random among the first hundred; else the one that was out of use the longest. One that
/// was in use within [`HOLD_DOWN`] comes last, because old pods of it may still be known somewhere.
pub(super) fn fresh<S: Subnet>(
    pool: &Pool<S>,
    taken: &TakenOf<S>,
    used: &HashMap<S, Duration>,
    random: u64,
) -> Option<S> {
    let free = || pool.subnets().filter(|subnet| taken.is_free(subnet));
    let never: Vec<S> = free()
        .filter(|subnet| !used.contains_key(subnet))
        .take(WINDOW)
        .collect();
    if let Some(subnet) = pick(&never, random) {
        return Some(subnet);
    }
    let mut before: Vec<(Duration, S)> = free()
        .filter_map(|subnet| Some((*used.get(&subnet)?, subnet)))
        .collect();
    before.sort_by(|one, other| other.0.cmp(&one.0).then(one.1.cmp(&other.1)));
    let rested: Vec<S> = before
        .iter()
        .take_while(|(idle, _)| *idle >= HOLD_DOWN)
        .map(|(_, subnet)| *subnet)
        .collect();
    // The longest free, give or take: a few to pick from keep two nodes that start together apart.
    let longest = rested.len().div_ceil(4).min(WINDOW);
    pick(rested.get(..longest).unwrap_or_default(), random).or_else(|| before.first().map(|(_, s)| *s))
}

fn pick<S: Copy>(among: &[S], random: u64) -> Option<S> {
    let index = usize::try_from(random % among.len().max(1) as u64).unwrap_or(0);
    among.get(index).copied()
}
