//! What a record must be like to become a peer.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use flannel_model::{Families, Ipv4Pool, Ipv4Subnet, Ipv6Pool, Ipv6Subnet, LeaseKey, Pool, Subnet};

use super::{Peer, RejectReason};
use crate::Identity;

/// An address that no peer's subnet may cover, and what it is.
pub type Protected = (IpAddr, &'static str);

/// What a record is checked against.
#[derive(Debug, Clone, Copy)]
pub struct Limits<'a> {
    /// The pools of the network config.
    pub pools: &'a Families<Ipv4Pool, Ipv6Pool>,
    /// Our own lease.
    pub own: &'a LeaseKey,
    /// Who we are.
    pub identity: &'a Identity,
    /// Subnets that this node lost while pods lived in them.
    pub stranded: &'a [LeaseKey],
    /// Addresses that must be reached as they are: etcd, the node's own.
    pub protected: &'a [Protected],
}

/// The names of one family's fields in the network config.
struct Names {
    network: &'static str,
    length: &'static str,
    bounds: &'static str,
}

const IPV4: Names = Names {
    network: "Network",
    length: "SubnetLen",
    bounds: "SubnetMin and SubnetMax",
};
const IPV6: Names = Names {
    network: "IPv6Network",
    length: "IPv6SubnetLen",
    bounds: "IPv6SubnetMin and IPv6SubnetMax",
};

pub(super) fn objection(peer: &Peer, limits: &Limits<'_>) -> Option<RejectReason> {
    let ipv4 = peer.key.ipv4().zip(limits.pools.ipv4());
    let ipv6 = peer.key.ipv6().zip(limits.pools.ipv6());
    if ipv4.is_none() && ipv6.is_none() {
        return Some(RejectReason::Families);
    }
    in_pool(ipv4, limits.own.ipv4(), &IPV4)
        .or_else(|| in_pool(ipv6, limits.own.ipv6(), &IPV6))
        .or_else(|| owner(peer, limits))
        .or_else(|| address_v4(peer, ipv4?.1))
        .or_else(|| address_v6(peer, ipv6?.1))
        .or_else(|| covered(peer, limits))
        .or_else(|| stranded(peer, limits))
}

fn in_pool<S: Subnet>(given: Option<(S, &Pool<S>)>, own: Option<S>, names: &Names) -> Option<RejectReason> {
    let (subnet, pool) = given?;
    if !pool.network.contains(&subnet) {
        return Some(RejectReason::OutsideNetwork {
            field: names.network,
            network: pool.network.to_string(),
        });
    }
    if own.is_some_and(|own| own.overlaps(&subnet)) {
        return Some(RejectReason::OwnSubnet);
    }
    if subnet.length() != pool.subnet_len() {
        return Some(RejectReason::Length {
            field: names.length,
            length: pool.subnet_len(),
        });
    }
    (!pool.offers(&subnet)).then(|| RejectReason::NotHandedOut {
        fields: names.bounds,
        min: pool.subnet_min.to_string(),
        max: pool.subnet_max.to_string(),
    })
}

fn owner(peer: &Peer, limits: &Limits<'_>) -> Option<RejectReason> {
    let owner = Identity::of(&peer.value);
    if limits.identity.is(&owner) {
        return Some(RejectReason::OwnLease);
    }
    let same = limits.identity.same_address(&owner);
    same.then_some(RejectReason::OwnAddress(owner))
}

fn address_v4(peer: &Peer, pool: &Pool<Ipv4Subnet>) -> Option<RejectReason> {
    let address = peer.value.public_ip;
    let what = unusable_v4(address, &pool.network)?;
    Some(RejectReason::Address(address.into(), what))
}

fn unusable_v4(address: Ipv4Addr, network: &Ipv4Subnet) -> Option<&'static str> {
    first([
        (address.octets()[0] == 0, "unspecified"),
        (address.is_loopback(), "a loopback address"),
        (address.is_multicast(), "a multicast address"),
        (address.octets()[0] >= 240, "a reserved or the broadcast address"),
        (address.is_link_local(), "a link-local address"),
        (network.holds(address), "inside the pod Network"),
    ])
}

fn address_v6(peer: &Peer, pool: &Pool<Ipv6Subnet>) -> Option<RejectReason> {
    let Some(address) = peer.value.public_ipv6 else {
        let missing = "missing although the lease has an IPv6 subnet";
        return Some(RejectReason::Address(Ipv6Addr::UNSPECIFIED.into(), missing));
    };
    let what = unusable_v6(address, &pool.network)?;
    Some(RejectReason::Address(address.into(), what))
}

fn unusable_v6(address: Ipv6Addr, network: &Ipv6Subnet) -> Option<&'static str> {
    first([
        (address.is_unspecified(), "unspecified"),
        (address.is_loopback(), "a loopback address"),
        (address.is_multicast(), "a multicast address"),
        (address.is_unicast_link_local(), "a link-local address"),
        (address.to_ipv4_mapped().is_some(), "an IPv4 address in disguise"),
        (network.holds(address), "inside the pod IPv6Network"),
    ])
}

fn first<const N: usize>(cases: [(bool, &'static str); N]) -> Option<&'static str> {
    cases.into_iter().find_map(|(holds, what)| holds.then_some(what))
}

fn covered(peer: &Peer, limits: &Limits<'_>) -> Option<RejectReason> {
    let covers = |address: IpAddr| match address {
        IpAddr::V4(v4) => peer.key.ipv4().is_some_and(|subnet| subnet.holds(v4)),
        IpAddr::V6(v6) => peer.key.ipv6().is_some_and(|subnet| subnet.holds(v6)),
    };
    let (address, what) = limits.protected.iter().find(|(address, _)| covers(*address))?;
    Some(RejectReason::Covers(*address, what))
}

fn stranded(peer: &Peer, limits: &Limits<'_>) -> Option<RejectReason> {
    let same = |lost: &LeaseKey| lost.overlaps(&peer.key);
    limits.stranded.iter().any(same).then_some(RejectReason::Stranded)
}
