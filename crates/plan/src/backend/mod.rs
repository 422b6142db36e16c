//! The backends: how packets of pods travel from node to node.
//!
//! A backend is one file that turns facts into desired state, [`Backend::overlay`], and one line where the daemon reads the
//! network config. What compares with the kernel, writes and repairs knows no backend.

mod alloc;
mod host_gw;
mod ipip;
mod reject;
#[cfg(test)]
mod tests;
mod udp;
mod vxlan;
mod wireguard;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use flannel_lease::Peer as LeasePeer;
use flannel_model::{IpFamily, IpSubnet, LeaseKey};

use crate::device::Device;
use crate::overlay::{Carrier, DesiredOverlay, LinkKind, Sender, Tunnel, TunnelLink};

pub use alloc::Alloc;
pub use host_gw::HostGw;
pub use ipip::{IPIP_OVERHEAD, Ipip};
pub use reject::Reject;
pub use udp::{UDP_OVERHEAD_V4, UDP_OVERHEAD_V6, Udp, UdpPeer};
pub use vxlan::{Vxlan, overlay_mtu};
pub use wireguard::{Wireguard, is_global};

/// How packets of pods travel between nodes.
pub trait Backend: fmt::Debug + Send + Sync {
    /// The overlay of one family that follows from the facts, and the leases that are of no use to it. Of no use to one
    /// family does not say anything about the other.
    fn overlay(&self, facts: &FamilyFacts<'_>, peers: &[&LeasePeer]) -> (DesiredOverlay, Vec<Useless>);
}

/// A lease of no use to a backend, and why.
pub type Useless = (LeaseKey, Reject);

/// What a backend builds on, all of one family.
#[derive(Debug, Clone, Copy)]
pub struct FamilyFacts<'a> {
    /// The pool of all subnets.
    pub network: IpSubnet,
    /// The node's own subnet.
    pub own_subnet: IpSubnet,
    /// The interface towards the other nodes.
    pub carrier: Carrier,
    /// What that interface reaches without a router.
    pub connected: &'a [IpSubnet],
}

impl FamilyFacts<'_> {
    /// The family of the pods.
    pub fn family(&self) -> IpFamily {
        IpFamily::of(self.own_subnet.network())
    }

    /// Whether a node is on the same link.
    fn is_neighbour(&self, node: IpAddr) -> bool {
        self.connected.iter().any(|subnet| subnet.holds(node))
    }

    /// A tunnel device whose neighbours and FDB entries are still to come.
    fn tunnel(&self, device: Device, mtu: u32, kind: LinkKind) -> Tunnel {
        Tunnel {
            link: TunnelLink { device, mtu, kind },
            address: self.own_subnet.network(),
            neighbours: BTreeMap::new(),
            fdb: BTreeMap::new(),
            wireguard: None,
            senders: BTreeSet::new(),
            vteps: BTreeMap::new(),
        }
    }

    /// An overlay without tunnel and peers, whose pods send packets of `mtu` bytes.
    fn empty(&self, mtu: u32) -> DesiredOverlay {
        DesiredOverlay {
            network: self.network,
            own_subnet: self.own_subnet,
            mtu,
            tunnel: None,
            routes: BTreeMap::new(),
            blackholes: BTreeSet::new(),
            peers: 0,
        }
    }
}

/// A lease with what every backend needs of it.
#[derive(Debug, Clone, Copy)]
struct Reached<'a> {
    lease: &'a LeasePeer,
    subnet: IpSubnet,
    public_ip: IpAddr,
}

impl Reached<'_> {
    fn sender(&self) -> Sender {
        Sender {
            address: self.public_ip,
            subnet: self.subnet,
        }
    }
}

/// The leases of backend `name` with a subnet of the family, and those that are of no use. A lease without a subnet of the
/// family is none of that family, and is passed over.
fn reached<'a>(
    peers: &[&'a LeasePeer],
    family: IpFamily,
    name: &'static str,
) -> (Vec<Reached<'a>>, Vec<Useless>) {
    let mut found = Vec::with_capacity(peers.len());
    let mut useless = Vec::new();
    for lease in peers.iter().copied() {
        let Some(subnet) = subnet_of(lease, family) else {
            continue;
        };
        match public_ip(lease, family, name) {
            Ok(public_ip) => found.push(Reached {
                lease,
                subnet,
                public_ip,
            }),
            Err(reject) => useless.push((lease.key, reject)),
        }
    }
    (found, useless)
}

fn subnet_of(lease: &LeasePeer, family: IpFamily) -> Option<IpSubnet> {
    match family {
        IpFamily::V4 => lease.key.ipv4().map(IpSubnet::V4),
        IpFamily::V6 => lease.key.ipv6().map(IpSubnet::V6),
    }
}

fn public_ip(lease: &LeasePeer, family: IpFamily, name: &'static str) -> Result<IpAddr, Reject> {
    let theirs = lease.value.backend_type.as_deref();
    if theirs != Some(name) {
        return Err(Reject::OtherBackend {
            theirs: theirs.map(ToOwned::to_owned),
            ours: name,
        });
    }
    match family {
        IpFamily::V4 => Ok(lease.value.public_ip.into()),
        IpFamily::V6 => lease
            .value
            .public_ipv6
            .map(IpAddr::from)
            .ok_or(Reject::NoPublicIpv6),
    }
}
