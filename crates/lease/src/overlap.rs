//! Leases whose keys differ and that share addresses all the same: one half of two, or subnets of two lengths.

use flannel_model::{Families, Ipv4Pool, Ipv6Pool, LeaseKey, Pool, Subnet};

/// What of a key can take something away from others: subnets inside the Network, but not the whole of it, else one junk record
/// would take the pool away.
pub(crate) fn counted(key: &LeaseKey, pools: &Families<Ipv4Pool, Ipv6Pool>) -> Option<LeaseKey> {
    fn inside<S: Subnet>(subnet: Option<S>, pool: Option<&Pool<S>>) -> Option<S> {
        let network = &pool?.network;
        subnet.filter(|subnet| network.contains(subnet) && subnet.length() > network.length())
    }
    let ipv4 = inside(key.ipv4(), pools.ipv4());
    let ipv6 = inside(key.ipv6(), pools.ipv6());
    Families::new(ipv4, ipv6).map(LeaseKey::new)
}

/// Whether a lease of this key and others can share addresses only under one key, so that etcd itself keeps them apart.
pub(crate) fn only_as_one_key<'a>(key: &LeaseKey, mut others: impl Iterator<Item = &'a LeaseKey>) -> bool {
    let lengths = |key: &LeaseKey| (key.ipv4().map(|s| s.length()), key.ipv6().map(|s| s.length()));
    let dual = matches!(key.subnets(), Families::Dual(..));
    !dual && others.all(|other| lengths(other) == lengths(key))
}
