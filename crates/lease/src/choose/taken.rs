//! What is not free any more.

use std::collections::{BTreeSet, HashSet};

use flannel_model::{Families, Ipv4Pool, Ipv4Subnet, Ipv6Pool, Ipv6Subnet, LeaseKey, Pool, Subnet};

/// What is taken in both families.
pub(super) struct Taken {
    pub ipv4: TakenOf<Ipv4Subnet>,
    pub ipv6: TakenOf<Ipv6Subnet>,
}

impl Taken {
    pub(super) fn new<'a>(
        keys: impl Iterator<Item = &'a LeaseKey> + Clone,
        pools: &Families<Ipv4Pool, Ipv6Pool>,
    ) -> Self {
        Self {
            ipv4: TakenOf::new(keys.clone().filter_map(LeaseKey::ipv4), pools.ipv4()),
            ipv6: TakenOf::new(keys.filter_map(LeaseKey::ipv6), pools.ipv6()),
        }
    }
}

pub(super) struct TakenOf<S> {
    same_length: HashSet<S>,
    other_lengths: BTreeSet<S>,
}

impl<S: Subnet> TakenOf<S> {
    fn new(subnets: impl Iterator<Item = S>, pool: Option<&Pool<S>>) -> Self {
        let usual = pool.map(Pool::subnet_len);
        let (same_length, other_lengths): (Vec<_>, Vec<_>) =
            subnets.partition(|subnet| Some(subnet.length()) == usual);
        Self {
            same_length: same_length.into_iter().collect(),
            other_lengths: other_lengths.into_iter().collect(),
        }
    }

    pub(super) fn is_free(&self, subnet: &S) -> bool {
        !self.same_length.contains(subnet) && !self.other_lengths.iter().any(|other| other.overlaps(subnet))
    }
}
