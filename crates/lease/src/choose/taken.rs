//! What is not free any more.

use std::collections::{BTreeSet, HashSet};

use flannel_model::{Families, Ipv4Pool, Ipv4Subnet, Ipv6Pool, Ipv6Subnet, LeaseKey, Pool, Subnet};

use crate::Record;

/// What is taken in both families. A record counts by its key, whatever its value: a lease that we cannot read is still
/// somebody's.
pub(super) struct Taken {
    pub ipv4: TakenOf<Ipv4Subnet>,
    pub ipv6: TakenOf<Ipv6Subnet>,
}

impl Taken {
    pub(super) fn new(records: &[Record], pools: &Families<Ipv4Pool, Ipv6Pool>) -> Self {
        let keys: Vec<LeaseKey> = records
            .iter()
            .filter_map(|record| record.key.parse().ok())
            .collect();
        Self {
            ipv4: TakenOf::new(keys.iter().filter_map(LeaseKey::ipv4), pools.ipv4()),
            ipv6: TakenOf::new(keys.iter().filter_map(LeaseKey::ipv6), pools.ipv6()),
        }
    }

    /// Whether nobody has any part of it.
    pub(super) fn is_free(&self, key: &LeaseKey) -> bool {
        key.ipv4().is_none_or(|subnet| self.ipv4.is_free(&subnet))
            && key.ipv6().is_none_or(|subnet| self.ipv6.is_free(&subnet))
    }
}

pub(super) struct TakenOf<S> {
    same_length: HashSet<S>,
    other_lengths: BTreeSet<S>,
}

impl<S: Subnet> TakenOf<S> {
    /// Keys that reach beyond the Network are nobody's: else one of them would take the whole pool away.
    fn new(subnets: impl Iterator<Item = S>, pool: Option<&Pool<S>>) -> Self {
        let Some(pool) = pool else {
            return Self {
                same_length: HashSet::new(),
                other_lengths: BTreeSet::new(),
            };
        };
        let inside = subnets.filter(|s| pool.network.contains(s) && s.length() > pool.network.length());
        let (same_length, other_lengths): (Vec<_>, Vec<_>) =
            inside.partition(|s| s.length() == pool.subnet_len());
        Self {
            same_length: same_length.into_iter().collect(),
            other_lengths: other_lengths.into_iter().collect(),
        }
    }

    pub(super) fn is_free(&self, subnet: &S) -> bool {
        !self.same_length.contains(subnet) && !self.other_lengths.iter().any(|other| other.overlaps(subnet))
    }
}
