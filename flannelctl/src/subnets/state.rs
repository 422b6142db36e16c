//! How the records of leases stand, each beside the others.

use std::collections::{HashMap, HashSet};
use std::fmt;

use flannel_model::{Families, Ipv4Pool, Ipv6Pool, LeaseKey, Subnet};
use serde::Serialize;

use super::record::{Listing, Record};

/// A lease that has less than this part of its lifetime left was not renewed when it should have been: flannel renews an hour
/// before the end of 24, ours every few minutes.
const LATE: u32 = 24;

/// How a record stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// A node holds it.
    Held,
    /// It waits for its node.
    Reserved,
    /// It was not renewed in time: the node is down or cut off.
    Expiring,
    /// The node holds another one as well.
    Duplicate,
    /// It shares addresses with an older one.
    Overlap,
    /// The network config does not offer it.
    Outside,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Held => "held",
            Self::Reserved => "reserved",
            Self::Expiring => "expiring",
            Self::Duplicate => "duplicate",
            Self::Overlap => "overlap",
            Self::Outside => "outside",
        })
    }
}

/// How each of the records stands, in their order.
pub fn states(listing: &Listing) -> Vec<State> {
    let mut held: HashMap<String, usize> = HashMap::new();
    for record in listing.records.iter().filter(|record| record.is_in_use()) {
        *held.entry(record.owner()).or_default() += 1;
    }
    let shadowed = shadowed(&listing.records);
    let state = |record: &Record| {
        if shadowed.contains(&record.key) {
            State::Overlap
        } else if listing
            .pools
            .as_ref()
            .is_some_and(|pools| !offers(pools, &record.key))
        {
            State::Outside
        } else if !record.is_in_use() {
            State::Reserved
        } else if held.get(&record.owner()).is_some_and(|count| *count > 1) {
            State::Duplicate
        } else if is_late(record) {
            State::Expiring
        } else {
            State::Held
        }
    };
    listing.records.iter().map(state).collect()
}

fn is_late(record: &Record) -> bool {
    let late =
        |life: super::record::Lifetime| life.left == 0 || life.left.saturating_mul(LATE) < life.granted;
    record.lifetime.is_some_and(late)
}

/// The leases that share addresses with an older one.
fn shadowed(records: &[Record]) -> HashSet<LeaseKey> {
    let mut ipv4: Vec<_> = records
        .iter()
        .filter_map(|record| Some((record.key.ipv4()?, record)))
        .collect();
    let mut ipv6: Vec<_> = records
        .iter()
        .filter_map(|record| Some((record.key.ipv6()?, record)))
        .collect();
    let mut found = HashSet::new();
    younger_of_nested(&mut ipv4, &mut found);
    younger_of_nested(&mut ipv6, &mut found);
    found
}

/// Subnets are apart or one lies inside the other; in the order of their addresses, wide ones first, those that enclose a
/// subnet are the open ones.
fn younger_of_nested<S: Subnet>(subnets: &mut [(S, &Record)], found: &mut HashSet<LeaseKey>) {
    subnets.sort_by_key(|(subnet, record)| (subnet.network(), subnet.length(), record.kv.create_revision));
    let mut open: Vec<(S, &Record)> = Vec::new();
    for (subnet, record) in subnets.iter() {
        while open.last().is_some_and(|(outer, _)| !outer.contains(subnet)) {
            open.pop();
        }
        for (_, outer) in &open {
            let younger = if outer.kv.create_revision < record.kv.create_revision {
                record.key
            } else {
                outer.key
            };
            found.insert(younger);
        }
        open.push((*subnet, record));
    }
}

/// Whether the pools hand the subnets of a lease out. A lease from before the network had a second family is fine.
pub fn offers(pools: &Families<Ipv4Pool, Ipv6Pool>, key: &LeaseKey) -> bool {
    let ipv4 = key
        .ipv4()
        .is_none_or(|subnet| pools.ipv4().is_some_and(|pool| pool.offers(&subnet)));
    let ipv6 = key
        .ipv6()
        .is_none_or(|subnet| pools.ipv6().is_none_or(|pool| pool.offers(&subnet)));
    ipv4 && ipv6
}
