//! Endpoints by number: a random number below their count picks one.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use flannel_model::Scheduler;

use crate::service::frontend::Backend;

/// Most slots of one side of a frontend. Weights are scaled down to fit; so many endpoints without weights fit exactly.
pub const MOST_SLOTS: usize = 4096;
/// Slots among which weights are shared out when their greatest common divisor leaves more: shares are exact to 1/256.
const WEIGHTED_SLOTS: u64 = 256;

/// The endpoints that take new connections, each as often as its weight asks for, in the order of their addresses.
pub(super) fn wanted(backends: &[Backend], scheduler: &Scheduler) -> Vec<SocketAddr> {
    let taking: Vec<&Backend> = backends.iter().filter(|b| b.weight > 0).collect();
    let mut out = match scheduler.as_str() {
        // these go by turns whatever the weights are (ip_vs_rr.c, ip_vs_lc.c, ip_vs_dh.c); 0 takes none with them, too
        "rr" | "lc" | "dh" => taking.iter().map(|b| b.address).collect(),
        // the one with the highest weight that is there (ip_vs_fo.c)
        "fo" => failover(&taking).into_iter().collect(),
        _ => weighted(&taking),
    };
    out.truncate(MOST_SLOTS);
    out
}

fn failover(taking: &[&Backend]) -> Option<SocketAddr> {
    let highest = taking.iter().map(|b| b.weight).max()?;
    taking.iter().find(|b| b.weight == highest).map(|b| b.address)
}

fn weighted(taking: &[&Backend]) -> Vec<SocketAddr> {
    let divisor = taking.iter().fold(0, |d, b| gcd(d, b.weight)).max(1);
    let sum: u64 = taking.iter().map(|b| u64::from(b.weight / divisor)).sum();
    let room = WEIGHTED_SLOTS.max(u64::try_from(taking.len()).unwrap_or(u64::MAX));
    let count = |b: &Backend| {
        let share = u64::from(b.weight / divisor);
        let scaled = if sum <= room {
            share
        } else {
            (share * room + sum / 2) / sum
        };
        usize::try_from(scaled.max(1)).unwrap_or(1)
    };
    taking
        .iter()
        .flat_map(|b| std::iter::repeat_n(b.address, count(b)))
        .collect()
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// `wanted` in an order in which as many as can keep the slot that they have in `old`.
pub(super) fn keep_places(old: &[SocketAddr], wanted: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let length = wanted.len();
    let mut missing: BTreeMap<SocketAddr, usize> = BTreeMap::new();
    for address in wanted {
        *missing.entry(address).or_default() += 1;
    }
    let mut slots: Vec<Option<SocketAddr>> = vec![None; length];
    for (slot, address) in slots.iter_mut().zip(old) {
        if let Some(count) = missing.get_mut(address)
            && *count > 0
        {
            *count -= 1;
            *slot = Some(*address);
        }
    }
    let mut rest = missing
        .into_iter()
        .flat_map(|(address, count)| std::iter::repeat_n(address, count));
    slots
        .into_iter()
        .filter_map(|slot| slot.or_else(|| rest.next()))
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn at(n: u8) -> SocketAddr {
        SocketAddr::from(([10, 5, 1, n], 8080))
    }

    fn backends(weights: &[u32]) -> Vec<Backend> {
        let one = |(n, weight): (usize, &u32)| Backend {
            address: at(u8::try_from(n).unwrap()),
            weight: *weight,
            local: false,
        };
        weights.iter().enumerate().map(one).collect()
    }

    fn counts(scheduler: &str, weights: &[u32]) -> Vec<usize> {
        let slots = wanted(&backends(weights), &scheduler.parse().unwrap());
        let count = |n| {
            slots
                .iter()
                .filter(|s| **s == at(u8::try_from(n).unwrap()))
                .count()
        };
        (0..weights.len()).map(count).collect()
    }

    #[test]
    fn weights_are_shares_where_the_scheduler_knows_weights() {
        assert_eq!(counts("rr", &[1, 5, 0]), [1, 1, 0]);
        assert_eq!(counts("wrr", &[100, 300, 0]), [1, 3, 0]);
        assert_eq!(counts("wlc", &[1, 2, 3]), [1, 2, 3]);
        assert_eq!(counts("fo", &[1, 7, 7]), [0, 1, 0]);
        assert_eq!(counts("wrr", &[65535, 1]), [256, 1], "a small share is not lost");
        assert_eq!(counts("wrr", &[0, 0]), [0, 0]);
    }

    proptest! {
        #[test]
        fn places_are_kept_and_nothing_is_lost(old in vec(0u8..12, 0..20), new in vec(0u8..12, 0..20)) {
            let (old, mut new): (Vec<_>, Vec<_>) = (old.into_iter().map(at).collect(), new.into_iter().map(at).collect());
            let mut slots = keep_places(&old, new.clone());
            let moved = slots.iter().zip(&old).filter(|(a, b)| a != b && new.iter().filter(|n| n == b).count() > old.iter().filter(|o| o == b).count()).count();
            prop_assert_eq!(moved, 0, "one that was wanted more often than it stood there was moved");
            prop_assert_eq!(&keep_places(&slots, new.clone()), &slots, "a second pass moves nothing");
            slots.sort();
            new.sort();
            prop_assert_eq!(slots, new);
        }
    }
}
